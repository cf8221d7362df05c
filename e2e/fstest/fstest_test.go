package fstest_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/e2e/fstest"
)

func TestMount(t *testing.T) {
	magic := map[string]int64{"xfs": unix.XFS_SUPER_MAGIC, "btrfs": unix.BTRFS_SUPER_MAGIC, "ext4": unix.EXT4_SUPER_MAGIC}
	for fstype, want := range magic {
		t.Run(fstype, func(t *testing.T) {
			var dir string
			t.Run("mounted", func(t *testing.T) {
				dir = fstest.Mount(t, fstype, 0)
				var st unix.Statfs_t
				if err := unix.Statfs(dir, &st); err != nil {
					t.Fatal(err)
				}
				if int64(st.Type) != want {
					t.Fatalf("%s is of type %#x, want %#x", dir, st.Type, want)
				}
				if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			if dir == "" {
				t.Skip("was not mounted")
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Fatalf("%s is still there after its test: %v", dir, err)
			}
		})
	}
}

func TestMountWith(t *testing.T) {
	dir := fstest.MountWith(t, "ext4", 16, []string{"-b", "1024"}, "noatime")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Bsize != 1024 {
		t.Errorf("blocks of %d bytes, want the 1024 asked for", st.Bsize)
	}
	if st.Flags&unix.ST_NOATIME == 0 {
		t.Error("mounted without the option noatime")
	}
}

func TestLoop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	want := make([]byte, 1<<20)
	copy(want[4096:], "somewhere")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(fstest.Loop(t, path))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the device holds %d bytes that are not the file's %d", len(got), len(want))
	}
}
