package guest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shalebackup/shale/thin/pool"
)

// newHost is a Host of the product, whose state folder must hold no claim at the end of the test.
func newHost(t *testing.T) *pool.Host {
	t.Helper()
	const state = "/var/lib/shale/pool" // the default: the programs that tests start use it, too
	t.Cleanup(func() {
		left, err := filepath.Glob(state + "/*")
		if err != nil || len(left) > 0 {
			t.Errorf("claims left: %v %v", left, err)
		}
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	return pool.New(pool.Config{HeldWait: time.Second})
}

func mustResolve(t *testing.T, h *pool.Host, name string) pool.Volume {
	t.Helper()
	v, err := h.Resolve(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustStatus(t *testing.T, h *pool.Host, p pool.Pool) pool.Status {
	t.Helper()
	st, err := h.Status(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func suspended(t *testing.T, device string) bool {
	t.Helper()
	return strings.TrimSpace(Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "suspended", device)) == "Suspended"
}

func TestResolve(t *testing.T) {
	p := NewPool(t, 64)
	p.Volume("vol-a", 7, 40)
	h := newHost(t)
	want := mustResolve(t, h, "vol-a")
	if want.Name != "vol-a" || want.Device != "vol-a" || want.DeviceID != 7 || want.SizeBytes != 40<<20 || want.VG != "" {
		t.Errorf("volume: %+v", want)
	}
	if q := want.Pool; q.Name != p.Name || q.BlockSize != 64<<10 || q.Metadata != p.Meta || q.Data != p.Data || q.LVM() {
		t.Errorf("pool: %+v", q)
	}
	number := strings.TrimSpace(Run(t, "dmsetup", "info", "-c", "--noheadings", "--separator", ":", "-o", "major,minor", "vol-a"))
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/dev/mapper/vol-a", link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/dev/mapper/vol-a", "/dev/" + filepath.Base(sys), link} {
		if got := mustResolve(t, h, name); got.Name != want.Name || got.DeviceID != 7 || got.Pool.Name != p.Name {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for name, want := range map[string]error{
		"nosuch": pool.ErrNotFound, "/dev/nosuch": pool.ErrNotFound, "/dev/mapper/nosuch": pool.ErrNotFound, "": pool.ErrNotFound,
		p.Name: pool.ErrNotThin, p.Data: pool.ErrNotThin, "/etc/passwd": pool.ErrNotThin,
	} {
		if _, err := h.Resolve(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", name, err, want)
		}
	}
}

// TestSnapshotWhileWriting: the snapshot of a busy ext4 is clean, and the writer goes on.
func TestSnapshotWhileWriting(t *testing.T) {
	p := NewPool(t, 128)
	mnt := Ext4(t, p.Volume("busy", 1, 96))
	if err := os.WriteFile(mnt+"/before", []byte("written before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	v := mustResolve(t, h, "busy")

	ctx, stop := context.WithCancel(t.Context())
	wrote := make(chan int)
	go func() {
		n := 0
		defer func() { wrote <- n }()
		for ctx.Err() == nil {
			if err := os.WriteFile(mnt+"/busy", make([]byte, 64<<10), 0o644); err != nil {
				t.Error(err)
				return
			}
			n++
		}
	}()
	begin := time.Now()
	snap, err := h.Snapshot(t.Context(), v)
	took := time.Since(begin)
	time.Sleep(100 * time.Millisecond)
	stop()
	t.Logf("snapshot took %v, %d writes meanwhile", took, <-wrote)
	if err != nil {
		t.Fatal(err)
	}
	if suspended(t, "busy") {
		t.Error("the volume is left suspended")
	}

	dev, err := h.Activate(t.Context(), v.Pool, snap.DeviceID, v.SizeBytes, "")
	if err != nil {
		t.Fatal(err)
	}
	if s := Run(t, "dumpe2fs", "-h", dev.Path); strings.Contains(s, "needs_recovery") {
		t.Error("the snapshot's journal needs replay: the file system was not frozen")
	}
	if ro := strings.TrimSpace(Run(t, "blockdev", "--getro", dev.Path)); ro != "1" {
		t.Errorf("activated device: read-only is %s", ro)
	}
	t.Run("files", func(t *testing.T) {
		m := Mount(t, dev.Path, "ro")
		if b, err := os.ReadFile(m + "/before"); err != nil || string(b) != "written before\n" {
			t.Errorf("file in the snapshot: %q, %v", b, err)
		}
	})
	if err := h.Delete(t.Context(), v.Pool, snap.Ref); !errors.Is(err, pool.ErrBusy) {
		t.Errorf("delete of an active snapshot: %v", err)
	}
	if err := dev.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := snap.Keep(); err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(t.Context(), v.Pool, snap.Ref); err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(t.Context(), v.Pool, snap.Ref); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
	if _, err := h.Activate(t.Context(), v.Pool, snap.DeviceID, v.SizeBytes, ""); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("activate a deleted device: %v", err)
	}
}

func TestReserve(t *testing.T) {
	p := NewPool(t, 64)
	p.Volume("res", 1, 32)
	h := newHost(t)
	v := mustResolve(t, h, "res")

	r, err := h.Reserve(t.Context(), v.Pool)
	if err != nil {
		t.Fatal(err)
	}
	if st := mustStatus(t, h, v.Pool); st.HeldRoot != r.Root || r.Root == 0 {
		t.Errorf("held root %d, reservation %d", st.HeldRoot, r.Root)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := h.Reserve(short, v.Pool); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second reservation of ours: %v", err)
	}
	if err := r.Release(t.Context()); err != nil {
		t.Fatal(err)
	}

	p.Message("reserve_metadata_snap") // another program
	if _, err := h.Reserve(t.Context(), v.Pool); !errors.Is(err, pool.ErrHeld) {
		t.Errorf("held by another program: %v", err)
	}
	if rec, err := h.Recover(t.Context()); err != nil || len(rec.Released) > 0 {
		t.Errorf("recover touches another program's: %+v, %v", rec, err)
	}
	time.AfterFunc(300*time.Millisecond, func() {
		if _, err := Try("dmsetup", "message", p.Name, "0", "release_metadata_snap"); err != nil {
			t.Error(err)
		}
	})
	r, err = h.Reserve(t.Context(), v.Pool)
	if err != nil {
		t.Fatalf("after the other program released: %v", err)
	}
	p.Message("release_metadata_snap")
	if err := r.Release(t.Context()); !errors.Is(err, pool.ErrLost) {
		t.Errorf("released behind our back: %v", err)
	}
}

// TestKilledHolders: what processes held when they were killed is taken over, or undone.
func TestKilledHolders(t *testing.T) {
	p := NewPool(t, 64)
	p.Volume("held", 1, 32)
	h := newHost(t)
	v := mustResolve(t, h, "held")
	holdAndCrash := func(program string) {
		t.Helper()
		before := strings.Count(Run(t, "ls", "-R", "/var/lib/shale"), "-")
		c := start(t, program, "held")
		eventually(t, program+" holds", func() bool { return strings.Contains(output(t, c), "ready") })
		if after := strings.Count(Run(t, "ls", "-R", "/var/lib/shale"), "-"); after <= before {
			t.Errorf("%s left no claim", program)
		}
		crash(t, c)
	}
	if err := os.MkdirAll("/var/lib/shale/pool", 0o700); err != nil {
		t.Fatal(err)
	}
	holdAndCrash("reserve")
	if st := mustStatus(t, h, v.Pool); st.HeldRoot == 0 {
		t.Fatal("nothing is left reserved: the test tests nothing")
	}
	r, err := h.Reserve(t.Context(), v.Pool)
	if err != nil {
		t.Fatalf("reserve after the holder was killed: %v", err)
	}
	if rec, err := h.Recover(t.Context()); err != nil || len(rec.Released) > 0 {
		t.Errorf("recover touches what a living process holds: %+v, %v", rec, err)
	}
	if err := r.Release(t.Context()); err != nil {
		t.Fatal(err)
	}

	holdAndCrash("reserve")
	holdAndCrash("snapshot")
	holdAndCrash("activate")
	rec, err := h.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.Released) != 1 || len(rec.Deleted) != 1 || len(rec.Deactivated) != 1 || len(rec.Unsure) > 0 {
		t.Errorf("recovered: %+v", rec)
	}
	if st := mustStatus(t, h, v.Pool); st.HeldRoot != 0 {
		t.Errorf("held root %d after Recover", st.HeldRoot)
	}
	if out := Run(t, "dmsetup", "ls"); strings.Contains(out, "shale-") {
		t.Errorf("device left active: %s", out)
	}
}
