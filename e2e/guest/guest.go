package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Inside says whether this is the lab guest.
func Inside() bool { return os.Getenv("SHALE_GUEST") == "1" && os.Getuid() == 0 }

// Try runs a command and returns what it printed on either stream.
func Try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "DM_DISABLE_UDEV=1") // the guest has no udevd
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Run is Try for commands that must succeed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := Try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Disk makes a block device of the given size, in memory, for the length of the test. Only what is written takes memory.
func Disk(t testing.TB, sizeMiB int64) string {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(sizeMiB << 20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(Run(t, "losetup", "--find", "--show", f.Name()))
	t.Cleanup(func() {
		Run(t, "losetup", "--detach", dev)
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	})
	return dev
}

// Pool is a thin pool made without LVM.
type Pool struct {
	Name       string
	Meta, Data string // devices
	t          testing.TB
}

// NewPool makes a pool with 64 KiB blocks for the length of the test. features are those of the thin-pool target. Its volumes
// must be gone by the end of the test; Volume's are.
func NewPool(t testing.TB, dataMiB int64, features ...string) *Pool {
	t.Helper()
	p := &Pool{Name: "pool_" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "_")), Meta: Disk(t, 8), Data: Disk(t, dataMiB), t: t}
	Run(t, "dmsetup", "create", p.Name, "--table", p.Table(features...))
	t.Cleanup(func() { Run(t, "dmsetup", "remove", "--retry", p.Name) })
	return p
}

// Table is the pool's table, for reloading it with other features.
func (p *Pool) Table(features ...string) string {
	return strings.TrimSpace(fmt.Sprintf("0 %s thin-pool %s %s 128 0 %d %s",
		strings.TrimSpace(Run(p.t, "blockdev", "--getsz", p.Data)), p.Meta, p.Data, len(features), strings.Join(features, " ")))
}

// Message sends the pool a message that must succeed.
func (p *Pool) Message(words ...string) {
	p.t.Helper()
	Run(p.t, "dmsetup", "message", p.Name, "0", strings.Join(words, " "))
}

// Volume makes a thin device with an ID of its own and activates it under the name until the end of the test.
func (p *Pool) Volume(name string, id, sizeMiB int) string {
	p.t.Helper()
	p.Message("create_thin", strconv.Itoa(id))
	Run(p.t, "dmsetup", "create", name, "--table", fmt.Sprintf("0 %d thin /dev/mapper/%s %d", sizeMiB*2048, p.Name, id))
	p.t.Cleanup(func() { Run(p.t, "dmsetup", "remove", "--retry", name) })
	return "/dev/mapper/" + name
}

// Ext4 makes a file system and mounts it until the end of the test. It returns the mount point.
func Ext4(t testing.TB, dev string) string {
	t.Helper()
	Run(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", dev)
	return Mount(t, dev, "rw,noatime")
}

// Mount mounts a device until the end of the test.
func Mount(t testing.TB, dev, options string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	Run(t, "mount", "-o", options, dev, dir)
	t.Cleanup(func() { Run(t, "umount", dir) })
	return dir
}
