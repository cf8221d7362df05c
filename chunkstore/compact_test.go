package chunkstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// randomSegment has entries of a small space of keys, so that segments share some, in packs of their own and shared ones.
func randomSegment(t *testing.T, rnd *rand.Rand) *segment {
	packs := make([]packRef, 1+rnd.IntN(4))
	for i := range packs {
		packs[i] = packRef{id: packID{byte(rnd.IntN(10))}, kind: kindData, size: 1 << 20}
	}
	entries := make([]indexEntry, rnd.IntN(200))
	for i := range entries {
		e := indexEntry{pack: uint32(rnd.IntN(len(packs))), off: 32 + uint32(rnd.IntN(1000)), stored: 16, raw: uint32(rnd.IntN(maxRaw))}
		binary.BigEndian.PutUint64(e.key[:], uint64(rnd.IntN(500))<<50)
		entries[i] = e
	}
	s, err := openSegment(fmt.Sprint(rnd.Uint32()), encodeSegment(rnd.Uint64(), packs, sortEntries(entries)))
	if err == nil {
		err = verifySegment(s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMergeIsTheUnion(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		in := make([]*segment, rnd.IntN(12))
		union := map[key]map[location]bool{}
		for i := range in {
			in[i] = randomSegment(t, rnd)
			for j := range in[i].count {
				l, err := in[i].locationAt(j)
				if err != nil {
					t.Fatal(err)
				}
				k := in[i].entryAt(j).key
				if union[k] == nil {
					union[k] = map[location]bool{}
				}
				union[k][l] = true
			}
		}
		m := newSegmentMerge(in)
		limit := 1 + rnd.IntN(300)
		var last *key
		for {
			packs, entries, err := m.next(t.Context(), limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			if len(entries) > limit {
				t.Fatalf("%d entries, limit %d", len(entries), limit)
			}
			s, err := openSegment("merged", encodeSegment(1, packs, entries))
			if err == nil {
				err = verifySegment(s)
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range s.count {
				k := s.entryAt(i).key
				l, _ := s.locationAt(i)
				if !union[k][l] {
					t.Fatalf("key %x at %+v is in no input", k, l)
				}
				if last != nil && string(k[:]) <= string(last[:]) {
					t.Fatalf("key %x after %x", k, *last)
				}
				last = &k
				delete(union, k)
			}
		}
		if len(union) > 0 {
			t.Fatalf("%d keys are lost", len(union))
		}
	}
}

func TestMergeRefusesDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	s := randomSegment(t, rnd)
	for s.count == 0 {
		s = randomSegment(t, rnd)
	}
	binary.LittleEndian.PutUint32(s.entries[16:], 99) // no such pack
	if _, _, err := newSegmentMerge([]*segment{s}).next(t.Context(), 1000); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want %v", err, ErrCorrupt)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := newSegmentMerge([]*segment{randomSegment(t, rnd)}).next(ctx, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestCompactIndexKeepsSegmentsFew: 300 small backups, each with a flush and a compaction.
func TestCompactIndexKeepsSegmentsFew(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	r := openTest(t, be, Options{CacheDir: t.TempDir()})
	rnd := rand.New(rand.NewPCG(5, 6))
	var chunks [][]byte
	most := 0
	for i := range 300 {
		w, err := r.NewWriter(t.Context(), WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for j := range 1 + rnd.IntN(20) {
			p := fmt.Append(nil, "backup ", i, " chunk ", j)
			chunks = append(chunks, p)
			if _, err := w.PutChunk(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Flush(t.Context()), w.Close(), r.CompactIndex(t.Context())); err != nil {
			t.Fatal(err)
		}
		listed := 0
		err = be.List(t.Context(), prefixIndex, func(backend.Object) error { listed++; return nil })
		if err != nil || listed != len(segmentsOf(t, r)) {
			t.Fatalf("%d segments listed, %d in use; %v", listed, len(segmentsOf(t, r)), err)
		}
		most = max(most, listed)
	}
	// About 3000 entries: tiers of up to 7 runs at sizes 1 to 4096 in factors of 8.
	if most > 4*(mergeRuns-1)+1 {
		t.Errorf("up to %d segments", most)
	}
	t.Logf("up to %d segments for 300 flushes", most)
	mustReadChunks(t, be, chunks)
}

// onList calls after when a listing of prefix is done.
type onList struct {
	backend.Backend
	prefix string
	after  func()
}

func (b *onList) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	err := b.Backend.List(ctx, prefix, fn)
	if prefix == b.prefix && b.after != nil {
		after := b.after
		b.after = nil
		after()
	}
	return err
}

// putFlushed stores each chunk in a segment of its own.
func putFlushed(t *testing.T, r *Repository, chunks [][]byte) {
	t.Helper()
	w, err := r.NewWriter(t.Context(), WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range chunks {
		if _, err := w.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenBesideAMerge: segments that go between listing and reading are found merged.
func TestOpenBesideAMerge(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	chunks := randomChunks(rand.New(rand.NewPCG(7, 8)), 20, 100)
	putFlushed(t, r, chunks)
	merged := false
	r2, err := Open(t.Context(), &onList{be, prefixIndex, func() {
		if err := r.CompactIndex(t.Context()); err != nil {
			t.Error(err)
		}
		merged = true
	}}, Options{})
	if err != nil || !merged {
		t.Fatalf("open: %v; merged: %v", err, merged)
	}
	defer r2.Close()
	for _, p := range chunks {
		if _, err := r2.ReadChunk(t.Context(), r2.ChunkID(p), nil); err != nil {
			t.Error(err)
		}
	}
}

// TestTwoHostsMergeAtOnce: the second merges what the first has merged and removed already.
func TestTwoHostsMergeAtOnce(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	chunks := randomChunks(rand.New(rand.NewPCG(9, 10)), 20, 100)
	putFlushed(t, r, chunks)
	r2 := openTest(t, be, Options{CacheDir: t.TempDir()})
	if err := errors.Join(r.CompactIndex(t.Context()), r2.CompactIndex(t.Context())); err != nil {
		t.Fatal(err)
	}
	mustReadChunks(t, be, chunks)
}

func TestSharedEntries(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for range 100 {
		segs := make([]*segment, rnd.IntN(8))
		in := map[key]int{}
		for i := range segs {
			segs[i] = randomSegment(t, rnd)
			for j := range segs[i].count {
				in[segs[i].entryAt(j).key]++
			}
		}
		shared, err := sharedEntries(t.Context(), segs)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range segs {
			for j := range s.count {
				if k := s.entryAt(j).key; (shared[i][j/64]&(1<<(j%64)) != 0) != (in[k] > 1) {
					t.Fatalf("key %x is in %d segments, marked: %x", k, in[k], shared[i][j/64])
				}
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for s := (*segment)(nil); s == nil || s.count == 0; {
		s = randomSegment(t, rnd)
		if _, err := sharedEntries(ctx, []*segment{s}); s.count > 0 && !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	}
}
