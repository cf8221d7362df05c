package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReportsFreePages(t *testing.T) {
	for _, c := range []struct {
		name, device, features string
		want                   bool
	}{
		{"a balloon that reports", "0x0005\n", "011001010000\n", true},
		{"a balloon that does not", "0x0005\n", "011000010000\n", false},
		{"a disk", "0x0002\n", "111111111111\n", false},
		{"cut short", "0x0005\n", "0110", false},
	} {
		dir := filepath.Join(t.TempDir(), "virtio0")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"device": c.device, "features": c.features} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := reportsFreePages(filepath.Dir(dir)); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
	if reportsFreePages(filepath.Join(t.TempDir(), "none")) {
		t.Error("a machine without virtio reports")
	}
}

func TestBallastEvery(t *testing.T) {
	file := filepath.Join(t.TempDir(), "order")
	for text, want := range map[string]int64{"5\n": 64 << 10, "9\n": 1 << 20, "0\n": 1 << 20, "x": 1 << 20} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := ballastEvery(file); got != want {
			t.Errorf("order %q: %d bytes, want %d", text, got, want)
		}
	}
}

// TestBallast: what stays allocated is one page in each piece.
func TestBallast(t *testing.T) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const size = ballastStep
	if err := fillBallast(t.Context(), fd, size, 256<<10); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Blocks*512 != size/(256<<10)*ballastKept {
		t.Fatalf("%d bytes are kept, %v", st.Blocks*512, err)
	}
}
