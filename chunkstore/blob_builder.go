package chunkstore

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// BlobBuilder makes a blob span by span. Spans that are not set stay as they are in the base, or are holes without one.
//
// SetSpan may be called from many goroutines. Memory follows the spans between the lowest that Advance has not passed and the
// highest that was set.
type BlobBuilder struct {
	w     *Writer
	base  *Blob // nil: all holes
	size  int64
	spans int64
	level int // of the root

	mu     sync.Mutex // guards all below
	passed int64      // the limit of the last Advance
	moved  int64      // the span that must be set because a blob's end lies inside it, -1 when it is or need not be
	root   ID         // set when its subtree is complete
	set    bool
	data   int64                 // bytes that are not holes
	open   []map[int64]*openNode // [level]: inner nodes by number, with the children that changed
}

// openNode collects the changed children of one inner node.
type openNode struct {
	changed  uint64 // bit s: children[s] replaces the base's
	children [nodeFanout]ID
}

// NewBlob begins a blob of size bytes. base may be nil. It may differ in size: then the span in which the shorter of the two
// ends, unless it ends on a span's border, is to be set.
func (w *Writer) NewBlob(ctx context.Context, size int64, base *Blob) (*BlobBuilder, error) {
	if size < 0 || size > maxBlobSize {
		return nil, fmt.Errorf("blob of %d bytes; at most %d are supported", size, int64(maxBlobSize))
	}
	b := &BlobBuilder{w: w, base: base, size: size, spans: w.r.spans(size), moved: -1}
	b.level = rootLevel(b.spans)
	b.open = make([]map[int64]*openNode, b.level+1)
	for l := range b.open {
		b.open[l] = map[int64]*openNode{}
	}
	if base == nil || base.ref.Root.IsZero() {
		return b, nil
	}
	w.shares(base.ref)
	b.data = base.ref.Data
	if end := min(size, base.ref.Size); size != base.ref.Size && end%int64(w.r.cfg.SpanBytes) != 0 {
		b.moved = end / int64(w.r.cfg.SpanBytes)
	}
	switch {
	case b.level > base.level: // the base becomes a subtree in the lowest slot
		b.child(base.level, 0, base.ref.Root)
	case base.ref.Size > size:
		if err := b.shrink(ctx); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// shrink forgets what the base has behind the new end, and marks the path along it for rebuilding.
func (b *BlobBuilder) shrink(ctx context.Context) error {
	spanBytes := int64(b.w.r.cfg.SpanBytes)
	for c, err := range b.base.Chunks(ctx, b.spans*spanBytes, b.base.ref.Size) {
		if err != nil {
			return err
		}
		b.data -= int64(c.Len)
	}
	if b.level > 0 {
		b.node(1, (b.spans-1)>>nodeFanoutLog)
	}
	return nil
}

// node returns the open node of that level and number, which it opens if need be. The caller holds mu or is alone.
func (b *BlobBuilder) node(level int, number int64) *openNode {
	n := b.open[level][number]
	if n == nil {
		n = &openNode{}
		b.open[level][number] = n
	}
	return n
}

// child notes that the subtree at level with that number has the root id. The caller holds mu or is alone.
func (b *BlobBuilder) child(level int, number int64, id ID) {
	if level == b.level {
		b.root, b.set = id, true
		return
	}
	n := b.node(level+1, number>>nodeFanoutLog)
	s := number & (nodeFanout - 1)
	n.children[s] = id
	n.changed |= 1 << s
}

// SetSpan replaces a span's chunks: ascending, on the cutter's borders, none for a hole. before is what the base has there.
func (b *BlobBuilder) SetSpan(ctx context.Context, span int64, chunks, before []Chunk) error {
	if span < 0 || span >= b.spans {
		return fmt.Errorf("span %d of %d", span, b.spans)
	}
	b.mu.Lock()
	passed := b.passed
	b.mu.Unlock()
	if span < passed {
		return fmt.Errorf("span %d is set after all below %d were said to be", span, passed)
	}
	var id ID
	if len(chunks) > 0 {
		scratch := b.w.scratch.Get().(*[]byte)
		leaf := appendLeaf((*scratch)[:0], span*int64(b.w.r.cfg.SpanBytes), chunks)
		var err error
		id, err = b.w.putNode(ctx, leaf)
		*scratch = leaf
		b.w.scratch.Put(scratch)
		if err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data += dataBytes(chunks) - dataBytes(before)
	if span == b.moved {
		b.moved = -1
	}
	b.child(0, span, id)
	return nil
}

func dataBytes(chunks []Chunk) (n int64) {
	for i := range chunks {
		n += int64(chunks[i].Len)
	}
	return n
}

// Advance says that no span below limit will be set any more, and stores the inner nodes that are complete.
// One goroutine calls it, with growing limits.
func (b *BlobBuilder) Advance(ctx context.Context, limit int64) error {
	b.mu.Lock()
	b.passed = max(b.passed, limit)
	b.mu.Unlock()
	for level := 1; level <= b.level; level++ {
		b.mu.Lock()
		var numbers []int64
		for number := range b.open[level] {
			if limit >= b.spans || (number+1)<<(nodeFanoutLog*level) <= limit {
				numbers = append(numbers, number)
			}
		}
		b.mu.Unlock()
		slices.Sort(numbers)
		for _, number := range numbers {
			if err := b.closeNode(ctx, level, number); err != nil {
				return err
			}
		}
	}
	return nil
}

// closeNode merges an open node with the base's, stores it and hands its ID up.
func (b *BlobBuilder) closeNode(ctx context.Context, level int, number int64) error {
	n, err := b.baseNode(ctx, level, number)
	if err != nil {
		return err
	}
	b.mu.Lock()
	open := b.open[level][number]
	delete(b.open[level], number)
	b.mu.Unlock()
	for s := range nodeFanout {
		switch {
		case open.changed&(1<<s) != 0:
			n.children[s] = open.children[s]
		case (number<<nodeFanoutLog+int64(s))<<(nodeFanoutLog*(level-1)) >= b.spans:
			n.children[s] = ID{} // behind the end of a blob that shrank
		}
	}
	var id ID
	if !n.empty() {
		if id, err = b.w.putNode(ctx, n.append(nil)); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.child(level, number, id)
	return nil
}

// baseNode returns a copy of the base's inner node, an empty one where the base has none.
func (b *BlobBuilder) baseNode(ctx context.Context, level int, number int64) (*node, error) {
	n := &node{level: level}
	if b.base == nil {
		return n, nil
	}
	id, virtual, err := b.base.subtree(ctx, level, number)
	if err != nil || virtual || id.IsZero() {
		return n, err
	}
	loaded, err := b.w.r.loadNode(ctx, id, level)
	if err != nil {
		return nil, err
	}
	*n = *loaded
	return n, nil
}

// Finish stores what is left of the tree and names the blob. It is durable after the Writer's Flush.
func (b *BlobBuilder) Finish(ctx context.Context) (BlobRef, error) {
	if err := b.Advance(ctx, b.spans); err != nil {
		return BlobRef{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.moved >= 0 {
		chunks, err := b.base.SpanChunks(ctx, nil, b.moved)
		if err != nil {
			return BlobRef{}, err
		}
		if len(chunks) > 0 { // their lengths, and where they end, depend on the blob's end
			return BlobRef{}, fmt.Errorf("span %d was not set, in which a blob of %d or its base of %d bytes ends", b.moved, b.size, b.base.ref.Size)
		}
	}
	if !b.set && b.base != nil && b.spans > 0 { // nothing changed, but a smaller root may do now
		id, _, err := b.base.subtree(ctx, b.level, 0)
		if err != nil {
			return BlobRef{}, err
		}
		b.root = id
	}
	b.w.finished(b.root)
	return BlobRef{Root: b.root, Size: b.size, Data: b.data}, nil
}
