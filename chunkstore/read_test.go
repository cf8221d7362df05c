package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// readRepository holds an image in one blob.
func readRepository(t *testing.T) (be *mem.Backend, img []byte, ref BlobRef) {
	t.Helper()
	be = mem.New()
	r := openTest(t, be, Options{})
	img = sparseImage(rand.New(rand.NewPCG(1, 2)), 5<<20+777)
	w := newTestWriter(t, r)
	ref = putImage(t, r, w, img, nil)
	if err := w.PutBackup(t.Context(), &Backup{Volume: "v", Blob: ref}); err != nil {
		t.Fatal(err)
	}
	return be, img, ref
}

func TestBlobReadAt(t *testing.T) {
	be, img, ref := readRepository(t)
	r := openTest(t, be, Options{})
	blob := r.OpenBlob(ref)
	ctx := t.Context()
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		off := rnd.IntN(len(img))
		p := bytes.Repeat([]byte{0xee}, rnd.IntN(300_000))
		n, err := blob.ReadAt(ctx, p, int64(off))
		want := img[off:min(off+len(p), len(img))]
		if n != len(want) || !bytes.Equal(p[:n], want) || (err == io.EOF) != (len(want) < len(p)) || err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
	if _, err := blob.ReadAt(ctx, make([]byte, 1), -1); err == nil {
		t.Error("negative offset: no error")
	}
	for _, off := range []int64{int64(len(img)), int64(len(img)) + 5, 1<<63 - 1} {
		if n, err := blob.ReadAt(ctx, make([]byte, 1), off); n != 0 || err != io.EOF {
			t.Errorf("at %d: %d, %v", off, n, err)
		}
	}
	if n, err := r.OpenBlob(BlobRef{}).ReadAt(ctx, make([]byte, 5), 0); n != 0 || err != io.EOF {
		t.Errorf("empty blob: %d, %v", n, err)
	}
}

func TestBlobChunksRange(t *testing.T) {
	be, img, ref := readRepository(t)
	r := openTest(t, be, Options{})
	blob := r.OpenBlob(ref)
	var all []Chunk
	for c, err := range blob.Chunks(t.Context(), 0, int64(len(img))) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		off := rnd.Int64N(int64(len(img)))
		end := off + rnd.Int64N(2<<20)
		var want []Chunk
		for _, c := range all {
			if c.End() > off && c.Off < min(end, int64(len(img))) && off < end {
				want = append(want, c)
			}
		}
		i := 0
		for c, err := range blob.Chunks(t.Context(), off, end) {
			if err != nil || i >= len(want) || c != want[i] {
				t.Fatalf("[%d, %d): chunk %d is %+v, %v", off, end, i, c, err)
			}
			i++
		}
		if i != len(want) {
			t.Fatalf("[%d, %d): %d chunks, want %d", off, end, i, len(want))
		}
	}
	for range blob.Chunks(t.Context(), 0, int64(len(img))) {
		break // whoever has enough may stop
	}
	for range blob.Diff(t.Context(), r.OpenBlob(BlobRef{Size: 3 << 20})) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := 0
	for _, err := range blob.Chunks(ctx, 0, 1) {
		if n++; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	if n != 1 {
		t.Errorf("cancelled: %d turns", n)
	}
}

// TestReadChunksInFewReads: neighbours come in one read, and a read that fails costs only the chunks that it must.
func TestReadChunksInFewReads(t *testing.T) {
	be, img, ref := readRepository(t)
	counting := backendtest.NewCounting(be)
	r := openTest(t, counting, Options{})
	var chunks []Chunk
	for c, err := range r.OpenBlob(ref).Chunks(t.Context(), 0, ref.Size) {
		if err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, c, c) // each twice
	}
	rand.New(rand.NewPCG(7, 8)).Shuffle(len(chunks), func(i, j int) { chunks[i], chunks[j] = chunks[j], chunks[i] })
	counting.Reset()
	var mu sync.Mutex // guards seen
	seen := map[int]bool{}
	check := func(i int, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		c := chunks[i]
		if seen[i] || !bytes.Equal(data, img[c.Off:c.End()]) {
			t.Errorf("chunk %d: again (%v), or not what was stored", i, seen[i])
		}
		seen[i] = true
		return nil
	}
	if err := r.ReadChunks(t.Context(), chunks, check); err != nil || len(seen) != len(chunks) {
		t.Fatalf("%d of %d, %v", len(seen), len(chunks), err)
	}
	if n := counting.Calls(backendtest.ReadAt); n > int64(len(chunks))/8 {
		t.Errorf("%d reads for %d chunks", n, len(chunks))
	}
	// One failed read is tried chunk by chunk.
	clear(seen)
	faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.ReadAt, Prefix: prefixPacks + "data"})
	r2 := openTest(t, be, Options{})
	r2.be = faulty
	if err := r2.ReadChunks(t.Context(), chunks, check); err != nil || len(seen) != len(chunks) {
		t.Errorf("after a failed read: %d of %d, %v", len(seen), len(chunks), err)
	}
	stop := errors.New("stop")
	if err := r.ReadChunks(t.Context(), chunks, func(int, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of the callback: %v", err)
	}
	wrong := chunks[0]
	wrong.Len--
	var re *ReadError
	if err := r.ReadChunks(t.Context(), []Chunk{wrong}, check); !errors.As(err, &re) || re.Chunk != wrong || !errors.Is(err, ErrCorrupt) {
		t.Errorf("chunk of another length: %v", err)
	}
	unknown := Chunk{Off: 7, Len: 1, ID: ID{1}}
	if err := r.ReadChunks(t.Context(), []Chunk{chunks[0], unknown}, check); !errors.As(err, &re) || re.Chunk != unknown || !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown chunk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.ReadChunks(ctx, chunks[:1], check); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestReadErrorsAreNotDamage: only what is missing or wrong is; a network that fails is not.
func TestReadErrorsAreNotDamage(t *testing.T) {
	be, img, ref := readRepository(t)
	for _, c := range []struct {
		fault  backendtest.Fault
		damage bool
	}{
		{backendtest.Fault{Kind: backendtest.Fail}, false},
		{backendtest.Fault{Kind: backendtest.Fail, Err: backend.ErrNotExist}, true},
		{backendtest.Fault{Kind: backendtest.Truncate}, true},
		{backendtest.Fault{Kind: backendtest.FlipBit, Bit: 999}, true},
	} {
		for _, kind := range []string{"data", "tree"} {
			r := openTest(t, be, Options{})
			c.fault.Method, c.fault.Prefix, c.fault.Times = backendtest.ReadAt, prefixPacks+kind, -1
			r.be = backendtest.NewFaulty(t, be, c.fault)
			_, err := r.OpenBlob(ref).ReadAt(t.Context(), make([]byte, len(img)), 0)
			if err == nil || errors.Is(err, ErrCorrupt) != c.damage || !strings.Contains(err.Error(), prefixPacks+kind) {
				t.Errorf("%s, %+v: %v", kind, c.fault, err)
			}
			r.be = be // for the check at the end
			got := make([]byte, len(img))
			if _, err := r.OpenBlob(ref).ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, img) {
				t.Errorf("%s, %+v: after the fault: %v", kind, c.fault, err)
			}
		}
	}
}

func TestReadFromManyGoroutines(t *testing.T) {
	be, img, ref := readRepository(t)
	r := openTest(t, be, Options{CacheDir: t.TempDir()})
	blob := r.OpenBlob(ref)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			p := make([]byte, 100_000)
			for range 40 {
				off := rnd.IntN(len(img) - len(p))
				if _, err := blob.ReadAt(t.Context(), p, int64(off)); err != nil || !bytes.Equal(p, img[off:off+len(p)]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}
