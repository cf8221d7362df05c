package chunkstore

import (
	"container/list"
	"context"
	"sync"
)

// nodeCacheBytes bounds a repository's decoded tree nodes in memory.
const nodeCacheBytes = 16 << 20

// nodeCache keeps decoded nodes and leaves, the least recently used leaving first. Entries are immutable.
type nodeCache struct {
	mu    sync.Mutex // guards all below
	limit int
	used  int
	byKey map[nodeCacheKey]*list.Element
	lru   list.List                      // of *nodeCacheEntry, the most recent in front
	loads map[nodeCacheKey]chan struct{} // under way; closed when they end
}

// nodeCacheKey: a leaf decodes to chunks relative to its span, whose length bounds the last chunk.
type nodeCacheKey struct {
	id      ID
	spanLen int // bytes; 0 for inner nodes
}

type nodeCacheEntry struct {
	key  nodeCacheKey
	node *node
	leaf []Chunk
	cost int
}

func newNodeCache(limit int) *nodeCache {
	return &nodeCache{limit: limit, byKey: map[nodeCacheKey]*list.Element{}, loads: map[nodeCacheKey]chan struct{}{}}
}

func (c *nodeCache) get(k nodeCacheKey) (*node, []Chunk, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.byKey[k]
	if !ok {
		return nil, nil, false
	}
	c.lru.MoveToFront(el)
	e := el.Value.(*nodeCacheEntry)
	return e.node, e.leaf, true
}

// begin notes that the caller loads the node, and returns what ends that. When another is at it already, begin waits for him to end,
// well or not, and returns nil: the caller looks again. Its error is the context's.
func (c *nodeCache) begin(ctx context.Context, k nodeCacheKey) (end func(), err error) {
	c.mu.Lock()
	other, busy := c.loads[k]
	if !busy {
		done := make(chan struct{})
		c.loads[k] = done
		c.mu.Unlock()
		return func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.loads, k)
			close(done)
		}, nil
	}
	c.mu.Unlock()
	select {
	case <-other:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *nodeCache) add(k nodeCacheKey, n *node, leaf []Chunk) {
	const entryCost, chunkCost = 200, 48
	cost := entryCost + chunkCost*len(leaf)
	if n != nil {
		cost += nodeFanout * len(ID{})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[k]; ok {
		return
	}
	c.byKey[k] = c.lru.PushFront(&nodeCacheEntry{k, n, leaf, cost})
	for c.used += cost; c.used > c.limit && c.lru.Len() > 1; {
		e := c.lru.Remove(c.lru.Back()).(*nodeCacheEntry)
		delete(c.byKey, e.key)
		c.used -= e.cost
	}
}
