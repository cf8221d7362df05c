package thin

import (
	"bytes"
	"encoding/binary"
)

// B-tree node: struct btree_node, one metadata block. Little-endian.
//
//	off             len field
//	  0               4 csum        over bytes 4..4095, salt 121107
//	  4               4 flags       1 internal, 2 leaf
//	  8               8 blocknr     the block it lies in
//	 16               4 nr_entries  at most max_entries
//	 20               4 max_entries
//	 24               4 value_size  bytes: 8 in internal nodes (a child's block number), else by tree
//	 28               4 padding
//	 32 8*max_entries   keys        ascending; the first nr_entries count
//	...               . values      max_entries of value_size bytes
const (
	offNodeFlags  = 4
	offNodeBlock  = 8
	offNrEntries  = 16
	offMaxEntries = 20
	offValueSize  = 24
	offKeys       = 32

	nodeSalt     = 121107
	nodeInternal = 1
	nodeLeaf     = 2
	keySize      = 8
	childSize    = 8
)

// node is a decoded view of a block; it is valid as long as the block's bytes are.
type node struct {
	block  uint64
	leaf   bool
	n      int    // entries
	keys   []byte // n keys
	values []byte // n values of childSize bytes, or of the tree's value size in a leaf
}

func (n *node) key(i int) uint64 { return binary.LittleEndian.Uint64(n.keys[i*keySize:]) }

// value reads the i-th value of a node whose values have 8 bytes.
func (n *node) value(i int) uint64 { return binary.LittleEndian.Uint64(n.values[i*8:]) }

// decodeNode reads the B-tree node b of the metadata block nr and checks all that one node can tell of itself.
// leafValue is the size of the tree's values in bytes; b holds BlockSize bytes, which the node refers to.
func decodeNode(b []byte, nr uint64, leafValue int) (node, error) {
	if len(b) != BlockSize {
		return node{}, damagef(nr, "has %d bytes, not %d", len(b), BlockSize)
	}
	le := binary.LittleEndian
	if stored, computed := le.Uint32(b), checksum(b, nodeSalt); stored != computed {
		if len(bytes.TrimLeft(b, "\x00")) == 0 {
			return node{}, damagef(nr, "B-tree node is all zero")
		}
		return node{}, damagef(nr, "B-tree node checksum is %#08x, its bytes give %#08x", stored, computed)
	}
	if own := le.Uint64(b[offNodeBlock:]); own != nr {
		return node{}, damagef(nr, "B-tree node says it is block %d", own)
	}
	flags := le.Uint32(b[offNodeFlags:])
	if flags != nodeInternal && flags != nodeLeaf {
		return node{}, damagef(nr, "B-tree node flags are %#x, neither internal nor leaf", flags)
	}
	leaf := flags == nodeLeaf
	want := childSize
	if leaf {
		want = leafValue
	}
	if size := le.Uint32(b[offValueSize:]); size != uint32(want) {
		return node{}, damagef(nr, "B-tree node has values of %d bytes, not %d", size, want)
	}
	entries, limit := le.Uint32(b[offNrEntries:]), le.Uint32(b[offMaxEntries:])
	if most := uint32((BlockSize - offKeys) / (keySize + want)); limit > most {
		return node{}, damagef(nr, "B-tree node is for %d entries, a block holds %d", limit, most)
	}
	if entries > limit {
		return node{}, damagef(nr, "B-tree node has %d entries, it is for %d", entries, limit)
	}
	n, values := int(entries), offKeys+int(limit)*keySize
	nd := node{block: nr, leaf: leaf, n: n, keys: b[offKeys : offKeys+n*keySize], values: b[values : values+n*want]}
	return nd, nd.checkOrder()
}

func (n *node) checkOrder() error {
	var last uint64
	for i := range n.n {
		k := n.key(i)
		if k <= last && i > 0 {
			return damagef(n.block, "B-tree keys are not ascending: key %d is %d after %d", i, k, last)
		}
		last = k
	}
	return nil
}

// search finds the first entry whose key is at least k, n.n when there is none.
func (n *node) search(k uint64) int {
	lo, hi := 0, n.n
	for lo < hi {
		mid := (lo + hi) / 2
		if n.key(mid) < k {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}
