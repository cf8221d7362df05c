package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

const (
	batchGap = 128 << 10 // unwanted bytes that are read rather than asking again
	batchMax = 1 << 20   // bytes of one backend read of a batch
	// The same where requests take long (backend.Distant).
	farBatchGap = 256 << 10
	farBatchMax = 4 << 20
)

// ReadChunk returns the chunk's plain bytes, verified, in dst's array where that is large enough.
// Errors: ErrNotFound, ErrCorrupt, or what the backend says.
func (r *Repository) ReadChunk(ctx context.Context, id ID, dst []byte) (out []byte, err error) {
	err = r.readAny(ctx, "chunk", &id, func(l location) (err error) {
		out, err = r.readRecordAt(ctx, &id, l, dst)
		return err
	})
	return out, err
}

// locate looks the ID up, once more after a refresh: another host may have written it since.
func (r *Repository) locate(ctx context.Context, what string, id *ID) (location, error) {
	k := id.key()
	seen := r.index.refreshes()
	l, ok, err := r.resolve(ctx, &k)
	if !ok && err == nil {
		if err = r.index.refreshAfter(ctx, seen); err == nil {
			l, ok, err = r.resolve(ctx, &k)
		}
	}
	if !ok && err == nil {
		err = &NotFoundError{What: what, Name: id.String()}
	}
	return l, err
}

// resolve is the index's, for a reader: a condemned place will do.
func (r *Repository) resolve(ctx context.Context, k *key) (location, bool, error) {
	l, found, _, err := r.index.resolve(ctx, k, readerFetchesAll)
	if found {
		err = nil
	}
	return l, found, err
}

// readRecordAt reads, verifies and decompresses the record in one place.
func (r *Repository) readRecordAt(ctx context.Context, id *ID, l location, dst []byte) ([]byte, error) {
	rec, bx, err := r.readStored(ctx, l)
	if err != nil {
		return nil, err
	}
	defer r.bufs.put(rec)
	e := l.entry(id)
	out, err := r.decodeRecord(dst, *rec, bx, &e)
	if err != nil {
		return nil, &CorruptError{Object: l.pack.id.object(l.pack.kind), Off: int64(l.off), Err: err}
	}
	return out, nil
}

// readStored reads a record's stored bytes, into a buffer to be given back.
func (r *Repository) readStored(ctx context.Context, l location) (*[]byte, box, error) {
	bx, err := r.box(ctx, l.pack.kind, l.pack.salt)
	if err != nil {
		return nil, nil, err
	}
	buf := r.bufs.get(int(l.stored))
	object := l.pack.id.object(l.pack.kind)
	read := r.readTree
	if l.pack.kind != kindTree {
		read = func(ctx context.Context, l location, p []byte) error {
			return r.be.ReadAt(ctx, object, p, int64(l.off))
		}
	}
	if err := read(ctx, l, *buf); err != nil {
		r.bufs.put(buf)
		return nil, nil, readError(object, int64(l.off), err)
	}
	return buf, bx, nil
}

func (l *location) entry(id *ID) tableEntry {
	return tableEntry{id: *id, off: l.off, stored: l.stored, raw: l.raw, codec: l.codec}
}

// readError: an object that the index names and that is missing or short is damage.
func readError(object string, off int64, err error) error {
	if errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrShort) {
		return &CorruptError{Object: object, Off: off, Err: err}
	}
	return fmt.Errorf("read %s at %d: %w", object, off, err)
}

// ReadError is the failure of one chunk of a batch.
type ReadError struct {
	Chunk Chunk
	Err   error
}

func (e *ReadError) Error() string { return fmt.Sprintf("chunk at %d: %v", e.Chunk.Off, e.Err) }
func (e *ReadError) Unwrap() error { return e.Err }

// ReadChunks reads many chunks with few backend reads: neighbours in a pack come in one. fn gets each chunk's number in chunks and
// its plain bytes, valid until fn returns; it is called from several goroutines at once and in no order. The first error
// stops the batch; a chunk that cannot be read is a *ReadError.
func (r *Repository) ReadChunks(ctx context.Context, chunks []Chunk, fn func(i int, data []byte) error) error {
	b := batch{r: r, chunks: chunks, decode: r.decodeRecord, done: fn}
	return b.read(ctx)
}

// VerifyChunks is ReadChunks, with the whole ID of each chunk checked: it also notices what went wrong before the bytes were stored, as
// bad memory does.
func (r *Repository) VerifyChunks(ctx context.Context, chunks []Chunk, fn func(i int, data []byte) error) error {
	b := batch{r: r, chunks: chunks, decode: r.decodeChunk, done: fn}
	return b.read(ctx)
}

// FillChunks is ReadChunks into memory that the caller has: dst(i) is where chunk i belongs and as long. done(i) says that it is
// there; both are called from several goroutines at once.
func (r *Repository) FillChunks(ctx context.Context, chunks []Chunk, dst func(i int) []byte, done func(i int) error) error {
	b := batch{r: r, chunks: chunks, decode: r.decodeRecord, dst: dst, done: func(i int, _ []byte) error { return done(i) }}
	return b.read(ctx)
}

// batch is one call of ReadChunks or its kin.
type batch struct {
	r      *Repository
	chunks []Chunk
	decode func(dst, rec []byte, bx box, e *tableEntry) ([]byte, error)
	dst    func(i int) []byte // nil: buffers of the batch
	done   func(i int, data []byte) error
}

// batchItem is one wanted chunk of a batch.
type batchItem struct {
	i   int
	loc location
}

func (b *batch) read(ctx context.Context) error {
	items, err := b.locate(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(items, func(a, b batchItem) int {
		return cmp.Or(slices.Compare(a.loc.pack.id[:], b.loc.pack.id[:]), cmp.Compare(a.loc.off, b.loc.off))
	})
	if n := b.run(items); n == len(items) {
		return b.readRun(ctx, items)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(b.r.atOnce)
	for len(items) > 0 {
		n := b.run(items)
		run := items[:n]
		items = items[n:]
		g.Go(func() error { return b.readRun(ctx, run) })
	}
	return g.Wait()
}

// locate looks the chunks up. What the index at hand does not tell is asked for at once.
func (b *batch) locate(ctx context.Context) ([]batchItem, error) {
	items := make([]batchItem, len(b.chunks))
	var unknown []int
	for i := range b.chunks {
		k := b.chunks[i].ID.key()
		l, ok := b.r.index.lookup(&k)
		if !ok {
			unknown = append(unknown, i)
		}
		items[i] = batchItem{i, l}
	}
	if len(unknown) == 0 {
		return items, nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for _, i := range unknown {
		g.Go(func() (err error) {
			if items[i].loc, err = b.r.locate(ctx, "chunk", &b.chunks[i].ID); err != nil {
				err = &ReadError{b.chunks[i], err}
			}
			return err
		})
	}
	return items, g.Wait()
}

// run counts the items at the front that one read should fetch.
func (b *batch) run(items []batchItem) int {
	if len(items) == 0 {
		return 0
	}
	gap, most := int64(batchGap), int64(batchMax)
	if b.r.far {
		gap, most = farBatchGap, farBatchMax
	}
	first := items[0].loc
	end := int64(first.off) + int64(first.stored)
	for n := 1; n < len(items); n++ {
		l := &items[n].loc
		stop := max(end, int64(l.off)+int64(l.stored))
		if l.pack.id != first.pack.id || int64(l.off)-end > gap || stop-int64(first.off) > most {
			return n
		}
		end = stop
	}
	return len(items)
}

func (b *batch) readRun(ctx context.Context, run []batchItem) error {
	if err := ctx.Err(); err != nil || len(run) == 0 {
		return err
	}
	first := &run[0].loc
	end := first.off
	for i := range run { // by offset, but an index gone bad may let them overlap
		end = max(end, run[i].loc.off+run[i].loc.stored)
	}
	object := first.pack.id.object(first.pack.kind)
	buf := b.r.bufs.get(int(end - first.off))
	defer b.r.bufs.put(buf)
	if err := b.r.be.ReadAt(ctx, object, *buf, int64(first.off)); err != nil {
		if len(run) > 1 { // so that damage costs only the chunks it touches
			for i := range run {
				if err := b.readRun(ctx, run[i:i+1]); err != nil {
					return err
				}
			}
			return nil
		}
		return b.readOther(ctx, run[0], readError(object, int64(first.off), err))
	}
	bx, err := b.r.box(ctx, first.pack.kind, first.pack.salt)
	if err != nil {
		return err
	}
	plain := b.plain()
	defer b.r.bufs.put(plain)
	for i := range run {
		l := &run[i].loc
		data, err := b.record(run[i], (*buf)[l.off-first.off:][:l.stored], bx, plain)
		if err != nil {
			err = b.readOther(ctx, run[i], err)
		} else {
			err = b.done(run[i].i, data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// plain lends memory for one chunk's plain bytes, when they have none of their own.
func (b *batch) plain() *[]byte {
	if b.dst != nil {
		return new([]byte)
	}
	return b.r.bufs.get(b.r.cfg.MaxChunk)
}

// record decodes a chunk's record to where it belongs.
func (b *batch) record(item batchItem, rec []byte, bx box, plain *[]byte) (data []byte, err error) {
	c := &b.chunks[item.i]
	e := item.loc.entry(&c.ID)
	dst := *plain
	if b.dst != nil {
		dst = b.dst(item.i)
	}
	switch {
	case int(e.raw) != c.Len:
		err = fmt.Errorf("chunk has %d bytes where its blob says %d", e.raw, c.Len)
	default:
		data, err = b.decode(dst[:0], rec, bx, &e)
	}
	if err != nil {
		return nil, &CorruptError{Object: item.loc.pack.id.object(item.loc.pack.kind), Off: int64(item.loc.off), Err: err}
	}
	if b.dst == nil {
		*plain = data
	} else if &data[0] != &dst[0] {
		copy(dst, data)
	}
	return data, nil
}

// readOther reads a chunk that could not be read in its place because of err.
func (b *batch) readOther(ctx context.Context, item batchItem, err error) error {
	c := &b.chunks[item.i]
	plain := b.plain()
	defer b.r.bufs.put(plain)
	var data []byte
	err = b.r.readElsewhere(ctx, &c.ID, item.loc, err, func(l location) error {
		rec, bx, err := b.r.readStored(ctx, l)
		if err != nil {
			return err
		}
		defer b.r.bufs.put(rec)
		data, err = b.record(batchItem{item.i, l}, *rec, bx, plain)
		return err
	})
	if err != nil {
		return &ReadError{*c, err}
	}
	return b.done(item.i, data)
}

// readNode reads a tree node's bytes and checks them against the whole ID.
func (r *Repository) readNode(ctx context.Context, id *ID) (b []byte, err error) {
	err = r.readAny(ctx, "tree node", id, func(l location) (err error) {
		if b, err = r.readRecordAt(ctx, id, l, nil); err != nil {
			return err
		}
		var got ID
		if r.nodeIDs.id(&got, b); got != *id {
			err = fmt.Errorf("tree node %v: content does not match its ID", id)
			return &CorruptError{Object: l.pack.id.object(l.pack.kind), Off: int64(l.off), Err: err}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// nodeCorrupt says where the node lies that does not decode.
func (r *Repository) nodeCorrupt(id *ID, err error) error {
	k := id.key()
	l, _ := r.index.lookup(&k)
	return &CorruptError{Object: l.pack.id.object(l.pack.kind), Off: int64(l.off), Err: fmt.Errorf("tree node %v: %w", id, err)}
}

// loadNode returns the inner node of that level.
func (r *Repository) loadNode(ctx context.Context, id ID, level int) (*node, error) {
	k := nodeCacheKey{id: id}
	if n, _, ok := r.nodes.get(k); ok && n != nil && n.level == level {
		return n, nil
	}
	b, err := r.readNode(ctx, &id)
	if err != nil {
		return nil, err
	}
	n, err := decodeNode(b, level)
	if err != nil {
		return nil, r.nodeCorrupt(&id, err)
	}
	r.nodes.add(k, n, nil)
	return n, nil
}

// loadLeaf returns the chunks of a span of spanLen bytes, relative to its beginning. The caller must not change them.
func (r *Repository) loadLeaf(ctx context.Context, id ID, spanLen int) ([]Chunk, error) {
	k := nodeCacheKey{id, spanLen}
	for { // readers of neighbouring ranges want the same leaf at once
		if _, chunks, ok := r.nodes.get(k); ok {
			return chunks, nil
		}
		end, err := r.nodes.begin(ctx, k)
		if err != nil {
			return nil, err
		}
		if end != nil {
			defer end()
			break
		}
	}
	b, err := r.readNode(ctx, &id)
	if err != nil {
		return nil, err
	}
	chunks, err := decodeLeaf(nil, b, 0, spanLen)
	for i := range chunks {
		if n := chunks[i].Len; n > r.cfg.MaxChunk { // readers' buffers are that long
			err = fmt.Errorf("chunk of %d bytes, the longest in this repository has %d", n, r.cfg.MaxChunk)
		}
	}
	if err != nil {
		return nil, r.nodeCorrupt(&id, err)
	}
	r.nodes.add(k, nil, chunks)
	return chunks, nil
}
