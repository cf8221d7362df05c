package chunkstore

import (
	"encoding/binary"
	"math/bits"

	"lukechampine.com/blake3/guts"
)

// keyedBlake3 is BLAKE3's keyed hash of bytes that lie in memory. It walks BLAKE3's tree itself, over the library's compression
// functions: the library's own hasher starts goroutines for what is longer than 16 KiB, but here every core hashes a chunk of its
// own already. Not safe for many goroutines.
type keyedBlake3 struct {
	key  [8]uint32
	tail [hashGroup]byte // the last group of an input, when it is not full
}

// hashGroup is what one call of the compression function takes: 16 of BLAKE3's chunks of 1 KiB, one for each lane of AVX-512.
const hashGroup = guts.MaxSIMD * guts.ChunkSize

func newKeyedBlake3(key [32]byte) *keyedBlake3 {
	h := &keyedBlake3{}
	for i := range h.key {
		h.key[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	return h
}

// sum puts the hash of p into out.
func (h *keyedBlake3) sum(out *[32]byte, p []byte) {
	var left [48][8]uint32 // roots of complete subtrees, each smaller than the one before: as many as the groups' number has ones
	n, groups := 0, uint64(0)
	for len(p) > hashGroup {
		cv := guts.ChainingValue(guts.CompressBuffer((*[hashGroup]byte)(p), hashGroup, &h.key, groups*guts.MaxSIMD, guts.FlagKeyedHash))
		groups++
		for range bits.TrailingZeros64(groups) {
			n--
			cv = guts.ChainingValue(guts.ParentNode(left[n], cv, &h.key, guts.FlagKeyedHash))
		}
		left[n] = cv
		n++
		p = p[hashGroup:]
	}
	root := guts.CompressBuffer(h.lastGroup(p), len(p), &h.key, groups*guts.MaxSIMD, guts.FlagKeyedHash)
	for n > 0 {
		n--
		root = guts.ParentNode(left[n], guts.ChainingValue(root), &h.key, guts.FlagKeyedHash)
	}
	root.Flags |= guts.FlagRoot
	words := guts.CompressNode(root)
	for i := range len(out) / 4 {
		binary.LittleEndian.PutUint32(out[4*i:], words[i])
	}
}

// lastGroup returns p where a whole group can be read, as the compression function does whatever p's length.
func (h *keyedBlake3) lastGroup(p []byte) *[hashGroup]byte {
	if len(p) == hashGroup {
		return (*[hashGroup]byte)(p)
	}
	copy(h.tail[:], p)
	return &h.tail
}
