package pool

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// lvmTag marks the snapshots that this package made: `lvs @shale` lists them.
const lvmTag = "shale"

// lvmName takes "vg/lv" or "/dev/vg/lv" apart.
func lvmName(name string) (vg, lv string, ok bool) {
	if rest, found := strings.CutPrefix(name, "/dev/"); found {
		name = rest
	} else if strings.HasPrefix(name, "/") {
		return "", "", false
	}
	vg, lv, ok = strings.Cut(name, "/")
	if !ok || vg == "" || lv == "" || vg == "mapper" || vg == "disk" || vg == "block" || strings.Contains(lv, "/") {
		return "", "", false
	}
	return vg, lv, true
}

// mangleLVM makes device-mapper's name of LVM's: parts are joined by a hyphen, hyphens inside them doubled.
func mangleLVM(vg, lv string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(vg) + "-" + double(lv)
}

// splitLVM undoes mangleLVM: "vg--a-tp-tpool" is vg-a, tp, tpool.
func splitLVM(name string) []string {
	var parts []string
	var part strings.Builder
	for i := 0; i < len(name); i++ {
		switch {
		case name[i] != '-':
			part.WriteByte(name[i])
		case i+1 < len(name) && name[i+1] == '-':
			part.WriteByte('-')
			i++
		default:
			parts = append(parts, part.String())
			part.Reset()
		}
	}
	return append(parts, part.String())
}

// logicalVolume is a thin volume as `lvs` shows it.
type logicalVolume struct {
	poolLV    string
	deviceID  uint32
	sizeBytes int64
	tags      []string
}

// lvs asks LVM for a thin volume, active or not.
func (h *Host) lvs(ctx context.Context, vg, lv string) (logicalVolume, error) {
	out, err := h.cmd.run(ctx, command{name: "lvs", args: []string{
		"--noheadings", "--separator", "|", "--units", "b", "--nosuffix", "-o", "pool_lv,thin_id,lv_size,lv_tags", "--", vg + "/" + lv}})
	if err != nil {
		return logicalVolume{}, err
	}
	return parseLogicalVolume(out)
}

// parseLogicalVolume reads "  tp|2|104857600|shale".
func parseLogicalVolume(out string) (logicalVolume, error) {
	f := strings.Split(strings.TrimSpace(out), "|")
	if len(f) != 4 {
		return logicalVolume{}, fmt.Errorf("lvs %q is not understood", strings.TrimSpace(out))
	}
	if f[0] == "" || f[1] == "" {
		return logicalVolume{}, ErrNotThin
	}
	id, err := parseDeviceID(f[1])
	size, ok := parseCount(f[2])
	if err != nil || !ok || size > 1<<62 {
		return logicalVolume{}, fmt.Errorf("lvs %q is not understood", strings.TrimSpace(out))
	}
	l := logicalVolume{poolLV: f[0], deviceID: id, sizeBytes: int64(size)}
	if f[3] != "" {
		l.tags = strings.Split(f[3], ",")
	}
	return l, nil
}

// resolveInactive finds a volume that device-mapper does not know, as most thin snapshots are.
func (h *Host) resolveInactive(ctx context.Context, vg, lv string) (Volume, error) {
	l, err := h.lvs(ctx, vg, lv)
	if err != nil {
		return Volume{}, err
	}
	p, err := h.Open(ctx, vg+"/"+l.poolLV)
	if err != nil {
		return Volume{}, fmt.Errorf("%w: %w", ErrInactive, err)
	}
	return Volume{Name: vg + "/" + lv, VG: vg, LV: lv, DeviceID: l.deviceID, SizeBytes: l.sizeBytes, Pool: p}, nil
}

// maxLVName is how long names of snapshots get: LVM allows 127 bytes for the whole of device-mapper's name, hyphens doubled.
const maxLVName = 60

// snapshotName is a name for a snapshot of an LVM volume.
func snapshotName(lv, unique string) string {
	name := "shale-" + lv
	if keep := maxLVName - len(unique) - 1; len(name) > keep {
		name = name[:keep]
	}
	return name + "-" + unique
}

// createLV takes the snapshot vg/name of vg/lv. lvcreate freezes the file system itself. It is never killed half way: it
// would leave the volume suspended and LVM's metadata ahead of the pool's.
func (h *Host) createLV(ctx context.Context, vg, lv, name string) (logicalVolume, error) {
	if err := ctx.Err(); err != nil {
		return logicalVolume{}, err
	}
	ctx = context.WithoutCancel(ctx)
	_, err := h.cmd.run(ctx, command{name: "lvcreate", args: []string{
		"--quiet", "--yes", "--snapshot", "--name", name, "--permission", "r", "--setactivationskip", "y", "--activate", "n",
		"--addtag", lvmTag, "--", vg + "/" + lv}}.withTimeout(writeTimeout))
	if err != nil {
		return logicalVolume{}, err
	}
	return h.lvs(ctx, vg, name)
}

// removeLV removes a snapshot that createLV made; it refuses any other volume.
func (h *Host) removeLV(ctx context.Context, vg, lv string) error {
	l, err := h.lvs(ctx, vg, lv)
	if err != nil {
		return err
	}
	if !slices.Contains(l.tags, lvmTag) {
		return fmt.Errorf("%s/%s has no tag %s, so it is not ours: %w", vg, lv, lvmTag, ErrUnsupported)
	}
	_, err = h.cmd.run(context.WithoutCancel(ctx), command{name: "lvremove", args: []string{"--quiet", "--yes", "--", vg + "/" + lv}})
	return err
}
