package backendtest_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

func TestWrappersKeepTheContract(t *testing.T) {
	for name, wrap := range map[string]func(*testing.T) backend.Backend{
		"Faulty":        func(t *testing.T) backend.Backend { return backendtest.NewFaulty(t, mem.New()) },
		"StopAfter":     func(*testing.T) backend.Backend { return backendtest.StopAfter(mem.New(), math.MaxInt) },
		"StopAfterLost": func(*testing.T) backend.Backend { return backendtest.StopAfterLost(mem.New(), math.MaxInt) },
	} {
		t.Run(name, func(t *testing.T) { backendtest.Run(t, wrap) })
	}
}

// outcome is what one call of each method does under a fault.
type outcome struct {
	err   error
	after string // what be.ReadAll("a/x") gives afterwards without faults; "-" when absent
	seen  string // what the call itself gave: bytes, names or size
}

func TestFaulty(t *testing.T) {
	own := errors.New("own")
	for _, c := range []struct {
		fault backendtest.Fault
		want  outcome
	}{
		{backendtest.Fault{Method: backendtest.Put, Kind: backendtest.Fail}, outcome{backendtest.ErrInjected, "old!", ""}},
		{backendtest.Fault{Method: backendtest.Put, Kind: backendtest.LoseAnswer, Err: own}, outcome{own, "newer!", ""}},
		{backendtest.Fault{Method: backendtest.Put, Kind: backendtest.Truncate}, outcome{nil, "new", ""}},
		{backendtest.Fault{Method: backendtest.Put, Kind: backendtest.FlipBit, Bit: 8}, outcome{nil, "ndwer!", ""}},
		{backendtest.Fault{Method: backendtest.PutIfAbsent, Kind: backendtest.Fail}, outcome{backendtest.ErrInjected, "-", ""}},
		{backendtest.Fault{Method: backendtest.PutIfAbsent, Kind: backendtest.LoseAnswer}, outcome{backendtest.ErrInjected, "newer!", ""}},
		{backendtest.Fault{Method: backendtest.PutIfAbsent, Kind: backendtest.Truncate}, outcome{nil, "new", ""}},
		{backendtest.Fault{Method: backendtest.ReadAt, Kind: backendtest.Fail}, outcome{backendtest.ErrInjected, "old!", "...."}},
		{backendtest.Fault{Method: backendtest.ReadAt, Kind: backendtest.Truncate}, outcome{backend.ErrShort, "old!", "ol\x00\x00"}},
		{backendtest.Fault{Method: backendtest.ReadAt, Kind: backendtest.FlipBit, Bit: 32}, outcome{nil, "old!", "nld!"}},
		{backendtest.Fault{Method: backendtest.List, Kind: backendtest.Fail}, outcome{backendtest.ErrInjected, "old!", ""}},
		{backendtest.Fault{Method: backendtest.List, Kind: backendtest.LoseAnswer}, outcome{backendtest.ErrInjected, "old!", "a/x a/y "}},
		{backendtest.Fault{Method: backendtest.List, Kind: backendtest.Truncate}, outcome{nil, "old!", "a/x "}},
		{backendtest.Fault{Method: backendtest.Stat, Kind: backendtest.Fail}, outcome{backendtest.ErrInjected, "old!", "0"}},
		{backendtest.Fault{Method: backendtest.Stat, Kind: backendtest.Truncate}, outcome{nil, "old!", "2"}},
		{backendtest.Fault{Method: backendtest.Delete, Kind: backendtest.Fail}, outcome{backendtest.ErrInjected, "old!", ""}},
		{backendtest.Fault{Method: backendtest.Delete, Kind: backendtest.LoseAnswer}, outcome{backendtest.ErrInjected, "-", ""}},
	} {
		t.Run(fmt.Sprintf("%s/%d", c.fault.Method, c.fault.Kind), func(t *testing.T) {
			be := mem.New()
			put(t, be, "a/x", "old!")
			put(t, be, "a/y", "y")
			if c.fault.Method == backendtest.PutIfAbsent {
				if err := be.Delete(t.Context(), "a/x"); err != nil {
					t.Fatal(err)
				}
			}
			c.fault.Prefix = "a/"
			got := call(t.Context(), backendtest.NewFaulty(t, be, c.fault), c.fault.Method)
			got.after = read(t, be, "a/x")
			if !errors.Is(got.err, c.want.err) || got.after != c.want.after || got.seen != c.want.seen {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// call calls the method once, on a/x or, for List, on a/.
func call(ctx context.Context, be backend.Backend, m backendtest.Method) (o outcome) {
	switch m {
	case backendtest.Put:
		o.err = be.Put(ctx, "a/x", []byte("newer!"))
	case backendtest.PutIfAbsent:
		o.err = be.PutIfAbsent(ctx, "a/x", []byte("newer!"))
	case backendtest.ReadAt:
		p := []byte("....")
		o.err = be.ReadAt(ctx, "a/x", p, 0)
		o.seen = string(p)
	case backendtest.List:
		o.err = be.List(ctx, "a/", func(obj backend.Object) error {
			o.seen += obj.Name + " "
			return nil
		})
	case backendtest.Stat:
		var obj backend.Object
		obj, o.err = be.Stat(ctx, "a/x")
		o.seen = fmt.Sprint(obj.Size)
	case backendtest.Delete:
		o.err = be.Delete(ctx, "a/x")
	}
	return o
}

func TestFaultyCountsCalls(t *testing.T) {
	be := backendtest.NewFaulty(t, mem.New(),
		backendtest.Fault{Method: backendtest.Put, Prefix: "packs/", N: 2, Times: 2},
		backendtest.Fault{Method: backendtest.Put, Prefix: "index/", N: 3, Times: -1},
		backendtest.Fault{Method: backendtest.Put, Prefix: "never/", Optional: true},
	)
	for _, c := range []struct {
		name string
		want string // of each call: '.' succeeds, 'x' fails
	}{{"packs/a", ".xx..."}, {"index/a", "..xxxx"}, {"other", "......"}} {
		got := ""
		for range c.want {
			if err := be.Put(t.Context(), c.name, nil); err == nil {
				got += "."
			} else {
				got += "x"
			}
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	if be.Fired() {
		t.Error("Fired is true, but one fault has not")
	}
}

// recorder is a testing.TB that notes failures, and runs its clean-ups when told.
type recorder struct {
	testing.TB
	failed   []string
	cleanups []func()
}

func (r *recorder) Helper()           {}
func (r *recorder) Cleanup(fn func()) { r.cleanups = append(r.cleanups, fn) }
func (r *recorder) Errorf(format string, args ...any) {
	r.failed = append(r.failed, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...) }

func TestFaultThatNeverFiresFailsTheTest(t *testing.T) {
	for _, c := range []struct {
		puts, failures int
	}{{0, 1}, {1, 1}, {2, 0}} {
		r := &recorder{}
		be := backendtest.NewFaulty(r, mem.New(), backendtest.Fault{Method: backendtest.Put, N: 2})
		for i := range c.puts {
			if err := be.Put(t.Context(), "x", nil); (err != nil) != (i == 1) {
				t.Fatalf("put %d: %v", i, err)
			}
		}
		for _, fn := range r.cleanups {
			fn()
		}
		if len(r.failed) != c.failures {
			t.Errorf("after %d puts: failures %q, want %d", c.puts, r.failed, c.failures)
		}
	}
}

func TestImpossibleFaultIsRefused(t *testing.T) {
	for _, fault := range []backendtest.Fault{
		{Method: backendtest.Delete, Kind: backendtest.Truncate},
		{Method: backendtest.Stat, Kind: backendtest.FlipBit},
		{Method: backendtest.Put, N: -1},
	} {
		r := &recorder{}
		backendtest.NewFaulty(r, mem.New(), fault)
		if len(r.failed) != 1 {
			t.Errorf("%+v: failures %q, want one", fault, r.failed)
		}
	}
}

func TestFaultyDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewFaulty(t, mem.New(), backendtest.Fault{
			Method: backendtest.Put, Times: 2, Kind: backendtest.Delay, Delay: time.Minute,
		})
		start := time.Now()
		put(t, be, "x", "1")
		if took := time.Since(start); took != time.Minute {
			t.Errorf("put took %v, want a minute", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := be.Put(ctx, "x", []byte("2")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		if got := read(t, be, "x"); got != "1" {
			t.Errorf("the put that ran out of time was made: %q", got)
		}
	})
}

// steps is a process of four writes. It returns the error that ended it.
func steps(ctx context.Context, be backend.Backend) error {
	for _, step := range []func() error{
		func() error { return be.Put(ctx, "a", []byte("1")) },
		func() error { return be.PutIfAbsent(ctx, "b", []byte("2")) },
		func() error { return be.Delete(ctx, "a") },
		func() error { return be.Put(ctx, "c", []byte("3")) },
	} {
		if _, err := be.Stat(ctx, "b"); err != nil && !errors.Is(err, backend.ErrNotExist) {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func TestStopAfter(t *testing.T) {
	states := []string{"---", "1--", "12-", "-2-", "-23"} // of a, b and c after so many writes
	for _, lost := range []bool{false, true} {
		for n := range len(states) + 1 {
			be := backendtest.StopAfter(mem.New(), n)
			if lost {
				be = backendtest.StopAfterLost(mem.New(), n)
			}
			err := steps(t.Context(), be)
			dies := n < 4 || lost && n == 4
			if dies != errors.Is(err, backendtest.ErrStopped) || dies != be.Dead() || !dies && err != nil {
				t.Errorf("n=%d lost=%t: got %v, dead %t, want dead %t", n, lost, err, be.Dead(), dies)
			}
			want := min(n, 4)
			left := be.Survivors()
			if got := read(t, left, "a") + read(t, left, "b") + read(t, left, "c"); got != states[want] || be.Writes() != want {
				t.Errorf("n=%d lost=%t: got %s after %d writes, want %s after %d", n, lost, got, be.Writes(), states[want], want)
			}
			if got := call(t.Context(), be, backendtest.Put); !errors.Is(got.err, backendtest.ErrStopped) {
				t.Errorf("n=%d: Put after the end: %v, want ErrStopped", n, got.err)
			}
			if got := call(t.Context(), be, backendtest.List); !errors.Is(got.err, backendtest.ErrStopped) {
				t.Errorf("n=%d: List after the end: %v, want ErrStopped", n, got.err)
			}
		}
	}
}

// remains is a backend with remains of broken-off writes.
type remains struct {
	backend.Backend
	age time.Duration // of the last call
}

func (r *remains) RemoveStale(_ context.Context, age time.Duration) (int, int64, error) {
	r.age = age
	return 2, 300, nil
}

// TestWrappersHideNoAbility: what the backend can do beside its contract, it can do through a wrapper.
func TestWrappersHideNoAbility(t *testing.T) {
	inner := &remains{Backend: mem.New()}
	stopped := backendtest.StopAfter(inner, 1)
	for _, be := range []backend.Backend{backendtest.NewCounting(inner), backendtest.NewFaulty(t, inner), stopped} {
		inner.age = 0
		r, ok := backend.As[backend.StaleRemover](be)
		if !ok {
			t.Errorf("%T hides RemoveStale", be)
			continue
		}
		if n, size, err := r.RemoveStale(t.Context(), time.Hour); n != 2 || size != 300 || err != nil || inner.age != time.Hour {
			t.Errorf("%T: %d, %d, %v, asked for %v", be, n, size, err, inner.age)
		}
	}
	stopped.Survivors()
	if _, _, err := stopped.RemoveStale(t.Context(), time.Hour); !errors.Is(err, backendtest.ErrStopped) {
		t.Errorf("of a dead process: %v", err)
	}
	if n, _, err := backendtest.StopAfter(mem.New(), 1).RemoveStale(t.Context(), time.Hour); n != 0 || err != nil {
		t.Errorf("where there is nothing: %d, %v", n, err)
	}
}

func TestCountingCountsPages(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	for i := range 1001 {
		put(t, be, fmt.Sprintf("a/%04d", i), "")
	}
	be.Reset()
	for _, c := range []struct {
		prefix string
		want   int64
	}{{"a/", 2}, {"a/0", 1}, {"b", 1}} {
		before := be.Requests()
		if err := be.List(t.Context(), c.prefix, func(backend.Object) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if got := be.Requests() - before; got != c.want {
			t.Errorf("list %q: %d requests, want %d", c.prefix, got, c.want)
		}
	}
	if _, err := be.Stat(t.Context(), "a/0000"); err != nil || be.Requests() != 5 {
		t.Errorf("%d requests, %v", be.Requests(), err)
	}
}

func put(t *testing.T, be backend.Backend, name, data string) {
	t.Helper()
	if err := be.Put(t.Context(), name, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

// read returns the object, "-" if it is absent.
func read(t *testing.T, be backend.Backend, name string) string {
	t.Helper()
	p, err := backend.ReadAll(t.Context(), be, name)
	if errors.Is(err, backend.ErrNotExist) {
		return "-"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}
