package engine

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine/source"
)

// pipeline turns a source's extents into a blob: one goroutine plans, workers each take a span from reading to the tree.
type pipeline struct {
	src       source.Source
	base      *chunkstore.Blob // nil: none
	writer    chunkPutter
	builder   *chunkstore.BlobBuilder
	cutter    *chunkstore.Cutter
	spanBytes int64
	workers   int
	progress  Progress

	mu   sync.Mutex // guards busy
	busy map[int64]struct{}
}

// chunkPutter is where a worker puts chunks.
type chunkPutter interface {
	PutChunk(ctx context.Context, p []byte) (chunkstore.ID, error)
}

// advanceEvery is how many spans go by between two tidyings of the tree.
const advanceEvery = 256

func (p *pipeline) run(ctx context.Context) error {
	p.busy = map[int64]struct{}{}
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan spanWork)
	g.Go(func() error {
		defer close(work)
		return p.plan(ctx, work)
	})
	for range p.workers {
		g.Go(func() error { return p.work(ctx, work) })
	}
	return g.Wait()
}

// plan hands out spans in ascending order and lets the tree close what lies behind all of them.
func (p *pipeline) plan(ctx context.Context, work chan<- spanWork) error {
	n := 0
	for w, err := range planSpans(ctx, p.src.Extents(ctx), p.src.Size(), p.spanBytes, p.dirtySpan()) {
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.busy[w.span] = struct{}{}
		p.mu.Unlock()
		p.progress.Total(dataLen(w.extents))
		select {
		case work <- w:
		case <-ctx.Done():
			return ctx.Err()
		}
		if n++; n%advanceEvery == 0 {
			if err := p.builder.Advance(ctx, p.finished(w.span)); err != nil {
				return err
			}
		}
	}
	return nil
}

// finished returns the first span that may still be set, when spans up to last were handed out.
func (p *pipeline) finished(last int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := last + 1
	for span := range p.busy {
		first = min(first, span)
	}
	return first
}

// dirtySpan is the span that a change of the volume's size cuts elsewhere: the one with the nearer end, unless that is a
// span's border. -1 for none.
func (p *pipeline) dirtySpan() int64 {
	if p.base == nil || p.base.Size() == p.src.Size() {
		return -1
	}
	end := min(p.base.Size(), p.src.Size())
	if end%p.spanBytes == 0 {
		return -1
	}
	return end / p.spanBytes
}

func dataLen(extents []source.Extent) (n int64) {
	for _, e := range extents {
		if !e.Hole {
			n += e.Len
		}
	}
	return n
}

func (p *pipeline) work(ctx context.Context, work <-chan spanWork) error {
	c := spanCut{p: p, buf: make([]byte, p.spanBytes)}
	for w := range work {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.span(ctx, w); err != nil {
			return err
		}
		p.mu.Lock()
		delete(p.busy, w.span)
		p.mu.Unlock()
		p.progress.Add(dataLen(w.extents))
	}
	return nil
}
