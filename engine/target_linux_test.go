package engine_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// allocated is how many bytes a file has on its disk.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// mustBeSparse fails when a file takes more room than the backup's data, and some for the file system's own use.
func mustBeSparse(t *testing.T, path string, b *chunkstore.Backup) {
	t.Helper()
	if got := allocated(t, path); got > b.Blob.Data+64<<10 {
		t.Errorf("%s takes %d bytes for %d of data", path, got, b.Blob.Data)
	}
}

// mustBeSparseIfPunched allows, beside the data, the zeros that the file had: they are no holes, and need not become any.
func mustBeSparseIfPunched(t *testing.T, path string, b *chunkstore.Backup, had []byte) {
	t.Helper()
	zeros := int64(0)
	for at := 0; at < len(had); at += block {
		if p := had[at:min(at+block, len(had))]; bytes.Count(p, []byte{0}) == len(p) {
			zeros += block
		}
	}
	if got := allocated(t, path); got > b.Blob.Data+zeros+64<<10 {
		t.Errorf("%s takes %d bytes for %d of data and %d of zeros", path, got, b.Blob.Data, zeros)
	}
}

// loopDevice is a block device of n bytes that holds junk.
func loopDevice(t *testing.T, n int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root")
	}
	if _, err := exec.LookPath("losetup"); err != nil {
		t.Skip("losetup is not installed")
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, randomImage(21, n), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach: %v: %s", err, out)
		}
	})
	return dev
}

func readDevice(t *testing.T, dev string) []byte {
	t.Helper()
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRestoreToDevice(t *testing.T) {
	image := sparseImage() // its end is off the device's sectors
	r := memRepo(t)
	b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	dev := loopDevice(t, 8*mib)
	if _, err := engine.Restore(t.Context(), r, b, dev, engine.RestoreOptions{}); !errors.Is(err, engine.ErrTargetExists) {
		t.Errorf("without Overwrite: %v", err)
	}
	before := readDevice(t, dev)
	for _, run := range []struct {
		name string
		kept int64
		o    engine.RestoreOptions
	}{
		{"over junk", 0, engine.RestoreOptions{Overwrite: true, Verify: true}},
		{"again", b.Blob.Data, engine.RestoreOptions{Overwrite: true, Verify: true}},
		{"known to hold it", 0, engine.RestoreOptions{Overwrite: true, Verify: true, Holds: b}},
	} {
		res, err := engine.Restore(t.Context(), r, b, dev, run.o)
		if err != nil {
			t.Fatalf("%s: %v", run.name, err)
		}
		if res.Kept != run.kept {
			t.Errorf("%s: kept %d bytes, want %d", run.name, res.Kept, run.kept)
		}
		got := readDevice(t, dev)
		if !bytes.Equal(got[:len(image)], image) {
			t.Errorf("%s: the device differs at %d", run.name, firstDifference(got, image))
		}
		if !bytes.Equal(got[len(image):], before[len(image):]) {
			t.Errorf("%s: what lies behind the volume changed", run.name)
		}
	}
	large := backup(t, r, plainVolume(make([]byte, 9*mib)), engine.BackupOptions{Volume: "large"}).Backup
	if _, err := engine.Restore(t.Context(), r, large, dev, engine.RestoreOptions{Overwrite: true}); err == nil || !strings.Contains(err.Error(), dev) {
		t.Errorf("onto a device that is too short: %v", err)
	}
}

// A disk that is full is an error that says so; with room again, the restore goes on.
func TestRestoreOutOfSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a file system of its own needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	image := sparseImage()
	r := memRepo(t)
	b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	target := filepath.Join(dir, "target")
	p := &progress{}
	_, err := engine.Restore(t.Context(), r, b, target, engine.RestoreOptions{Progress: p})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), target) {
		t.Fatalf("got %v, want that there is no space left at %s", err, target)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if res := restored(t, r, b, image, target, engine.RestoreOptions{}); res.Kept < p.done.Load() || res.Kept == 0 {
		t.Errorf("%d bytes were written, and %d kept", p.done.Load(), res.Kept)
	}
}
