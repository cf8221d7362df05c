package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
)

// gate is a backend as a host sees it.
type gate struct {
	h     *pruneHost
	store int
}

func (g *gate) be() *modelStore { return g.h.m.stores[g.store] }

func (g *gate) pass(method, name string) error {
	if g.h.dead.Load() {
		return backendtest.ErrStopped
	}
	c := &gateCall{g.h, g.store, method, name, make(chan error)}
	g.h.m.mu.Lock()
	g.h.m.waiting = append(g.h.m.waiting, c)
	g.h.m.mu.Unlock()
	return <-c.open
}

// errLost is for the call that is made and whose answer never comes, because the host died.
var errLost = errors.New("the answer is lost")

// write makes a call that changes something.
func (g *gate) write(method, name string, call func() error) error {
	passed := g.pass(method, name)
	if passed != nil && !errors.Is(passed, errLost) {
		return passed
	}
	err := call()
	if err == nil {
		g.be().events[name] = time.Now()
	}
	if passed != nil {
		return backendtest.ErrStopped
	}
	return err
}

func (g *gate) Put(ctx context.Context, name string, data []byte) error {
	return g.write("put", name, func() error { return g.be().be.Put(ctx, name, data) })
}

func (g *gate) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return g.write("put", name, func() error { return g.be().be.PutIfAbsent(ctx, name, data) })
}

func (g *gate) Delete(ctx context.Context, name string) error {
	return g.write("delete", name, func() error { return g.be().be.Delete(ctx, name) })
}

func (g *gate) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if strings.HasPrefix(name, prefixPacks) { // other objects never change between Stat and ReadAt
		if err := g.pass("read", name); err != nil {
			return err
		}
	}
	return g.be().be.ReadAt(ctx, name, p, off)
}

func (g *gate) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	if err := g.pass("list", prefix); err != nil {
		return err
	}
	return g.be().list(ctx, prefix, g.h.m.kind.lag, g.h.n, fn)
}

func (g *gate) Stat(ctx context.Context, name string) (backend.Object, error) {
	if err := g.pass("stat", name); err != nil {
		return backend.Object{}, err
	}
	return g.be().be.Stat(ctx, name)
}

func (g *gate) Location() string { return fmt.Sprint("gate ", g.store) }

// list lists as a store does whose listings lag: by how much differs from object to object and from host to host.
func (s *modelStore) list(ctx context.Context, prefix string, lag time.Duration, host int, fn func(backend.Object) error) error {
	late := func(name string) bool {
		if lag == 0 {
			return false
		}
		h := fnv.New32()
		_, _ = fmt.Fprint(h, host, name)
		return time.Since(s.events[name]) < lag*time.Duration(h.Sum32()%4)/4
	}
	objects := map[string]backend.Object{}
	err := s.be.List(ctx, prefix, func(o backend.Object) error {
		if !late(o.Name) {
			objects[o.Name] = o
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, at := range s.events {
		if _, err := s.be.Stat(ctx, name); err != nil && strings.HasPrefix(name, prefix) && late(name) {
			objects[name] = backend.Object{Name: name, Size: 100, ModTime: at}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		if err := fn(objects[name]); err != nil {
			return err
		}
	}
	return nil
}
