package thintest

import (
	"encoding/binary"
	"hash/crc32"
)

// BlockSize is the size of a metadata block in bytes.
const BlockSize = 4096

const (
	superblockSalt = 160774
	nodeSalt       = 121107
	indexSalt      = 160478
	magic          = 27022010

	nodeHeader  = 32
	pairEntries = 252 // most entries of a node with values of 8 bytes: (4096-32)/16, down to a multiple of 3
	detailsSize = 24
	detailsMax  = 126
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(block []byte, salt uint32) uint32 {
	return ^crc32.Checksum(block[4:BlockSize], castagnoli) ^ salt
}

func seal(block []byte, salt uint32) { binary.LittleEndian.PutUint32(block, checksum(block, salt)) }

// node is a B-tree node with values of 8 bytes.
type node struct {
	leaf bool
	most int // max_entries, a multiple of 3
	keys []uint64
	vals []uint64 // children's blocks, or values
}

func (n *node) encode(b []byte, nr uint64) {
	nodeHead(b, nr, n.leaf, len(n.keys), n.most, 8)
	le := binary.LittleEndian
	for i, k := range n.keys {
		le.PutUint64(b[nodeHeader+8*i:], k)
		le.PutUint64(b[nodeHeader+8*n.most+8*i:], n.vals[i])
	}
	seal(b, nodeSalt)
}

func decodeNode(b []byte) *node {
	le := binary.LittleEndian
	n := &node{leaf: le.Uint32(b[4:]) == 2, most: int(le.Uint32(b[20:]))}
	for i := range int(le.Uint32(b[16:])) {
		n.keys = append(n.keys, le.Uint64(b[nodeHeader+8*i:]))
		n.vals = append(n.vals, le.Uint64(b[nodeHeader+8*n.most+8*i:]))
	}
	return n
}

// nodeHead writes struct node_header over a zeroed block.
func nodeHead(b []byte, nr uint64, leaf bool, entries, most, valueSize int) {
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b[4:], 1)
	if leaf {
		le.PutUint32(b[4:], 2)
	}
	le.PutUint64(b[8:], nr)
	le.PutUint32(b[16:], uint32(entries))
	le.PutUint32(b[20:], uint32(most))
	le.PutUint32(b[24:], uint32(valueSize))
}

// superblock is what Commit writes of struct thin_disk_superblock; what is missing here is zero.
type superblock struct {
	time                     uint32
	transaction              uint64
	heldRoot                 uint64
	dataBlocks, usedData     uint64
	metaBlocks, usedMeta     uint64
	mappingRoot, detailsRoot uint64
	metaIndex                uint64 // bitmap_root of the metadata space map
	blockSectors             uint32
}

func (s *superblock) encode(b []byte, nr uint64) {
	clear(b)
	le := binary.LittleEndian
	le.PutUint64(b[8:], nr)
	le.PutUint64(b[32:], magic)
	le.PutUint32(b[40:], 2) // version
	le.PutUint32(b[44:], s.time)
	le.PutUint64(b[48:], s.transaction)
	le.PutUint64(b[56:], s.heldRoot)
	le.PutUint64(b[64:], s.dataBlocks)
	le.PutUint64(b[72:], s.usedData)
	le.PutUint64(b[192:], s.metaBlocks)
	le.PutUint64(b[200:], s.usedMeta)
	le.PutUint64(b[208:], s.metaIndex)
	le.PutUint64(b[320:], s.mappingRoot)
	le.PutUint64(b[328:], s.detailsRoot)
	le.PutUint32(b[336:], s.blockSectors)
	le.PutUint32(b[340:], BlockSize/512)
	le.PutUint64(b[344:], s.metaBlocks)
	seal(b, superblockSalt)
}

// encodeIndex writes an empty struct disk_metadata_index, the root of the metadata space map; thin_delta wants to see one.
func encodeIndex(b []byte, nr uint64) {
	clear(b)
	binary.LittleEndian.PutUint64(b[8:], nr)
	seal(b, indexSalt)
}
