package backendtest

import (
	"context"
	"sync/atomic"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Counting is a backend that counts what is asked of it. Its counters may be read and reset at any time. Use NewCounting.
type Counting struct {
	be     backend.Backend
	calls  [methods]atomic.Int64
	bytes  [methods]atomic.Int64
	listed atomic.Int64
}

var _ backend.Backend = (*Counting)(nil)

// NewCounting wraps be.
func NewCounting(be backend.Backend) *Counting { return &Counting{be: be} }

// Calls returns how many calls of the method there were, those that failed included.
func (c *Counting) Calls(m Method) int64 { return c.calls[m].Load() }

// Bytes returns how many bytes the method's successful calls wrote or read; 0 for those that move no content.
func (c *Counting) Bytes(m Method) int64 { return c.bytes[m].Load() }

// Listed returns how many objects List has told of.
func (c *Counting) Listed() int64 { return c.listed.Load() }

// Reset sets every counter to zero.
func (c *Counting) Reset() {
	for m := range methods {
		c.calls[m].Store(0)
		c.bytes[m].Store(0)
	}
	c.listed.Store(0)
}

// count counts a call and passes on its error.
func (c *Counting) count(m Method, bytes int, err error) error {
	c.calls[m].Add(1)
	if err == nil {
		c.bytes[m].Add(int64(bytes))
	}
	return err
}

// Put implements backend.Backend.
func (c *Counting) Put(ctx context.Context, name string, data []byte) error {
	return c.count(Put, len(data), c.be.Put(ctx, name, data))
}

// PutIfAbsent implements backend.Backend.
func (c *Counting) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return c.count(PutIfAbsent, len(data), c.be.PutIfAbsent(ctx, name, data))
}

// ReadAt implements backend.Backend.
func (c *Counting) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return c.count(ReadAt, len(p), c.be.ReadAt(ctx, name, p, off))
}

// List implements backend.Backend.
func (c *Counting) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	return c.count(List, 0, c.be.List(ctx, prefix, func(o backend.Object) error {
		c.listed.Add(1)
		return fn(o)
	}))
}

// Stat implements backend.Backend.
func (c *Counting) Stat(ctx context.Context, name string) (backend.Object, error) {
	obj, err := c.be.Stat(ctx, name)
	return obj, c.count(Stat, 0, err)
}

// Delete implements backend.Backend.
func (c *Counting) Delete(ctx context.Context, name string) error {
	return c.count(Delete, 0, c.be.Delete(ctx, name))
}

// Location implements backend.Backend.
func (c *Counting) Location() string { return c.be.Location() }
