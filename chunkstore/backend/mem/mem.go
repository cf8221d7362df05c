package mem

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Backend holds objects in memory. Use New.
type Backend struct {
	mu      sync.RWMutex // guards both maps; the bytes of an object are never changed once they are in
	objects map[string]object
	folders map[string]struct{} // every folder of every name ever put, as a file system would have made them
}

type object struct {
	data []byte
	mod  time.Time
}

var _ backend.Backend = (*Backend)(nil)

// New returns an empty backend.
func New() *Backend {
	return &Backend{objects: map[string]object{}, folders: map[string]struct{}{}}
}

// Put implements backend.Backend.
func (b *Backend) Put(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, false)
}

// PutIfAbsent implements backend.Backend.
func (b *Backend) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, true)
}

func (b *Backend) put(ctx context.Context, name string, data []byte, absent bool) error {
	if err := backend.Begin(ctx, "put", name); err != nil {
		return err
	}
	obj := object{slices.Clone(data), time.Now()}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, taken := b.objects[name]; taken && absent {
		return fmt.Errorf("put %s: %w", name, backend.ErrExist)
	}
	if _, taken := b.folders[name]; taken {
		return fmt.Errorf("put %s: %w: it is a folder of other objects", name, backend.ErrName)
	}
	for i, c := range name {
		if _, taken := b.objects[name[:i]]; c == '/' && taken {
			return fmt.Errorf("put %s: %w: %s is an object", name, backend.ErrName, name[:i])
		}
	}
	for i, c := range name {
		if c == '/' {
			b.folders[name[:i]] = struct{}{}
		}
	}
	b.objects[name] = obj
	return nil
}

// ReadAt implements backend.Backend.
func (b *Backend) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := backend.Begin(ctx, "read", name); err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("read %s: negative offset %d", name, off)
	}
	obj, err := b.get(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if size := int64(len(obj.data)); off > size || int64(len(p)) > size-off {
		return fmt.Errorf("read %s: %d bytes at %d of %d: %w", name, len(p), off, size, backend.ErrShort)
	}
	copy(p, obj.data[off:])
	return nil
}

// List implements backend.Backend. It sees the names that were there when it was called, less those deleted since.
func (b *Backend) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	for _, name := range b.names(prefix) {
		if err := ctx.Err(); err != nil {
			return err
		}
		obj, err := b.get(name)
		if err != nil {
			continue
		}
		if err := fn(backend.Object{Name: name, Size: int64(len(obj.data)), ModTime: obj.mod}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// names returns those that begin with prefix, sorted.
func (b *Backend) names(prefix string) []string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var names []string
	for name := range b.objects {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Stat implements backend.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (backend.Object, error) {
	if err := backend.Begin(ctx, "stat", name); err != nil {
		return backend.Object{}, err
	}
	obj, err := b.get(name)
	if err != nil {
		return backend.Object{}, fmt.Errorf("stat %s: %w", name, err)
	}
	return backend.Object{Name: name, Size: int64(len(obj.data)), ModTime: obj.mod}, nil
}

// Delete implements backend.Backend.
func (b *Backend) Delete(ctx context.Context, name string) error {
	if err := backend.Begin(ctx, "delete", name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, name)
	return nil
}

// Location implements backend.Backend.
func (b *Backend) Location() string { return "mem:" }

func (b *Backend) get(name string) (object, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	obj, ok := b.objects[name]
	if !ok {
		return object{}, backend.ErrNotExist
	}
	return obj, nil
}
