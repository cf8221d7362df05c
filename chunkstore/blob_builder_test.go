package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// sparse is a model of an image that is almost all holes: what begins each span that is none. A span's content is cut off where the
// image ends.
type sparse struct {
	size  int64
	spans map[int64][]byte
}

const testSpan = 1 << 20

func (s *sparse) span(n int64) []byte {
	left := min(s.size-n*testSpan, testSpan)
	if left <= 0 {
		return nil
	}
	return s.spans[n][:min(int64(len(s.spans[n])), left)]
}

// change makes a new version of s: another size near a border of the tree now and then, some spans.
func (s *sparse) change(rnd *rand.Rand) *sparse {
	out := &sparse{s.size, maps.Clone(s.spans)}
	if rnd.IntN(3) > 0 {
		border := []int64{0, 1, 2, 64, 65, 128, 64 * 64, 64*64 + 64, 64 * 64 * 64}[rnd.IntN(9)] * testSpan
		out.size = max(0, border+[]int64{0, 0, 1, -1, 4096, -4096, 5000, -5000, 300_000}[rnd.IntN(9)])
	}
	for range rnd.IntN(5) {
		if out.spanCount() == 0 {
			break
		}
		n := rnd.Int64N(out.spanCount())
		if rnd.IntN(3) == 0 { // near the end
			n = max(0, out.spanCount()-1-rnd.Int64N(3))
		}
		switch rnd.IntN(3) {
		case 0:
			delete(out.spans, n)
		default:
			p := make([]byte, 1+rnd.IntN(20_000))
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			out.spans[n] = p
		}
	}
	for n, p := range out.spans { // what lies behind the end is gone, also when the image grows again
		if p = out.span(n); len(p) == 0 || isZeroAll(p) {
			delete(out.spans, n)
		} else {
			out.spans[n] = bytes.Clone(p)
		}
	}
	return out
}

func isZeroAll(p []byte) bool { return bytes.Count(p, []byte{0}) == len(p) }

func (s *sparse) spanCount() int64 { return (s.size + testSpan - 1) / testSpan }

// content is the whole span, zeros included.
func (s *sparse) content(n int64) []byte {
	p := make([]byte, max(0, min(s.size-n*testSpan, testSpan)))
	copy(p, s.span(n))
	return p
}

// store makes the blob of s. On a base it sets the spans that differ, and that in which an end has moved.
func (s *sparse) store(t *testing.T, r *Repository, w *Writer, rnd *rand.Rand, base *Blob, old *sparse) BlobRef {
	t.Helper()
	ctx := t.Context()
	b, err := w.NewBlob(ctx, s.size, base)
	if err != nil {
		t.Fatal(err)
	}
	set := map[int64]bool{}
	for n := range s.spans {
		set[n] = base == nil || !bytes.Equal(s.span(n), old.span(n))
	}
	if base != nil {
		for n := range old.spans {
			if n < s.spanCount() && !bytes.Equal(s.span(n), old.span(n)) {
				set[n] = true
			}
		}
		if end := min(s.size, old.size); s.size != old.size && end%testSpan != 0 {
			set[end/testSpan] = true
		}
	}
	maps.DeleteFunc(set, func(_ int64, v bool) bool { return !v })
	order := slices.Sorted(maps.Keys(set))
	var wg sync.WaitGroup
	for i, n := range order {
		wg.Go(func() { // several at once, each group behind what Advance has passed
			var before []Chunk
			if base != nil && n*testSpan < base.Size() {
				var err error
				if before, err = base.SpanChunks(ctx, nil, n); err != nil {
					t.Error(err)
				}
			}
			chunks, err := storeSpan(ctx, r, w, s.content(n), n*testSpan)
			if err == nil {
				err = b.SetSpan(ctx, n, chunks, before)
			}
			if err != nil {
				t.Error(err)
			}
		})
		if i%3 == 2 {
			wg.Wait()
			if rnd.IntN(2) == 0 {
				if err := b.Advance(ctx, n+1); err != nil {
					t.Error(err)
				}
			}
		}
	}
	wg.Wait()
	ref, err := b.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestBlobsAroundBorders: grow and shrink around the borders of spans and levels. On the base or whole, the root is the same;
// the difference covers what changed and touches no other span; what is read is what was stored.
func TestBlobsAroundBorders(t *testing.T) {
	seeds, steps := 2, 40
	if fullTest() {
		seeds, steps = 40, 60
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(uint64(seed), 1))
		r := openTest(t, mem.New(), Options{})
		w := newTestWriter(t, r)
		old := &sparse{spans: map[int64][]byte{}}
		oldRef := old.store(t, r, w, rnd, nil, nil)
		if oldRef != (BlobRef{}) {
			t.Fatalf("empty blob: %+v", oldRef)
		}
		for step := range steps {
			img := old.change(rnd)
			name := fmt.Sprintf("seed %d, step %d: %d bytes after %d", seed, step, img.size, old.size)
			base := r.OpenBlob(oldRef)
			ref := img.store(t, r, w, rnd, base, old)
			if whole := img.store(t, r, w, rnd, nil, nil); ref != whole {
				t.Fatalf("%s: on the base %+v, whole %+v", name, ref, whole)
			}
			if err := w.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			blob := r.OpenBlob(ref)
			img.compare(t, name, blob)
			compareDiff(t, name, blob, base, img, old)
			compareDiff(t, name+", backwards", base, blob, old, img)
			if step%15 == 14 {
				if err := w.PutBackup(t.Context(), &Backup{Volume: "v", Blob: ref}); err != nil {
					t.Fatal(err)
				}
			}
			old, oldRef = img, ref
		}
	}
}

// compare reads a blob by spans, by chunks and by bytes.
func (s *sparse) compare(t *testing.T, name string, blob *Blob) {
	t.Helper()
	ctx := t.Context()
	if blob.Size() != s.size || blob.Ref().Root.IsZero() != (len(s.spans) == 0) {
		t.Fatalf("%s: blob %+v for %d spans", name, blob.Ref(), len(s.spans))
	}
	ask := slices.Sorted(maps.Keys(s.spans))
	for _, n := range slices.Clone(ask) {
		ask = append(ask, n+1, n-1)
	}
	var data int64
	for c, err := range blob.Chunks(ctx, 0, s.size) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(s.span(c.Off/testSpan)) == 0 {
			t.Fatalf("%s: chunk %+v in a hole", name, c)
		}
		data += int64(c.Len)
	}
	if data != blob.Ref().Data {
		t.Fatalf("%s: %d bytes in chunks, %d in the reference", name, data, blob.Ref().Data)
	}
	for _, n := range ask {
		if n < 0 || n >= s.spanCount() {
			continue
		}
		want := s.content(n)
		got := bytes.Repeat([]byte{0xee}, len(want))
		if k, err := blob.ReadAt(ctx, got, n*testSpan); err != nil || k != len(want) || !bytes.Equal(got, want) {
			t.Fatalf("%s: span %d: %d bytes, %v, or others than stored", name, n, k, err)
		}
	}
}

func compareDiff(t *testing.T, name string, cur, base *Blob, img, old *sparse) {
	t.Helper()
	var ranges []Range
	for r, err := range cur.Diff(t.Context(), base) {
		if err != nil {
			t.Fatalf("%s: diff: %v", name, err)
		}
		if r.Len <= 0 || len(ranges) > 0 && r.Off <= ranges[len(ranges)-1].End() {
			t.Fatalf("%s: diff: %+v after %+v", name, r, ranges)
		}
		ranges = append(ranges, r)
	}
	limit := min(img.size, old.size)
	spans := map[int64]bool{}
	for n := range img.spans {
		spans[n] = true
	}
	for n := range old.spans {
		spans[n] = true
	}
	in := func(off int64) bool {
		return slices.ContainsFunc(ranges, func(r Range) bool { return r.Off <= off && off < r.End() })
	}
	for n := range spans {
		a, b := img.span(n), old.span(n) // what lies behind either is zeros, up to the image's end
		for i := int64(0); i < max(int64(len(a)), int64(len(b))); i += CutBlock {
			blockA, blockB := a[min(i, int64(len(a))):min(i+CutBlock, int64(len(a)))], b[min(i, int64(len(b))):min(i+CutBlock, int64(len(b)))]
			if !bytes.Equal(blockA, blockB) && !in(n*testSpan+i) && !in(n*testSpan+i+int64(min(len(blockA), len(blockB)))) {
				t.Fatalf("%s: block at %d differs and is in no range of %+v", name, n*testSpan+i, ranges)
			}
		}
	}
	for _, r := range ranges {
		for n := r.Off / testSpan; n*testSpan < min(r.End(), limit); n++ {
			if bytes.Equal(img.span(n), old.span(n)) && (n+1)*testSpan <= limit {
				t.Fatalf("%s: range %+v in span %d, which is the same in both", name, r, n)
			}
		}
	}
	if img.size != old.size && (len(ranges) == 0 || ranges[len(ranges)-1].End() != max(img.size, old.size)) {
		t.Fatalf("%s: %+v does not reach to the longer end", name, ranges)
	}
}

// TestChangeCostsItsPath: in a blob of 100,000 spans a change of one chunk writes and reads a path of the tree.
func TestChangeCostsItsPath(t *testing.T) {
	const spans = 100_000
	be := backendtest.NewCounting(mem.New())
	r := openTest(t, be, Options{})
	w := newTestWriter(t, r)
	ctx := t.Context()
	chunk := func(i uint64) Chunk {
		p := binary.BigEndian.AppendUint64(make([]byte, 0, CutBlock), i)
		id, err := w.PutChunk(ctx, p[:CutBlock])
		if err != nil {
			t.Fatal(err)
		}
		return Chunk{Len: CutBlock, ID: id}
	}
	b, err := w.NewBlob(ctx, spans*testSpan, nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := make([]Chunk, 50)
	for i := range pool {
		pool[i] = chunk(uint64(i))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := range int64(spans) {
		c1, c2 := pool[rnd.IntN(50)], pool[rnd.IntN(50)] // so that nodes differ
		c1.Off, c2.Off = n*testSpan, n*testSpan+testSpan/2
		if err := b.SetSpan(ctx, n, []Chunk{c1, c2}, nil); err != nil {
			t.Fatal(err)
		}
		if n%1000 == 999 {
			if err := b.Advance(ctx, n+1); err != nil {
				t.Fatal(err)
			}
			open := 0
			for l := range b.open {
				open += len(b.open[l])
			}
			if open > 2*len(b.open) {
				t.Fatalf("%d nodes are open after span %d", open, n)
			}
		}
	}
	first, err := b.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.PutBackup(ctx, &Backup{Volume: "v", Blob: first}); err != nil {
		t.Fatal(err)
	}
	depth := int64(rootLevel(spans)) + 1 // with the leaf

	r2, err := Open(ctx, be, Options{}) // knows no node yet
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	w2 := newTestWriter(t, r2)
	segmentsOf(t, r2)
	be.Reset()
	base := r2.OpenBlob(first)
	const at = 77_777
	before, err := base.SpanChunks(ctx, nil, at)
	if err != nil {
		t.Fatal(err)
	}
	id, err := w2.PutChunk(ctx, []byte("changed"))
	if err != nil {
		t.Fatal(err)
	}
	b2, err := w2.NewBlob(ctx, spans*testSpan, base)
	if err != nil {
		t.Fatal(err)
	}
	after := slices.Clone(before)
	after[1].ID = id
	after[1].Len = CutBlock
	if err := b2.SetSpan(ctx, at, after, before); err != nil {
		t.Fatal(err)
	}
	second, err := b2.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n := be.Calls(backendtest.ReadAt); n > depth {
		t.Errorf("%d reads, the tree is %d deep", n, depth)
	}
	if n := w2.Stats().NewNodes; n != depth {
		t.Errorf("%d nodes written, the tree is %d deep", n, depth)
	}
	if err := w2.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	r3, err := Open(ctx, be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r3.Close()
	segmentsOf(t, r3)
	be.Reset()
	var ranges []Range
	for rg, err := range r3.OpenBlob(second).Diff(ctx, r3.OpenBlob(first)) {
		if err != nil {
			t.Fatal(err)
		}
		ranges = append(ranges, rg)
	}
	if want := []Range{{at*testSpan + testSpan/2, CutBlock}}; !slices.Equal(ranges, want) {
		t.Errorf("diff: %+v, want %+v", ranges, want)
	}
	if n := be.Calls(backendtest.ReadAt); n > 2*depth {
		t.Errorf("the diff took %d reads of trees %d deep", n, depth)
	}
}

func TestBuilderRefuses(t *testing.T) {
	r := openTest(t, mem.New(), Options{})
	w := newTestWriter(t, r)
	ctx := t.Context()
	for _, size := range []int64{-1, maxBlobSize + 1, 1<<63 - 1} {
		if _, err := w.NewBlob(ctx, size, nil); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
	}
	b, err := w.NewBlob(ctx, 3*testSpan, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, span := range []int64{-1, 3, 1 << 62} {
		if err := b.SetSpan(ctx, span, nil, nil); err == nil {
			t.Errorf("span %d of 3: no error", span)
		}
	}
	if err := b.Advance(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if err := b.SetSpan(ctx, 1, nil, nil); err == nil {
		t.Error("a span behind Advance: no error")
	}
	if err := b.SetSpan(ctx, 2, nil, nil); err != nil {
		t.Error(err)
	}
	// The largest blob there may be, with data at its very end.
	large, err := w.NewBlob(ctx, maxBlobSize, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := w.PutChunk(ctx, []byte("end"))
	if err != nil {
		t.Fatal(err)
	}
	last := Chunk{Off: maxBlobSize - CutBlock, Len: CutBlock, ID: id}
	if err := large.SetSpan(ctx, maxBlobSize/testSpan-1, []Chunk{last}, nil); err != nil {
		t.Fatal(err)
	}
	ref, err := large.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	n := 0
	for c, err := range r.OpenBlob(ref).Chunks(ctx, 0, maxBlobSize) {
		if n++; err != nil || c != last {
			t.Errorf("got %+v, %v, want %+v", c, err, last)
		}
	}
	if n != 1 {
		t.Errorf("%d chunks", n)
	}
}

// TestBuilderWantsTheMovedSpan: where a blob's end moves inside a span, that span's last chunk changes.
func TestBuilderWantsTheMovedSpan(t *testing.T) {
	r := openTest(t, mem.New(), Options{})
	w := newTestWriter(t, r)
	img := bytes.Repeat([]byte("data"), (2*testSpan+5000)/4)
	whole := putImage(t, r, w, img, nil)
	border := putImage(t, r, w, img[:2*testSpan], nil)
	holes := putImage(t, r, w, append(img[:testSpan:testSpan], make([]byte, testSpan)...)[:testSpan+5000], nil)
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		base BlobRef
		size int64
		ok   bool
	}{
		{"grown inside a span", whole, 2*testSpan + 6000, false},
		{"grown by many spans", whole, 200 * testSpan, false},
		{"shrunk inside a span", whole, 2*testSpan + 4000, false},
		{"shrunk into another span", whole, testSpan + 1, false},
		{"shrunk to a border", whole, 2 * testSpan, true},
		{"shrunk to nothing", whole, 0, true},
		{"grown from a border", border, 100 * testSpan, true},
		{"same size", whole, 2*testSpan + 5000, true},
		{"grown from a hole", holes, 2 * testSpan, true},
	} {
		b, err := w.NewBlob(t.Context(), c.size, r.OpenBlob(c.base))
		if err != nil {
			t.Fatal(err)
		}
		if ref, err := b.Finish(t.Context()); (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", c.name, ref, err)
		}
	}
}

// TestBuilderPassesOnErrors: a base that cannot be read, a Writer that fails.
func TestBuilderPassesOnErrors(t *testing.T) {
	r := openTest(t, mem.New(), Options{})
	w := newTestWriter(t, r)
	lost := r.OpenBlob(BlobRef{Root: ID{1}, Size: 100 * testSpan, Data: 4096})
	b, err := w.NewBlob(t.Context(), 100*testSpan, lost)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetSpan(t.Context(), 70, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Finish(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("base without a root: %v", err)
	}
	if _, err := w.NewBlob(t.Context(), testSpan, lost); !errors.Is(err, ErrNotFound) {
		t.Errorf("shrunk base without a root: %v", err)
	}
	for _, err := range lost.Diff(t.Context(), r.OpenBlob(BlobRef{Size: 5})) {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("diff: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range lost.Diff(ctx, r.OpenBlob(BlobRef{Size: 5})) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled diff: %v", err)
		}
	}
}
