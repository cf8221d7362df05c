package backendtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// ErrInjected is what a Fault answers unless it names another error.
var ErrInjected = errors.New("injected fault")

// Kind is what goes wrong.
type Kind int

const (
	// Fail answers Fault.Err; the call is not made.
	Fail Kind = iota
	// LoseAnswer makes the call and answers Fault.Err, as when the connection breaks at the wrong moment.
	LoseAnswer
	// Truncate cuts to the first half, silently: the data of a write, the names of a List, the size of a Stat. A ReadAt gets
	// ErrShort. Not for Delete.
	Truncate
	// FlipBit inverts bit Fault.Bit of what is written or read, silently. Only for Put, PutIfAbsent and ReadAt.
	FlipBit
	// Delay makes the call after Fault.Delay, or not at all when the context ends before.
	Delay
)

// Fault says which call goes wrong, and how.
type Fault struct {
	Method Method
	Prefix string // only calls whose name (of List: prefix) begins so are counted
	N      int    // the first call that goes wrong, counted from 1; 0 means 1
	Times  int    // how many calls go wrong from there on; 0 means 1, less than 0 all
	Kind   Kind

	Err   error         // of Fail and LoseAnswer; nil means ErrInjected
	Bit   int           // of FlipBit: counted from 0, taken modulo the number of bits
	Delay time.Duration // of Delay

	// Optional is for tests that try N = 1, 2, ... until Fired is false: it is no failure when the fault never fires.
	Optional bool
}

// Faulty is a backend that goes wrong as told. Use NewFaulty.
type Faulty struct {
	be    backend.Backend
	mu    sync.Mutex // guards plans
	plans []plan
}

// plan is a fault and how far it has come.
type plan struct {
	Fault
	seen, fired int // calls that matched, calls that went wrong
}

var _ backend.Backend = (*Faulty)(nil)

// NewFaulty wraps be. When the test ends and a fault that is not Optional has not fired, the test fails.
func NewFaulty(t testing.TB, be backend.Backend, faults ...Fault) *Faulty {
	t.Helper()
	f := &Faulty{be: be}
	for _, fault := range faults {
		bad := fault.Kind == Truncate && fault.Method == Delete ||
			fault.Kind == FlipBit && fault.Method != Put && fault.Method != PutIfAbsent && fault.Method != ReadAt
		if bad || fault.N < 0 || fault.Bit < 0 {
			t.Fatalf("impossible fault %+v", fault)
		}
		if fault.N == 0 {
			fault.N = 1
		}
		if fault.Times == 0 {
			fault.Times = 1
		}
		if fault.Err == nil {
			fault.Err = ErrInjected
		}
		f.plans = append(f.plans, plan{Fault: fault})
	}
	t.Cleanup(func() { f.check(t) })
	return f
}

// Fired reports whether every fault has fired at least once.
func (f *Faulty) Fired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !slices.ContainsFunc(f.plans, func(p plan) bool { return p.fired == 0 })
}

func (f *Faulty) check(t testing.TB) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.plans {
		if p.fired == 0 && !p.Optional {
			t.Errorf("fault never fired: %s %q, call %d of which there were %d", p.Method, p.Prefix, p.N, p.seen)
		}
	}
}

// next counts a call and returns the fault that it is to meet, or nil.
func (f *Faulty) next(m Method, name string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hit *Fault
	for i := range f.plans {
		p := &f.plans[i]
		if p.Method != m || !strings.HasPrefix(name, p.Prefix) {
			continue
		}
		p.seen++
		if hit == nil && p.seen >= p.N && (p.Times < 0 || p.seen < p.N+p.Times) {
			p.fired++
			hit = &p.Fault
		}
	}
	return hit
}

// around makes the call as the fault, which may be nil, allows.
func (fault *Fault) around(ctx context.Context, what string, call func() error) error {
	if fault == nil {
		return call()
	}
	switch fault.Kind {
	case Fail:
		return fmt.Errorf("%s: %w", what, fault.Err)
	case LoseAnswer:
		_ = call() // lost, whatever it says
		return fmt.Errorf("%s: %w", what, fault.Err)
	case Delay:
		select {
		case <-time.After(fault.Delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return call()
}

// spoil returns the data of a write as the fault leaves it.
func (fault *Fault) spoil(data []byte) []byte {
	switch {
	case fault == nil:
	case fault.Kind == Truncate:
		return data[:len(data)/2]
	case fault.Kind == FlipBit:
		data = slices.Clone(data)
		fault.flip(data)
	}
	return data
}

func (fault *Fault) flip(p []byte) {
	if len(p) > 0 {
		bit := fault.Bit % (len(p) * 8)
		p[bit/8] ^= 1 << (bit % 8)
	}
}

// Put implements backend.Backend.
func (f *Faulty) Put(ctx context.Context, name string, data []byte) error {
	fault := f.next(Put, name)
	return fault.around(ctx, "put "+name, func() error { return f.be.Put(ctx, name, fault.spoil(data)) })
}

// PutIfAbsent implements backend.Backend.
func (f *Faulty) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	fault := f.next(PutIfAbsent, name)
	return fault.around(ctx, "put "+name, func() error { return f.be.PutIfAbsent(ctx, name, fault.spoil(data)) })
}

// ReadAt implements backend.Backend.
func (f *Faulty) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	fault := f.next(ReadAt, name)
	return fault.around(ctx, "read "+name, func() error {
		if err := f.be.ReadAt(ctx, name, p, off); err != nil {
			return err
		}
		switch {
		case fault == nil:
		case fault.Kind == FlipBit:
			fault.flip(p)
		case fault.Kind == Truncate:
			clear(p[len(p)/2:])
			return fmt.Errorf("read %s: %d bytes at %d: %w", name, len(p), off, backend.ErrShort)
		}
		return nil
	})
}

// List implements backend.Backend.
func (f *Faulty) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	fault := f.next(List, prefix)
	return fault.around(ctx, "list "+prefix, func() error {
		if fault == nil || fault.Kind != Truncate {
			return f.be.List(ctx, prefix, fn)
		}
		var objs []backend.Object
		err := f.be.List(ctx, prefix, func(o backend.Object) error {
			objs = append(objs, o)
			return nil
		})
		for _, o := range objs[:len(objs)/2] {
			if err := fn(o); err != nil {
				return err
			}
		}
		return err
	})
}

// Stat implements backend.Backend.
func (f *Faulty) Stat(ctx context.Context, name string) (obj backend.Object, err error) {
	fault := f.next(Stat, name)
	err = fault.around(ctx, "stat "+name, func() (err error) {
		obj, err = f.be.Stat(ctx, name)
		return err
	})
	if err != nil {
		return backend.Object{}, err
	}
	if fault != nil && fault.Kind == Truncate {
		obj.Size /= 2
	}
	return obj, nil
}

// Delete implements backend.Backend.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	return f.next(Delete, name).around(ctx, "delete "+name, func() error { return f.be.Delete(ctx, name) })
}

// Unwrap returns the backend behind f, which does not go wrong.
func (f *Faulty) Unwrap() backend.Backend { return f.be }

// Location implements backend.Backend.
func (f *Faulty) Location() string { return f.be.Location() }
