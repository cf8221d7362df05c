package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
)

// Pool is an active pool.
type Pool struct {
	Name      string // device-mapper's name of the device with the thin-pool target
	UUID      string // device-mapper's; empty for pools that were made without one
	Dev       DevNo
	VG, LV    string // LVM's names; empty for other pools
	SizeBytes int64  // of the data device, as far as the pool uses it
	BlockSize int64  // bytes of a pool block: 64 KiB to 1 GiB, multiple of 64 KiB
	Metadata  string // path of the metadata device
	Data      string // path of the data device
	Features  []string
}

// LVM says whether LVM manages the pool.
func (p Pool) LVM() bool { return p.VG != "" }

// ID names the pool on this host: its UUID where it has one, else its name. A pool without UUID that was made anew under
// the same name has the same ID: whoever relies on a device must compare its details in the metadata as well.
func (p Pool) ID() string {
	if p.UUID != "" {
		return p.UUID
	}
	return p.Name
}

// Volume is a thin volume.
type Volume struct {
	Name      string // "vg/lv" for LVM's, else device-mapper's name
	VG, LV    string // LVM's names; empty for others
	Device    string // device-mapper's name; empty when the volume is not active (LVM's only)
	DeviceID  uint32
	SizeBytes int64
	ReadOnly  bool // it is active and takes no writes
	Pool      Pool

	// ExternalOrigin is the number of a device outside the pool that shows where the volume has no mapping; usually empty.
	ExternalOrigin string
}

// Resolve finds a thin volume by device-mapper's name (home), by LVM's (vg0/home), or by any path of its block device
// (/dev/mapper/home, /dev/vg0/home, /dev/dm-3, /dev/disk/by-id/...). An LVM volume that is not active is found, too, as long
// as its pool is active. Errors: ErrNotFound, ErrNotThin, ErrInactive (the pool), and those of the commands.
func (h *Host) Resolve(ctx context.Context, name string) (Volume, error) {
	v, err := h.resolve(ctx, name)
	if err != nil {
		return Volume{}, fmt.Errorf("thin volume %s: %w", name, err)
	}
	return v, nil
}

func (h *Host) resolve(ctx context.Context, name string) (Volume, error) {
	vg, lv, isLVM := lvmName(name)
	var info deviceInfo
	var err error
	switch {
	case name == "":
		return Volume{}, ErrNotFound
	case strings.HasPrefix(name, "/"):
		info, err = h.infoByPath(ctx, name)
	case isLVM:
		info, err = h.infoByName(ctx, mangleLVM(vg, lv))
	default:
		info, err = h.infoByName(ctx, name)
	}
	if isLVM && errors.Is(err, ErrNotFound) {
		return h.resolveInactive(ctx, vg, lv)
	}
	if err != nil {
		return Volume{}, err
	}
	return h.activeVolume(ctx, info)
}

// activeVolume reads the tables of a thin device and of its pool.
func (h *Host) activeVolume(ctx context.Context, info deviceInfo) (Volume, error) {
	out, err := h.dmsetup(ctx, "table", "--", info.name)
	if err != nil {
		return Volume{}, err
	}
	t, err := parseThinTable(out)
	if err != nil {
		return Volume{}, err
	}
	poolInfo, err := h.infoByDev(ctx, t.pool)
	if err != nil {
		return Volume{}, fmt.Errorf("its pool %s: %w", t.pool, err)
	}
	p, err := h.pool(ctx, poolInfo)
	if err != nil {
		return Volume{}, err
	}
	v := Volume{Name: info.name, Device: info.name, DeviceID: t.deviceID, SizeBytes: t.sizeBytes, ReadOnly: info.readOnly,
		Pool: p, ExternalOrigin: t.externalOrigin}
	if parts := splitLVM(info.name); info.lvm() && len(parts) == 2 {
		v.VG, v.LV = parts[0], parts[1]
		v.Name = v.VG + "/" + v.LV
	}
	return v, nil
}

// Open finds an active pool by device-mapper's name, by LVM's (vg0/pool0) or by its path.
func (h *Host) Open(ctx context.Context, name string) (Pool, error) {
	var info deviceInfo
	var err error
	if vg, lv, ok := lvmName(name); ok {
		info, err = h.infoByName(ctx, mangleLVM(vg, lv)+"-tpool")
	} else if strings.HasPrefix(name, "/") {
		info, err = h.infoByPath(ctx, name)
	} else {
		info, err = h.infoByName(ctx, name)
	}
	if err != nil {
		return Pool{}, fmt.Errorf("pool %s: %w", name, err)
	}
	p, err := h.pool(ctx, info)
	if err != nil {
		return Pool{}, fmt.Errorf("pool %s: %w", name, err)
	}
	return p, nil
}

func (h *Host) pool(ctx context.Context, info deviceInfo) (Pool, error) {
	out, err := h.dmsetup(ctx, "table", "--", info.name)
	if err != nil {
		return Pool{}, err
	}
	t, err := parsePoolTable(out)
	if err != nil {
		return Pool{}, fmt.Errorf("%s is no pool: %w", info.name, err)
	}
	p := Pool{Name: info.name, UUID: info.uuid, Dev: info.dev, SizeBytes: t.sizeBytes, BlockSize: t.blockBytes, Features: t.features}
	if parts := splitLVM(info.name); info.lvm() && len(parts) == 3 && parts[2] == "tpool" {
		p.VG, p.LV = parts[0], parts[1]
	}
	if p.Metadata, err = h.node(t.metadata); err != nil {
		return Pool{}, fmt.Errorf("metadata device of pool %s: %w", info.name, err)
	}
	if p.Data, err = h.node(t.data); err != nil {
		return Pool{}, fmt.Errorf("data device of pool %s: %w", info.name, err)
	}
	return p, nil
}

// infoByPath finds the device behind a path of a block device, whatever link leads there.
func (h *Host) infoByPath(ctx context.Context, name string) (deviceInfo, error) {
	dev, err := deviceOf(name)
	if errors.Is(err, os.ErrNotExist) {
		if dir, base := path.Split(path.Clean(name)); dir == "/dev/mapper/" {
			return h.infoByName(ctx, base) // active, but its node is missing, as in some containers
		}
		return deviceInfo{}, ErrNotFound
	}
	if err != nil {
		return deviceInfo{}, err
	}
	info, err := h.infoByDev(ctx, dev)
	if errors.Is(err, ErrNotFound) {
		return deviceInfo{}, fmt.Errorf("device %s is not device-mapper's: %w", dev, ErrNotThin)
	}
	return info, err
}
