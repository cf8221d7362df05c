package engine

import (
	"context"
	"fmt"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine/source"
)

// spanCut cuts one span after the other in a buffer of its own. Positions are bytes from the span's beginning.
//
// What the span holds is known in part: where nothing changed, the old chunks. Cutting starts at a border before a change
// that the change cannot have moved, and stops at the first new border behind it that is an old one too: from there on
// the cutter would only find the old chunks again.
type spanCut struct {
	p   *pipeline
	buf []byte

	off     int64 // of the span, in the volume
	data    []byte
	old     []chunkstore.Chunk // of the base, Off from the beginning of the volume
	changed []source.Extent
	chunks  []chunkstore.Chunk // the result
	ready   int                // data[:ready] is valid, from the last start of cutting on
}

// span cuts, stores and sets one span.
func (c *spanCut) span(ctx context.Context, w spanWork) (err error) {
	c.off = w.span * c.p.spanBytes
	c.data = c.buf[:min(c.p.spanBytes, c.p.src.Size()-c.off)]
	c.changed, c.chunks, c.old, c.ready = w.extents, c.chunks[:0], c.old[:0], 0
	if c.p.base != nil && c.off < c.p.base.Size() {
		if c.old, err = c.p.base.SpanChunks(ctx, c.old, w.span); err != nil {
			return fmt.Errorf("base of span %d: %w", w.span, err)
		}
	}
	pos := 0
	for i := 0; i < len(c.changed); {
		if c.end(i) <= pos {
			i++
			continue
		}
		start := c.restart(pos, int(c.changed[i].Off-c.off))
		c.keep(pos, start)
		if pos, err = c.cut(ctx, start, i); err != nil {
			return err
		}
	}
	c.keep(pos, len(c.data))
	return c.p.builder.SetSpan(ctx, w.span, c.chunks, c.old)
}

func (c *spanCut) end(i int) int { return int(c.changed[i].End() - c.off) }

// restart returns where to begin cutting for a change at position at: a border at or after pos that stands whatever follows it.
func (c *spanCut) restart(pos, at int) int {
	if at <= pos {
		return pos
	}
	i := c.chunkBefore(at)
	if i < 0 {
		return at // behind a hole: always a border
	}
	o := c.old[i]
	if end := int(o.End() - c.off); end == at {
		follows := i+1 < len(c.old) && c.old[i+1].Off == o.End()
		if follows || o.Len >= c.p.cutter.MaxChunk() {
			return at // cut by its own content or length, not by the hole that may have changed
		}
	}
	return max(pos, int(o.Off-c.off))
}

// chunkBefore returns the number of the old chunk that holds the byte before at, -1 when that is in a hole.
func (c *spanCut) chunkBefore(at int) int {
	want := c.off + int64(at) - 1
	for i := range c.old {
		if c.old[i].Off <= want && want < c.old[i].End() {
			return i
		}
	}
	return -1
}

// keep takes over the old chunks in [from, to), both borders.
func (c *spanCut) keep(from, to int) {
	for _, o := range c.old {
		if o.Off >= c.off+int64(from) && o.Off < c.off+int64(to) {
			c.chunks = append(c.chunks, o)
		}
	}
}

// cut stores new chunks from pos on, for change i and those it runs into, and returns the border where it stopped.
func (c *spanCut) cut(ctx context.Context, pos, i int) (int, error) {
	c.ready = max(c.ready, pos) // the cut before this may have looked further than it came
	load := func(n int) error { return c.load(ctx, n) }
	for pos < len(c.data) {
		end, hole, err := c.p.cutter.Next(c.data, pos, load)
		if err != nil {
			return 0, err
		}
		if !hole {
			id, err := c.p.writer.PutChunk(ctx, c.data[pos:end])
			if err != nil {
				return 0, err
			}
			c.chunks = append(c.chunks, chunkstore.Chunk{Off: c.off + int64(pos), Len: end - pos, ID: id})
		}
		pos = end
		for i < len(c.changed) && c.end(i) <= pos {
			i++
		}
		inside := i < len(c.changed) && c.changed[i].Off-c.off < int64(pos)
		if !inside && c.oldBorder(pos) {
			break
		}
	}
	return pos, nil
}

// oldBorder reports whether pos is not strictly inside an old chunk.
func (c *spanCut) oldBorder(pos int) bool {
	at := c.off + int64(pos)
	for i := range c.old {
		if c.old[i].Off < at && at < c.old[i].End() {
			return false
		}
	}
	return true
}

// load makes data[:n] valid, from the start of cutting on. It reads to the end of a changed extent, or of an old chunk: the
// cutter needs the rest of that too.
func (c *spanCut) load(ctx context.Context, n int) error {
	for c.ready < n {
		end, zero := c.known(c.ready)
		p := c.data[c.ready:end]
		if zero {
			clear(p)
		} else if err := c.p.src.ReadAt(ctx, p, c.off+int64(c.ready)); err != nil {
			return err
		}
		c.ready = end
	}
	return nil
}

// known returns how far what is at position pos reaches, and whether it is known to be zeros.
func (c *spanCut) known(pos int) (end int, zero bool) {
	at := c.off + int64(pos)
	limit := c.off + int64(len(c.data))
	for _, e := range c.changed {
		if e.Off <= at && at < e.End() {
			return int(e.End() - c.off), e.Hole
		}
		if e.Off > at {
			limit = min(limit, e.Off)
			break
		}
	}
	for _, o := range c.old {
		if o.Off <= at && at < o.End() {
			return int(min(limit, o.End()) - c.off), false
		}
		if o.Off > at {
			limit = min(limit, o.Off)
			break
		}
	}
	return int(limit - c.off), true
}
