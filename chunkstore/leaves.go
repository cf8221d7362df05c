package chunkstore

import (
	"context"
	"sync"
)

// leavesAhead is how many leaves of a blob that is read through are under way, where requests take long: one after the other they would
// bound a restore to a span a request.
const leavesAhead = 8

// leafReader reads a blob's leaves one after the other. Use newLeafReader; close it.
type leafReader struct {
	b         *Blob
	next, end int64 // spans: to look for next, and behind the last

	cancel  context.CancelFunc
	loading context.Context // of loads ahead
	wg      sync.WaitGroup
	ahead   []*leafLoad // ascending
	failed  error       // of looking for the next
}

// leafLoad is a leaf on its way.
type leafLoad struct {
	span   int64
	done   chan struct{}
	chunks []Chunk // relative to the span
	err    error
}

// newLeafReader reads the leaves of spans [from, end).
func (b *Blob) newLeafReader(ctx context.Context, from, end int64) *leafReader {
	l := &leafReader{b: b, next: from, end: end}
	l.loading, l.cancel = context.WithCancel(ctx)
	return l
}

func (l *leafReader) close() {
	l.cancel()
	l.wg.Wait()
}

// read returns the next span that has chunks, and them, relative to it; ok is false when there is none.
func (l *leafReader) read(ctx context.Context) (span int64, chunks []Chunk, ok bool, err error) {
	for len(l.ahead) < leavesAhead && l.failed == nil {
		span, id, ok, err := l.find(ctx)
		if err != nil {
			l.failed = err
		}
		if err != nil || !ok {
			break
		}
		l.load(span, id)
	}
	if len(l.ahead) == 0 {
		return 0, nil, false, l.failed
	}
	first := l.ahead[0]
	l.ahead = l.ahead[1:]
	select {
	case <-first.done:
		return first.span, first.chunks, first.err == nil, first.err
	case <-ctx.Done():
		return 0, nil, false, ctx.Err()
	}
}

// find returns the next span that has chunks.
func (l *leafReader) find(ctx context.Context) (span int64, leaf ID, ok bool, err error) {
	if l.next >= l.end {
		return 0, ID{}, false, nil
	}
	span, leaf, ok, err = l.b.nextSpan(ctx, l.next)
	if err != nil || !ok || span >= l.end {
		l.next = l.end
		return 0, ID{}, false, err
	}
	l.next = span + 1
	return span, leaf, true, nil
}

func (l *leafReader) load(span int64, id ID) {
	load := &leafLoad{span: span, done: make(chan struct{})}
	l.ahead = append(l.ahead, load)
	l.wg.Go(func() {
		defer close(load.done)
		load.chunks, load.err = l.b.r.loadLeaf(l.loading, id, l.b.spanLen(span))
	})
}
