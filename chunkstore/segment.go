package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Index segment: an immutable sorted part of the index. In the backend it is a pack of kind index, in the local cache a file
// (cache_linux.go). Its plain bytes are cut in frames, each a record of the pack, so that an entry can be looked up by reading one
// frame of entries and one of packs:
//
//	frame 0                 header, fence
//	then                    packs, 64 bytes each, 1024 a frame
//	then                    entries, 32 bytes each, strictly ascending by their first 16 bytes, 2048 a frame
//
// Header:
//
//	off len field
//	  0   8 magic   "SHINDEX1"
//	  8   4 packs   their number
//	 12   4 entries their number
//	 16   8 run     random; the segments of one run, made by one merge, hold separate ranges of keys
//	 24   4 nodes   entries that are in tree packs
//	 28   4 zero
//	 32   8 plain   bytes: raw lengths of the entries in data packs, summed
//	 40  16 last    key of the last entry; zero when there is none
//	 56   8 zero
//	 64     fence   16 bytes for each frame of entries: the key of its first
//
// Pack: ID (32), salt (16), kind (1), zero (7), length of the pack in bytes (8).
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
	segmentHeaderLen = 64
	segmentPackLen   = 64
	segmentEntryLen  = 32
	segmentFrameLen  = 64 << 10
	keyLen           = len(key{})

	framePacks   = segmentFrameLen / segmentPackLen
	frameEntries = segmentFrameLen / segmentEntryLen
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

// segmentHead is what a segment's first frame says, but for the fence.
type segmentHead struct {
	packs, count int
	run          uint64
	nodes        int
	plain        int64
	last         key
}

func (h *segmentHead) packFrames() int  { return (h.packs + framePacks - 1) / framePacks }
func (h *segmentHead) entryFrames() int { return (h.count + frameEntries - 1) / frameEntries }
func (h *segmentHead) frames() int      { return 1 + h.packFrames() + h.entryFrames() }
func (h *segmentHead) packsAt() int     { return segmentHeaderLen + h.entryFrames()*keyLen }
func (h *segmentHead) entriesAt() int   { return h.packsAt() + h.packs*segmentPackLen }
func (h *segmentHead) size() int        { return h.entriesAt() + h.count*segmentEntryLen }

// packFrame and entryFrame say in which frame pack or entry i is.
func (h *segmentHead) packFrame(i int) int  { return 1 + i/framePacks }
func (h *segmentHead) entryFrame(i int) int { return 1 + h.packFrames() + i/frameEntries }

// frame says where frame i lies in the plain bytes.
func (h *segmentHead) frame(i int) (from, to int) {
	if i == 0 {
		return 0, h.packsAt()
	}
	i--
	if n := h.packFrames(); i >= n {
		from = h.entriesAt() + (i-n)*segmentFrameLen
		return from, min(from+segmentFrameLen, h.size())
	}
	from = h.packsAt() + i*segmentFrameLen
	return from, min(from+segmentFrameLen, h.entriesAt())
}

// decodeSegmentHead decodes the header; b is the first frame or more.
func decodeSegmentHead(b []byte) (h segmentHead, err error) {
	if len(b) < segmentHeaderLen || string(b[:7]) != segmentMagic[:7] {
		return h, errors.New("not an index segment")
	}
	if string(b[:8]) != segmentMagic || !isZero(b[28:32]) || !isZero(b[56:64]) {
		return h, fmt.Errorf("%w: index segment %q with flags %x %x", ErrUnsupported, b[:8], b[28:32], b[56:64])
	}
	h.packs = int(binary.LittleEndian.Uint32(b[8:]))
	h.count = int(binary.LittleEndian.Uint32(b[12:]))
	h.run = binary.LittleEndian.Uint64(b[16:])
	h.nodes = int(binary.LittleEndian.Uint32(b[24:]))
	h.plain = int64(binary.LittleEndian.Uint64(b[32:]))
	h.last = key(b[40:])
	if len(b) < h.packsAt() {
		return h, fmt.Errorf("first frame of a segment of %d entries has %d bytes, not %d", h.count, len(b), h.packsAt())
	}
	return h, nil
}

// checkTable checks that the frames in the object's table are those that the header asks for.
func (h *segmentHead) checkTable(t *packTable) error {
	if len(t.entries) != h.frames() {
		return fmt.Errorf("segment of %d packs and %d entries has %d frames, not %d", h.packs, h.count, len(t.entries), h.frames())
	}
	for i := range t.entries {
		if from, to := h.frame(i); int(t.entries[i].raw) != to-from {
			return fmt.Errorf("frame %d of a segment has %d bytes, not %d", i, t.entries[i].raw, to-from)
		}
	}
	return nil
}

// encodeSegment encodes entries, which are strictly ascending by key.
func encodeSegment(run uint64, packs []packRef, entries []indexEntry) []byte {
	h := segmentHead{packs: len(packs), count: len(entries), run: run}
	for i := range entries {
		if e := &entries[i]; packs[e.pack].kind == kindTree {
			h.nodes++
		} else {
			h.plain += int64(e.raw)
		}
		h.last = entries[i].key
	}
	b := make([]byte, 0, h.size())
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.packs))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.count))
	b = binary.LittleEndian.AppendUint64(b, run)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.nodes))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.plain))
	b = append(b, h.last[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	for i := 0; i < len(entries); i += frameEntries {
		b = append(b, entries[i].key[:]...)
	}
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
	return b
}

// segment is a segment over bytes that it does not copy. They do not change, but that frames may be missing yet
// (segment_frames.go): what looks at packs and entries says whether they must be there.
type segment struct {
	segmentHead
	name    string // of its object; empty while it has none
	data    []byte // the plain bytes
	fence   []byte // keys
	entries []byte // part of data
	frameState
}

// openSegment opens the whole plain bytes of a segment. It checks what is cheap: lengths and counts. Entries are bounds-checked when
// they are looked at.
func openSegment(name string, data []byte) (*segment, error) {
	h, err := decodeSegmentHead(data)
	if err != nil {
		return nil, err
	}
	if h.size() != len(data) {
		return nil, fmt.Errorf("segment of %d packs and %d entries has %d bytes, not %d", h.packs, h.count, len(data), h.size())
	}
	s := newSegment(name, h, data, data)
	for i := range s.frames() {
		s.setPresent(i)
	}
	return s, nil
}

// newSegment makes a segment without frames over data, which is as long as h says. first is its first frame; it is kept.
func newSegment(name string, h segmentHead, first, data []byte) *segment {
	s := &segment{segmentHead: h, name: name, data: data}
	s.fence = first[segmentHeaderLen:h.packsAt()]
	s.entries = data[h.entriesAt():]
	s.init(h.frames())
	return s
}

// verifySegment checks everything in a whole segment: the header, the order, that each entry lies inside its pack.
func verifySegment(s *segment) error {
	for i := range s.frames() {
		from, to := s.frame(i)
		if err := s.checkFrame(i, s.data[from:to]); err != nil {
			return err
		}
	}
	h := segmentHead{packs: s.packs, count: s.count, run: s.run, last: s.last}
	for i := range s.count {
		l, err := s.locationAt(i)
		if err != nil {
			return err
		}
		if l.pack.kind == kindTree {
			h.nodes++
		} else {
			h.plain += int64(l.raw)
		}
	}
	if h != s.segmentHead {
		return fmt.Errorf("segment has %d nodes and %d plain bytes, its header says %d and %d", h.nodes, h.plain, s.nodes, s.plain)
	}
	return nil
}

// checkFrame checks what can be said of frame i, whose bytes are b, by itself and the fence.
func (s *segment) checkFrame(i int, b []byte) error {
	switch first := s.packFrame(0); {
	case i == 0:
		return s.checkHead(b)
	case i-first < s.packFrames():
		return checkPacks(b, (i-first)*framePacks)
	default:
		return s.checkEntries(i-first-s.packFrames(), b)
	}
}

// checkHead checks the first frame: it is what it was when the segment was opened, and the fence is in order.
func (s *segment) checkHead(b []byte) error {
	if h, err := decodeSegmentHead(b); err != nil || h != s.segmentHead {
		return errors.Join(errors.New("segment is not what it was when it was opened"), err)
	}
	var last []byte
	for i := range s.entryFrames() {
		k := b[segmentHeaderLen+i*keyLen:][:keyLen]
		if bytes.Compare(last, k) >= 0 {
			return fmt.Errorf("frame %d of the segment's entries is out of order", i)
		}
		last = k
	}
	if bytes.Compare(last, s.last[:]) > 0 || (s.count == 0 && s.last != key{}) {
		return errors.New("the segment's last key is out of order")
	}
	return nil
}

func checkPacks(b []byte, first int) error {
	for i := 0; len(b) > 0; i++ {
		p := decodeSegmentPack(b)
		if (p.kind != kindData && p.kind != kindTree) || p.size < packHeaderLen+trailerLen || p.size > maxPackLen {
			return fmt.Errorf("pack %d of the segment cannot be: %v of %d bytes", first+i, p.kind, p.size)
		}
		if zero := b[49:56]; !isZero(zero) {
			return fmt.Errorf("%w: pack %d of the segment has flags %x", ErrUnsupported, first+i, zero)
		}
		b = b[segmentPackLen:]
	}
	return nil
}

// checkEntries checks frame f of the entries, of which there is at least one.
func (s *segment) checkEntries(f int, b []byte) error {
	first := f * frameEntries
	if !bytes.Equal(b[:keyLen], s.fenceAt(f)) {
		return fmt.Errorf("entry %d of the segment is not the one in the fence", first)
	}
	end := len(b) - segmentEntryLen
	for at := 0; at <= end; at += segmentEntryLen {
		if at > 0 && bytes.Compare(b[at-segmentEntryLen:][:keyLen], b[at:][:keyLen]) >= 0 {
			return fmt.Errorf("entries %d and %d of the segment are out of order", first+at/segmentEntryLen-1, first+at/segmentEntryLen)
		}
		if zero := b[at+segmentEntryLen-1]; zero != 0 {
			return fmt.Errorf("%w: entry %d of the segment has flags %x", ErrUnsupported, first+at/segmentEntryLen, zero)
		}
	}
	if f+1 < s.entryFrames() && bytes.Compare(b[end:][:keyLen], s.fenceAt(f+1)) >= 0 || f+1 == s.entryFrames() && !bytes.Equal(b[end:][:keyLen], s.last[:]) {
		return fmt.Errorf("entry %d of the segment is out of order", first+end/segmentEntryLen)
	}
	return nil
}

func (s *segment) fenceAt(frame int) []byte { return s.fence[frame*keyLen : (frame+1)*keyLen] }

func (s *segment) keyAt(i int) []byte {
	return s.entries[i*segmentEntryLen : i*segmentEntryLen+keyLen]
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

func (s *segment) pack(i int) packRef {
	return decodeSegmentPack(s.data[s.packsAt()+i*segmentPackLen:])
}

func decodeSegmentPack(b []byte) (p packRef) {
	copy(p.id[:], b)
	copy(p.salt[:], b[32:])
	p.kind = packKind(b[48])
	p.size = int64(binary.LittleEndian.Uint64(b[56:]))
	return p
}

// missingPack returns the frame of entry i's pack if it is not present, else -1.
func (s *segment) missingPack(i int) int {
	if n := s.entryAt(i).pack; int64(n) < int64(s.packs) {
		if frame := s.packFrame(int(n)); !s.present(frame) {
			return frame
		}
	}
	return -1
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
