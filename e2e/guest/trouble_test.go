package guest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin/pool"
)

// fill writes to a device until it gives an error.
func fill(t *testing.T, dev string, mib int) error {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	for range mib {
		if _, err = f.Write(b); err != nil {
			break
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func TestPoolOutOfSpace(t *testing.T) {
	p := NewPool(t, 16, "error_if_no_space")
	dev := p.Volume("full", 1, 32)
	h := newHost(t)
	v := mustResolve(t, h, "full")
	snap, err := h.Snapshot(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if err := fill(t, dev, 24); err == nil {
		t.Fatal("the pool takes more than it has")
	}
	st := mustStatus(t, h, v.Pool)
	if st.Mode != pool.ModeOutOfDataSpace || !st.ErrorIfNoSpace || st.UsedDataBlocks != st.DataBlocks || !errors.Is(st.WriteErr(), pool.ErrOutOfSpace) {
		t.Errorf("status: %+v", st)
	}
	if _, err := h.Snapshot(t.Context(), v); !errors.Is(err, pool.ErrOutOfSpace) {
		t.Errorf("snapshot: %v", err)
	}
	r, err := h.Reserve(t.Context(), v.Pool)
	if err != nil {
		t.Fatalf("reserve in a full pool: %v", err)
	}
	if err := r.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := snap.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPoolReadOnly(t *testing.T) {
	p := NewPool(t, 64)
	dev := p.Volume("rovol", 1, 32)
	if err := fill(t, dev, 2); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	v := mustResolve(t, h, "rovol")
	reload(t, p.Name, p.Table("read_only"))
	if st := mustStatus(t, h, v.Pool); st.Mode != pool.ModeReadOnly || !errors.Is(st.MessageErr(), pool.ErrReadOnly) || st.ReadErr() != nil {
		t.Errorf("status: %+v", st)
	}
	if _, err := h.Snapshot(t.Context(), v); !errors.Is(err, pool.ErrReadOnly) {
		t.Errorf("snapshot: %v", err)
	}
	if _, err := h.Reserve(t.Context(), v.Pool); !errors.Is(err, pool.ErrReadOnly) {
		t.Errorf("reserve: %v", err)
	}
	if err := h.Delete(t.Context(), v.Pool, pool.Ref{DeviceID: 1}); !errors.Is(err, pool.ErrReadOnly) {
		t.Errorf("the kernel's refusal of a message: %v", err)
	}
	d, err := h.Activate(t.Context(), v.Pool, v.DeviceID, v.SizeBytes, "")
	if err != nil {
		t.Fatalf("activate in a read-only pool: %v", err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	reload(t, p.Name, p.Table())
}

// reload gives a device another table.
func reload(t *testing.T, name, table string) {
	t.Helper()
	Run(t, "dmsetup", "suspend", "--nolockfs", "--noflush", name)
	Run(t, "dmsetup", "load", name, "--table", table)
	Run(t, "dmsetup", "resume", name)
}

// shakyPool is a pool over a metadata device whose table a test can change: meta for reloading, secs its sectors.
func shakyPool(t *testing.T, name string) (p *Pool, secs string) {
	t.Helper()
	p = &Pool{Name: name, Meta: Disk(t, 8), Data: Disk(t, 64), t: t}
	sectors := func(dev string) string { return strings.TrimSpace(Run(t, "blockdev", "--getsz", dev)) }
	secs = sectors(p.Meta)
	Run(t, "dmsetup", "create", name+"-meta", "--table", "0 "+secs+" linear "+p.Meta+" 0")
	t.Cleanup(func() { Run(t, "dmsetup", "remove", "--retry", name+"-meta") })
	Run(t, "dmsetup", "create", name, "--table", "0 "+sectors(p.Data)+" thin-pool /dev/mapper/"+name+"-meta "+p.Data+" 128 0")
	t.Cleanup(func() { Run(t, "dmsetup", "remove", "--retry", name) })
	return p, secs
}

// TestPoolNeedsCheck: the metadata device stops taking writes.
func TestPoolNeedsCheck(t *testing.T) {
	p, secs := shakyPool(t, "shaky")
	dev := p.Volume("shakyvol", 1, 32)
	h := newHost(t)
	v := mustResolve(t, h, "shakyvol")
	reload(t, "shaky-meta", "0 "+secs+" flakey "+p.Meta+" 0 0 3600 1 error_writes")
	if err := fill(t, dev, 4); err == nil {
		t.Fatal("writes succeed without metadata")
	}
	st := mustStatus(t, h, v.Pool)
	if st.Mode != pool.ModeReadOnly || !st.NeedsCheck || !errors.Is(st.WriteErr(), pool.ErrNeedsCheck) {
		t.Errorf("status without metadata writes: %+v", st)
	}
	if _, err := h.Snapshot(t.Context(), v); !errors.Is(err, pool.ErrNeedsCheck) {
		t.Errorf("snapshot: %v", err)
	}
}

// TestPoolFailed: the metadata device gives only errors.
func TestPoolFailed(t *testing.T) {
	p, secs := shakyPool(t, "dead")
	dev := p.Volume("deadvol", 1, 32)
	h := newHost(t)
	v := mustResolve(t, h, "deadvol")
	reload(t, "dead-meta", "0 "+secs+" error")
	if err := fill(t, dev, 4); err == nil {
		t.Fatal("writes succeed without metadata")
	}
	st := mustStatus(t, h, v.Pool)
	if st.Mode != pool.ModeFailed || !errors.Is(st.ReadErr(), pool.ErrFailed) {
		t.Errorf("status: %+v", st)
	}
	if _, err := h.Reserve(t.Context(), v.Pool); !errors.Is(err, pool.ErrFailed) {
		t.Errorf("reserve: %v", err)
	}
	if ts, err := h.ThinStatus(t.Context(), v); err != nil || !ts.Failed {
		t.Errorf("thin status: %+v, %v", ts, err)
	}
}
