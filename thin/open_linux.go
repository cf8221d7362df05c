package thin

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Open opens the metadata in a file or block device, read-only. See [Options] and [NewReader] for the errors.
func Open(path string, opts Options) (*Reader, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags, device := os.O_RDONLY, info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
	switch {
	case device:
		flags |= unix.O_DIRECT
		if !opts.MetadataSnapshot {
			flags |= unix.O_EXCL // on a block device, without O_CREAT: refused while a mount or a mapped device claims it
		}
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is neither a file nor a block device: %w", path, ErrNotMetadata)
	case opts.Direct:
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, syscall.EBUSY) {
		return nil, fmt.Errorf("%s: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find the size of %s: %w", path, err), f.Close())
	}
	r, err := NewReader(f, size, opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	r.closer = f
	return r, nil
}
