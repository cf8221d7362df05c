package thin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Superblock: struct thin_disk_superblock, the first bytes of block 0 and of a metadata snapshot's block. Little-endian.
//
//	off len field
//	  0   4 csum                 over bytes 4..4095, salt 160774
//	  4   4 flags                bit 0: needs_check
//	  8   8 blocknr              the block it lies in
//	 16  16 uuid                 zero: the kernel does not set it
//	 32   8 magic                27022010
//	 40   4 version              2
//	 44   4 time                 counts snapshots
//	 48   8 trans_id             set by user space
//	 56   8 held_root            block of the metadata snapshot, or 0
//	 64 128 data_space_map_root  struct disk_sm_root: nr_blocks, nr_allocated, bitmap_root, ref_count_root
//	192 128 metadata_space_map_root
//	320   8 data_mapping_root
//	328   8 device_details_root
//	336   4 data_block_size      sectors, 128..2097152, multiple of 128
//	340   4 metadata_block_size  sectors, 8
//	344   8 metadata_nr_blocks
//	352   4 compat_flags
//	356   4 compat_ro_flags
//	360   4 incompat_flags       none is known
const (
	offFlags          = 4
	offBlockNr        = 8
	offUUID           = 16
	offMagic          = 32
	offVersion        = 40
	offTime           = 44
	offTransaction    = 48
	offHeldRoot       = 56
	offDataSM         = 64
	offMetadataSM     = 192
	offMappingRoot    = 320
	offDetailsRoot    = 328
	offDataBlockSize  = 336
	offMetaBlockSize  = 340
	offNrMetaBlocks   = 344
	offCompatFlags    = 352
	offCompatROFlags  = 356
	offIncompatFlags  = 360
	superblockSalt    = 160774
	superblockMagic   = 27022010
	superblockVersion = 2
	flagNeedsCheck    = 1 << 0

	sectorSize      = 512
	minBlockSectors = 128     // DATA_DEV_BLOCK_SIZE_MIN_SECTORS of dm-thin.c; sizes are multiples of it
	maxBlockSectors = 1 << 21 // DATA_DEV_BLOCK_SIZE_MAX_SECTORS
	maxDataBlocks   = 1 << 40 // a mapping has 40 bits for the data block
)

// BlockSize is the size of a metadata block in bytes.
const BlockSize = 4096

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is that of dm_bm_checksum: CRC-32C without the final inversion, xored with the salt of the block's kind.
func checksum(block []byte, salt uint32) uint32 {
	return ^crc32.Checksum(block[4:BlockSize], castagnoli) ^ salt
}

// Superblock is what a pool says of itself, at the root that is read: the superblock or its held copy.
type Superblock struct {
	UUID          [16]byte // zero in pools made by the kernel
	Version       uint32
	Flags         uint32 // as stored; see NeedsCheck
	Time          uint32 // advances with each snapshot; mappings carry the time of their making
	TransactionID uint64 // kept for user space by the kernel
	HeldRoot      uint64 // metadata block of the metadata snapshot, 0 when none is held

	BlockSize      uint64 // bytes of a pool block (data block): 64 KiB to 1 GiB
	NrDataBlocks   uint64 // size of the data device in pool blocks
	UsedDataBlocks uint64 // allocated pool blocks; 0 in a metadata snapshot, which does not tell
	NrMetaBlocks   uint64 // size of the metadata in blocks of BlockSize bytes, as the pool uses it
	UsedMetaBlocks uint64 // allocated metadata blocks; 0 in a metadata snapshot

	MappingRoot uint64 // metadata block of the mapping tree's root
	DetailsRoot uint64 // metadata block of the details tree's root

	CompatFlags   uint32
	CompatROFlags uint32
	IncompatFlags uint32
}

// NeedsCheck tells whether the kernel asked for thin_check, after a metadata operation failed.
func (s *Superblock) NeedsCheck() bool { return s.Flags&flagNeedsCheck != 0 }

// decodeSuperblock reads the superblock that lies in the metadata block nr and checks what can be checked without
// the device. b holds BlockSize bytes.
func decodeSuperblock(b []byte, nr uint64) (Superblock, error) {
	if len(b) != BlockSize {
		return Superblock{}, fmt.Errorf("a superblock has %d bytes, not %d", BlockSize, len(b))
	}
	if err := checkSuperblockSeal(b, nr); err != nil {
		return Superblock{}, err
	}
	le := binary.LittleEndian
	s := Superblock{
		UUID:           [16]byte(b[offUUID : offUUID+16]),
		Version:        le.Uint32(b[offVersion:]),
		Flags:          le.Uint32(b[offFlags:]),
		Time:           le.Uint32(b[offTime:]),
		TransactionID:  le.Uint64(b[offTransaction:]),
		HeldRoot:       le.Uint64(b[offHeldRoot:]),
		NrDataBlocks:   le.Uint64(b[offDataSM:]),
		UsedDataBlocks: le.Uint64(b[offDataSM+8:]),
		NrMetaBlocks:   le.Uint64(b[offNrMetaBlocks:]),
		UsedMetaBlocks: le.Uint64(b[offMetadataSM+8:]),
		MappingRoot:    le.Uint64(b[offMappingRoot:]),
		DetailsRoot:    le.Uint64(b[offDetailsRoot:]),
		CompatFlags:    le.Uint32(b[offCompatFlags:]),
		CompatROFlags:  le.Uint32(b[offCompatROFlags:]),
		IncompatFlags:  le.Uint32(b[offIncompatFlags:]),
	}
	if s.Version != superblockVersion {
		return Superblock{}, fmt.Errorf("metadata block %d: version %d, known is %d: %w", nr, s.Version, superblockVersion, ErrUnsupported)
	}
	if s.IncompatFlags != 0 {
		return Superblock{}, fmt.Errorf("metadata block %d: incompatible feature flags %#x: %w", nr, s.IncompatFlags, ErrUnsupported)
	}
	sectors := le.Uint32(b[offDataBlockSize:])
	s.BlockSize = uint64(sectors) * sectorSize
	return s, s.check(nr, sectors, le.Uint32(b[offMetaBlockSize:]))
}

// checkSuperblockSeal tells a block that never was a superblock from one that is damaged.
func checkSuperblockSeal(b []byte, nr uint64) error {
	le := binary.LittleEndian
	magic := le.Uint64(b[offMagic:])
	stored, computed := le.Uint32(b), checksum(b, superblockSalt)
	switch {
	case nr == 0 && len(bytes.TrimLeft(b, "\x00")) == 0:
		return fmt.Errorf("metadata block 0: all zero, the pool was never formatted: %w", ErrNotMetadata)
	case nr == 0 && magic != superblockMagic:
		return fmt.Errorf("metadata block 0: superblock magic is %d, not %d: %w", magic, superblockMagic, ErrNotMetadata)
	case stored != computed:
		return damagef(nr, "superblock checksum is %#08x, its bytes give %#08x", stored, computed)
	case magic != superblockMagic:
		return damagef(nr, "superblock magic is %d, not %d", magic, superblockMagic)
	}
	if own := le.Uint64(b[offBlockNr:]); own != nr {
		return damagef(nr, "superblock says it is block %d", own)
	}
	return nil
}

func (s *Superblock) check(nr uint64, blockSectors, metaBlockSectors uint32) error {
	switch {
	case blockSectors < minBlockSectors || blockSectors > maxBlockSectors || blockSectors%minBlockSectors != 0:
		return damagef(nr, "data block size is %d sectors, not a multiple of %d up to %d", blockSectors, minBlockSectors, maxBlockSectors)
	case metaBlockSectors != BlockSize/sectorSize:
		return damagef(nr, "metadata block size is %d sectors, not %d", metaBlockSectors, BlockSize/sectorSize)
	case s.NrDataBlocks > maxDataBlocks || s.NrDataBlocks > math.MaxInt64/s.BlockSize:
		return damagef(nr, "data device of %d blocks is impossibly large", s.NrDataBlocks)
	case s.UsedDataBlocks > s.NrDataBlocks:
		return damagef(nr, "%d of %d data blocks in use", s.UsedDataBlocks, s.NrDataBlocks)
	}
	return nil
}
