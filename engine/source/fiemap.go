package source

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Flags of a physical extent; Linux include/uapi/linux/fiemap.h.
const (
	fiemapLast      = 0x00000001
	fiemapUnwritten = 0x00000800
	fiemapMerged    = 0x00001000
	fiemapShared    = 0x00002000

	// fiemapPlain are the flags under which an extent's address is the place of its bytes, as they are. Any other flag takes that
	// away: UNKNOWN and DELALLOC (no place yet), ENCODED and DATA_ENCRYPTED (the place of other bytes, of which these are a part),
	// NOT_ALIGNED, DATA_INLINE and DATA_TAIL (shares its block with something else), and flags younger than this list.
	fiemapPlain = fiemapLast | fiemapUnwritten | fiemapMerged | fiemapShared
)

// struct fiemap and struct fiemap_extent, in the host's byte order.
//
//	fiemap: off len field          fiemap_extent: off len field
//	          0   8 fm_start                        0   8 fe_logical
//	          8   8 fm_length                       8   8 fe_physical
//	         16   4 fm_flags                       16   8 fe_length
//	         20   4 fm_mapped_extents              24  16 reserved
//	         24   4 fm_extent_count                40   4 fe_flags
//	         28   4 reserved                       44  12 reserved
const (
	fiemapHeaderLen = 32
	fiemapExtentLen = 56
	fiemapFlagSync  = 1 // write out what is dirty before mapping
)

// physExtent is a range of a file and the place of its bytes below, all in bytes.
type physExtent struct {
	off, len int64
	phys     uint64 // first byte, on the device (XFS) or in the volume's address space (btrfs)
	flags    uint32
}

func (e physExtent) end() int64 { return e.off + e.len }

// fiemapRequest makes b, which has room for at least one extent, a question about [off, off+length).
func fiemapRequest(b []byte, off, length int64) {
	clear(b)
	binary.NativeEndian.PutUint64(b[0:], uint64(off))
	binary.NativeEndian.PutUint64(b[8:], uint64(length))
	binary.NativeEndian.PutUint32(b[16:], fiemapFlagSync)
	binary.NativeEndian.PutUint32(b[24:], uint32((len(b)-fiemapHeaderLen)/fiemapExtentLen))
}

// fiemapDecode appends the extents of an answered request to dst.
func fiemapDecode(dst []physExtent, b []byte) ([]physExtent, error) {
	if len(b) < fiemapHeaderLen {
		return dst, fmt.Errorf("extent map of %d bytes has no header", len(b))
	}
	n := int(binary.NativeEndian.Uint32(b[20:]))
	b = b[fiemapHeaderLen:]
	if n > len(b)/fiemapExtentLen {
		return dst, fmt.Errorf("extent map of %d bytes claims %d extents", len(b), n)
	}
	for i := range n {
		e := b[i*fiemapExtentLen:]
		off, length := binary.NativeEndian.Uint64(e[0:]), binary.NativeEndian.Uint64(e[16:])
		if off > math.MaxInt64 || length > math.MaxInt64-off {
			return dst, fmt.Errorf("extent at %d of %d bytes ends past any file", off, length)
		}
		dst = append(dst, physExtent{
			off:   int64(off),
			len:   int64(length),
			phys:  binary.NativeEndian.Uint64(e[8:]),
			flags: binary.NativeEndian.Uint32(e[40:]),
		})
	}
	return dst, nil
}

// extentMapper tells where a file's bytes lie.
type extentMapper interface {
	// mapExtents appends to dst the extents that touch [off, off+length), ascending, the first few if there are more than
	// cap(dst)-len(dst). What lies between them are holes. They may reach out of the range.
	mapExtents(dst []physExtent, off, length int64) ([]physExtent, error)
}
