package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// target is a file or block device that is restored to. Safe for many goroutines on separate ranges.
type target struct {
	f      *os.File
	path   string
	size   int64 // of the volume
	device bool
	fresh  bool // a file that was empty: it reads as zeros
}

// openTarget opens, or with create makes, the target and gives a file its length. A block device must be long enough.
func openTarget(path string, size int64, create bool) (t *target, err error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	t = &target{f: f, path: path, size: size}
	if err := t.prepare(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

func (t *target) prepare() error {
	if err := unix.Flock(int(t.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: another restore writes to it: %w", t.path, err)
	}
	st, err := t.f.Stat()
	if err != nil {
		return err
	}
	if st.Mode().IsRegular() {
		t.fresh = st.Size() == 0
		if st.Size() == t.size {
			return nil
		}
		return t.f.Truncate(t.size)
	}
	t.device = true
	end, err := t.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if end < t.size {
		return fmt.Errorf("%s has %d bytes, the backup's volume %d", t.path, end, t.size)
	}
	return nil
}

func (t *target) close() error { return t.f.Close() }

func (t *target) sync() error { return t.f.Sync() }

func (t *target) write(p []byte, off int64) error {
	_, err := t.f.WriteAt(p, off)
	return err
}

func (t *target) read(p []byte, off int64) error {
	_, err := t.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s was cut short at %d: %w", t.path, off, io.ErrUnexpectedEOF)
	}
	return err
}

// nextData returns where, in [off, end), the target may hold data; end when it is a hole.
func (t *target) nextData(off, end int64) (int64, error) {
	if t.device {
		return off, nil
	}
	at, err := unix.Seek(int(t.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return end, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, nil // a file system without holes
	case err != nil:
		return 0, fmt.Errorf("%s: seek to data: %w", t.path, err)
	}
	return min(at, end), nil
}

// eachData reads what [off, end) may hold, in pieces as long as buf at most, and calls fn for each.
func (t *target) eachData(ctx context.Context, buf []byte, off, end int64, fn func(p []byte, at int64) error) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, err := t.nextData(off, end)
		if err != nil || at >= end {
			return err
		}
		p := buf[:min(int64(len(buf)), end-at)]
		if err := t.read(p, at); err != nil {
			return err
		}
		if err := fn(p, at); err != nil {
			return err
		}
		off = at + int64(len(p))
	}
	return nil
}

// punch makes [off, end) read as zeros, as a hole where that can be had.
func (t *target) punch(off, end int64) error {
	modes := []uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}
	if t.device {
		modes = append(modes, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
	}
	for _, mode := range modes {
		err := unix.Fallocate(int(t.f.Fd()), mode, off, end-off)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%s: punch %d bytes at %d: %w", t.path, end-off, off, err)
		}
	}
	p := make([]byte, min(end-off, 1<<20))
	for ; off < end; off += int64(len(p)) {
		p = p[:min(int64(len(p)), end-off)]
		if err := t.write(p, off); err != nil {
			return err
		}
	}
	return nil
}

// dropCache asks the kernel to forget what it holds of the target, so that a verification reads the medium.
func (t *target) dropCache() error {
	return unix.Fadvise(int(t.f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// renameDurably renames from to to, which must not exist, and makes that durable.
func renameDurably(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without it
		err = os.Rename(from, to)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w; the restored volume is in %s", to, ErrTargetExists, from)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
