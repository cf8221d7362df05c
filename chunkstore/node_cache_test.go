package chunkstore

import (
	"encoding/binary"
	"testing"
)

func TestNodeCacheKeepsWhatWasUsedLast(t *testing.T) {
	const one = 200 + 48 // cost of a leaf with one chunk
	c := newNodeCache(10 * one)
	k := func(i int) (k nodeCacheKey) {
		binary.LittleEndian.PutUint32(k.id[:], uint32(i))
		k.spanLen = 1
		return k
	}
	for i := range 1000 {
		c.add(k(i), nil, []Chunk{{Off: int64(i)}})
		c.add(k(i), nil, []Chunk{{Off: -1}}) // a second one is not taken, and costs nothing
		if _, leaf, ok := c.get(k(0)); !ok || leaf[0].Off != 0 {
			t.Fatalf("after %d the one in use went", i)
		}
		if c.used > c.limit || c.used != one*c.lru.Len() || len(c.byKey) != c.lru.Len() {
			t.Fatalf("after %d: %d bytes in %d entries, %d keys, limit %d", i, c.used, c.lru.Len(), len(c.byKey), c.limit)
		}
	}
	if c.lru.Len() != 10 {
		t.Errorf("%d entries, want 10", c.lru.Len())
	}
	for i := 991; i < 1000; i++ {
		if _, leaf, ok := c.get(k(i)); !ok || leaf[0].Off != int64(i) {
			t.Errorf("entry %d: %v %v", i, leaf, ok)
		}
	}
	if _, _, ok := c.get(k(5)); ok {
		t.Error("an old entry is still there")
	}
	// An entry above the limit stays alone rather than not at all.
	c.add(k(5000), &node{level: 1}, make([]Chunk, 1000))
	if n, _, ok := c.get(k(5000)); !ok || n.level != 1 || c.lru.Len() != 1 {
		t.Errorf("large entry: %v %v, %d entries", n, ok, c.lru.Len())
	}
}
