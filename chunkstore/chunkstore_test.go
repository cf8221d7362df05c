package chunkstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// fullTest says whether tests that take samples are to try everything.
func fullTest() bool { return os.Getenv("SHALE_TEST_FULL") != "" }

// openTest makes a repository at be, if there is none, sealed if o has credentials, and opens it. The test's clean-up checks it down to the data.
func openTest(t *testing.T, be backend.Backend, o Options) *Repository {
	t.Helper()
	ctx := context.Background()
	init := InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20}
	if len(o.Credentials.Identities) > 0 {
		init.Recipients = []Recipient{testRecipient(t, 0)}
	}
	_, _ = Init(ctx, be, init)
	r, err := Open(ctx, be, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		rep, err := r.Check(ctx, CheckOptions{Level: CheckData})
		if err != nil {
			t.Errorf("check: %v", err)
		} else if len(rep.Damage) > 0 {
			t.Errorf("check: %+v", rep.Damage)
		}
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}

// segmentsOf returns the whole index.
func segmentsOf(t testing.TB, r *Repository) []*segment {
	t.Helper()
	segs, _, err := r.index.whole(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	releaseAll(segs) // the index has them, until it is refreshed
	return segs
}

// putImage is storeImage for tests that expect no error.
func putImage(t *testing.T, r *Repository, w *Writer, img []byte, base *Blob) BlobRef {
	t.Helper()
	ref, err := storeImage(t.Context(), r, w, img, base, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// storeImage stores an image and returns its blob. Of an image with a base, only the spans that changed says are cut, all
// when it is nil.
func storeImage(ctx context.Context, r *Repository, w *Writer, img []byte, base *Blob, changed func(span int64) bool) (BlobRef, error) {
	b, err := w.NewBlob(ctx, int64(len(img)), base)
	if err != nil {
		return BlobRef{}, err
	}
	n := int64(r.SpanBytes())
	for span := int64(0); span*n < int64(len(img)); span++ {
		if changed != nil && !changed(span) {
			continue
		}
		var before []Chunk
		if base != nil && span*n < base.Size() {
			if before, err = base.SpanChunks(ctx, nil, span); err != nil {
				return BlobRef{}, err
			}
		}
		chunks, err := storeSpan(ctx, r, w, img[span*n:min(span*n+n, int64(len(img)))], span*n)
		if err != nil {
			return BlobRef{}, err
		}
		if err := b.SetSpan(ctx, span, chunks, before); err != nil {
			return BlobRef{}, err
		}
		if err := b.Advance(ctx, span+1); err != nil {
			return BlobRef{}, err
		}
	}
	return b.Finish(ctx)
}

// storeSpan cuts and stores the span p that lies at off.
func storeSpan(ctx context.Context, r *Repository, w *Writer, p []byte, off int64) (chunks []Chunk, err error) {
	for pos := 0; pos < len(p); {
		end, hole, err := r.Cutter().Next(p, pos, nil)
		if err != nil {
			return nil, err
		}
		if !hole {
			id, err := w.PutChunk(ctx, p[pos:end])
			if err != nil {
				return nil, err
			}
			chunks = append(chunks, Chunk{Off: off + int64(pos), Len: end - pos, ID: id})
		}
		pos = end
	}
	return chunks, nil
}

// mustReadBlob reads a blob whole and compares.
func mustReadBlob(t *testing.T, r *Repository, ref BlobRef, want []byte) {
	t.Helper()
	got := make([]byte, ref.Size)
	if _, err := r.OpenBlob(ref).ReadAt(context.Background(), got, 0); err != nil && len(want) > 0 {
		t.Fatalf("read blob %+v: %v", ref, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("blob %+v is not what was stored", ref)
	}
}

// sparseImage is a random image: about half holes, the rest random or repeated bytes.
func sparseImage(rnd *rand.Rand, size int) []byte {
	img := make([]byte, size)
	for off := 0; off < size; {
		n := min(1+rnd.IntN(300_000), size-off)
		switch rnd.IntN(4) {
		case 0:
			for i := range n {
				img[off+i] = byte(rnd.Uint32())
			}
		case 1:
			copy(img[off:off+n], bytes.Repeat([]byte("every good boy deserves fudge "), n/30+1))
		}
		off += n
	}
	return img
}

func TestBackupAndReadBack(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{CacheDir: t.TempDir()})
	rnd := rand.New(rand.NewPCG(1, 2))
	img := sparseImage(rnd, 5<<20+12345)
	ctx := t.Context()
	w, err := r.NewWriter(ctx, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ref := putImage(t, r, w, img, nil)
	rec := &Backup{Volume: "vol1", Blob: ref}
	if err := w.PutBackup(ctx, rec); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(img))
	if _, err := r.OpenBlob(ref).ReadAt(ctx, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, img) {
		t.Fatal("what was read is not what was stored")
	}
	// A second repository handle, without a cache, sees the same.
	r2 := openTest(t, be, Options{})
	list, err := r2.ListBackups(ctx, "")
	if err != nil || len(list) != 1 || list[0].ID != rec.ID {
		t.Fatalf("backups: %v, %v", list, err)
	}
	clear(got)
	if _, err := r2.OpenBlob(list[0].Blob).ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, img) {
		t.Fatalf("second handle: %v", err)
	}
	// The same content again: same root, nothing new.
	w2, err := r2.NewWriter(ctx, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w2.Close()
	if again := putImage(t, r2, w2, img, nil); again != ref {
		t.Fatalf("root of equal content: %+v, want %+v", again, ref)
	}
	if s := w2.Stats(); s.NewChunks != 0 || s.NewNodes != 0 {
		t.Fatalf("equal content stored anew: %+v", s)
	}
}

func TestRootIsAFunctionOfContent(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	ctx := t.Context()
	rnd := rand.New(rand.NewPCG(3, 4))
	w, err := r.NewWriter(ctx, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	sizes := []int{0, 1, 4096, 1 << 20, 1<<20 + 1, 64<<20 + 5000, 70 << 20, 3 << 20}
	var prev []byte
	var base *Blob
	for i, size := range sizes {
		img := make([]byte, size)
		copy(img, prev)
		if size > 5000 {
			for range 5 {
				off := rnd.IntN(size - 4096)
				copy(img[off:], sparseImage(rnd, min(200_000, size-off)))
			}
		}
		full := putImage(t, r, w, img, nil)
		delta := putImage(t, r, w, img, base)
		if full != delta {
			t.Fatalf("size %d after %d: full %+v, on the base %+v", size, len(prev), full, delta)
		}
		if err := w.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		cur := r.OpenBlob(full)
		if i > 0 {
			checkDiff(t, cur, base, img, prev)
		}
		base, prev = cur, img
	}
}

// checkDiff checks that outside the diff's ranges the two images are equal.
func checkDiff(t *testing.T, cur, base *Blob, img, prev []byte) {
	t.Helper()
	mask := make([]bool, max(len(img), len(prev)))
	last := int64(-1)
	for rg, err := range cur.Diff(t.Context(), base) {
		if err != nil {
			t.Fatal(err)
		}
		if rg.Off <= last {
			t.Fatalf("range %+v after end %d", rg, last)
		}
		last = rg.End()
		for i := rg.Off; i < rg.End(); i++ {
			mask[i] = true
		}
	}
	for i := range mask {
		if !mask[i] && (i >= len(img) || i >= len(prev) || img[i] != prev[i]) {
			t.Fatalf("byte %d differs and is in no range", i)
		}
	}
}
