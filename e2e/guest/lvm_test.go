package guest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin/pool"
)

// TestLVM: volumes are found by LVM's names, snapshots are LVM's own, and LVM agrees with the pool afterwards.
func TestLVM(t *testing.T) {
	NewVG(t, "vg-a", 200, "128M")
	Run(t, "lvcreate", "-q", "-y", "-V", "64M", "-T", "vg-a/tp", "-n", "my-vol")
	mnt := Ext4(t, "/dev/vg-a/my-vol")
	if err := os.WriteFile(mnt+"/file", []byte("in the snapshot\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	v := resolveLVM(t, h)

	snap, err := h.Snapshot(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if suspended(t, "vg--a-my--vol") {
		t.Error("the volume is left suspended")
	}
	s := mustResolve(t, h, "vg-a/"+snap.LV)
	if s.Device != "" || s.DeviceID != snap.DeviceID || s.SizeBytes != v.SizeBytes || s.Pool.ID() != v.Pool.ID() {
		t.Errorf("snapshot %s, inactive, resolves to %+v", snap.LV, s)
	}
	dev, err := h.Activate(t.Context(), s.Pool, s.DeviceID, s.SizeBytes, "")
	if err != nil {
		t.Fatal(err)
	}
	if sb := Run(t, "dumpe2fs", "-h", dev.Path); strings.Contains(sb, "needs_recovery") {
		t.Error("the snapshot's journal needs replay: the file system was not frozen")
	}
	if err := dev.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := h.Reserve(t.Context(), v.Pool)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := snap.Keep(); err != nil {
		t.Fatal(err)
	}
	deleteLVM(t, h, v, snap.Ref)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Snapshot(cancelled, v); !errors.Is(err, context.Canceled) {
		t.Errorf("snapshot with a cancelled context: %v", err)
	}
	// LVM compares its transaction count with the pool's each time it changes something.
	Run(t, "lvcreate", "-q", "-y", "-s", "-n", "users-own", "vg-a/my-vol")
	if out := Run(t, "lvs", "--noheadings", "-o", "lv_name", "vg-a"); strings.Contains(out, "shale-") {
		t.Errorf("snapshot left: %s", out)
	}
}

func resolveLVM(t *testing.T, h *pool.Host) (v pool.Volume) {
	t.Helper()
	for _, name := range []string{"vg-a/my-vol", "/dev/vg-a/my-vol", "/dev/mapper/vg--a-my--vol", "vg--a-my--vol"} {
		v = mustResolve(t, h, name)
		if v.Name != "vg-a/my-vol" || v.VG != "vg-a" || v.LV != "my-vol" || v.DeviceID != 1 || v.SizeBytes != 64<<20 {
			t.Errorf("%s: %+v", name, v)
		}
		if p := v.Pool; p.Name != "vg--a-tp-tpool" || p.VG != "vg-a" || p.LV != "tp" || p.BlockSize != 64<<10 || p.UUID == "" {
			t.Errorf("%s: pool %+v", name, p)
		}
	}
	if p, err := h.Open(t.Context(), "vg-a/tp"); err != nil || p.ID() != v.Pool.ID() {
		t.Errorf("open the pool: %+v, %v", p, err)
	}
	for name, want := range map[string]error{"vg-a/nosuch": pool.ErrNotFound, "nosuch/x": pool.ErrNotFound, "vg-a/tp": pool.ErrNotThin} {
		if _, err := h.Resolve(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	return v
}

func deleteLVM(t *testing.T, h *pool.Host, v pool.Volume, ref pool.Ref) {
	t.Helper()
	if err := h.Delete(t.Context(), v.Pool, pool.Ref{LV: "my-vol", DeviceID: v.DeviceID}); !errors.Is(err, pool.ErrUnsupported) {
		t.Errorf("delete of a volume that is no snapshot of ours: %v", err)
	}
	if err := h.Delete(t.Context(), v.Pool, ref); err != nil {
		t.Error(err)
	}
	if err := h.Delete(t.Context(), v.Pool, ref); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
}
