package backendtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// ErrStopped is what every call answers after the process has died.
var ErrStopped = errors.New("the process has died")

// Stopped is a backend as a process sees it that dies at a chosen write. Writes are Put, PutIfAbsent and Delete, also
// those that fail. Use StopAfter or StopAfterLost.
type Stopped struct {
	be backend.Backend
	n  int // writes that are made
	// lost: the answer of the n-th write never arrives.
	lost bool

	calls sync.RWMutex // read-locked by each write while it is made: Survivors waits for them
	mu    sync.Mutex   // guards all below
	made  int
	dead  bool
}

var _ backend.Backend = (*Stopped)(nil)

// StopAfter wraps be for a process that dies between its n-th write and the next: n writes are made, the next finds the process
// dead, and from then on every call, also one that reads, answers ErrStopped.
//
//	for n := 0; ; n++ {
//		be := backendtest.StopAfter(mem.New(), n)
//		err := backUp(t.Context(), be)
//		check(t, be.Survivors())
//		if err == nil {
//			break // n writes were enough: every crash point is done
//		}
//	}
func StopAfter(be backend.Backend, n int) *Stopped { return &Stopped{be: be, n: n} }

// StopAfterLost is StopAfter, except that the process dies before it gets the answer of its n-th write, which is made: that call
// answers ErrStopped too. n is 1 or more.
func StopAfterLost(be backend.Backend, n int) *Stopped { return &Stopped{be: be, n: n, lost: true} }

// Dead reports whether the process has died.
func (s *Stopped) Dead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// Writes returns how many writes were made.
func (s *Stopped) Writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made
}

// Survivors kills the process if it is still alive, waits for the writes that are being made, and returns the backend with
// what survived. It is not to be called from a callback of List that this process runs.
func (s *Stopped) Survivors() backend.Backend {
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	s.calls.Lock()
	defer s.calls.Unlock()
	return s.be
}

// write makes the call if the process lives to see it.
func (s *Stopped) write(ctx context.Context, what string, call func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.calls.RLock()
	defer s.calls.RUnlock()
	s.mu.Lock()
	if s.made >= s.n {
		s.dead = true
	}
	if s.dead {
		s.mu.Unlock()
		return fmt.Errorf("%s: %w", what, ErrStopped)
	}
	s.made++
	last := s.lost && s.made == s.n
	s.dead = last
	s.mu.Unlock()
	err := call()
	if last {
		return fmt.Errorf("%s: %w", what, ErrStopped)
	}
	return err
}

// alive returns nil while the process lives.
func (s *Stopped) alive(what string) error {
	if s.Dead() {
		return fmt.Errorf("%s: %w", what, ErrStopped)
	}
	return nil
}

// Put implements backend.Backend.
func (s *Stopped) Put(ctx context.Context, name string, data []byte) error {
	return s.write(ctx, "put "+name, func() error { return s.be.Put(ctx, name, data) })
}

// PutIfAbsent implements backend.Backend.
func (s *Stopped) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return s.write(ctx, "put "+name, func() error { return s.be.PutIfAbsent(ctx, name, data) })
}

// Delete implements backend.Backend.
func (s *Stopped) Delete(ctx context.Context, name string) error {
	return s.write(ctx, "delete "+name, func() error { return s.be.Delete(ctx, name) })
}

// ReadAt implements backend.Backend.
func (s *Stopped) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := s.alive("read " + name); err != nil {
		return err
	}
	return s.be.ReadAt(ctx, name, p, off)
}

// List implements backend.Backend. A process that dies in its callback hears of no more objects.
func (s *Stopped) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	if err := s.alive("list " + prefix); err != nil {
		return err
	}
	return s.be.List(ctx, prefix, func(o backend.Object) error {
		if err := s.alive("list " + prefix); err != nil {
			return err
		}
		return fn(o)
	})
}

// Stat implements backend.Backend.
func (s *Stopped) Stat(ctx context.Context, name string) (backend.Object, error) {
	if err := s.alive("stat " + name); err != nil {
		return backend.Object{}, err
	}
	return s.be.Stat(ctx, name)
}

// RemoveStale implements backend.StaleRemover: a dead process removes nothing, and there is nothing where the backend has no remains.
func (s *Stopped) RemoveStale(ctx context.Context, age time.Duration) (removed int, bytes int64, err error) {
	if err := s.alive("remove what is stale"); err != nil {
		return 0, 0, err
	}
	r, ok := backend.As[backend.StaleRemover](s.be)
	if !ok {
		return 0, 0, nil
	}
	return r.RemoveStale(ctx, age)
}

// Location implements backend.Backend.
func (s *Stopped) Location() string { return s.be.Location() }
