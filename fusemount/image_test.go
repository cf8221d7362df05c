package fusemount

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore"
)

// testImage is an image reader without a mount, over a cache of memory bytes.
func testImage(t testing.TB, r *fakeRepo, b *fakeBackup, memory int64) *image {
	t.Helper()
	mem, err := newMemory(memory)
	if err != nil {
		t.Fatal(err)
	}
	p := newPool(r, mem)
	t.Cleanup(func() {
		if !p.idle() {
			t.Error("chunks are still pinned")
		}
		if err := p.cache.arena.check(); err != nil {
			t.Error(err)
		}
		if err := freeMemory(mem); err != nil {
			t.Error(err)
		}
	})
	return &image{pool: p, blob: b, size: int64(len(b.image)), name: "vol/" + b.ID}
}

func TestImageReadAt(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	b := r.add("vol", randomImage(rng, 5<<20+99), rng)
	m := testImage(t, r, b, MinCacheBytes)
	size := len(b.image)
	for _, tc := range []struct {
		off, n, want int
		err          error
	}{
		{0, 0, 0, nil}, {0, 1, 1, nil}, {0, size, size, nil}, {1, size, size - 1, io.EOF},
		{size - 1, 1, 1, nil}, {size - 1, 2, 1, io.EOF}, {size, 1, 0, io.EOF}, {size + 5, 1, 0, io.EOF},
	} {
		p := make([]byte, tc.n)
		n, err := m.ReadAt(t.Context(), p, int64(tc.off))
		if n != tc.want || err != tc.err {
			t.Errorf("read %d at %d: %d, %v, want %d, %v", tc.n, tc.off, n, err, tc.want, tc.err)
			continue
		}
		if n > 0 && !bytes.Equal(p[:n], b.image[tc.off:tc.off+n]) {
			t.Errorf("read %d at %d: wrong bytes", tc.n, tc.off)
		}
	}
	if _, err := m.ReadAt(t.Context(), make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was read")
	}
}

// TestOneLoadForAll: readers of one chunk at the same time cost one read of it.
func TestOneLoadForAll(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 64<<10)
	fillText(rng, image)
	b := r.add("vol", image, rng)
	m := testImage(t, r, b, MinCacheBytes)
	open := make(chan struct{})
	gate := func(context.Context) error { <-open; return nil }
	r.gate.Store(&gate)
	var g errgroup.Group
	var begun sync.WaitGroup
	for range 16 {
		begun.Add(1)
		g.Go(func() error {
			begun.Done()
			_, err := m.ReadAt(context.Background(), make([]byte, 100), 0)
			return err
		})
	}
	begun.Wait()
	time.Sleep(10 * time.Millisecond) // let them arrive at the chunk
	close(open)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := r.reads.Load(); n != 1 {
		t.Errorf("the chunk was read %d times", n)
	}
}

// TestAbandonedLoad: when the reader who loads a chunk gives up, one who waits for it loads it himself.
func TestAbandonedLoad(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 200<<10)
	fillText(rng, image)
	b := r.add("vol", image, rng)
	for _, n := range []int{4096, len(image)} { // one chunk, and a batch
		m := testImage(t, r, b, MinCacheBytes)
		loading := make(chan struct{}, 100)
		gate := func(ctx context.Context) error {
			loading <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		r.gate.Store(&gate)
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error)
		go func() {
			_, err := m.ReadAt(ctx, make([]byte, n), 0)
			gaveUp <- err
		}()
		<-loading
		got := make([]byte, n)
		waited := make(chan error)
		go func() {
			_, err := m.ReadAt(context.Background(), got, 0)
			waited <- err
		}()
		time.Sleep(10 * time.Millisecond)
		r.gate.Store(nil)
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up got %v", err)
		}
		if err := <-waited; err != nil || !bytes.Equal(got, image[:n]) {
			t.Errorf("who waited got %v", err)
		}
	}
}

// listBlob is a chunk list as somebody wrote it.
type listBlob struct {
	list []Chunk
	err  error
}

func (b listBlob) Chunks(_ context.Context, off, end int64) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		for _, c := range b.list {
			if !yield(c, nil) {
				return
			}
		}
		if b.err != nil {
			yield(Chunk{}, b.err)
		}
	}
}

// TestHostileLists: a chunk list that makes no sense is an error, whatever is read.
func TestHostileLists(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 300<<10)
	fillText(rng, image)
	b := r.add("vol", image, rng)
	c := b.chunks[0]
	broken := errors.New("the list ends here")
	for _, tc := range []struct {
		name string
		blob listBlob
		want error
	}{
		{"negative length", listBlob{list: []Chunk{{Off: 0, Len: -1, ID: c.ID}}}, chunkstore.ErrCorrupt},
		{"empty chunk", listBlob{list: []Chunk{{Off: 0, Len: 0, ID: c.ID}}}, chunkstore.ErrCorrupt},
		{"huge chunk", listBlob{list: []Chunk{{Off: 0, Len: 1 << 40, ID: c.ID}}}, chunkstore.ErrCorrupt},
		{"negative offset", listBlob{list: []Chunk{{Off: -4096, Len: 8192, ID: c.ID}}}, chunkstore.ErrCorrupt},
		{"overflow", listBlob{list: []Chunk{{Off: 1<<63 - 1, Len: 4096, ID: c.ID}}}, chunkstore.ErrCorrupt},
		{"overlap", listBlob{list: []Chunk{c, {Off: 1, Len: 4096, ID: c.ID}}}, chunkstore.ErrCorrupt},
		{"wrong order", listBlob{list: []Chunk{{Off: 200 << 10, Len: c.Len, ID: c.ID}, c}}, chunkstore.ErrCorrupt},
		{"another length", listBlob{list: []Chunk{{Off: 0, Len: c.Len + 1, ID: c.ID}}}, chunkstore.ErrCorrupt},
		{"unknown chunk", listBlob{list: []Chunk{{Off: 0, Len: 4096, ID: ID{1}}}}, chunkstore.ErrNotFound},
		{"broken off", listBlob{list: []Chunk{c}, err: broken}, broken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := testImage(t, r, b, MinCacheBytes)
			m.blob = tc.blob
			for range 2 {
				_, err := m.ReadAt(t.Context(), make([]byte, 256<<10), 0)
				if !errors.Is(err, tc.want) {
					t.Errorf("read: %v, want %v", err, tc.want)
				}
			}
			if _, err := m.ReadAt(t.Context(), make([]byte, 256<<10), 100<<10); err == nil {
				t.Error("a read in the middle finds nothing wrong")
			}
			m.blob = b
			if _, err := m.ReadAt(t.Context(), make([]byte, 256<<10), 0); err != nil {
				t.Errorf("the same chunks in order, after that: %v", err)
			}
		})
	}
}

// TestSameIDOtherLength: one ID cannot have two lengths.
func TestSameIDOtherLength(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 64<<10)
	fillText(rng, image)
	b := r.add("vol", image, rng)
	m := testImage(t, r, b, MinCacheBytes)
	m.blob = listBlob{list: []Chunk{b.chunks[0], {Off: 1 << 20, Len: b.chunks[0].Len - 1, ID: b.chunks[0].ID}}}
	m.size = 2 << 20
	if _, err := m.ReadAt(t.Context(), make([]byte, 2<<20), 0); !errors.Is(err, chunkstore.ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

// TestMemoryIsWaitedFor: more readers than the memory has room for are served one after the other.
func TestMemoryIsWaitedFor(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 32<<20)
	fillText(rng, image)
	b := r.add("vol", image, rng)
	m := testImage(t, r, b, MinCacheBytes)
	var g errgroup.Group
	for i := range 24 {
		g.Go(func() error {
			off := int64(i) << 20
			p := make([]byte, 1<<20)
			if _, err := m.ReadAt(context.Background(), p, off); err != nil {
				return err
			}
			if !bytes.Equal(p, image[off:off+int64(len(p))]) {
				return errors.New("wrong bytes")
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	v, err := m.view(t.Context(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	w, err := m.view(t.Context(), 4<<20, 512<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.view(ctx, 8<<20, 1<<20); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third view did not wait for memory: %v", err)
	}
}

// TestStream: sequential reads have what follows loaded, other patterns nothing.
func TestStream(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 32<<20)
	fillText(rng, image)
	b := r.add("vol", image, rng)
	m := testImage(t, r, b, 64<<20)
	sequence := func(start, n, step int64) (offs []int64) {
		for i := range n {
			offs = append(offs, start+i*step)
		}
		return offs
	}
	random := make([]int64, 500)
	for i := range random {
		random[i] = rng.Int64N(int64(len(image))/4096) * 4096
	}
	swapped := sequence(0, 16, 128<<10)
	for i := 0; i+1 < len(swapped); i += 2 {
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
	}
	for _, tc := range []struct {
		name  string
		len   int64
		offs  []int64
		ahead bool
	}{
		{"from the start", 128 << 10, sequence(0, 8, 128<<10), true},
		{"from the middle", 128 << 10, sequence(8<<20, 8, 128<<10), true},
		{"large requests", 1 << 20, sequence(0, 2, 1<<20), true},
		{"small requests", 4096, sequence(0, 65, 4096), true},
		{"requests that overtake each other", 128 << 10, swapped, true},
		{"one large request", 1 << 20, []int64{5 << 20}, false},
		{"a few small ones", 4096, sequence(0, 10, 4096), false},
		{"random", 4096, random, false},
		{"backwards", 64 << 10, func() []int64 { s := sequence(0, 20, 1<<20); slices.Reverse(s); return s }(), false},
		{"strides", 4096, sequence(0, 30, 1<<20), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ra := &readAhead{pool: m.pool, jobs: make(chan aheadJob, 1000)} // nobody works
			s := &stream{ahead: ra, image: m}
			for _, off := range tc.offs {
				s.read(t.Context(), off, tc.len)
			}
			if got := len(ra.jobs) > 0; got != tc.ahead {
				t.Fatalf("loaded ahead: %v, want %v", got, tc.ahead)
			}
			high := slices.Max(tc.offs) + tc.len
			next, jobs := int64(-1), len(ra.jobs)
			var last aheadJob
			for range jobs {
				last = <-ra.jobs
				if next >= 0 && last.off < next {
					t.Errorf("[%d, %d) is loaded twice", last.off, next)
				}
				next = last.end
			}
			if tc.ahead && (next <= high || next > high+maxWindow) {
				t.Errorf("loaded up to %d, the reader is at %d", next, high)
			}
			s.read(t.Context(), 30<<20, 4096) // goes elsewhere
			if tc.ahead && last.ctx.Err() == nil {
				t.Error("the reader left, the loading goes on")
			}
			s.close()
			if n := ra.streams.Load(); n != 0 {
				t.Errorf("%d streams are left", n)
			}
		})
	}
}

// TestReadAheadLoads: the workers put what a stream asks for into the cache, and damage there hurts nobody else.
func TestReadAheadLoads(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 16<<20)
	fillText(rng, image)
	b := r.add("vol", image, rng)
	bad := b.damage(t, 2<<20)
	m := testImage(t, r, b, 64<<20)
	ctx, cancel := context.WithCancel(t.Context())
	ra := newReadAhead(ctx, m.pool, 2)
	defer func() { cancel(); ra.wait() }()
	s := &stream{ahead: ra, image: m}
	s.read(ctx, 0, 512<<10)
	s.read(ctx, 512<<10, 512<<10)
	held := func(c Chunk) bool {
		m.pool.cache.mu.Lock()
		defer m.pool.cache.mu.Unlock()
		e := m.pool.cache.entries[c.ID]
		return e != nil && e.refs == 0
	}
	waitFor(t, "read-ahead", func() bool {
		for _, c := range b.chunks {
			if c.Off >= 1<<20 && c.End() < bad.Off-256<<10 && !held(c) {
				return false
			}
		}
		return true
	})
	before := r.reads.Load()
	p := make([]byte, 256<<10)
	if _, err := m.ReadAt(ctx, p, 1<<20); err != nil || !bytes.Equal(p, image[1<<20:1<<20+len(p)]) {
		t.Error(err)
	}
	if n := r.reads.Load(); n != before {
		t.Errorf("%d chunks were read although they had been loaded", n-before)
	}
	if held(bad) {
		t.Error("the damaged chunk is in the cache")
	}
	_, err := m.ReadAt(ctx, make([]byte, 1), bad.Off)
	if !errors.Is(err, chunkstore.ErrCorrupt) || !strings.Contains(err.Error(), "data/fake") {
		t.Errorf("the damaged chunk: %v", err)
	}
}

// BenchmarkImageRandom4K reads as a mount does, without the kernel.
func BenchmarkImageRandom4K(b *testing.B) {
	rng := seeded(b)
	r := newFakeRepo(b)
	const size = 256 << 20
	m := testImage(b, r, r.add("vol", randomImage(rng, size), rng), 64<<20)
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.ReadAt(context.Background(), buf, rng.Int64N(size/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
}
