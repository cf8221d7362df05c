package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
)

// BlobRef names a blob.
type BlobRef struct {
	Root ID    `json:"root"` // zero when the blob is all holes
	Size int64 `json:"size"` // bytes
	Data int64 `json:"data"` // bytes that are not holes
}

// Blob reads one blob. Safe for many goroutines.
type Blob struct {
	r     *Repository
	ref   BlobRef
	level int // of the root
}

// OpenBlob is O(1): nothing is read before it is asked for.
func (r *Repository) OpenBlob(ref BlobRef) *Blob {
	return &Blob{r: r, ref: ref, level: rootLevel(r.spans(ref.Size))}
}

// spans is how many spans a blob of size bytes has.
func (r *Repository) spans(size int64) int64 {
	n := int64(r.cfg.SpanBytes)
	return size/n + min(size%n, 1)
}

// Ref names the blob.
func (b *Blob) Ref() BlobRef { return b.ref }

// Size is the blob's length in bytes.
func (b *Blob) Size() int64 { return b.ref.Size }

// spanLen is the length of a span; the last may be short.
func (b *Blob) spanLen(span int64) int {
	n := int64(b.r.cfg.SpanBytes)
	return int(min(n, b.ref.Size-span*n))
}

// subtree returns the root of the subtree at level that begins with span number first<<(6*level); zero when all holes.
// virtual is true for a level above the blob's own root, whose only child is in slot 0.
func (b *Blob) subtree(ctx context.Context, level int, first int64) (id ID, virtual bool, err error) {
	if level > b.level {
		return ID{}, first == 0 && !b.ref.Root.IsZero(), nil
	}
	if first<<(nodeFanoutLog*level) >= b.r.spans(b.ref.Size) {
		return ID{}, false, nil
	}
	id = b.ref.Root
	for l := b.level; l > level && !id.IsZero(); l-- {
		n, err := b.r.loadNode(ctx, id, l)
		if err != nil {
			return ID{}, false, err
		}
		id = n.children[slot(first<<(nodeFanoutLog*level), l)]
	}
	return id, false, nil
}

// nextSpan returns the first span at or after from that has chunks, and its leaf; ok is false when there is none.
func (b *Blob) nextSpan(ctx context.Context, from int64) (span int64, leaf ID, ok bool, err error) {
	if from >= b.r.spans(b.ref.Size) {
		return 0, ID{}, false, nil
	}
	return b.descend(ctx, b.ref.Root, b.level, 0, from)
}

// descend is nextSpan within the subtree id, whose first span is base.
func (b *Blob) descend(ctx context.Context, id ID, level int, base, from int64) (int64, ID, bool, error) {
	if id.IsZero() || base >= b.r.spans(b.ref.Size) {
		return 0, ID{}, false, nil
	}
	if level == 0 {
		return base, id, true, nil
	}
	n, err := b.r.loadNode(ctx, id, level)
	if err != nil {
		return 0, ID{}, false, err
	}
	width := int64(1) << (nodeFanoutLog * (level - 1))
	for s := max(0, (from-base)/width); s < nodeFanout; s++ {
		span, leaf, ok, err := b.descend(ctx, n.children[s], level-1, base+s*width, from)
		if ok || err != nil {
			return span, leaf, ok, err
		}
	}
	return 0, ID{}, false, nil
}

// SpanChunks returns the chunks of one span, at their offsets in the blob, appended to dst.
func (b *Blob) SpanChunks(ctx context.Context, dst []Chunk, span int64) ([]Chunk, error) {
	id, _, err := b.subtree(ctx, 0, span)
	if err != nil || id.IsZero() {
		return dst, err
	}
	rel, err := b.r.loadLeaf(ctx, id, b.spanLen(span))
	if err != nil {
		return dst, err
	}
	for _, c := range rel {
		c.Off += span * int64(b.r.cfg.SpanBytes)
		dst = append(dst, c)
	}
	return dst, nil
}

// Chunks yields the chunks that overlap [off, end), in ascending order. Holes are skipped at no cost. It ends after an error.
func (b *Blob) Chunks(ctx context.Context, off, end int64) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		spanBytes := int64(b.r.cfg.SpanBytes)
		off, end := max(off, 0), min(end, b.ref.Size)
		if off >= end {
			return
		}
		var ahead *leafReader // from the second leaf on, where requests take long
		defer func() {
			if ahead != nil {
				ahead.close()
			}
		}()
		last := (end - 1) / spanBytes
		for from := off / spanBytes; ; {
			var rel []Chunk
			span, ok, err := int64(0), false, ctx.Err()
			switch {
			case err != nil:
			case ahead != nil:
				span, rel, ok, err = ahead.read(ctx)
			default:
				var leaf ID
				span, leaf, ok, err = b.nextSpan(ctx, from)
				if ok = ok && span <= last; ok && err == nil {
					rel, err = b.r.loadLeaf(ctx, leaf, b.spanLen(span))
				}
				if from = span + 1; ok && b.r.far && span < last {
					ahead = b.newLeafReader(ctx, from, last+1)
				}
			}
			if err != nil {
				yield(Chunk{}, err)
			}
			if err != nil || !ok {
				return
			}
			for _, c := range rel {
				c.Off += span * spanBytes
				if c.Off >= end {
					return
				}
				if c.End() > off && !yield(c, nil) {
					return
				}
			}
		}
	}
}

// ReadAt fills p from off on; holes are zeros. io.EOF when the blob ends first.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= b.ref.Size {
		return 0, io.EOF
	}
	var eof error
	if left := b.ref.Size - off; int64(len(p)) > left {
		p, eof = p[:left], io.EOF
	}
	clear(p)
	var chunks []Chunk
	for c, err := range b.Chunks(ctx, off, off+int64(len(p))) {
		if err != nil {
			return 0, err
		}
		chunks = append(chunks, c)
	}
	err := b.r.ReadChunks(ctx, chunks, func(i int, data []byte) error {
		at := chunks[i].Off - off
		if at < 0 {
			data, at = data[-at:], 0
		}
		copy(p[at:], data)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read blob at %d: %w", off, err)
	}
	return len(p), eof
}

// Range is a range of bytes.
type Range struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// End is the first byte after the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Diff yields the ranges, ascending and merged, in which b differs from old: the chunks and holes that are not the same
// in both. Both must be of one repository. Subtrees with equal IDs are skipped, so that the cost follows the change.
func (b *Blob) Diff(ctx context.Context, old *Blob) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		w := diffWalk{ctx: ctx, a: old, b: b, limit: min(old.ref.Size, b.ref.Size), yield: yield}
		err := w.walk(max(old.level, b.level), 0)
		if end := max(old.ref.Size, b.ref.Size); err == nil && end > w.limit { // the length itself differs
			off := w.limit
			w.limit = end
			err = w.add(off, end)
		}
		if err == nil {
			err = w.flush()
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Range{}, err)
		}
	}
}

// errStopped: the caller of a sequence wants no more.
var errStopped = errors.New("stopped")

type diffWalk struct {
	ctx     context.Context
	a, b    *Blob
	limit   int64 // where the shorter blob ends; all behind it differs
	yield   func(Range, error) bool
	pending Range
}

// walk compares the two subtrees at level that begin with span first<<(6*level).
func (w *diffWalk) walk(level int, first int64) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if first<<(nodeFanoutLog*level) >= w.b.r.spans(w.limit) {
		return nil
	}
	ida, va, err := w.a.subtree(w.ctx, level, first)
	if err != nil {
		return err
	}
	idb, vb, err := w.b.subtree(w.ctx, level, first)
	if err != nil {
		return err
	}
	if ida == idb && !va && !vb {
		return nil
	}
	if level == 0 {
		return w.leaf(first)
	}
	var na, nb node
	if err := w.load(&na, w.a, ida, va, level); err != nil {
		return err
	}
	if err := w.load(&nb, w.b, idb, vb, level); err != nil {
		return err
	}
	for s := range nodeFanout {
		if na.children[s] != nb.children[s] || ((va || vb) && s == 0) {
			if err := w.walk(level-1, first<<nodeFanoutLog+int64(s)); err != nil {
				return err
			}
		}
	}
	return nil
}

// load copies a node; a virtual one has nothing that can be compared here.
func (w *diffWalk) load(n *node, b *Blob, id ID, virtual bool, level int) error {
	if virtual || id.IsZero() {
		return nil
	}
	loaded, err := b.r.loadNode(w.ctx, id, level)
	if err == nil {
		*n = *loaded
	}
	return err
}

func (w *diffWalk) leaf(span int64) error {
	ca, err := w.a.SpanChunks(w.ctx, nil, span)
	if err != nil {
		return err
	}
	cb, err := w.b.SpanChunks(w.ctx, nil, span)
	if err != nil {
		return err
	}
	for len(ca) > 0 || len(cb) > 0 {
		if len(ca) > 0 && len(cb) > 0 && ca[0] == cb[0] {
			ca, cb = ca[1:], cb[1:]
			continue
		}
		offA, offB := int64(math.MaxInt64), int64(math.MaxInt64)
		if len(ca) > 0 {
			offA = ca[0].Off
		}
		if len(cb) > 0 {
			offB = cb[0].Off
		}
		// The chunk that begins first differs; when both begin together, the shorter does, and the rest of the longer meets
		// what follows.
		if offA <= offB {
			if err := w.add(offA, ca[0].End()); err != nil {
				return err
			}
			ca = ca[1:]
		}
		if offB <= offA {
			if err := w.add(offB, cb[0].End()); err != nil {
				return err
			}
			cb = cb[1:]
		}
	}
	return nil
}

// add notes that [off, end) differs; ranges come by ascending begin but may overlap.
func (w *diffWalk) add(off, end int64) error {
	if end = min(end, w.limit); off >= end {
		return nil
	}
	if w.pending.Len > 0 && off <= w.pending.End() {
		w.pending.Len = max(end, w.pending.End()) - w.pending.Off
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.pending = Range{off, end - off}
	return nil
}

func (w *diffWalk) flush() error {
	p := w.pending
	w.pending = Range{}
	if p.Len > 0 && !w.yield(p, nil) {
		return errStopped
	}
	return nil
}
