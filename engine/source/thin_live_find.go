package source

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/thin/pool"
)

// FindThin finds out what a name that a user gave means: a volume of an active thin pool, or (found is false) a file or another
// block device. A file goes before a volume of the same name. An error that wraps os.ErrNotExist: it is neither.
func FindThin(ctx context.Context, h *pool.Host, name string) (v pool.Volume, found bool, err error) {
	var st unix.Stat_t
	err = unix.Stat(name, &st)
	exists := err == nil
	switch {
	case exists && (st.Mode&unix.S_IFMT != unix.S_IFBLK || !isMapped(st.Rdev)):
		return v, false, nil
	case !exists && !errors.Is(err, os.ErrNotExist):
		return v, false, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	v, err = h.Resolve(ctx, name)
	switch {
	case err == nil:
		return v, true, nil
	case exists && errors.Is(err, pool.ErrNotThin):
		return v, false, nil
	case exists:
		return v, false, err // read as an ordinary device it would not stand still
	case errors.Is(err, pool.ErrNotFound):
		return v, false, fmt.Errorf("%s: no such file or thin volume: %w", name, os.ErrNotExist)
	}
	for _, short := range []error{pool.ErrNoTool, pool.ErrNoKernel, pool.ErrPermission} {
		if errors.Is(err, short) {
			err = short
		}
	}
	return v, false, fmt.Errorf("%s: %w; nor is it a thin volume: %w", name, os.ErrNotExist, err)
}

// isMapped says whether a block device is device-mapper's.
func isMapped(dev uint64) bool {
	_, err := os.Stat(fmt.Sprintf("/sys/dev/block/%d:%d/dm", unix.Major(dev), unix.Minor(dev)))
	return err == nil
}
