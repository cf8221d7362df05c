package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// WriterOptions say how a Writer works; the zero value is good.
type WriterOptions struct {
	Compression Compression // default: the repository's
	Buffers     int         // data packs in memory, filling or under way; default 3, at least 2
}

// maxPending bounds the index entries that wait for a segment: a flush comes when there are as many.
const maxPending = 1 << 16

// treePackBytes closes tree packs: they are small, and read piecemeal.
const treePackBytes = 4 << 20

// WriterStats count what a Writer did.
type WriterStats struct {
	Chunks    int64 `json:"chunks"`     // handed to PutChunk
	NewChunks int64 `json:"new_chunks"` // of these, stored by this Writer
	NewBytes  int64 `json:"new_bytes"`  // their plain bytes
	NewNodes  int64 `json:"new_nodes"`  // tree nodes stored
	Stored    int64 `json:"stored"`     // bytes of all objects put: packs, segments, records
	Objects   int64 `json:"objects"`    // their number
	Adopted   int64 `json:"adopted"`    // packs of an interrupted Writer taken over
}

// Writer stores chunks, tree nodes and, last, backup records. Safe for many goroutines. After an error it only repeats it.
type Writer struct {
	flushAt int // maxPending, but for tests
	r       *Repository
	ctx     context.Context // of uploads, which outlive the call that filled their pack
	stop    context.CancelFunc
	enc     encoder
	data    *packStream
	tree    *packStream
	journal *journal
	scratch sync.Pool // *[]byte

	// adding is read-held from the claim of a record until it is in a pack. Who holds it knows that every claimed record is in
	// one, and that no upload begins.
	adding  sync.RWMutex
	uploads sync.WaitGroup // packs under way

	lock  *writerLock   // nil: nothing is to be locked
	trash []string      // the trash lists there were when this Writer began
	begun time.Duration // by bootTime

	mu       sync.Mutex // guards all below
	err      error
	closed   bool
	inflight map[key]struct{} // being stored, not yet in the index
	packs    []string         // put by this Writer
	bases    map[ID]BlobRef   // by root: what blobs of this Writer share subtrees with
	built    map[ID]struct{}  // roots of blobs that this Writer finished

	stats struct{ chunks, newChunks, newBytes, newNodes, stored, objects, adopted atomic.Int64 }
}

// NewWriter begins to write: it learns what the index knows now and what a prune has condemned. It takes over the packs that an interrupted Writer of this host left behind. Packs are uploaded in the
// background under ctx, which should live until Close; the contexts of other methods end only their own waiting.
func (r *Repository) NewWriter(ctx context.Context, o WriterOptions) (*Writer, error) {
	trash, err := r.beginWriting(ctx)
	if err != nil {
		return nil, err
	}
	w, err := r.newWriter(ctx, o)
	if err != nil {
		return nil, err
	}
	w.trash = trash
	if r.opts.CacheDir != "" {
		if w.journal, err = openJournal(r.opts.CacheDir, r.cfg.ID); err != nil {
			w.stop()
			return nil, fmt.Errorf("journal of this backup: %w", err)
		}
		if err := w.adopt(ctx); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// newWriter makes a Writer without a journal, that knows nothing of the trash.
func (r *Repository) newWriter(ctx context.Context, o WriterOptions) (*Writer, error) {
	if o.Compression == "" {
		o.Compression = r.cfg.Compression
	}
	enc, err := newEncoder(o.Compression, r.opts.Parallel)
	if err != nil {
		return nil, err
	}
	if o.Buffers < 2 {
		o.Buffers = 3
	}
	w := &Writer{flushAt: maxPending, r: r, enc: enc, inflight: map[key]struct{}{}, bases: map[ID]BlobRef{}, built: map[ID]struct{}{}, begun: r.bootTime()}
	w.ctx, w.stop = context.WithCancel(ctx)
	w.scratch.New = func() any { return new([]byte) }
	w.data = newPackStream(w, kindData, r.cfg.PackBytes, o.Buffers)
	w.tree = newPackStream(w, kindTree, min(treePackBytes, r.cfg.PackBytes), 2)
	return w, nil
}

// Stats returns the counts so far.
func (w *Writer) Stats() WriterStats {
	s := &w.stats
	return WriterStats{
		Chunks: s.chunks.Load(), NewChunks: s.newChunks.Load(), NewBytes: s.newBytes.Load(), NewNodes: s.newNodes.Load(),
		Stored: s.stored.Load(), Objects: s.objects.Load(), Adopted: s.adopted.Load(),
	}
}

// PutChunk stores p, 1 byte to the repository's longest chunk, unless the repository has it. p is not kept.
func (w *Writer) PutChunk(ctx context.Context, p []byte) (id ID, err error) {
	if len(p) == 0 || len(p) > w.r.cfg.MaxChunk {
		return id, fmt.Errorf("chunk of %d bytes; the repository takes 1 to %d", len(p), w.r.cfg.MaxChunk)
	}
	w.r.chunkIDs.id(&id, p)
	w.stats.chunks.Add(1)
	fresh, err := w.put(ctx, w.data, &id, p, w.enc)
	if fresh {
		w.stats.newChunks.Add(1)
		w.stats.newBytes.Add(int64(len(p)))
	}
	return id, err
}

// putNode stores the encoded tree node b. Nodes are mostly IDs and not worth compressing.
func (w *Writer) putNode(ctx context.Context, b []byte) (id ID, err error) {
	w.r.nodeIDs.id(&id, b)
	fresh, err := w.put(ctx, w.tree, &id, b, rawEncoder{})
	if fresh {
		w.stats.newNodes.Add(1)
	}
	return id, err
}

// put stores p unless id is known; fresh says that it was not.
func (w *Writer) put(ctx context.Context, s *packStream, id *ID, p []byte, enc encoder) (fresh bool, err error) {
	w.adding.RLock()
	defer w.adding.RUnlock()
	if fresh, err = w.claim(ctx, id); err != nil || !fresh {
		return false, err
	}
	if err := w.store(ctx, s, id, p, enc); err != nil {
		w.fail(err) // others were told that id is taken care of
		return false, err
	}
	return true, nil
}

// claim reports whether the caller is to store id: nobody has it and nobody else is at it.
func (w *Writer) claim(ctx context.Context, id *ID) (bool, error) {
	k := id.key()
	known, err := w.r.index.has(ctx, &k)
	if err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return false, w.err
	}
	if _, ok := w.inflight[k]; ok || known {
		return false, nil
	}
	if known, _ := w.r.index.hasLocal(&k); known { // stored since we asked
		return false, nil
	}
	w.inflight[k] = struct{}{}
	return true, nil
}

func (w *Writer) store(ctx context.Context, s *packStream, id *ID, p []byte, enc encoder) error {
	scratch := w.scratch.Get().(*[]byte)
	defer w.scratch.Put(scratch)
	payload, codec := compress(enc, *scratch, p)
	if codec != CodecRaw {
		*scratch = payload
	}
	return s.add(ctx, id, payload, codec, len(p))
}

// fail keeps the first error.
func (w *Writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

func (w *Writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// upload puts a finished pack and makes its records known. It runs in a goroutine of its own.
func (w *Writer) upload(kind packKind, b *packBuilder) error {
	ctx := w.ctx
	id, data := b.finish()
	name := id.object(kind)
	if err := w.r.be.Put(ctx, name, data); err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	w.stats.stored.Add(int64(len(data)))
	w.stats.objects.Add(1)
	if kind == kindTree { // the next backup compares with this one
		w.r.trees.add(id, data, 0)
	}
	if err := w.journal.add(name); err != nil {
		return fmt.Errorf("journal of this backup: %w", err)
	}
	pending := w.r.index.addPending(packRef{id: id, salt: b.header.salt, kind: kind, size: int64(len(data))}, b.entries)
	w.mu.Lock()
	w.packs = append(w.packs, name)
	for i := range b.entries {
		delete(w.inflight, b.entries[i].id.key())
	}
	w.mu.Unlock()
	if pending < w.flushAt {
		return nil
	}
	if err := w.flushIndex(ctx); err != nil {
		return err
	}
	// Every look-up probes every run of segments, and a long backup writes hundreds. A merge that fails is left to the next.
	_ = w.r.CompactIndex(ctx)
	return nil
}

func (w *Writer) flushIndex(ctx context.Context) error {
	n, err := w.r.index.flush(ctx)
	if n > 0 {
		w.stats.stored.Add(n)
		w.stats.objects.Add(1)
	}
	return err
}

// Flush returns when everything put so far is durable and indexed. Other puts wait meanwhile.
func (w *Writer) Flush(ctx context.Context) error {
	w.adding.Lock()
	defer w.adding.Unlock()
	for _, s := range []*packStream{w.data, w.tree} {
		if err := s.rotate(); err != nil {
			return err
		}
	}
	w.uploads.Wait()
	if err := w.failed(); err != nil {
		return err
	}
	if err := w.flushIndex(ctx); err != nil {
		w.fail(err)
		return err
	}
	return w.journal.settle()
}

// Close waits for what is under way and gives up what is not yet in a pack. Call it also after Flush; a second call does
// nothing.
func (w *Writer) Close() error {
	w.fail(errors.New("writer is closed"))
	w.adding.Lock()
	defer w.adding.Unlock()
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	w.mu.Unlock()
	if closed {
		return nil
	}
	w.uploads.Wait()
	w.stop()
	return w.journal.close()
}

// packStream fills packs of one kind, one at a time, and sends them off.
type packStream struct {
	w     *Writer
	kind  packKind
	limit int // bytes; a pack is closed when it has as many

	mu   sync.Mutex        // guards cur
	cur  *packBuilder      // nil: none begun
	free chan *packBuilder // its capacity is the number of packs in memory
}

func newPackStream(w *Writer, kind packKind, limit, buffers int) *packStream {
	s := &packStream{w: w, kind: kind, limit: limit, free: make(chan *packBuilder, buffers)}
	for range buffers {
		s.free <- new(packBuilder)
	}
	return s
}

// add appends a record to the current pack. It waits while all packs in memory are under way.
func (s *packStream) add(ctx context.Context, id *ID, payload []byte, codec Codec, rawLen int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.w.failed(); err != nil {
		return err
	}
	if s.cur == nil {
		b, err := s.begin(ctx)
		if err != nil {
			return err
		}
		s.cur = b
	}
	s.cur.add(id, payload, codec, rawLen)
	if len(s.cur.buf) >= s.limit {
		s.send()
	}
	return nil
}

// begin takes a free builder. The caller holds mu.
func (s *packStream) begin(ctx context.Context) (*packBuilder, error) {
	select {
	case b := <-s.free:
		if b.buf == nil { // what is not written to costs no memory
			b.buf = make([]byte, 0, s.limit+s.limit/8)
		}
		b.unique = !s.w.r.off.freshNames
		return b, b.reset(s.w.r.sealer, s.kind)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send uploads the current pack in the background. The caller holds mu.
func (s *packStream) send() {
	b := s.cur
	s.cur = nil
	s.w.uploads.Add(1)
	go func() {
		defer s.w.uploads.Done()
		if err := s.w.upload(s.kind, b); err != nil {
			s.w.fail(err)
		}
		s.free <- b
	}()
}

func (s *packStream) rotate() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.w.failed(); err != nil {
		return err
	}
	if s.cur != nil {
		s.send()
	}
	return nil
}
