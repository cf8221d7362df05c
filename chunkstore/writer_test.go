package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// newTestWriter begins a Writer that the test's clean-up closes.
func newTestWriter(t testing.TB, r *Repository) *Writer {
	t.Helper()
	w, err := r.NewWriter(context.Background(), WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close writer: %v", err)
		}
	})
	return w
}

// randomChunks are n chunks of up to maxLen random bytes; a part of each compresses.
func randomChunks(rnd *rand.Rand, n, maxLen int) [][]byte {
	chunks := make([][]byte, n)
	for i := range chunks {
		p := make([]byte, 1+rnd.IntN(maxLen))
		for j := range len(p) * 3 / 4 {
			p[j] = byte(rnd.Uint32())
		}
		chunks[i] = append(p, binary.AppendUvarint(nil, uint64(i))...) // no two alike
	}
	return chunks
}

// mustReadChunks reads the chunks through a handle of its own.
func mustReadChunks(t *testing.T, be backend.Backend, chunks [][]byte) {
	t.Helper()
	r, err := Open(context.Background(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var buf []byte
	for i, want := range chunks {
		id := r.ChunkID(want)
		if buf, err = r.ReadChunk(context.Background(), id, buf); err != nil || !bytes.Equal(buf, want) {
			t.Fatalf("chunk %d of %d: %d bytes, want %d; %v", i, len(chunks), len(buf), len(want), err)
		}
	}
}

func TestWriterStoresEachChunkOnce(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	r := openTest(t, be, Options{})
	w := newTestWriter(t, r)
	ctx := t.Context()
	rnd := rand.New(rand.NewPCG(1, 2))
	chunks := randomChunks(rnd, 300, 40_000)
	var plain int64
	for _, p := range chunks {
		plain += int64(len(p))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		order := rnd.Perm(len(chunks))
		wg.Go(func() {
			for _, i := range order {
				p := bytes.Clone(chunks[i])
				id, err := w.PutChunk(ctx, p)
				if err != nil || id != r.ChunkID(chunks[i]) {
					t.Errorf("goroutine %d, chunk %d: %v, %v", g, i, id, err)
					return
				}
				clear(p) // it is ours again
			}
		})
	}
	wg.Wait()
	if err := w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	s := w.Stats()
	if s.Chunks != 8*300 || s.NewChunks != 300 || s.NewBytes != plain || s.Objects != be.Calls(backendtest.Put) || s.Stored != be.Bytes(backendtest.Put) {
		t.Errorf("stats: %+v; puts: %d calls, %d bytes", s, be.Calls(backendtest.Put), be.Bytes(backendtest.Put))
	}
	rs, err := r.Stats(ctx)
	if err != nil || rs.Chunks != 300 || rs.Plain != plain || rs.Nodes != 0 || rs.DataPacks.Objects < 2 {
		t.Errorf("repository: %+v, %v", rs, err)
	}
	mustReadChunks(t, be, chunks)
}

func TestWriterRefusesImpossibleChunks(t *testing.T) {
	r := openTest(t, mem.New(), Options{})
	w := newTestWriter(t, r)
	for _, n := range []int{0, r.Cutter().MaxChunk() + 1, maxRaw + 1} {
		if _, err := w.PutChunk(t.Context(), make([]byte, n)); err == nil {
			t.Errorf("%d bytes: no error", n)
		}
	}
	if _, err := w.PutChunk(t.Context(), make([]byte, r.Cutter().MaxChunk())); err != nil {
		t.Errorf("the longest: %v", err)
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// gated holds puts of packs until the gate is open.
type gated struct {
	backend.Backend
	gate chan struct{}
	held atomic.Int64
}

func (g *gated) Put(ctx context.Context, name string, data []byte) error {
	g.held.Add(1)
	select {
	case <-g.gate:
	case <-ctx.Done():
		return ctx.Err()
	}
	return g.Backend.Put(ctx, name, data)
}

// openGated opens a new repository whose puts are held.
func openGated(t *testing.T) (*gated, *Repository) {
	t.Helper()
	be := &gated{Backend: mem.New(), gate: make(chan struct{})}
	if _, err := Init(t.Context(), be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20, Compression: "none"}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), be, Options{Parallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	return be, r
}

// TestWriterMemoryIsBounded: when the backend stands still, so do the callers, after as many packs as there are buffers. At
// the end no goroutine is left: synctest would say so.
func TestWriterMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be, r := openGated(t)
		w, err := r.NewWriter(t.Context(), WriterOptions{Buffers: 4})
		if err != nil {
			t.Fatal(err)
		}
		chunks := randomChunks(rand.New(rand.NewPCG(3, 4)), 100, 250_000)
		var wg sync.WaitGroup
		var taken atomic.Int64
		wg.Go(func() { // one: synctest does not count who waits for a mutex as waiting
			for _, p := range chunks {
				if _, err := w.PutChunk(t.Context(), p); err != nil {
					t.Error(err)
				}
				taken.Add(int64(len(p)))
			}
		})
		synctest.Wait()
		if n := taken.Load(); be.held.Load() != 4 || n < 4<<20 || n > 4*(1<<20+256<<10) {
			t.Errorf("%d packs under way, %d bytes taken; want 4 and as much as they hold", be.held.Load(), n)
		}
		close(be.gate)
		wg.Wait()
		if err := w.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		mustReadChunks(t, be, chunks)
		if err := errors.Join(w.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestWriterCallersContext: the context of a put ends its own waiting, not the upload of what others put before it.
func TestWriterCallersContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be, r := openGated(t)
		w, err := r.NewWriter(t.Context(), WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		chunks := randomChunks(rand.New(rand.NewPCG(5, 6)), 15, 250_000)
		ctx, cancel := context.WithCancel(t.Context())
		for _, p := range chunks {
			if _, err := w.PutChunk(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if be.held.Load() == 0 {
			t.Fatal("nothing is under way")
		}
		cancel() // as an errgroup does when its work is done
		synctest.Wait()
		close(be.gate)
		if err := w.Flush(t.Context()); err != nil {
			t.Errorf("the uploads ended with the context of a put: %v", err)
		}
		mustReadChunks(t, be, chunks)
		if err := errors.Join(w.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestWriterGivesUpWholly: a put that was cancelled while it waited leaves nobody in the belief that its chunk is stored.
func TestWriterGivesUpWholly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be, r := openGated(t)
		w, err := r.NewWriter(t.Context(), WriterOptions{Buffers: 2})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		chunks := randomChunks(rand.New(rand.NewPCG(7, 8)), 100, 250_000)
		var last []byte
		var putErr error
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, last = range chunks {
				if _, putErr = w.PutChunk(ctx, last); putErr != nil {
					return
				}
			}
		}()
		synctest.Wait()
		cancel()
		<-done
		if !errors.Is(putErr, context.Canceled) {
			t.Fatalf("got %v, want %v", putErr, context.Canceled)
		}
		close(be.gate)
		if _, err := w.PutChunk(t.Context(), last); !errors.Is(err, context.Canceled) {
			t.Errorf("the chunk again: %v, want the first error", err)
		}
		if err := w.PutBackup(t.Context(), &Backup{Volume: "v"}); !errors.Is(err, context.Canceled) {
			t.Errorf("backup: %v, want the first error", err)
		}
		if err := errors.Join(w.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestWriterEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r := openGated(t)
		ctx, cancel := context.WithCancel(t.Context())
		w, err := r.NewWriter(ctx, WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range randomChunks(rand.New(rand.NewPCG(9, 10)), 15, 250_000) {
			if _, err := w.PutChunk(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(time.Minute, cancel)
		if err := w.Flush(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("flush: %v, want %v", err, context.Canceled)
		}
		if err := errors.Join(w.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestWriterRepeatsItsFirstError(t *testing.T) {
	be := mem.New()
	openTest(t, be, Options{})
	first := errors.New("first")
	faulty := backendtest.NewFaulty(t, be,
		backendtest.Fault{Method: backendtest.Put, Prefix: prefixPacks, N: 2, Err: first},
		backendtest.Fault{Method: backendtest.Put, Prefix: prefixPacks, N: 3, Times: -1, Err: errors.New("another"), Optional: true})
	r, err := Open(t.Context(), faulty, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := newTestWriter(t, r)
	chunks := randomChunks(rand.New(rand.NewPCG(11, 12)), 400, 20_000)
	var got error
	for _, p := range chunks {
		if _, got = w.PutChunk(t.Context(), p); got != nil {
			break
		}
	}
	if got == nil {
		got = w.Flush(t.Context())
	}
	if !errors.Is(got, first) {
		t.Fatalf("got %v, want %v", got, first)
	}
	for name, call := range map[string]func() error{
		"a known chunk": func() error { _, err := w.PutChunk(t.Context(), chunks[0]); return err },
		"a new chunk":   func() error { _, err := w.PutChunk(t.Context(), []byte("new")); return err },
		"flush":         func() error { return w.Flush(t.Context()) },
		"backup":        func() error { return w.PutBackup(t.Context(), &Backup{Volume: "v"}) },
	} {
		if err := call(); !errors.Is(err, first) {
			t.Errorf("%s afterwards: %v, want %v", name, err, first)
		}
	}
	if all, err := r.ListBackups(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("backups: %v, %v", all, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestWriterAfterClose(t *testing.T) {
	r := openTest(t, mem.New(), Options{CacheDir: t.TempDir()})
	w := newTestWriter(t, r)
	if _, err := w.PutChunk(t.Context(), []byte("known")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Flush(t.Context()), w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutChunk(t.Context(), []byte("known")); err == nil {
		t.Error("put after close: no error")
	}
	if err := w.Flush(t.Context()); err == nil {
		t.Error("flush after close: no error")
	}
}

// TestEveryWriteFails: whichever write fails, or loses its answer, no backup is listed that cannot be read, and the next
// attempt succeeds.
func TestEveryWriteFails(t *testing.T) {
	img := sparseImage(rand.New(rand.NewPCG(13, 14)), 3<<20)
	for _, kind := range []backendtest.Kind{backendtest.Fail, backendtest.LoseAnswer} {
		for _, method := range []backendtest.Method{backendtest.Put, backendtest.PutIfAbsent} {
			fired := true
			for n := 1; fired; n++ {
				be := mem.New()
				r := openTest(t, be, Options{CacheDir: t.TempDir()})
				faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: method, N: n, Kind: kind, Optional: true})
				err := tryBackup(t, faulty, img)
				fired = faulty.Fired()
				if fired != (err != nil) {
					t.Fatalf("%v %d, kind %d: fired %v, error %v", method, n, kind, fired, err)
				}
				all, err := r.ListBackups(t.Context(), "")
				if err != nil || !fired && len(all) != 1 || fired && len(all) > 0 && (method != backendtest.PutIfAbsent || kind != backendtest.LoseAnswer) {
					t.Fatalf("%v %d, kind %d: %d backups, %v", method, n, kind, len(all), err)
				}
				for _, b := range all {
					mustReadBlob(t, r, b.Blob, img)
				}
				if err := tryBackup(t, be, img); err != nil {
					t.Fatalf("%v %d, kind %d: next backup: %v", method, n, kind, err)
				}
			}
		}
	}
}

// tryBackup stores img as a backup of volume "v" through a handle of its own.
func tryBackup(t *testing.T, be backend.Backend, img []byte) error {
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := r.NewWriter(t.Context(), WriterOptions{})
	if err != nil {
		return err
	}
	defer w.Close()
	ref, err := storeImage(t.Context(), r, w, img, nil, nil)
	if err != nil {
		return err
	}
	return w.PutBackup(t.Context(), &Backup{Volume: "v", Blob: ref})
}

// TestManyWritersOfOneRepository: each flushes when it likes, and what it flushed is in the index for all.
func TestManyWritersOfOneRepository(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{CacheDir: t.TempDir()})
	chunks := randomChunks(rand.New(rand.NewPCG(15, 16)), 600, 4000)
	shared, err := r.NewWriter(t.Context(), WriterOptions{}) // used by all, beside their own
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			w, err := r.NewWriter(t.Context(), WriterOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			for i := g * 60; i < g*60+240; i++ { // they overlap
				for _, w := range []*Writer{w, shared} {
					if _, err := w.PutChunk(t.Context(), chunks[i]); err != nil {
						t.Error(err)
						return
					}
					if i%20 == 19 {
						if err := w.Flush(t.Context()); err != nil {
							t.Error(err)
							return
						}
					}
				}
				if i%20 == 19 {
					other, err := Open(t.Context(), be, Options{})
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := other.ReadChunk(t.Context(), r.ChunkID(chunks[i]), nil); err != nil {
						t.Errorf("chunk %d after a flush: %v", i, err)
					}
					_ = other.Close()
				}
			}
		})
	}
	wg.Wait()
	mustReadChunks(t, be, chunks[:540])
}

// TestWriterFlushesItsIndexOnTheWay: more entries than may wait are in segments before Flush.
func TestWriterFlushesItsIndexOnTheWay(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	w := newTestWriter(t, r)
	const n = maxPending + 30_000
	for i := range n {
		if _, err := w.PutChunk(t.Context(), fmt.Append(nil, "chunk ", i)); err != nil {
			t.Fatal(err)
		}
	}
	w.uploads.Wait() // no puts are under way
	if len(segmentsOf(t, r)) == 0 {
		t.Error("no segment before the flush")
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	rs, err := r.Stats(t.Context())
	if err != nil || rs.Chunks != n || rs.Index.Objects < 2 {
		t.Errorf("repository: %+v, %v", rs, err)
	}
	mustReadChunks(t, be, [][]byte{[]byte("chunk 0"), fmt.Append(nil, "chunk ", n/2), fmt.Append(nil, "chunk ", n-1)})
}

// A long backup writes many index segments, and merges them on the way: every look-up probes each run.
func TestWriterMergesIndexOnTheWay(t *testing.T) {
	r := openTest(t, mem.New(), Options{CacheDir: t.TempDir()})
	w := newTestWriter(t, r)
	w.flushAt = 1 // with every pack
	rnd := rand.New(rand.NewPCG(7, 7))
	var most int
	for _, p := range randomChunks(rnd, 2400, 128<<10) {
		if _, err := w.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		most = max(most, len(segmentsOf(t, r)))
	}
	packs := int(w.Stats().Objects)
	if packs < 100 {
		t.Fatalf("only %d objects were put", packs)
	}
	if most > 4*mergeRuns {
		t.Errorf("%d segments at once, of %d objects put; at most %d are expected", most, packs, 4*mergeRuns)
	}
}
