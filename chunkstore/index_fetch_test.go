package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// putRun writes an index run of n random entries in segments of at most most. Its packs are not there. Returns the keys, ascending.
func putRun(t testing.TB, r *Repository, rnd *rand.Rand, n, most int) []key {
	t.Helper()
	run := rnd.Uint64()
	keys := make([]key, n)
	for i := range keys {
		binary.BigEndian.PutUint64(keys[i][:], rnd.Uint64())
		binary.BigEndian.PutUint64(keys[i][8:], rnd.Uint64())
	}
	keys = sortKeys(keys)
	for part := range slices.Chunk(keys, most) {
		packs := make([]packRef, 1+len(part)/100)
		for i := range packs {
			packs[i] = packRef{kind: kindData, size: 1 << 20}
			binary.BigEndian.PutUint64(packs[i].id[:], rnd.Uint64())
		}
		entries := make([]indexEntry, len(part))
		for i, k := range part {
			entries[i] = indexEntry{key: k, pack: uint32(rnd.IntN(len(packs))), off: 32 + uint32(rnd.IntN(1<<19)), stored: 16, raw: uint32(i)}
		}
		s, _, err := r.index.put(t.Context(), encodeSegment(run, packs, entries))
		if err != nil {
			t.Fatal(err)
		}
		r.index.replace(nil, []*segment{s})
	}
	return keys
}

// bigIndex makes a repository of three runs, each larger than what is fetched whole, and one small segment. Returns who knows all
// of it, and its keys.
func bigIndex(t *testing.T, be backend.Backend, scale int) (*Repository, []key) {
	t.Helper()
	r, err := initAndOpen(be, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	rnd := rand.New(rand.NewPCG(11, 12))
	keys := putRun(t, r, rnd, 18_000*scale, 10_000*scale)
	keys = append(keys, putRun(t, r, rnd, 7_000*scale, 10_000*scale)...)
	keys = append(keys, putRun(t, r, rnd, 6_000*scale, 10_000*scale)...)
	return r, append(keys, putRun(t, r, rnd, 300, 1000)...)
}

func openFresh(t *testing.T, be backend.Backend, cache string) *Repository {
	t.Helper()
	r, err := Open(t.Context(), be, Options{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// mustKnow compares look-ups of r with those of one who has all of the index.
func mustKnow(t *testing.T, r, all *Repository, keys []key) {
	t.Helper()
	for _, k := range keys {
		want, there := all.index.lookup(&k)
		got, found, err := r.resolve(context.Background(), &k)
		if err != nil || found != there || got != want {
			t.Fatalf("key %x: got %+v %v %v, want %+v %v", k, got, found, err, want, there)
		}
		if has, err := r.index.has(context.Background(), &k); err != nil || has != there {
			t.Fatalf("has key %x: got %v %v, want %v", k, has, err, there)
		}
	}
}

// absent are keys that no index has.
func absent(rnd *rand.Rand, n int) []key {
	keys := make([]key, n)
	for i := range keys {
		binary.BigEndian.PutUint64(keys[i][:], rnd.Uint64())
	}
	return keys
}

func sample(rnd *rand.Rand, keys []key, n int) []key {
	out := make([]key, n)
	for i := range out {
		out[i] = keys[rnd.IntN(len(keys))]
	}
	return out
}

// TestLookupFetchesWhatItLooksAt: opening reads nothing of the index, a look-up some frames; what was fetched is not fetched again, by
// this process or the next one on the host.
func TestLookupFetchesWhatItLooksAt(t *testing.T) {
	for _, cached := range []bool{true, false} {
		be := backendtest.NewCounting(mem.New())
		all, keys := bigIndex(t, be, 1)
		cache := ""
		if cached {
			cache = t.TempDir()
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		be.Reset()
		r := openFresh(t, be, cache)
		if n := be.Calls(backendtest.ReadAt); n != 1 { // the configuration
			t.Errorf("open: %d reads", n)
		}
		ask := append(sample(rnd, keys, 3), absent(rnd, 2)...)
		mustKnow(t, r, all, ask)
		// 4 segments of which header and table are read, and one whole; 5 look-ups in up to 3 runs, 3 of them for the pack too.
		if n, reads := be.Bytes(backendtest.ReadAt), be.Calls(backendtest.ReadAt); n > 5*40<<10+(5*3+3)*segmentFrameLen || reads > 1+4*2+1+5*3+3 {
			t.Errorf("cached %v: 5 look-ups read %d bytes in %d reads", cached, n, reads)
		}
		be.Reset()
		mustKnow(t, r, all, ask)
		if n := be.Calls(backendtest.ReadAt); n != 0 {
			t.Errorf("cached %v: %d reads for what was looked up already", cached, n)
		}
		if cached {
			mustKnow(t, openFresh(t, be, cache), all, ask)
			if n := be.Calls(backendtest.ReadAt); n != 1 {
				t.Errorf("%d reads by the next process", n)
			}
		}
		mustKnow(t, r, all, append(sample(rnd, keys, 2000), absent(rnd, 500)...))
		be.Reset()
		segmentsOf(t, r)
		mustKnow(t, r, all, sample(rnd, keys, 2000))
		if cached {
			be.Reset()
			next := openFresh(t, be, cache)
			segmentsOf(t, next)
			mustKnow(t, next, all, sample(rnd, keys, 1000))
			if n := be.Calls(backendtest.ReadAt); n != 1 {
				t.Errorf("%d reads when all is in the cache", n)
			}
		}
	}
}

// TestLookupsNeverCostMuchMoreThanTheIndex: whoever asks for much has read little more than all of it, in few requests.
func TestLookupsNeverCostMuchMoreThanTheIndex(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	_, keys := bigIndex(t, be, 5)
	size := int64(0)
	err := be.List(t.Context(), prefixIndex, func(o backend.Object) error { size += o.Size; return nil })
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		name         string
		ask          func(r *Repository, k *key) error
		bytes, reads int64 // at most
	}{
		{"writer", func(r *Repository, k *key) error { _, err := r.index.has(t.Context(), k); return err }, size * 5 / 4, 60},
		{"reader", func(r *Repository, k *key) error { _, _, err := r.resolve(t.Context(), k); return err }, size * 7 / 4, 120},
	} {
		be.Reset()
		r := openFresh(t, be, t.TempDir())
		for _, k := range append(sample(rnd, keys, 3000), absent(rnd, 3000)...) {
			if err := c.ask(r, &k); err != nil {
				t.Fatal(err)
			}
		}
		n, reads := be.Bytes(backendtest.ReadAt), be.Calls(backendtest.ReadAt)
		t.Logf("%s: %d bytes in %d reads, the index has %d", c.name, n, reads, size)
		if n > c.bytes || reads > c.reads {
			t.Errorf("%s: %d bytes in %d reads; want at most %d in %d", c.name, n, reads, c.bytes, c.reads)
		}
	}
}

// TestCacheFilledByMany: handles as of several processes fill one cache at once.
func TestCacheFilledByMany(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	all, keys := bigIndex(t, be, 1)
	cache := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(5, uint64(i)))
			r := openFresh(t, be, cache)
			var inner sync.WaitGroup
			for range 2 {
				ask := append(sample(rnd, keys, 500), absent(rnd, 100)...)
				inner.Go(func() { mustKnow(t, r, all, ask) })
			}
			inner.Wait()
		})
	}
	wg.Wait()
	segmentsOf(t, openFresh(t, be, cache))
	be.Reset()
	mustKnow(t, openFresh(t, be, cache), all, sample(rand.New(rand.NewPCG(5, 9)), keys, 2000))
	if n := be.Calls(backendtest.ReadAt); n != 1 {
		t.Errorf("%d reads when all is in the cache", n)
	}
}

// TestSparseCacheGoneBad: whatever happens to a file that is being filled, look-ups are right, and a check mends it.
func TestSparseCacheGoneBad(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	all, keys := bigIndex(t, be, 1)
	for name, harm := range map[string]func(path string, rnd *rand.Rand) error{
		"a bit": func(path string, rnd *rand.Rand) error {
			return edit(path, func(b []byte) { b[rnd.IntN(len(b))] ^= 1 })
		},
		"a page of zeros": func(path string, rnd *rand.Rand) error {
			return edit(path, func(b []byte) {
				page := b[rnd.IntN(len(b))&^4095:]
				clear(page[:min(4096, len(page))])
			})
		},
		"half of it zeros": func(path string, _ *rand.Rand) error { return edit(path, func(b []byte) { clear(b[:len(b)/2]) }) },
		"the end zeros":    func(path string, _ *rand.Rand) error { return edit(path, func(b []byte) { clear(b[len(b)-100:]) }) },
		"sums without bytes": func(path string, _ *rand.Rand) error {
			return edit(path, func(b []byte) { clear(b[len(b)/4 : len(b)*3/4]) })
		},
		"gone":  func(path string, _ *rand.Rand) error { return os.Remove(path) },
		"empty": func(path string, _ *rand.Rand) error { return replaceFile(path, nil) },
		"another's": func(path string, _ *rand.Rand) error { // a whole valid file, of another segment
			others, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
			if err != nil {
				return err
			}
			i := slices.IndexFunc(others, func(p string) bool { return p != path })
			b, err := os.ReadFile(others[i])
			return errors.Join(err, replaceFile(path, b))
		},
	} {
		rnd := rand.New(rand.NewPCG(7, 8))
		cache := t.TempDir()
		before := openFresh(t, be, cache)
		mustKnow(t, before, all, sample(rnd, keys, 40))
		paths := cachedSegments(t, cache, before)
		if len(paths) < 4 {
			t.Fatalf("in the cache: %v", paths)
		}
		_ = before.Close()
		for _, path := range paths[:3] {
			if err := harm(path, rnd); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		r := openFresh(t, be, cache)
		mustKnow(t, r, all, append(sample(rnd, keys, 500), absent(rnd, 100)...))
		segmentsOf(t, r)
		mustKnow(t, r, all, sample(rnd, keys, 500))
		be.Reset()
		next := openFresh(t, be, cache)
		if segmentsOf(t, next); be.Calls(backendtest.ReadAt) != 1 {
			t.Errorf("%s: the next process makes %d reads", name, be.Calls(backendtest.ReadAt))
		}
		mustKnow(t, next, all, sample(rnd, keys, 500))
	}
}

func edit(path string, change func([]byte)) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	change(b)
	return replaceFile(path, b)
}

// replaceFile does not change a file that may be mapped.
func replaceFile(path string, b []byte) error {
	return errors.Join(os.WriteFile(path+".new", b, 0o600), os.Rename(path+".new", path))
}

// TestCacheDiskFull: frames that cannot get into their file stay in memory.
func TestCacheDiskFull(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	all, keys := bigIndex(t, be, 1)
	rnd := rand.New(rand.NewPCG(9, 10))
	cache := t.TempDir()
	r := openFresh(t, be, cache)
	mustKnow(t, r, all, sample(rnd, keys, 20))
	for _, path := range cachedSegments(t, cache, r) {
		if err := os.Remove(path); err != nil { // as good as full: nothing can be written to it
			t.Fatal(err)
		}
	}
	mustKnow(t, r, all, append(sample(rnd, keys, 1000), absent(rnd, 100)...))
	segmentsOf(t, r)
	be.Reset()
	mustKnow(t, r, all, sample(rnd, keys, 2000))
	if segmentsOf(t, r); be.Calls(backendtest.ReadAt) != 0 {
		t.Errorf("%d reads of what is in memory", be.Calls(backendtest.ReadAt))
	}
}

// TestCacheOfARepositoryMadeAnew: at the same place there is another repository; what is in the cache of the first is not its.
func TestCacheOfARepositoryMadeAnew(t *testing.T) {
	be := mem.New()
	cache := t.TempDir()
	first, err := initAndOpen(be, cache)
	if err != nil {
		t.Fatal(err)
	}
	putFlushed(t, first, [][]byte{[]byte("of the first")})
	for _, name := range objectNames(t, be) {
		if err := be.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	second := openTest(t, be, Options{CacheDir: cache})
	putFlushed(t, second, [][]byte{[]byte("of the second")})
	if len(segmentsOf(t, second)) != 1 {
		t.Errorf("%d segments", len(segmentsOf(t, second)))
	}
	// The first one's handle, open all along, finds nothing of its own and takes nothing for it.
	if _, err := first.ReadChunk(t.Context(), first.ChunkID([]byte("of the second")), nil); err == nil {
		t.Error("the first repository has the second's chunk")
	}
	_ = first.Close()
}

// TestFramesGoneWithAMerge: a host has looked at a segment; its frames go with the segment when another merges it.
func TestFramesGoneWithAMerge(t *testing.T) {
	be := mem.New()
	all, keys := bigIndex(t, be, 1)
	rnd := rand.New(rand.NewPCG(13, 14))
	r := openFresh(t, be, t.TempDir())
	mustKnow(t, r, all, sample(rnd, keys, 3))
	in := segmentsOf(t, all)
	if err := all.index.changing.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := all.index.merge(t.Context(), all.index.snapshot(), nil)
	all.index.changing.unlock()
	if err != nil || len(in) < 5 {
		t.Fatalf("merge of %d: %v", len(in), err)
	}
	var wg sync.WaitGroup
	for range 4 {
		ask := append(sample(rnd, keys, 50), absent(rnd, 20)...)
		wg.Go(func() { mustKnow(t, r, all, ask) })
	}
	wg.Wait()
}

// TestFetchedFramesAreVerified: what comes from the backend is what its name says, or an error that names it.
func TestFetchedFramesAreVerified(t *testing.T) {
	good := mem.New()
	_, keys := bigIndex(t, good, 1)
	rnd := rand.New(rand.NewPCG(15, 16))
	for n := 1; n <= 12; n++ {
		for range 2 {
			be := backendtest.NewFaulty(t, good, backendtest.Fault{Method: backendtest.ReadAt, Prefix: prefixIndex, N: n, Kind: backendtest.FlipBit, Bit: rnd.IntN(1 << 20)})
			r := openFresh(t, be, t.TempDir())
			failed := false
			for _, k := range absent(rnd, 12) {
				has, err := r.index.has(t.Context(), &k)
				var ce *CorruptError
				if has || err != nil && (!errors.As(err, &ce) || !strings.HasPrefix(ce.Object, prefixIndex)) {
					t.Fatalf("read %d: %v, %v", n, has, err)
				}
				failed = failed || err != nil
			}
			// A flip behind what is used of an object's front does no harm; all others are noticed, and asking again helps.
			if all := segmentsOf(t, r); len(all) != 5 {
				t.Errorf("read %d: %d segments", n, len(all))
			}
			for _, k := range sample(rnd, keys, 20) {
				if has, err := r.index.has(t.Context(), &k); err != nil || !has {
					t.Errorf("read %d: %v, %v; failed before: %v", n, has, err, failed)
				}
			}
		}
	}
}

// TestReplacedSegmentsAreUnmapped: a process that lives long maps the segments that there are, and no others.
func TestReplacedSegmentsAreUnmapped(t *testing.T) {
	be := mem.New()
	cache := t.TempDir()
	r := openTest(t, be, Options{CacheDir: cache})
	stop, stopped := make(chan struct{}), sync.WaitGroup{}
	for range 3 { // while others look up and walk
		stopped.Go(func() {
			rnd := rand.New(rand.NewPCG(17, 18))
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, k := range absent(rnd, 50) {
					if has, err := r.index.has(context.Background(), &k); has || err != nil {
						t.Errorf("has: %v, %v", has, err)
						return
					}
				}
				segs, _, err := r.index.whole(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				for _, s := range segs {
					if err := verifySegment(s); err != nil {
						t.Error(err)
					}
				}
				releaseAll(segs)
			}
		})
	}
	rnd := rand.New(rand.NewPCG(19, 20))
	for range 40 {
		putFlushed(t, r, randomChunks(rnd, 2, 100))
		if err := r.CompactIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	stopped.Wait()
	segs := map[string]bool{}
	for _, s := range segmentsOf(t, r) {
		segs[s.path] = true
	}
	maps_, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	mapped := map[string]bool{}
	for line := range bytes.Lines(maps_) {
		if i := bytes.Index(line, []byte(cache)); i >= 0 {
			mapped[string(bytes.TrimSpace(line[i:]))] = true
		}
	}
	if !maps.Equal(mapped, segs) {
		t.Errorf("mapped: %v\nsegments: %v", mapped, segs)
	}
}

// TestFramesOfSealedSegments: a sealed repository's index is fetched and cached in the same way.
func TestFramesOfSealedSegments(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	initSealed(t, be)
	all := openSealed(t, be)
	rnd := rand.New(rand.NewPCG(21, 22))
	keys := append(putRun(t, all, rnd, 18_000, 10_000), putRun(t, all, rnd, 7_000, 10_000)...)
	cache := t.TempDir()
	for _, want := range []int64{1, 0} { // by a host's first process, and by its second
		r, err := Open(t.Context(), be, Options{CacheDir: cache, Credentials: testCredentials(t, 0)})
		if err != nil {
			t.Fatal(err)
		}
		be.Reset()
		rnd := rand.New(rand.NewPCG(23, 24))
		mustKnow(t, r, all, append(sample(rnd, keys, 5), absent(rnd, 2)...))
		if n := be.Calls(backendtest.ReadAt); min(n, 1) != want || n > 3*2+7*3 {
			t.Errorf("%d reads", n)
		}
		if want == 0 {
			segmentsOf(t, r)
			mustKnow(t, r, all, sample(rnd, keys, 1000))
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
