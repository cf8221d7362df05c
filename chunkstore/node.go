package chunkstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// A blob is cut into spans. Its tree is a radix tree over span numbers with nodeFanout children a node: the lowest nodes,
// leaves, each describe one span; a node at level L > 0 has in slot s the tree of the spans whose number has s as digit L-1 in
// base nodeFanout. A subtree that is all holes is absent, so that holes cost nothing. The root's level is the smallest that
// covers the blob's size. A leaf or node is encoded in one way only, so that equal content has an equal root.
//
// Leaf:
//
//	'L'      1 byte
//	count    uvarint, at least 1
//	count *  { gap, blocks }: uvarints; the hole before the chunk, and the chunk's length (at least 1), both in blocks of
//	         4096 bytes. The chunk at the end of the blob ends with it, within its last block.
//	count *  ID, 32 bytes
//
// Inner node:
//
//	'N'      1 byte
//	level    1 byte, 1 to maxLevel
//	present  8 bytes, little-endian: bit s is set when slot s has a child; at least one is
//	ID, 32 bytes, for each present child in the order of slots
const (
	nodeFanoutLog = 6
	nodeFanout    = 1 << nodeFanoutLog
	maxLevel      = 10 // 64^10 spans: more than an int64 of bytes can count

	// maxBlobSize bounds a blob, in bytes, so that no sum of offsets overflows.
	maxBlobSize = 1 << 56

	tagLeaf = 'L'
	tagNode = 'N'
)

var errNotCanonical = errors.New("not encoded in the one canonical way")

// Chunk is a piece of a blob. Ranges between chunks are holes.
type Chunk struct {
	Off int64 // bytes, from the start of the blob
	Len int   // bytes
	ID  ID
}

// End is the first byte after the chunk.
func (c Chunk) End() int64 { return c.Off + int64(c.Len) }

// appendLeaf encodes the chunks of the span that begins at base. They are in order; every one begins on a border.
func appendLeaf(b []byte, base int64, chunks []Chunk) []byte {
	b = append(b, tagLeaf)
	b = binary.AppendUvarint(b, uint64(len(chunks)))
	at := base
	for i := range chunks {
		b = binary.AppendUvarint(b, uint64(chunks[i].Off-at)/CutBlock)
		blocks := (chunks[i].Len + CutBlock - 1) / CutBlock
		b = binary.AppendUvarint(b, uint64(blocks))
		at = chunks[i].Off + int64(blocks)*CutBlock
	}
	for i := range chunks {
		b = append(b, chunks[i].ID[:]...)
	}
	return b
}

// decodeLeaf appends to dst the chunks of a span that begins at base and is spanLen bytes long (short at the end of a blob).
func decodeLeaf(dst []Chunk, b []byte, base int64, spanLen int) ([]Chunk, error) {
	if len(b) == 0 || b[0] != tagLeaf {
		return nil, errors.New("not a leaf")
	}
	b = b[1:]
	count, b, err := uvarint(b)
	if err != nil {
		return nil, err
	}
	if count == 0 || count > uint64(len(b))/(2+32) {
		return nil, fmt.Errorf("leaf of %d bytes cannot list %d chunks", len(b), count)
	}
	first := len(dst)
	end := base + int64(spanLen)
	at := base
	for range count {
		var gap, blocks uint64
		if gap, b, err = uvarint(b); err != nil {
			return nil, err
		}
		if blocks, b, err = uvarint(b); err != nil {
			return nil, err
		}
		left := uint64(end-at+CutBlock-1) / CutBlock
		if at > end || gap >= left || blocks == 0 || blocks > left-gap {
			return nil, fmt.Errorf("chunk %d of the leaf lies outside its span", len(dst)-first)
		}
		off := at + int64(gap)*CutBlock
		at = off + int64(blocks)*CutBlock
		n := min(at, end) - off
		if n > maxRaw {
			return nil, fmt.Errorf("chunk of %d bytes is longer than any can be", n)
		}
		dst = append(dst, Chunk{Off: off, Len: int(n)})
	}
	if uint64(len(b)) != 32*count {
		return nil, fmt.Errorf("leaf has %d bytes of IDs for %d chunks", len(b), count)
	}
	for i := range dst[first:] {
		copy(dst[first+i].ID[:], b[32*i:])
	}
	return dst, nil
}

// uvarint takes one minimal uvarint off b.
func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || (n > 1 && b[n-1] == 0) {
		return 0, nil, errNotCanonical
	}
	return v, b[n:], nil
}

// node is a decoded inner node; a zero ID is an absent child.
type node struct {
	level    int
	children [nodeFanout]ID
}

func (n *node) empty() bool {
	for i := range n.children {
		if !n.children[i].IsZero() {
			return false
		}
	}
	return true
}

func (n *node) append(b []byte) []byte {
	var present uint64
	for i := range n.children {
		if !n.children[i].IsZero() {
			present |= 1 << i
		}
	}
	b = append(b, tagNode, byte(n.level))
	b = binary.LittleEndian.AppendUint64(b, present)
	for i := range n.children {
		if present&(1<<i) != 0 {
			b = append(b, n.children[i][:]...)
		}
	}
	return b
}

// decodeNode decodes an inner node, which must be of the given level.
func decodeNode(b []byte, level int) (*node, error) {
	if len(b) < 10 || b[0] != tagNode {
		return nil, errors.New("not an inner node")
	}
	if int(b[1]) != level {
		return nil, fmt.Errorf("node of level %d where level %d belongs", b[1], level)
	}
	present := binary.LittleEndian.Uint64(b[2:])
	b = b[10:]
	if present == 0 || len(b) != 32*bits.OnesCount64(present) {
		return nil, fmt.Errorf("node has %d bytes of IDs for %d children", len(b), bits.OnesCount64(present))
	}
	n := &node{level: level}
	for p := present; p != 0; p &= p - 1 {
		id := &n.children[bits.TrailingZeros64(p)]
		copy(id[:], b)
		if id.IsZero() {
			return nil, errNotCanonical
		}
		b = b[32:]
	}
	return n, nil
}

// rootLevel is the level of the root of a blob of that many spans.
func rootLevel(spans int64) int {
	level := 0
	for n := int64(1); n < spans && level < maxLevel; level++ {
		n <<= nodeFanoutLog
	}
	return level
}

// slot is the digit of span at level: which child of a node at that level leads to it.
func slot(span int64, level int) int {
	return int(span>>(nodeFanoutLog*(level-1))) & (nodeFanout - 1)
}
