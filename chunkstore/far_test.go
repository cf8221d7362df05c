package chunkstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// farBackend is one where each read takes a while.
type farBackend struct {
	backend.Backend
	delay time.Duration
	reads atomic.Int64
}

var _ backend.Distant = (*farBackend)(nil)

func (f *farBackend) AtOnce() int { return 8 }

func (f *farBackend) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	f.reads.Add(1)
	t := time.NewTimer(f.delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return f.Backend.ReadAt(ctx, name, p, off)
}

// farBlob is a blob of that many spans behind a far backend, opened with nothing in memory.
func farBlob(t *testing.T, spans int) (*farBackend, *Repository, *Blob, []byte) {
	t.Helper()
	be := mem.New()
	near := openTest(t, be, Options{})
	img := make([]byte, spans<<20)
	for span := range spans { // a little in each
		copy(img[span<<20:], sparseImage(rand.New(rand.NewPCG(21, uint64(span))), 40_000))
		img[span<<20+50_000] = 1
	}
	w := newTestWriter(t, near)
	ref := putImage(t, near, w, img, nil)
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	f := &farBackend{Backend: be, delay: 30 * time.Millisecond}
	r, err := Open(t.Context(), f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, r, r.OpenBlob(ref), img
}

// A blob that is read through has several leaves under way; one leaf is one read.
func TestLeavesAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const spans = 48
		f, _, b, _ := farBlob(t, spans)
		f.reads.Store(0)
		start := time.Now()
		var last Chunk
		n := 0
		for c, err := range b.Chunks(t.Context(), 0, b.Size()) {
			if err != nil {
				t.Fatal(err)
			}
			if c.Off < last.End() {
				t.Fatalf("chunk at %d after %d", c.Off, last.End())
			}
			last = c
			n++
		}
		rounds := int(time.Since(start) / f.delay)
		if most := 3 + (spans+leavesAhead-1)/leavesAhead; rounds > most || n == 0 {
			t.Errorf("%d chunks took %d times a request, want at most %d", n, rounds, most)
		}
		if f.reads.Load() > spans+2 {
			t.Errorf("%d reads of %d leaves, their root and the index", f.reads.Load(), spans)
		}
	})
}

// Who ends early, or is interested in one span, does not pay for the rest, and leaves nothing running.
func TestLeavesOnlyAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, b, _ := farBlob(t, 48)
		f.reads.Store(0)
		for _, err := range b.Chunks(t.Context(), 5<<20, 6<<20) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if n := f.reads.Load(); n > 3 {
			t.Errorf("%d reads for one span, the root and the index", n)
		}
		for c, err := range b.Chunks(t.Context(), 10<<20, b.Size()) {
			if err != nil {
				t.Fatal(err)
			}
			if c.Off > 12<<20 {
				break
			}
		}
		if n := f.reads.Load(); n > 3+3+2*leavesAhead {
			t.Errorf("%d reads for three spans", n)
		}
	})
}

// Readers that want the same leaf at once share one read of it.
func TestLeafLoadedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, b, _ := farBlob(t, 8)
		if _, err := b.SpanChunks(t.Context(), nil, 0); err != nil { // the root
			t.Fatal(err)
		}
		f.reads.Store(0)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := b.SpanChunks(t.Context(), nil, 3); err != nil {
					t.Error(err)
				}
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), f.delay/2)
		defer cancel()
		if _, err := b.SpanChunks(ctx, nil, 3); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who cannot wait got %v", err)
		}
		wg.Wait()
		if n := f.reads.Load(); n > 2 { // the impatient one's, if he was the first
			t.Errorf("%d reads of one leaf", n)
		}
	})
}

// Far away the same bytes are read, and a leaf that is gone is an error after all that comes before it.
func TestFarReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r, b, img := farBlob(t, 20)
		mustReadBlob(t, r, b.ref, img)
		var trees []string
		err := f.List(t.Context(), prefixPacks+"tree/", func(o backend.Object) error {
			trees = append(trees, o.Name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r2, err := Open(t.Context(), &farBackend{Backend: failing{f.Backend, trees}, delay: time.Millisecond}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r2.Close()
		for _, err = range r2.OpenBlob(b.ref).Chunks(t.Context(), 0, b.Size()) {
			if err != nil {
				break
			}
		}
		if !errors.Is(err, errFailing) {
			t.Errorf("got %v", err)
		}
	})
}

var errFailing = errors.New("failing")

// failing fails to read some objects, but for their first bytes.
type failing struct {
	backend.Backend
	names []string
}

func (f failing) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if slices.Contains(f.names, name) && off > 500 {
		return errFailing
	}
	return f.Backend.ReadAt(ctx, name, p, off)
}
