package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/chunkstore"
)

// RepairContent opens an image or a block device as a source of a repair. What cannot be read of it counts as not there.
func RepairContent(path string) (*FileContent, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	size := int64(0)
	switch {
	case err != nil:
	case st.Mode().IsRegular():
		size = st.Size()
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		size, err = f.Seek(0, io.SeekEnd)
	default:
		err = fmt.Errorf("%s is neither a file nor a block device", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FileContent{f, size}, nil
}

// FileContent is a file's content, as a repair asks for it.
type FileContent struct {
	f    *os.File
	size int64
}

var _ chunkstore.RepairContent = (*FileContent)(nil)

// Close closes the file.
func (c *FileContent) Close() error { return c.f.Close() }

// Size is the file's length when it was opened.
func (c *FileContent) Size() int64 { return c.size }

// ReadAt implements chunkstore.RepairContent.
func (c *FileContent) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := c.f.ReadAt(p, off)
	return c.damaged(off, err)
}

// NextData implements chunkstore.RepairContent. Where holes cannot be told all is data.
func (c *FileContent) NextData(ctx context.Context, off int64) (from, end int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	from, err = unix.Seek(int(c.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return c.size, c.size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP):
		return off, c.size, nil
	case err != nil:
		return 0, 0, c.damaged(off, err)
	}
	if end, err = unix.Seek(int(c.f.Fd()), from, unix.SEEK_HOLE); err != nil {
		end = c.size
	}
	return min(from, c.size), min(max(end, from), c.size), nil
}

// damaged makes of an error that a bad medium, or a file that shrinks, gives one that says so.
func (c *FileContent) damaged(off int64, err error) error {
	if errors.Is(err, unix.EIO) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &chunkstore.CorruptError{Object: c.f.Name(), Off: off, Err: err}
	}
	return err
}
