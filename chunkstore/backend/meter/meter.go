package meter

import (
	"context"
	"sync/atomic"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Backend is a backend that counts what is asked of it. Its counters may be read and reset at any time. Use New.
type Backend struct {
	be     backend.Backend
	calls  [Methods]atomic.Int64
	bytes  [Methods]atomic.Int64
	listed atomic.Int64
	pages  atomic.Int64 // of 1,000 names
}

var _ backend.Backend = (*Backend)(nil)

// New wraps be.
func New(be backend.Backend) *Backend { return &Backend{be: be} }

// Calls returns how many calls of the method there were, those that failed included.
func (m *Backend) Calls(of Method) int64 { return m.calls[of].Load() }

// Bytes returns how many bytes the method's successful calls wrote or read; 0 for those that move no content.
func (m *Backend) Bytes(of Method) int64 { return m.bytes[of].Load() }

// Listed returns how many objects List has told of.
func (m *Backend) Listed() int64 { return m.listed.Load() }

// Requests returns how many requests S3 would have got: one for each call, and of List one for each 1,000 names.
func (m *Backend) Requests() int64 {
	n := m.pages.Load()
	for of := range Methods {
		if of != List {
			n += m.calls[of].Load()
		}
	}
	return n
}

// Reset sets every counter to zero.
func (m *Backend) Reset() {
	for of := range Methods {
		m.calls[of].Store(0)
		m.bytes[of].Store(0)
	}
	m.listed.Store(0)
	m.pages.Store(0)
}

// count counts a call and passes on its error.
func (m *Backend) count(of Method, bytes int, err error) error {
	m.calls[of].Add(1)
	if err == nil {
		m.bytes[of].Add(int64(bytes))
	}
	return err
}

// Put implements backend.Backend.
func (m *Backend) Put(ctx context.Context, name string, data []byte) error {
	return m.count(Put, len(data), m.be.Put(ctx, name, data))
}

// PutIfAbsent implements backend.Backend.
func (m *Backend) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return m.count(PutIfAbsent, len(data), m.be.PutIfAbsent(ctx, name, data))
}

// ReadAt implements backend.Backend.
func (m *Backend) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return m.count(ReadAt, len(p), m.be.ReadAt(ctx, name, p, off))
}

// List implements backend.Backend.
func (m *Backend) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	names := int64(0)
	err := m.be.List(ctx, prefix, func(o backend.Object) error {
		m.listed.Add(1)
		names++
		return fn(o)
	})
	m.pages.Add(max(1, (names+999)/1000))
	return m.count(List, 0, err)
}

// Stat implements backend.Backend.
func (m *Backend) Stat(ctx context.Context, name string) (backend.Object, error) {
	obj, err := m.be.Stat(ctx, name)
	return obj, m.count(Stat, 0, err)
}

// Delete implements backend.Backend.
func (m *Backend) Delete(ctx context.Context, name string) error {
	return m.count(Delete, 0, m.be.Delete(ctx, name))
}

// Location implements backend.Backend.
func (m *Backend) Location() string { return m.be.Location() }

// Unwrap returns the backend behind m.
func (m *Backend) Unwrap() backend.Backend { return m.be }
