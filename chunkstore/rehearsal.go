package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// rehearsal is a backend on which a dry run does all that it would do, and nothing is changed: what is written stays in memory, and
// of data packs only their length, for nobody reads them again.
type rehearsal struct {
	backend.Backend

	mu      sync.Mutex // guards changed
	changed map[string]rehearsed
}

type rehearsed struct {
	size int64 // -1: deleted
	data []byte
	mod  time.Time
}

func newRehearsal(be backend.Backend) *rehearsal {
	return &rehearsal{Backend: be, changed: map[string]rehearsed{}}
}

func (b *rehearsal) get(name string) (rehearsed, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.changed[name]
	return o, ok
}

func (b *rehearsal) set(ctx context.Context, name string, o rehearsed) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed[name] = o
	return ctx.Err()
}

func (b *rehearsal) Put(ctx context.Context, name string, data []byte) error {
	o := rehearsed{size: int64(len(data)), mod: time.Now()}
	if _, kind, ok := parsePackObject(name); !ok || kind != kindData {
		o.data = slices.Clone(data)
	}
	return b.set(ctx, name, o)
}

func (b *rehearsal) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	if _, err := b.Stat(ctx, name); err == nil {
		return fmt.Errorf("put %s: %w", name, backend.ErrExist)
	} else if !errors.Is(err, backend.ErrNotExist) {
		return err
	}
	return b.Put(ctx, name, data)
}

func (b *rehearsal) Delete(ctx context.Context, name string) error {
	return b.set(ctx, name, rehearsed{size: -1})
}

func (b *rehearsal) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	o, ok := b.get(name)
	switch {
	case !ok:
		return b.Backend.ReadAt(ctx, name, p, off)
	case o.size < 0:
		return fmt.Errorf("read %s: %w", name, backend.ErrNotExist)
	case off < 0 || off > o.size || int64(len(p)) > o.size-off:
		return fmt.Errorf("read %s: %w", name, backend.ErrShort)
	case o.data == nil && o.size > 0:
		return fmt.Errorf("read %s: a dry run does not keep data", name)
	}
	copy(p, o.data[off:])
	return ctx.Err()
}

func (b *rehearsal) Stat(ctx context.Context, name string) (backend.Object, error) {
	o, ok := b.get(name)
	switch {
	case !ok:
		return b.Backend.Stat(ctx, name)
	case o.size < 0:
		return backend.Object{}, fmt.Errorf("stat %s: %w", name, backend.ErrNotExist)
	}
	return backend.Object{Name: name, Size: o.size, ModTime: o.mod}, nil
}

func (b *rehearsal) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	b.mu.Lock()
	var own []backend.Object
	for name, o := range b.changed {
		if strings.HasPrefix(name, prefix) && o.size >= 0 {
			own = append(own, backend.Object{Name: name, Size: o.size, ModTime: o.mod})
		}
	}
	b.mu.Unlock()
	slices.SortFunc(own, func(a, b backend.Object) int { return strings.Compare(a.Name, b.Name) })
	upTo := func(name string) error {
		for len(own) > 0 && (name == "" || own[0].Name < name) {
			if err := fn(own[0]); err != nil {
				return err
			}
			own = own[1:]
		}
		return nil
	}
	err := b.Backend.List(ctx, prefix, func(o backend.Object) error {
		if err := upTo(o.Name); err != nil {
			return err
		}
		if _, changed := b.get(o.Name); changed {
			return nil
		}
		return fn(o)
	})
	if err != nil {
		return err
	}
	return upTo("")
}
