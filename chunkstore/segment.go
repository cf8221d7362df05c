package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Index segment: an immutable sorted part of the index. In the backend it is a pack of kind index whose records, put together,
// are these bytes; in the local cache it is a file of them.
//
//	off len field
//	  0   8 magic   "SHINDEX1"
//	  8   4 packs   their number
//	 12   4 entries their number
//	 16   8 run     random; the segments of one run, made by one merge, hold separate ranges of keys
//	 24     packs   64 bytes each: ID (32), salt (16), kind (1), zero (7), length of the pack in bytes (8)
//	        entries 32 bytes each, strictly ascending by their first 16 bytes
//	        sum     8 bytes: xxHash64 of all before
//
// Entry:
//
//	off len field
//	  0  16 key     first bytes of the ID
//	 16   4 pack    number of the pack in the segment
//	 20   4 off     of the record in the pack
//	 24   3 stored  bytes the record takes in the pack
//	 27   3 raw     bytes of the plain form
//	 30   1 codec
//	 31   1 zero
const (
	segmentMagic     = "SHINDEX1"
	segmentHeaderLen = 24
	segmentPackLen   = 64
	segmentEntryLen  = 32
	segmentSumLen    = 8
)

// packRef is a pack as a segment knows it.
type packRef struct {
	id   packID
	salt [saltLen]byte
	kind packKind
	size int64
}

// location is where a record is.
type location struct {
	pack   packRef
	off    uint32
	stored uint32
	raw    uint32
	codec  Codec
}

// indexEntry is an entry in memory; pack counts in a slice of packRefs kept beside it.
type indexEntry struct {
	key    key
	pack   uint32
	off    uint32
	stored uint32
	raw    uint32
	codec  Codec
}

// sortEntries sorts by key and keeps one of each.
func sortEntries(entries []indexEntry) []indexEntry {
	slices.SortFunc(entries, func(a, b indexEntry) int { return bytes.Compare(a.key[:], b.key[:]) })
	return slices.CompactFunc(entries, func(a, b indexEntry) bool { return a.key == b.key })
}

// encodeSegment encodes entries, which are strictly ascending by key.
func encodeSegment(run uint64, packs []packRef, entries []indexEntry) []byte {
	b := make([]byte, 0, segmentHeaderLen+len(packs)*segmentPackLen+len(entries)*segmentEntryLen+segmentSumLen)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(packs)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	b = binary.LittleEndian.AppendUint64(b, run)
	for i := range packs {
		p := &packs[i]
		b = append(b, p.id[:]...)
		b = append(b, p.salt[:]...)
		b = append(b, byte(p.kind), 0, 0, 0, 0, 0, 0, 0)
		b = binary.LittleEndian.AppendUint64(b, uint64(p.size))
	}
	for i := range entries {
		e := &entries[i]
		b = append(b, e.key[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.pack)
		b = binary.LittleEndian.AppendUint32(b, e.off)
		b = append(b, byte(e.stored), byte(e.stored>>8), byte(e.stored>>16))
		b = append(b, byte(e.raw), byte(e.raw>>8), byte(e.raw>>16), byte(e.codec), 0)
	}
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b))
}

// segment is a decoded segment over bytes that it does not copy. Immutable.
type segment struct {
	name    string // of its object; empty while it has none
	data    []byte
	run     uint64
	packs   int
	count   int
	entries []byte
	lo, hi  uint64 // first 8 bytes of the first and the last key
	mapped  bool   // data is a mapping that must be undone
}

// openSegment checks what is cheap: lengths and counts. Entries are bounds-checked when they are looked at.
func openSegment(name string, data []byte) (*segment, error) {
	if len(data) < segmentHeaderLen+segmentSumLen || string(data[:7]) != segmentMagic[:7] {
		return nil, errors.New("not an index segment")
	}
	if string(data[:8]) != segmentMagic {
		return nil, fmt.Errorf("%w: index segment %q", ErrUnsupported, data[:8])
	}
	s := &segment{name: name, data: data}
	s.packs = int(binary.LittleEndian.Uint32(data[8:]))
	s.count = int(binary.LittleEndian.Uint32(data[12:]))
	at := segmentHeaderLen + s.packs*segmentPackLen
	if want := at + s.count*segmentEntryLen + segmentSumLen; want != len(data) {
		return nil, fmt.Errorf("segment of %d packs and %d entries has %d bytes, not %d", s.packs, s.count, len(data), want)
	}
	s.run = binary.LittleEndian.Uint64(data[16:])
	s.entries = data[at : len(data)-segmentSumLen]
	if s.count > 0 {
		s.lo, s.hi = binary.BigEndian.Uint64(s.keyAt(0)), binary.BigEndian.Uint64(s.keyAt(s.count-1))
	}
	return s, nil
}

// verifySegment checks everything: the sum, the order, that each entry lies inside its pack.
func verifySegment(s *segment) error {
	body := s.data[:len(s.data)-segmentSumLen]
	if binary.LittleEndian.Uint64(s.data[len(body):]) != xxhash.Sum64(body) {
		return errors.New("segment checksum does not match")
	}
	for i := range s.packs {
		p := s.pack(i)
		if (p.kind != kindData && p.kind != kindTree) || p.size < packHeaderLen+trailerLen || p.size > maxPackLen {
			return fmt.Errorf("pack %d of the segment cannot be: %v of %d bytes", i, p.kind, p.size)
		}
		if zero := s.data[segmentHeaderLen+i*segmentPackLen+49:][:7]; !isZero(zero) {
			return fmt.Errorf("%w: pack %d of the segment has flags %x", ErrUnsupported, i, zero)
		}
	}
	for i := range s.count {
		if i > 0 && bytes.Compare(s.keyAt(i-1), s.keyAt(i)) >= 0 {
			return fmt.Errorf("entries %d and %d of the segment are out of order", i-1, i)
		}
		if _, err := s.locationAt(i); err != nil {
			return err
		}
		if zero := s.entries[(i+1)*segmentEntryLen-1]; zero != 0 {
			return fmt.Errorf("%w: entry %d of the segment has flags %x", ErrUnsupported, i, zero)
		}
	}
	return nil
}

func (s *segment) keyAt(i int) []byte {
	return s.entries[i*segmentEntryLen : i*segmentEntryLen+len(key{})]
}

func (s *segment) entryAt(i int) indexEntry {
	p := s.entries[i*segmentEntryLen : (i+1)*segmentEntryLen]
	return indexEntry{
		key:    key(p[:16]),
		pack:   binary.LittleEndian.Uint32(p[16:]),
		off:    binary.LittleEndian.Uint32(p[20:]),
		stored: uint32(p[24]) | uint32(p[25])<<8 | uint32(p[26])<<16,
		raw:    uint32(p[27]) | uint32(p[28])<<8 | uint32(p[29])<<16,
		codec:  Codec(p[30]),
	}
}

func (s *segment) pack(i int) (p packRef) {
	b := s.data[segmentHeaderLen+i*segmentPackLen:]
	copy(p.id[:], b)
	copy(p.salt[:], b[32:])
	p.kind = packKind(b[48])
	p.size = int64(binary.LittleEndian.Uint64(b[56:]))
	return p
}

// locationAt decodes entry i and checks it against its pack.
func (s *segment) locationAt(i int) (location, error) {
	e := s.entryAt(i)
	if int64(e.pack) >= int64(s.packs) {
		return location{}, fmt.Errorf("index entry %d names pack %d of %d", i, e.pack, s.packs)
	}
	l := location{pack: s.pack(int(e.pack)), off: e.off, stored: e.stored, raw: e.raw, codec: e.codec}
	if l.pack.size > maxPackLen || l.stored < recordHeaderLen || l.off < packHeaderLen || int64(l.off)+int64(l.stored) > l.pack.size {
		return location{}, fmt.Errorf("index entry %d at %d of %d bytes lies outside its pack of %d", i, l.off, l.stored, l.pack.size)
	}
	return l, nil
}

// find returns the number of the entry with key k. Keys are uniform, so their values say where to look: a few interpolations,
// then bisection over what is left.
func (s *segment) find(k *key) (int, bool) {
	lo, hi := 0, s.count // k, if present, is in [lo, hi)
	want := binary.BigEndian.Uint64(k[:])
	loVal, hiVal := s.lo, s.hi
	if s.count == 0 || want < loVal || want > hiVal {
		return 0, false
	}
	for probe := 0; probe < 4 && hi-lo > 16; probe++ {
		h, l := bits.Mul64(want-loVal, uint64(hi-lo))
		if h >= hiVal-loVal {
			break
		}
		q, _ := bits.Div64(h, l, hiVal-loVal)
		// Step a little to either side, so that the true place is likely between two probes.
		at := lo + min(int(q), hi-lo-1)
		v := binary.BigEndian.Uint64(s.keyAt(at))
		slack := 1 << ((bits.Len(uint(hi-lo)) + 2) / 2)
		if v < want {
			lo, loVal = at+1, v
			if p := at + slack; p < hi {
				if v := binary.BigEndian.Uint64(s.keyAt(p)); v > want {
					hi, hiVal = p, v
				} else if v < want {
					lo, loVal = p+1, v
				}
			}
		} else if v > want {
			hi, hiVal = at, v
			if p := at - slack; p >= lo {
				if v := binary.BigEndian.Uint64(s.keyAt(p)); v < want {
					lo, loVal = p+1, v
				} else if v > want {
					hi, hiVal = p, v
				}
			}
		} else {
			lo = firstEqual(s, lo, at, want)
			break
		}
		if want < loVal || want > hiVal {
			break
		}
	}
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch bytes.Compare(s.keyAt(mid), k[:]) {
		case 0:
			return mid, true
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// firstEqual walks down from at while entries have the same first 8 bytes; keys that share them are all but unheard of.
func firstEqual(s *segment, lo, at int, want uint64) int {
	for at > lo && binary.BigEndian.Uint64(s.keyAt(at-1)) == want {
		at--
	}
	return at
}
