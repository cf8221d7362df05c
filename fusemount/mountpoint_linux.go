package fusemount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrMounted: there is a mount at the folder already.
var ErrMounted = errors.New("already mounted")

// errBusy: the mount cannot go because it is in use.
var errBusy = errors.New("mount point is busy")

// statPatience is how long a mount that is found may take to answer before it is called hung.
const statPatience = 5 * time.Second

// prepare makes sure that dir is an empty folder that nothing is mounted on, and returns its true path. What a server that
// was killed left behind is taken away.
func prepare(dir string, log *slog.Logger) (string, error) {
	dir, err := truePath(dir)
	if err != nil {
		return "", err
	}
	for {
		top, err := topMount(dir)
		if err != nil {
			return "", err
		}
		if top == nil {
			break
		}
		if top.FSType != "fuse."+fsName {
			return "", fmt.Errorf("mount at %s: %s of type %s is there: %w", dir, top.Source, top.FSType, ErrMounted)
		}
		if err := answers(dir); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
			if err == nil {
				err = fmt.Errorf("%s is shown there, unmount it first: %w", top.Source, ErrMounted)
			}
			return "", fmt.Errorf("mount at %s: %w", dir, err)
		}
		log.Warn("stale mount replaced", "dir", dir, "source", top.Source)
		if err := detach(dir); err != nil {
			return "", fmt.Errorf("take away the stale mount at %s: %w", dir, err)
		}
	}
	return dir, checkEmpty(dir)
}

// truePath resolves symlinks, but not through a dead mount, which cannot even be asked what it is.
func truePath(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err == nil {
		return resolved, nil
	}
	if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		return "", fmt.Errorf("mount point: %w", err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	return filepath.Join(parent, filepath.Base(dir)), nil
}

// topMount is the mount that is seen at dir, or nil.
func topMount(dir string) (*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != dir, false })
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[len(all)-1], nil
}

// directFlags are those that fusermount3 gives to a read-only mount.
const directFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY

// answers returns the error of a statfs of dir, which the kernel has no answer of its own to, unlike to stat. It does not wait for a hung server longer than statPatience; the goroutine
// that does stays until the server answers or dies.
func answers(dir string) error {
	result := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		result <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-result:
		return err
	case <-time.After(statPatience):
		return fmt.Errorf("the server of the mount there does not answer: %w", ErrMounted)
	}
}

func checkEmpty(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	defer f.Close()
	switch names, err := f.Readdirnames(1); {
	case len(names) > 0:
		return fmt.Errorf("mount at %s: the folder is not empty", dir)
	case err != nil && err != io.EOF:
		return fmt.Errorf("mount point: %w", err)
	}
	return nil
}

// device is the number of the file system at dir. It comes from mountinfo and not from stat: a server must not wait for
// itself, or it cannot be killed then.
func device(dir string) (uint64, error) {
	top, err := topMount(dir)
	if err != nil {
		return 0, err
	}
	if top == nil {
		return 0, fmt.Errorf("%s is not mounted", dir)
	}
	return number(top), nil
}

func number(i *mountinfo.Info) uint64 { return unix.Mkdev(uint32(i.Major), uint32(i.Minor)) }

// unmount takes away the file system dev from dir, if it is there; errBusy when it is in use.
func unmount(dir string, dev uint64) error {
	top, err := topMount(dir)
	if err != nil {
		return err
	}
	if top == nil {
		return nil
	}
	if number(top) != dev {
		return fmt.Errorf("unmount %s: another file system, of %s, is mounted over it", dir, top.Source)
	}
	if os.Geteuid() != 0 {
		return fusermount("-u", dir)
	}
	switch err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err {
	case nil:
		return nil
	case unix.EBUSY:
		return errBusy
	default:
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
}

// detach takes whatever is mounted on dir out of sight, in use or not. Root also breaks the connection to its server, so
// that readers end at once.
func detach(dir string) error {
	if os.Geteuid() != 0 {
		return fusermount("-u", "-z", dir)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("detach %s: %w", dir, err)
	}
	return nil
}

// fusermount runs fusermount3, the setuid helper, and makes an error of what it says.
func fusermount(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fusermount3", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case bytes.Contains(out, []byte("resource busy")):
		return errBusy
	default:
		return fmt.Errorf("fusermount3 %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
}

// checkTools says what is missing, and what to do about it, before the kernel says "no such file or directory".
func checkTools(root bool) error {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("this machine offers no FUSE (%w); load the kernel module fuse, or start the container with --device /dev/fuse", err)
	}
	if root {
		return nil
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return fmt.Errorf("fusermount3 is needed to mount without root (%w); install the package fuse3", err)
	}
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("this user may not open /dev/fuse (%w); its usual mode is 0666", err)
	}
	return nil
}

// explain adds advice to the error of a mount that was refused.
func explain(err error, root bool) error {
	if root && errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w; mounting needs the capability CAP_SYS_ADMIN", err)
	}
	return fmt.Errorf("refused by fusermount3, which may have said more above: %w", err)
}

// kernelAheadKiB is how far the kernel reads ahead in image.raw through its page cache. Its default of 128 KiB makes eight
// times as many requests.
const kernelAheadKiB = 1024

// raiseReadAhead sets the kernel's read-ahead of the file system dev; only root may.
func raiseReadAhead(dev uint64) error {
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(dev), unix.Minor(dev))
	return os.WriteFile(name, fmt.Appendf(nil, "%d\n", kernelAheadKiB), 0)
}

// newMemory maps the cache's memory. It is outside of Go's heap: the collector would let the heap grow to a multiple of it.
func newMemory(n int64) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for the cache: %w", n, err)
	}
	return mem, nil
}

func freeMemory(mem []byte) error { return unix.Munmap(mem) }
