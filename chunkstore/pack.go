package chunkstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"
	"lukechampine.com/blake3"
)

// Every object but the configuration is a pack: a header, records, a table that lists them, and a trailer. The table at the
// end lets a pack grow record by record and makes the index rebuildable from packs alone. All integers are little-endian.
//
// Header: the first 32 bytes.
//
//	off len field
//	  0   4 magic   "SHAL"
//	  4   1 version 1
//	  5   1 kind    see packKind
//	  6   1 scheme  how records are sealed; 0: not at all, 1: seal_aes.go
//	  7   1 zero
//	  8  16 salt    the keys of this object's records derive from it; random in data and tree packs, so that no pack ever
//	                has the name of one that was there before and may be condemned
//	 24   8 sum     xxHash64 of bytes 0..23
//
// Record, from byte 32 on, one after the other (record.go).
//
// Table: a record of its own whose plain bytes are 40 for each record before it, in their order:
//
//	off len field
//	  0  32 id      of the plain bytes
//	 32   4 stored  bytes the whole record takes in the pack
//	 36   3 raw     bytes of the chunk, at most maxRaw
//	 39   1 codec   see Codec
//
// Trailer: the last 40 bytes.
//
//	off len field
//	  0   8 tableOff where the table's record begins; the records before it fill the pack without a gap
//	  8   4 tableLen bytes; the table's record ends where the trailer begins
//	 12   4 records  their number
//	 16   8 bodySum  xxHash64 of the records' own sums, 8 bytes each, in their order
//	 24   4 version  1
//	 28   4 magic    "LAHS"
//	 32   8 sum      xxHash64 of bytes 0..31
//
// A pack's ID is the BLAKE3-256 of header, table record and trailer, and so vouches for the records through their sums.

// packKind says what a pack's records are.
type packKind uint8

const (
	kindData   packKind = 1 // chunks of blobs
	kindTree   packKind = 2 // tree nodes
	kindIndex  packKind = 3 // one index segment, cut in frames
	kindBackup packKind = 4 // one backup record
	kindVolume packKind = 5 // one volume's name
	kindTrash  packKind = 6 // one trash list
	kindLock   packKind = 7 // who prunes
)

func (k packKind) String() string {
	switch k {
	case kindData:
		return "data"
	case kindTree:
		return "tree"
	case kindIndex:
		return "index"
	case kindBackup:
		return "backup"
	case kindVolume:
		return "volume"
	case kindTrash:
		return "trash"
	case kindLock:
		return "lock"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

const (
	packVersion   = 1
	packHeaderLen = 32
	tableEntryLen = 40
	trailerLen    = 40
	magicHeader   = "SHAL"
	magicTrailer  = "LAHS"

	maxRaw     = 1<<24 - 1 // bytes of a record's plain form: three bytes in table and index
	maxPackLen = 1 << 30   // bytes; offsets in the index have 32 bits
)

// packID names a pack.
type packID [32]byte

func (id packID) String() string { return ID(id).String() }

// object is the name of a data or tree pack in the backend.
func (id packID) object(kind packKind) string {
	s := id.String()
	return prefixPacks + kind.String() + "/" + s[:2] + "/" + s
}

// parsePackObject undoes object.
func parsePackObject(name string) (id packID, kind packKind, ok bool) {
	parts := strings.Split(strings.TrimPrefix(name, prefixPacks), "/")
	if len(parts) != 3 {
		return id, 0, false
	}
	for _, k := range []packKind{kindData, kindTree} {
		if parts[0] == k.String() {
			kind = k
		}
	}
	err := (*ID)(&id).UnmarshalText([]byte(parts[2]))
	return id, kind, kind != 0 && err == nil && id.object(kind) == name
}

type packHeader struct {
	kind   packKind
	scheme byte
	salt   [saltLen]byte
}

func (h packHeader) append(b []byte) []byte {
	n := len(b)
	b = append(b, magicHeader...)
	b = append(b, packVersion, byte(h.kind), h.scheme, 0)
	b = append(b, h.salt[:]...)
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b[n:]))
}

func decodePackHeader(b []byte) (h packHeader, err error) {
	switch {
	case len(b) < packHeaderLen:
		return h, fmt.Errorf("header has %d bytes, not %d", len(b), packHeaderLen)
	case string(b[:4]) != magicHeader:
		return h, fmt.Errorf("header magic is %q, not %q", b[:4], magicHeader)
	case binary.LittleEndian.Uint64(b[24:]) != xxhash.Sum64(b[:24]):
		return h, errors.New("header checksum does not match")
	case b[4] != packVersion:
		return h, fmt.Errorf("%w: pack version %d", ErrUnsupported, b[4])
	case b[7] != 0:
		return h, fmt.Errorf("%w: header byte 7 is %d", ErrUnsupported, b[7])
	}
	h.kind, h.scheme = packKind(b[5]), b[6]
	copy(h.salt[:], b[8:])
	return h, nil
}

type packTrailer struct {
	tableOff uint64
	tableLen uint32
	records  uint32
	bodySum  uint64
}

func (t packTrailer) append(b []byte) []byte {
	n := len(b)
	b = binary.LittleEndian.AppendUint64(b, t.tableOff)
	b = binary.LittleEndian.AppendUint32(b, t.tableLen)
	b = binary.LittleEndian.AppendUint32(b, t.records)
	b = binary.LittleEndian.AppendUint64(b, t.bodySum)
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = append(b, magicTrailer...)
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b[n:]))
}

// decodePackTrailer takes the last trailerLen bytes of a pack that is packLen long.
func decodePackTrailer(b []byte, packLen uint64) (t packTrailer, err error) {
	switch {
	case len(b) != trailerLen || packLen < packHeaderLen+recordHeaderLen+trailerLen:
		return t, errors.New("too short for a pack")
	case string(b[28:32]) != magicTrailer:
		return t, fmt.Errorf("trailer magic is %q, not %q", b[28:32], magicTrailer)
	case binary.LittleEndian.Uint64(b[32:]) != xxhash.Sum64(b[:32]):
		return t, errors.New("trailer checksum does not match")
	case binary.LittleEndian.Uint32(b[24:]) != packVersion:
		return t, fmt.Errorf("%w: pack version %d", ErrUnsupported, binary.LittleEndian.Uint32(b[24:]))
	}
	t.tableOff = binary.LittleEndian.Uint64(b)
	t.tableLen = binary.LittleEndian.Uint32(b[8:])
	t.records = binary.LittleEndian.Uint32(b[12:])
	t.bodySum = binary.LittleEndian.Uint64(b[16:])
	end := packLen - trailerLen
	switch {
	case t.tableOff < packHeaderLen || t.tableOff > end || uint64(t.tableLen) != end-t.tableOff:
		return t, fmt.Errorf("table at %d of %d bytes does not end at the trailer of a pack of %d", t.tableOff, t.tableLen, packLen)
	case uint64(t.tableLen) < recordHeaderLen+uint64(t.records)*tableEntryLen:
		return t, fmt.Errorf("table of %d bytes is too short for %d records", t.tableLen, t.records)
	case t.tableOff-packHeaderLen < uint64(t.records)*recordHeaderLen:
		return t, fmt.Errorf("%d bytes are too few for %d records", t.tableOff-packHeaderLen, t.records)
	}
	return t, nil
}

// tableEntry is a record as the table knows it. off is not stored: it is the sum of the lengths before.
type tableEntry struct {
	id     ID
	off    uint32
	stored uint32
	raw    uint32
	codec  Codec
}

func appendTable(b []byte, entries []tableEntry) []byte {
	for i := range entries {
		e := &entries[i]
		b = append(b, e.id[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.stored)
		b = binary.LittleEndian.AppendUint32(b, e.raw|uint32(e.codec)<<24)
	}
	return b
}

// decodeTable decodes the plain bytes of a table; the records must fill [packHeaderLen, t.tableOff) exactly.
func decodeTable(b []byte, t packTrailer) ([]tableEntry, error) {
	if uint64(len(b)) != uint64(t.records)*tableEntryLen {
		return nil, fmt.Errorf("table has %d bytes, not %d for each of %d records", len(b), tableEntryLen, t.records)
	}
	entries := make([]tableEntry, t.records)
	off := uint64(packHeaderLen)
	for i := range entries {
		p := b[i*tableEntryLen:]
		e := &entries[i]
		copy(e.id[:], p)
		e.stored = binary.LittleEndian.Uint32(p[32:])
		rc := binary.LittleEndian.Uint32(p[36:])
		e.raw, e.codec, e.off = rc&maxRaw, Codec(rc>>24), uint32(off)
		if e.stored < recordHeaderLen || e.stored > maxRaw || uint64(e.stored) > t.tableOff-off {
			return nil, fmt.Errorf("record %d of %d bytes at %d does not fit before the table at %d", i, e.stored, off, t.tableOff)
		}
		off += uint64(e.stored)
	}
	if off != t.tableOff {
		return nil, fmt.Errorf("records end at %d, the table begins at %d", off, t.tableOff)
	}
	return entries, nil
}

// packBuilder builds one pack in memory. Not safe for concurrent use.
type packBuilder struct {
	sealer  sealer
	header  packHeader
	box     box
	buf     []byte
	entries []tableEntry
	body    xxhash.Digest
	scratch []byte
	unique  bool // the pack's name is to be new even if its content is not
}

// reset begins a new pack in the builder's buffers.
func (p *packBuilder) reset(s sealer, kind packKind) error {
	p.sealer = s
	p.header = packHeader{kind: kind, scheme: s.scheme()}
	if s.overhead() > 0 || p.unique {
		if _, err := rand.Read(p.header.salt[:]); err != nil {
			return err
		}
		s.mark(&p.header.salt)
	}
	var err error
	if p.box, err = s.box(kind, p.header.salt); err != nil {
		return err
	}
	p.buf = p.header.append(p.buf[:0])
	p.entries = p.entries[:0]
	p.body.Reset()
	return nil
}

// add appends a record. payload is what the codec made of rawLen plain bytes whose ID is id.
func (p *packBuilder) add(id *ID, payload []byte, codec Codec, rawLen int) tableEntry {
	off := len(p.buf)
	p.buf = appendRecord(p.buf, p.box, id, payload, codec, rawLen)
	p.body.Write(p.buf[off : off+8])
	e := tableEntry{id: *id, off: uint32(off), stored: uint32(len(p.buf) - off), raw: uint32(rawLen), codec: codec}
	p.entries = append(p.entries, e)
	return e
}

// finish adds table and trailer. The result is the builder's buffer, valid until reset.
func (p *packBuilder) finish() (packID, []byte) {
	t := packTrailer{tableOff: uint64(len(p.buf)), records: uint32(len(p.entries)), bodySum: p.body.Sum64()}
	p.scratch = appendTable(p.scratch[:0], p.entries)
	p.buf = appendRecord(p.buf, p.box, &tableRecordID, p.scratch, CodecRaw, 0)
	t.tableLen = uint32(uint64(len(p.buf)) - t.tableOff)
	p.buf = t.append(p.buf)
	return hashPack(p.buf[:packHeaderLen], p.buf[t.tableOff:]), p.buf
}

// hashPack is the ID of the pack with this header and this tail (table record and trailer).
func hashPack(header, tail []byte) (id packID) {
	h := blake3.New(len(id), nil)
	_, _ = h.Write(header)
	_, _ = h.Write(tail)
	h.Sum(id[:0])
	return id
}

// packTable is a pack's structure without its records.
type packTable struct {
	header  packHeader
	trailer packTrailer
	entries []tableEntry
	id      packID
}

// decodePackTail decodes header and tail of a pack that is packLen long. tail ends the pack and begins at or before its table;
// errShortTail says how much more is needed.
func decodePackTail(s sealer, header, tail []byte, packLen uint64) (*packTable, error) {
	h, err := decodePackHeader(header)
	if err != nil {
		return nil, err
	}
	if err := checkScheme(s, h.scheme); err != nil {
		return nil, err
	}
	if uint64(len(tail)) > packLen || len(tail) < trailerLen {
		return nil, errors.New("too short for a pack")
	}
	t, err := decodePackTrailer(tail[len(tail)-trailerLen:], packLen)
	if err != nil {
		return nil, err
	}
	need := packLen - t.tableOff
	if uint64(len(tail)) < need {
		return nil, &errShortTail{need: need}
	}
	tail = tail[uint64(len(tail))-need:]
	b, err := s.box(h.kind, h.salt)
	if err != nil {
		return nil, err
	}
	plain, err := openRecord(tail[:t.tableLen], b, &tableRecordID, CodecRaw, 0, t.tableOff)
	if err != nil {
		return nil, fmt.Errorf("table: %w", err)
	}
	entries, err := decodeTable(plain, t)
	if err != nil {
		return nil, err
	}
	return &packTable{header: h, trailer: t, entries: entries, id: hashPack(header[:packHeaderLen], tail)}, nil
}

// errShortTail asks decodePackTail's caller for a longer tail.
type errShortTail struct{ need uint64 }

func (e *errShortTail) Error() string { return fmt.Sprintf("the last %d bytes are needed", e.need) }
