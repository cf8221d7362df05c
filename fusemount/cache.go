package fusemount

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// cache holds decoded chunks in a fixed arena. A chunk is loaded once however many readers ask for it, and its memory is not
// reused while a reader holds it.
//
// One lock suffices: it is held for a map look-up and, on a miss, a few steps of the arena's hand, never while bytes move.
type cache struct {
	mu      sync.Mutex
	entries map[ID]*entry // guarded by mu
	arena   *arena        // guarded by mu
	pinned  int64         // bytes of chunks that readers hold now; guarded by mu
	stats   cacheStats    // guarded by mu
}

// cacheStats counts since the cache was made.
type cacheStats struct {
	hits, misses, overflows int64
}

// entry is one chunk in memory. The fields but id, data and done are guarded by the cache's lock; data is written by the one
// who loads and read after done is closed.
type entry struct {
	id   ID
	data []byte        // len is the chunk's plain length
	done chan struct{} // closed when the load ended, well or not
	err  error         // set before done is closed

	block      *block // nil when the arena had no room: the memory is then the entry's own, for as long as it is held
	refs       int
	used       bool // asked for again since the hand came by
	prefetched bool // loaded ahead, and not asked for yet
}

// errAbandoned ends a load that says nothing about the chunk: whoever waited for it has to load it himself.
var errAbandoned = errors.New("load abandoned")

func newCache(mem []byte) *cache {
	c := &cache{entries: make(map[ID]*entry)}
	c.arena = newArena(mem, c.forget)
	return c
}

// acquire pins the chunk's entry; release must follow. With load true the caller is the one to fill e.data and call finish.
func (c *cache) acquire(ch Chunk, ahead bool) (e *entry, load bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[ch.ID]; e != nil {
		if len(e.data) != ch.Len {
			return nil, false, fmt.Errorf("chunk %x is listed with %d and with %d bytes", ch.ID, len(e.data), ch.Len)
		}
		c.stats.hits++
		c.pin(e)
		switch {
		case ahead:
		case e.prefetched:
			e.prefetched = false // the one use that it was loaded for
		default:
			e.used = true
		}
		return e, false, nil
	}
	c.stats.misses++
	e = &entry{id: ch.ID, done: make(chan struct{}), prefetched: ahead}
	if b := c.arena.alloc(ch.Len); b != nil {
		b.entry, e.block = e, b
		e.data = c.arena.bytes(b)[:ch.Len]
	} else {
		c.stats.overflows++
		e.data = make([]byte, ch.Len)
	}
	c.entries[ch.ID] = e
	c.pin(e)
	return e, true, nil
}

func (c *cache) pin(e *entry) {
	if e.refs == 0 {
		c.pinned += int64(len(e.data))
	}
	e.refs++
}

// finish ends the load of e; on an error nobody will find the entry any more.
func (c *cache) finish(e *entry, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		e.err = err
		c.forget(e)
	}
	close(e.done)
}

// release undoes one acquire; e and its data must not be touched after it.
func (c *cache) release(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs > 0 {
		return
	}
	c.pinned -= int64(len(e.data))
	if e.block == nil {
		c.forget(e)
	} else if e.err != nil {
		e.block.entry = nil
		e.block = nil
	}
}

// forget takes e out of the map; the lock is held.
func (c *cache) forget(e *entry) {
	if c.entries[e.id] == e {
		delete(c.entries, e.id)
	}
}

// wait returns when e is loaded.
func (e *entry) wait(ctx context.Context) error {
	select {
	case <-e.done:
		return e.err
	default:
	}
	select {
	case <-e.done:
		return e.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
