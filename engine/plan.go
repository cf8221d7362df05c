package engine

import (
	"context"
	"iter"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine/source"
)

// spanWork is one span and what may have changed in it.
type spanWork struct {
	span    int64
	extents []source.Extent // inside the span, ascending, on blocks of chunkstore.CutBlock or at the volume's end
}

// planSpans gathers extents by span. Extents are first aligned to blocks: a range that may hold data grows, a hole shrinks, and
// the blocks that a hole covers in part count as data. dirty is a span to be read whole in any case, -1 for none.
func planSpans(ctx context.Context, extents iter.Seq2[source.Extent, error], size, spanBytes, dirty int64) iter.Seq2[spanWork, error] {
	return func(yield func(spanWork, error) bool) {
		cur := spanWork{span: -1}
		emit := func() bool { return cur.span < 0 || yield(cur, nil) }
		done := dirty < 0
		add := func(e source.Extent) bool {
			for e.Len > 0 {
				span := e.Off / spanBytes
				n := min(e.Len, (span+1)*spanBytes-e.Off)
				if span != cur.span {
					if !emit() {
						return false
					}
					cur = spanWork{span: span}
				}
				if span != dirty {
					cur.extents = append(cur.extents, source.Extent{Off: e.Off, Len: n, Hole: e.Hole})
				} else if cur.extents == nil {
					off := span * spanBytes
					cur.extents = []source.Extent{{Off: off, Len: min(spanBytes, size-off)}}
				}
				e.Off += n
				e.Len -= n
			}
			return true
		}
		whole := source.Extent{Off: dirty * spanBytes, Len: 1}
		for e, err := range alignExtents(ctx, extents, size) {
			if err != nil {
				yield(spanWork{}, err)
				return
			}
			if !done && e.Off/spanBytes >= dirty {
				done = true
				if !add(whole) {
					return
				}
			}
			if !add(e) {
				return
			}
			if !done && (e.End()-1)/spanBytes >= dirty {
				done = true
			}
		}
		if !done && !add(whole) {
			return
		}
		emit()
	}
}

// alignExtents aligns extents to blocks, keeps them inside [0, size) and free of overlap.
func alignExtents(ctx context.Context, extents iter.Seq2[source.Extent, error], size int64) iter.Seq2[source.Extent, error] {
	const block = chunkstore.CutBlock
	return func(yield func(source.Extent, error) bool) {
		last := int64(0) // all before is yielded or not wanted
		put := func(off, end int64, hole bool) bool {
			off, end = max(off, last), min(end, size)
			if off >= end {
				return true
			}
			last = end
			return yield(source.Extent{Off: off, Len: end - off, Hole: hole}, nil)
		}
		for e, err := range extents {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(source.Extent{}, err)
				return
			}
			from, to := e.Off/block*block, (e.End()+block-1)/block*block // grown
			if !e.Hole {
				if !put(from, to, false) {
					return
				}
				continue
			}
			in, out := (e.Off+block-1)/block*block, e.End()/block*block // shrunk
			if e.End() >= size {
				out = max(size, in)
			}
			if in >= out {
				in, out = to, to
			}
			if !put(from, in, false) || !put(in, out, true) || !put(out, to, false) {
				return
			}
		}
	}
}
