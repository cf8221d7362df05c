package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// TestIndexChangesFromAllSides: flushes, refreshes, merges and lookups of one handle at once lose nothing, and leave every
// mapping to be undone once.
func TestIndexChangesFromAllSides(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{CacheDir: t.TempDir()})
	other := openTest(t, be, Options{})
	chunks := randomChunks(rand.New(rand.NewPCG(1, 2)), 400, 500)
	ctx, cancel := context.WithCancel(t.Context())
	var writers, others sync.WaitGroup
	for g := range 2 {
		repo := []*Repository{r, other}[g]
		writers.Go(func() {
			w, err := repo.NewWriter(t.Context(), WriterOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			for i := g * 200; i < g*200+200; i++ {
				if _, err := w.PutChunk(t.Context(), chunks[i]); err != nil {
					t.Error(err)
				}
				if i%5 == 0 {
					if err := w.Flush(t.Context()); err != nil {
						t.Error(err)
					}
					if _, err := r.ReadChunk(t.Context(), r.ChunkID(chunks[i]), nil); err != nil {
						t.Errorf("chunk %d after its flush: %v", i, err)
					}
				}
			}
			if err := w.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	for _, work := range []func() error{
		func() error { return r.Refresh(ctx) },
		func() error { return r.Refresh(ctx) },
		func() error { return r.CompactIndex(ctx) },
		func() error { return other.CompactIndex(ctx) },
		func() error { _, err := r.Stats(ctx); return err },
	} {
		others.Go(func() {
			for ctx.Err() == nil {
				if err := work(); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	cancel()
	others.Wait()
	mustReadChunks(t, be, chunks)
}

// TestMissesShareARefresh: many who miss something list the index few times.
func TestMissesShareARefresh(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	r := openTest(t, be, Options{})
	be.Reset()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			_, err := r.ReadChunk(t.Context(), ID{byte(i), 1}, nil)
			var nf *NotFoundError
			if !errors.As(err, &nf) || !errors.Is(err, ErrNotFound) || nf.What != "chunk" {
				t.Errorf("got %v, want %v", err, ErrNotFound)
			}
		})
	}
	wg.Wait()
	if n := be.Calls(backendtest.List); n < 1 || n > 2*50 { // of trash and index
		t.Errorf("%d listings", n)
	}
}

func TestReaderLearnsOfLaterBackups(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	r2 := openTest(t, be, Options{CacheDir: t.TempDir()})
	putFlushed(t, r, [][]byte{[]byte("late")})
	if got, err := r2.ReadChunk(t.Context(), r.ChunkID([]byte("late")), nil); err != nil || string(got) != "late" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestOpenPassesOnErrors(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	putFlushed(t, r, [][]byte{[]byte("a"), []byte("b")})
	for _, f := range []backendtest.Fault{
		{Method: backendtest.List, Prefix: prefixIndex},
		{Method: backendtest.Stat, Prefix: objectConfig},
		{Method: backendtest.ReadAt, Prefix: objectConfig},
	} {
		if _, err := Open(t.Context(), backendtest.NewFaulty(t, be, f), Options{CacheDir: t.TempDir()}); !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("%v of %q fails: %v", f.Method, f.Prefix, err)
		}
	}
}

// TestLookupsPassOnErrors: segments that cannot be read fail what needs them, and only that.
func TestLookupsPassOnErrors(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	putFlushed(t, r, [][]byte{[]byte("a"), []byte("b")})
	read := func(f backendtest.Fault, chunk string) error {
		r, err := Open(t.Context(), backendtest.NewFaulty(t, be, f), Options{CacheDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_, err = r.ReadChunk(t.Context(), r.ChunkID([]byte(chunk)), nil)
		return err
	}
	for n := 1; n <= 2; n++ {
		err := errors.Join(read(backendtest.Fault{Method: backendtest.ReadAt, Prefix: prefixIndex, N: n}, "a"),
			read(backendtest.Fault{Method: backendtest.ReadAt, Prefix: prefixIndex, N: n}, "b"))
		if err != nil && !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("read %d of the index fails: %v", n, err)
		}
		if err := read(backendtest.Fault{Method: backendtest.ReadAt, Prefix: prefixIndex, N: n}, "c"); !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("read %d of the index fails: %v", n, err)
		}
	}
	// A segment that stays away though it is listed is no endless loop.
	gone := backendtest.Fault{Method: backendtest.ReadAt, Prefix: prefixIndex, Times: -1, Err: backend.ErrNotExist}
	if err := read(gone, "a"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("listed and not there: %v", err)
	}
}

// cachedSegments returns the files of the segments in a cache.
func cachedSegments(t *testing.T, cache string, r *Repository) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(cache, r.ID(), "index", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestCacheSavesReading(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	cache := t.TempDir()
	r := openTest(t, be, Options{CacheDir: cache})
	chunks := randomChunks(rand.New(rand.NewPCG(3, 4)), 7, 100)
	putFlushed(t, r, chunks)
	open := func() int64 {
		be.Reset()
		r, err := Open(t.Context(), be, Options{CacheDir: cache})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if len(segmentsOf(t, r)) != 7 {
			t.Errorf("%d segments", len(segmentsOf(t, r)))
		}
		return be.Calls(backendtest.ReadAt) - 1 // the configuration
	}
	if n := open(); n != 0 {
		t.Errorf("%d segments read that are in the cache", n)
	}
	paths := cachedSegments(t, cache, r)
	if len(paths) != 7 {
		t.Fatalf("in the cache: %v", paths)
	}
	if err := os.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(paths[1], []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cache, r.ID(), "index", "README"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := open(); n != 2 {
		t.Errorf("%d segments read, want the 2 that are not in the cache", n)
	}
	if n := open(); n != 0 {
		t.Errorf("%d segments read again", n)
	}
	for i := range 3 {
		putFlushed(t, r, [][]byte{{byte(i)}})
	}
	if err := r.CompactIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if paths := cachedSegments(t, cache, r); len(paths) != 1+len(segmentsOf(t, r)) { // and README
		t.Errorf("%d files for %d segments", len(paths), len(segmentsOf(t, r)))
	}
}

func TestCacheOnAFullDisk(t *testing.T) {
	be := mem.New()
	cache := t.TempDir()
	r := openTest(t, be, Options{CacheDir: cache})
	if err := os.RemoveAll(filepath.Join(cache, r.ID(), "index")); err != nil { // as good as full: no file can be made
		t.Fatal(err)
	}
	putFlushed(t, r, [][]byte{[]byte("kept in memory")})
	mustReadChunks(t, be, [][]byte{[]byte("kept in memory")})
	if s := segmentsOf(t, r); len(s) != 1 || s[0].mapping != nil {
		t.Errorf("segments: %+v", s)
	}
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), be, Options{CacheDir: blocked}); err == nil {
		t.Error("a cache folder that is a file: no error")
	}
}

// TestCacheGoneBad: a byte of a cached segment changes. No read gives wrong bytes, a merge does not carry it into the
// repository, and a check mends it.
func TestCacheGoneBad(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for round := range 60 {
		be := mem.New()
		cache := t.TempDir()
		chunks := randomChunks(rnd, 12, 200)
		r, err := initAndOpen(be, cache)
		if err != nil {
			t.Fatal(err)
		}
		putFlushed(t, r, chunks[:4])
		for i := 4; i < len(chunks); i += 4 {
			w, err := r.NewWriter(t.Context(), WriterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range chunks[i : i+4] {
				if _, err := w.PutChunk(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		paths := cachedSegments(t, cache, r)
		path := paths[rnd.IntN(len(paths))]
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err = Open(t.Context(), be, Options{CacheDir: cache}); err != nil {
			t.Fatal(err)
		}
		var all []Chunk
		for i, p := range chunks {
			all = append(all, Chunk{Off: int64(i), Len: len(p), ID: r.ChunkID(p)})
			if got, err := r.ReadChunk(t.Context(), all[i].ID, nil); err == nil && !bytes.Equal(got, p) {
				t.Fatalf("round %d: chunk %d is wrong", round, i)
			}
		}
		err = r.ReadChunks(t.Context(), all, func(i int, data []byte) error {
			if !bytes.Equal(data, chunks[i]) {
				t.Errorf("round %d: chunk %d of a batch is wrong", round, i)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFound) {
			t.Fatalf("round %d: %v", round, err)
		}
		if round%2 == 0 {
			putFlushed(t, r, randomChunks(rnd, 8, 50))
			if err := r.CompactIndex(t.Context()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		rep, err := r.Check(t.Context(), CheckOptions{Level: CheckData})
		if err != nil || len(rep.Damage) > 0 {
			t.Fatalf("round %d: %+v, %v", round, rep, err)
		}
		for i, p := range chunks { // healed
			if got, err := r.ReadChunk(t.Context(), all[i].ID, nil); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("round %d: chunk %d after the check: %v", round, i, err)
			}
		}
		mustReadChunks(t, be, chunks)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func initAndOpen(be backend.Backend, cache string) (*Repository, error) {
	ctx := context.Background()
	if _, err := Init(ctx, be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20}); err != nil {
		return nil, err
	}
	return Open(ctx, be, Options{CacheDir: cache})
}
