package limit

import (
	"context"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Options are the limits of a Backend. The zero value limits nothing.
type Options struct {
	Upload   *Bucket // bytes written
	Download *Bucket // bytes read

	// Requests is how many objects are written, and how many are read, at once; 0: no limit. A List never counts, nor does what
	// moves no bytes.
	Requests int
}

// Backend is a backend that keeps to limits. Use New.
type Backend struct {
	be       backend.Backend
	up, down *Bucket // nil where be itself keeps to them
	writes   slots
	reads    slots
}

var _ backend.Backend = (*Backend)(nil)

// New wraps be, which nobody uses yet.
func New(be backend.Backend, o Options) *Backend {
	b := &Backend{be: be, up: o.Upload, down: o.Download, writes: newSlots(o.Requests), reads: newSlots(o.Requests)}
	if p, ok := backend.As[backend.Pacer](be); ok && (o.Upload != nil || o.Download != nil) {
		p.SetPace(pace(o.Upload), pace(o.Download))
		b.up, b.down = nil, nil
	}
	return b
}

func pace(b *Bucket) backend.Pace {
	if b == nil {
		return nil
	}
	return b.Wait
}

// slots has a token for each request that may run; nil: any number may.
type slots chan struct{}

func newSlots(n int) slots {
	if n <= 0 {
		return nil
	}
	return make(slots, n)
}

// with makes the call when there is a slot for it, and its bytes may be moved.
func (s slots) with(ctx context.Context, b *Bucket, n int, call func() error) error {
	if s != nil {
		select {
		case s <- struct{}{}:
			defer func() { <-s }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := b.Wait(ctx, n); err != nil {
		return err
	}
	return call()
}

// Put implements backend.Backend.
func (b *Backend) Put(ctx context.Context, name string, data []byte) error {
	return b.writes.with(ctx, b.up, len(data), func() error { return b.be.Put(ctx, name, data) })
}

// PutIfAbsent implements backend.Backend.
func (b *Backend) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return b.writes.with(ctx, b.up, len(data), func() error { return b.be.PutIfAbsent(ctx, name, data) })
}

// ReadAt implements backend.Backend.
func (b *Backend) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return b.reads.with(ctx, b.down, len(p), func() error { return b.be.ReadAt(ctx, name, p, off) })
}

// List implements backend.Backend.
func (b *Backend) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	return b.be.List(ctx, prefix, fn)
}

// Stat implements backend.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (backend.Object, error) {
	return b.be.Stat(ctx, name)
}

// Delete implements backend.Backend.
func (b *Backend) Delete(ctx context.Context, name string) error { return b.be.Delete(ctx, name) }

// Location implements backend.Backend.
func (b *Backend) Location() string { return b.be.Location() }

// Unwrap returns the backend behind b.
func (b *Backend) Unwrap() backend.Backend { return b.be }
