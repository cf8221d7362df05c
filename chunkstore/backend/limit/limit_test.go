package limit_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/file"
	"github.com/shalebackup/shale/chunkstore/backend/limit"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/chunkstore/backend/meter"
)

const mib = 1 << 20

func TestContract(t *testing.T) {
	for name, o := range map[string]limit.Options{
		"requests": {Requests: 1},
		"rates":    {Upload: limit.NewBucket(4 << 30), Download: limit.NewBucket(4 << 30), Requests: 3},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(*testing.T) backend.Backend { return limit.New(mem.New(), o) })
		})
		t.Run(name+", file", func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backend.Backend { return limit.New(folder(t), o) })
		})
	}
}

func folder(t *testing.T) *file.Backend {
	t.Helper()
	be, err := file.Options{NoSync: true}.Create(t.TempDir() + "/repo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := be.Close(); err != nil {
			t.Error(err)
		}
	})
	return be
}

// near fails the test unless got is want, but for the twentieth of a second's bytes that may go at once.
func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if d := got - want; d > want/50 || d < -100*time.Millisecond {
		t.Errorf("%s took %v, want %v", what, got, want)
	}
}

// backends are one that waits for a whole object and one that waits for each piece of it.
func backends(t *testing.T) map[string]backend.Backend {
	return map[string]backend.Backend{"mem": mem.New(), "file": folder(t), "behind a wrapper": meter.New(folder(t))}
}

func TestRates(t *testing.T) {
	for name, be := range backends(t) {
		synctest.Test(t, func(t *testing.T) {
			b := limit.New(be, limit.Options{Upload: limit.NewBucket(mib), Download: limit.NewBucket(4 * mib)})
			start := time.Now()
			if err := b.Put(t.Context(), "x", make([]byte, 16*mib)); err != nil {
				t.Fatal(err)
			}
			near(t, name+": 16 MiB up at 1 MiB/s", time.Since(start), 16*time.Second)
			start = time.Now()
			for range 4 {
				if err := b.ReadAt(t.Context(), "x", make([]byte, 4*mib), 3); err != nil {
					t.Fatal(err)
				}
			}
			near(t, name+": 16 MiB down at 4 MiB/s", time.Since(start), 4*time.Second)
			start = time.Now()
			if err := b.PutIfAbsent(t.Context(), "y", make([]byte, mib)); err != nil {
				t.Fatal(err)
			}
			near(t, name+": 1 MiB up at 1 MiB/s", time.Since(start), time.Second)
		})
	}
}

// A request shares the rate with a large one that is under way; it does not wait for its end.
func TestSmallRequestsPassLargeOnes(t *testing.T) {
	for name, be := range backends(t) {
		synctest.Test(t, func(t *testing.T) {
			up := limit.NewBucket(mib)
			b := limit.New(be, limit.Options{Upload: up})
			var wg sync.WaitGroup
			start := time.Now()
			wg.Go(func() {
				if err := b.Put(t.Context(), "large", make([]byte, 16*mib)); err != nil {
					t.Error(err)
				}
				near(t, name+": both", time.Since(start), 16*time.Second+10*time.Second/1024)
			})
			time.Sleep(5 * time.Second)
			begun := time.Now()
			if err := b.Put(t.Context(), "small", make([]byte, 10<<10)); err != nil {
				t.Error(err)
			}
			if took := time.Since(begun); took > 500*time.Millisecond {
				t.Errorf("%s: 10 KiB took %v beside 16 MiB, at 1 MiB/s", name, took)
			}
			wg.Wait()
		})
	}
}

// Two backends with one bucket have its rate together.
func TestSharedBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := limit.Options{Upload: limit.NewBucket(2 * mib)}
		var wg sync.WaitGroup
		start := time.Now()
		for _, be := range []backend.Backend{limit.New(mem.New(), o), limit.New(mem.New(), o)} {
			wg.Go(func() {
				for range 4 {
					if err := be.Put(t.Context(), "x", make([]byte, mib)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		near(t, "twice 4 MiB at 2 MiB/s", time.Since(start), 4*time.Second)
	})
}

func TestCancelledWhileWaiting(t *testing.T) {
	for name, be := range backends(t) {
		synctest.Test(t, func(t *testing.T) {
			b := limit.New(be, limit.Options{Upload: limit.NewBucket(1000)})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			start := time.Now()
			if err := b.Put(ctx, "x", make([]byte, mib)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: got %v, want DeadlineExceeded", name, err)
			}
			if took := time.Since(start); took != time.Minute {
				t.Errorf("%s: cancelled after a minute, returned after %v", name, took)
			}
			if _, err := b.Stat(t.Context(), "x"); !errors.Is(err, backend.ErrNotExist) {
				t.Errorf("%s: half an object: %v", name, err)
			}
			// What was asked for and not moved is not owed.
			start = time.Now()
			if err := b.Put(t.Context(), "y", make([]byte, 1000)); err != nil {
				t.Error(err)
			}
			near(t, name+": 1000 bytes at 1000/s", time.Since(start), time.Second)
		})
	}
}

func TestAnyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			rate int64
			n    int
			want time.Duration
		}{
			{0, mib, 0},
			{-1, mib, 0},
			{1, 10, 10 * time.Second},
			{19, 190, 10 * time.Second},
			{1 << 62, mib, 0},
		} {
			start := time.Now()
			if err := limit.NewBucket(c.rate).Wait(t.Context(), c.n); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > c.want || took < c.want*8/10 {
				t.Errorf("%d bytes at %d/s took %v, want %v", c.n, c.rate, took, c.want)
			}
		}
	})
}

// busy is a backend whose requests take a second.
type busy struct {
	backend.Backend
	now, most [2]atomic.Int64 // writes, reads
}

func (b *busy) spend(kind int) {
	n := b.now[kind].Add(1)
	for m := b.most[kind].Load(); n > m && !b.most[kind].CompareAndSwap(m, n); m = b.most[kind].Load() {
	}
	time.Sleep(time.Second)
	b.now[kind].Add(-1)
}

func (b *busy) Put(context.Context, string, []byte) error {
	b.spend(0)
	return nil
}

func (b *busy) PutIfAbsent(context.Context, string, []byte) error {
	b.spend(0)
	return nil
}

func (b *busy) ReadAt(context.Context, string, []byte, int64) error {
	b.spend(1)
	return nil
}

func TestRequestsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &busy{Backend: mem.New()}
		b := limit.New(inner, limit.Options{Requests: 3})
		var wg sync.WaitGroup
		for range 5 {
			for _, call := range []func() error{
				func() error { return b.Put(t.Context(), "x", nil) },
				func() error { return b.PutIfAbsent(t.Context(), "x", nil) },
				func() error { return b.ReadAt(t.Context(), "x", nil, 0) },
			} {
				wg.Go(func() {
					if err := call(); err != nil {
						t.Error(err)
					}
				})
			}
		}
		synctest.Wait() // all slots are taken
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := b.ReadAt(ctx, "x", nil, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v while all slots are taken, want DeadlineExceeded", err)
		}
		wg.Wait()
		if w, r := inner.most[0].Load(), inner.most[1].Load(); w != 3 || r != 3 {
			t.Errorf("%d writes and %d reads at once, want 3 of each", w, r)
		}
	})
}

// What the place can do besides is not hidden.
func TestAbilitiesAreFound(t *testing.T) {
	be := limit.New(meter.New(folder(t)), limit.Options{})
	if _, ok := backend.As[backend.StaleRemover](be); !ok {
		t.Error("the folder's StaleRemover is hidden")
	}
	if _, ok := backend.As[backend.StaleRemover](limit.New(mem.New(), limit.Options{})); ok {
		t.Error("memory has a StaleRemover")
	}
}

// With real clocks, disks and timers the rate is about right, and no more than a burst above.
func TestRealClock(t *testing.T) {
	b := limit.New(folder(t), limit.Options{Upload: limit.NewBucket(20 * mib)})
	start := time.Now()
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		wg.Go(func() {
			if err := b.Put(t.Context(), name, make([]byte, 5*mib)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took < 440*time.Millisecond || took > 5*time.Second {
		t.Errorf("10 MiB at 20 MiB/s took %v, want half a second", took)
	}
}
