package fusemount

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/semaphore"
)

// maxView is the most bytes of one view, as the kernel asks for no more in one request.
const maxView = 1 << 20

// zeros is what holes read as. It is only ever read, so all of it is the kernel's one page of zeros.
var zeros [maxView]byte

// pool is the memory that all images of a mount share, and the means to fill it.
type pool struct {
	reader ChunkReader
	cache  *cache
	// room counts the bytes of chunks that views and read-ahead may pin at once. A view asks for all it will pin in one go,
	// so that two views never wait for each other.
	room  *semaphore.Weighted
	limit int64 // of room, bytes
	views sync.Pool
}

func newPool(reader ChunkReader, mem []byte) *pool {
	p := &pool{reader: reader, cache: newCache(mem), limit: int64(len(mem)) / 2}
	p.room = semaphore.NewWeighted(p.limit)
	p.views.New = func() any { return new(view) }
	return p
}

// idle reports whether nothing is pinned.
func (p *pool) idle() bool {
	p.cache.mu.Lock()
	defer p.cache.mu.Unlock()
	return p.cache.pinned == 0
}

// view is a run of an image's bytes, as slices of pinned chunks and of zeros: nothing is copied. It is a fuse.ReadResult
// that go-fuse hands to writev.
type view struct {
	pool    *pool
	size    int      // bytes in slices
	slices  [][]byte // read only
	chunks  []Chunk
	entries []*entry // pinned; as chunks
	missing []int    // indices of chunks that this view loads
	room    int64    // taken of pool.room
}

// view returns up to n bytes at off, fewer only at the end of the image; Release must follow. off is less than the size.
func (m *image) view(ctx context.Context, off int64, n int) (*view, error) {
	end := min(off+int64(min(n, maxView)), m.size)
	v := m.pool.views.Get().(*view)
	v.pool = m.pool
	need := int64(0)
	for ch, err := range m.chunks(ctx, off, end) {
		if err != nil {
			v.Release()
			return nil, err
		}
		v.chunks = append(v.chunks, ch)
		need += int64(ch.Len)
	}
	if need = min(need, m.pool.limit); need > 0 {
		// TryAcquire first: Acquire asks for ctx.Done() even when it need not wait, and that has a price.
		if !m.pool.room.TryAcquire(need) {
			if err := m.pool.room.Acquire(ctx, need); err != nil {
				v.Release()
				return nil, err
			}
		}
		v.room = need
	}
	if err := v.pin(ctx); err != nil {
		v.Release()
		return nil, fmt.Errorf("read %s: %w", m.name, err)
	}
	v.cut(off, end)
	return v, nil
}

// pin acquires every chunk, loads those that nobody has, and then waits for those that others load.
func (v *view) pin(ctx context.Context) error {
	for i, ch := range v.chunks {
		e, load, err := v.pool.cache.acquire(ch, false)
		if err != nil {
			v.abandon(v.missing)
			return err
		}
		v.entries = append(v.entries, e)
		if load {
			v.missing = append(v.missing, i)
		}
	}
	if len(v.missing) > 0 {
		if err := v.load(ctx); err != nil {
			return err
		}
	}
	for i := range v.entries {
		if err := v.await(ctx, i); err != nil {
			return fmt.Errorf("chunk at byte %d: %w", v.chunks[i].Off, err)
		}
	}
	return nil
}

// await returns when chunk i is there. When whoever was loading it gave up, it is loaded here.
func (v *view) await(ctx context.Context, i int) error {
	for {
		err := v.entries[i].wait(ctx)
		if !errors.Is(err, errAbandoned) {
			return err
		}
		e, load, err := v.pool.cache.acquire(v.chunks[i], false)
		if err != nil {
			return err
		}
		v.pool.cache.release(v.entries[i])
		v.entries[i] = e
		if load {
			if err := v.pool.loadOne(ctx, e); err != nil {
				return err
			}
		}
	}
}

// load fills the missing chunks; each entry is finished when it returns.
func (v *view) load(ctx context.Context) error {
	if len(v.missing) > 1 {
		rest := v.pool.loadMany(ctx, v.chunks, v.entries, v.missing)
		v.missing = append(v.missing[:0], rest...)
	}
	// What a batch did not deliver is asked for singly, so that each error is about its own chunk.
	for n, i := range v.missing {
		if err := v.pool.loadOne(ctx, v.entries[i]); err != nil {
			v.abandon(v.missing[n+1:])
			return fmt.Errorf("chunk at byte %d: %w", v.chunks[i].Off, err)
		}
	}
	return nil
}

func (v *view) abandon(missing []int) {
	for _, i := range missing {
		v.pool.cache.finish(v.entries[i], errAbandoned)
	}
}

// loadOne fills and finishes e.
func (p *pool) loadOne(ctx context.Context, e *entry) error {
	data, err := p.reader.ReadChunk(ctx, e.id, e.data[:0])
	if err == nil {
		err = e.fill(data)
	}
	if err != nil && ctx.Err() != nil {
		p.cache.finish(e, errAbandoned)
		return ctx.Err()
	}
	p.cache.finish(e, err)
	return err
}

// loadMany fills and finishes the entries that missing names, as far as a batch read delivers them, and returns the others.
func (p *pool) loadMany(ctx context.Context, chunks []Chunk, entries []*entry, missing []int) (rest []int) {
	batch := make([]Chunk, len(missing))
	for n, i := range missing {
		batch[n] = chunks[i]
	}
	done := make([]bool, len(missing)) // each element belongs to the one call of its index
	// An error of the batch says too little: the rest is asked for again, and has its own.
	_ = p.reader.FillChunks(ctx, batch, func(n int) []byte { return entries[missing[n]].data }, func(n int) error {
		p.cache.finish(entries[missing[n]], nil)
		done[n] = true
		return nil
	})
	for n, i := range missing {
		if !done[n] {
			rest = append(rest, i)
		}
	}
	return rest
}

// fill copies data to e's memory, unless it is there already.
func (e *entry) fill(data []byte) error {
	if len(data) != len(e.data) {
		return fmt.Errorf("chunk %x has %d bytes, its list says %d: %w", e.id, len(data), len(e.data), errBadList)
	}
	if &data[0] != &e.data[0] {
		copy(e.data, data)
	}
	return nil
}

// cut makes the slices of [off, end) from the pinned chunks and what lies between them.
func (v *view) cut(off, end int64) {
	v.size = int(end - off)
	for i, ch := range v.chunks {
		if ch.Off > off {
			v.slices = append(v.slices, zeros[:ch.Off-off])
			off = ch.Off
		}
		stop := min(ch.Off+int64(ch.Len), end)
		v.slices = append(v.slices, v.entries[i].data[off-ch.Off:stop-ch.Off])
		off = stop
	}
	if off < end {
		v.slices = append(v.slices, zeros[:end-off])
	}
}

// Release unpins what v shows; v must not be touched after it.
func (v *view) Release() {
	for i, e := range v.entries {
		v.pool.cache.release(e)
		v.entries[i] = nil
	}
	if v.room > 0 {
		v.pool.room.Release(v.room)
	}
	clear(v.slices)
	p := v.pool
	*v = view{slices: v.slices[:0], chunks: v.chunks[:0], entries: v.entries[:0], missing: v.missing[:0]}
	p.views.Put(v)
}

// Size is part of fuse.ReadResult.
func (v *view) Size() int { return v.size }

// Slices is how go-fuse finds that v can be written without being copied; it stays valid until Done.
func (v *view) Slices() ([][]byte, fuse.Status) { return v.slices, fuse.OK }

// Bytes is part of fuse.ReadResult: the path for those who cannot write slices.
func (v *view) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:0]
	for _, s := range v.slices {
		buf = append(buf, s...)
	}
	return buf, fuse.OK
}

// Done is part of fuse.ReadResult: the reply was written.
func (v *view) Done() { v.Release() }
