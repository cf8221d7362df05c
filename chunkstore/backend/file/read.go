package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// ReadAt implements backend.Backend. On an object that is kept open it allocates nothing.
func (b *Backend) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("read %s: negative offset %d", name, off)
	}
	var err error
	for range staleTries {
		if err = b.readOnce(ctx, name, p, off); !errors.Is(err, syscall.ESTALE) {
			return err
		}
		b.open.drop(name)
	}
	return err
}

func (b *Backend) readOnce(ctx context.Context, name string, p []byte, off int64) error {
	o := b.open.take(name)
	if o == nil {
		var err error
		if o, err = b.openObject(ctx, name); err != nil {
			return err
		}
	}
	err := readFull(ctx, o, p, off, b.down)
	b.open.release(o)
	return err
}

// readFull fills p at that pace, looking at the context between pieces.
func readFull(ctx context.Context, o *openFile, p []byte, off int64, pace backend.Pace) error {
	if off > o.size || int64(len(p)) > o.size-off {
		return fmt.Errorf("read %s: %d bytes at %d of %d: %w", o.name, len(p), off, o.size, backend.ErrShort)
	}
	for len(p) > 0 {
		n, err := nextPiece(ctx, pace, len(p))
		if err == nil {
			n, err = o.file.ReadAt(p[:n], off)
		}
		if errors.Is(err, io.EOF) { // truncated by another program since it was opened
			err = backend.ErrShort
		}
		if err != nil {
			return fmt.Errorf("read %s: %d bytes at %d: %w", o.name, len(p), off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// openObject opens the object, keeps it open for others, and returns it to be released.
func (b *Backend) openObject(ctx context.Context, name string) (*openFile, error) {
	if err := backend.Begin(ctx, "read", name); err != nil {
		return nil, err
	}
	generation := b.open.now()
	// O_NONBLOCK: opening a foreign FIFO must not hang.
	var f *os.File
	err := b.fresh(name, func() (err error) {
		f, err = b.sys.open(b.path(name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		return err
	})
	if isAbsent(err) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		err = backend.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = backend.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, errors.Join(err, f.Close()))
	}
	return b.open.add(&openFile{name: name, file: f, info: info, size: info.Size()}, generation), nil
}
