package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
)

// small mounts a file system of 1 MiB and few inodes and returns a backend on it.
func small(t *testing.T, inodes int) *Backend {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small tmpfs")
	}
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=1m,mode=0700,nr_inodes=%d", inodes))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skipf("needs CAP_SYS_ADMIN, to mount a small tmpfs: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestNoSpace(t *testing.T) {
	b := small(t, 1000)
	old := backendtest.Content("old", 600<<10)
	if err := b.Put(t.Context(), "packs/old", old); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(string) error{
		"packs/new":  func(name string) error { return b.Put(t.Context(), name, make([]byte, 500<<10)) },
		"packs/once": func(name string) error { return b.PutIfAbsent(t.Context(), name, make([]byte, 500<<10)) },
		"packs/old":  func(name string) error { return b.Put(t.Context(), name, make([]byte, 600<<10)) },
	} {
		err := put(name)
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%s: got %v, want ENOSPC and the name", name, err)
		}
	}
	if objs := listAll(t, b); len(objs) != 1 || objs[0].Name != "packs/old" {
		t.Errorf("listed %+v, want packs/old alone", objs)
	}
	if got, err := backend.ReadAll(t.Context(), b, "packs/old"); err != nil || !bytes.Equal(got, old) {
		t.Errorf("packs/old after a Put that failed: %v, or other bytes", err)
	}
	mustHaveNoTemporaries(t, b)
	// The space of what failed is free again.
	if err := b.Put(t.Context(), "packs/fits", make([]byte, 300<<10)); err != nil {
		t.Error(err)
	}
}

func TestNoInodes(t *testing.T) {
	b := small(t, 6)
	var err error
	stored := 0
	for ; stored < 10 && err == nil; stored++ {
		err = b.Put(t.Context(), fmt.Sprintf("f%d/x", stored), nil)
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("f%d/x", stored-1)) {
		t.Fatalf("put %d: got %v, want ENOSPC and the name", stored, err)
	}
	if got := len(listAll(t, b)); got != stored-1 {
		t.Errorf("%d objects listed, want %d", got, stored-1)
	}
	mustHaveNoTemporaries(t, b)
}
