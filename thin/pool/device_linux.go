package pool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// deviceOf returns the number of the block device at path.
func deviceOf(path string) (DevNo, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return DevNo{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return DevNo{}, fmt.Errorf("%s is no block device: %w", path, ErrNotThin)
	}
	return DevNo{unix.Major(st.Rdev), unix.Minor(st.Rdev)}, nil
}

// blockNode finds the path of a block device. The kernel's own name for it is tried first, which does not change with
// device-mapper's names.
func blockNode(d DevNo) (string, error) {
	var tried []string
	if link, err := os.Readlink("/sys/dev/block/" + d.String()); err == nil {
		tried = append(tried, "/dev/"+strings.ReplaceAll(filepath.Base(link), "!", "/"))
	}
	tried = append(tried, "/dev/block/"+d.String())
	for _, path := range tried {
		if got, err := deviceOf(path); err == nil && got == d {
			return path, nil
		}
	}
	return "", fmt.Errorf("block device %s has no node (looked for %s): %w", d, strings.Join(tried, ", "), ErrNotFound)
}

// syncMounted writes out the file system that is mounted from the device, as far as this process sees its mount, so that
// little is left to write once writers are stopped. It is no part of correctness: freezing writes out the rest.
func (h *Host) syncMounted(ctx context.Context, d DevNo) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Major != int(d.Major) || m.Minor != int(d.Minor), false
	})
	if err != nil || len(mounts) == 0 {
		return
	}
	_, _ = h.cmd.run(ctx, command{name: "sync", args: []string{"-f", "--", mounts[0].Mountpoint}}.withTimeout(writeTimeout))
}
