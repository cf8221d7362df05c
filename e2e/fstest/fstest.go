// Package fstest mounts real file systems for tests, each a fresh one in a sparse file behind a loop device.
package fstest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mkfs holds, for each file system, the command that makes one without questions; the image's path is added. The smallest size is what
// the tool accepts today.
var mkfs = map[string]struct {
	args   []string
	minMiB int
}{
	"xfs":   {[]string{"mkfs.xfs", "-q", "-f"}, 300},
	"btrfs": {[]string{"mkfs.btrfs", "-q", "-f"}, 128},
	"ext4":  {[]string{"mkfs.ext4", "-q", "-F"}, 16},
}

// Mount makes a file system of fstype (xfs, btrfs or ext4) of sizeMiB, or of the least size its tool makes if that is more, and
// returns the folder it is mounted on. The options are mount's ("compress=zstd"). It is gone when the test ends. The test is skipped,
// with what is missing, where this cannot be done: without root, mkfs or loop devices.
func Mount(t testing.TB, fstype string, sizeMiB int, options ...string) string {
	t.Helper()
	return MountWith(t, fstype, sizeMiB, nil, options...)
}

// MountWith is Mount with further arguments to mkfs ("-b", "size=1024").
func MountWith(t testing.TB, fstype string, sizeMiB int, mkfsArgs []string, options ...string) string {
	t.Helper()
	tool, ok := mkfs[fstype]
	if !ok {
		t.Fatalf("fstest does not know how to make %s", fstype)
	}
	if os.Geteuid() != 0 {
		t.Skipf("mounting %s needs root", fstype)
	}
	for _, cmd := range []string{tool.args[0], "mount", "umount"} {
		if _, err := exec.LookPath(cmd); err != nil {
			t.Skipf("mounting %s needs %s: %v", fstype, cmd, err)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("mounting %s needs loop devices: %v", fstype, err)
	}
	if !known(t, fstype) {
		t.Skipf("this kernel has no %s", fstype)
	}

	top := t.TempDir()
	img, dir := filepath.Join(top, fstype+".img"), filepath.Join(top, fstype)
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, int64(max(sizeMiB, tool.minMiB))<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{}, tool.args[1:]...), mkfsArgs...)
	if err := run(tool.args[0], append(args, img)...); err != nil {
		t.Fatal(err)
	}
	// mount -o loop marks the loop device to go with the mount: nothing else must be cleaned up.
	if err := run("mount", "-t", fstype, "-o", strings.Join(append([]string{"loop"}, options...), ","), img, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// Loop returns a block device over the file at path, for the length of the test. The test is skipped where that cannot be done.
func Loop(t testing.TB, path string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a loop device needs root")
	}
	if _, err := exec.LookPath("losetup"); err != nil {
		t.Skipf("a loop device needs losetup: %v", err)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).Output()
	if err != nil {
		t.Fatalf("losetup %s: %v", path, err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := run("losetup", "--detach", dev); err != nil {
			t.Error(err)
		}
	})
	return dev
}

// known reports whether the kernel has the file system, loading its module if there is one.
func known(t testing.TB, fstype string) bool {
	t.Helper()
	for range 2 {
		b, err := os.ReadFile("/proc/filesystems")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.TrimSpace(strings.TrimPrefix(line, "nodev")) == fstype {
				return true
			}
		}
		if err := run("modprobe", fstype); err != nil {
			return false
		}
	}
	return false
}

// unmount waits a while for what still uses dir, then detaches it all the same, and says so.
func unmount(dir string) error {
	for range 50 {
		err := unix.Unmount(dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: the test did it already
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(errors.New("still in use after 5 s, detached"), unix.Unmount(dir, unix.MNT_DETACH))
}

func run(name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}
