package pool

import (
	"fmt"
	"strconv"
	"strings"
)

const sectorSize = 512 // bytes; the unit of device-mapper's tables

// target is one line of `dmsetup table` or `dmsetup status`: start, length, type and the type's own arguments.
type target struct {
	lenSectors int64
	kind       string
	args       []string
}

// parseTarget reads the output for a device that has exactly one target, as thin devices and pools do.
func parseTarget(out string) (target, error) {
	line := strings.TrimSpace(out)
	if strings.ContainsRune(line, '\n') {
		return target{}, fmt.Errorf("several targets: %w", ErrNotThin)
	}
	f := strings.Fields(line)
	if len(f) < 3 {
		return target{}, fmt.Errorf("no target in %q: %w", line, ErrInactive)
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil || n < 0 || n > 1<<62/sectorSize {
		return target{}, fmt.Errorf("length of the target in %q", line)
	}
	return target{lenSectors: n, kind: f[2], args: f[3:]}, nil
}

// DevNo is a device's number, written major:minor as in tables.
type DevNo struct{ Major, Minor uint32 }

func (d DevNo) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

func parseDevNo(s string) (DevNo, error) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return DevNo{}, fmt.Errorf("%q is no device number", s)
	}
	return DevNo{uint32(major), uint32(minor)}, nil
}

// maxDeviceID is dm-thin's limit: 24 bits (dm-thin.c, MAX_DEV_ID).
const maxDeviceID = 1<<24 - 1

// thinTable is the table of a thin device.
type thinTable struct {
	sizeBytes      int64
	pool           DevNo
	deviceID       uint32
	externalOrigin string // device number of a read-only device that shows where nothing is mapped; usually none
}

// parseThinTable reads `dmsetup table` of a thin device: "0 409600 thin 253:2 1".
func parseThinTable(out string) (thinTable, error) {
	t, err := parseTarget(out)
	if err != nil {
		return thinTable{}, err
	}
	if t.kind != "thin" {
		return thinTable{}, fmt.Errorf("its target is %s: %w", t.kind, ErrNotThin)
	}
	if len(t.args) < 2 {
		return thinTable{}, fmt.Errorf("thin table %q is too short", strings.TrimSpace(out))
	}
	dev, err := parseDevNo(t.args[0])
	if err != nil {
		return thinTable{}, fmt.Errorf("pool of the thin table: %w", err)
	}
	id, err := parseDeviceID(t.args[1])
	if err != nil {
		return thinTable{}, err
	}
	tt := thinTable{sizeBytes: t.lenSectors * sectorSize, pool: dev, deviceID: id}
	if len(t.args) > 2 {
		tt.externalOrigin = t.args[2]
	}
	return tt, nil
}

func parseDeviceID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id > maxDeviceID {
		return 0, fmt.Errorf("%q is no thin device ID", s)
	}
	return uint32(id), nil
}

// poolTable is the table of a pool.
type poolTable struct {
	sizeBytes      int64
	metadata, data DevNo
	blockBytes     int64
	features       []string
}

// parsePoolTable reads `dmsetup table` of a pool: "0 614400 thin-pool 7:0 7:1 128 0 1 skip_block_zeroing".
func parsePoolTable(out string) (poolTable, error) {
	t, err := parseTarget(out)
	if err != nil {
		return poolTable{}, err
	}
	if t.kind != "thin-pool" {
		return poolTable{}, fmt.Errorf("its target is %s: %w", t.kind, ErrNotThin)
	}
	if len(t.args) < 4 {
		return poolTable{}, fmt.Errorf("thin-pool table %q is too short", strings.TrimSpace(out))
	}
	meta, err1 := parseDevNo(t.args[0])
	data, err2 := parseDevNo(t.args[1])
	block, err3 := strconv.ParseInt(t.args[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || block < 128 || block > 1<<21 || block%128 != 0 { // dm-thin.c: 64 KiB to 1 GiB
		return poolTable{}, fmt.Errorf("thin-pool table %q is not understood", strings.TrimSpace(out))
	}
	pt := poolTable{sizeBytes: t.lenSectors * sectorSize, metadata: meta, data: data, blockBytes: block * sectorSize}
	if len(t.args) > 5 {
		pt.features = t.args[5:]
	}
	return pt, nil
}
