package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// Three forms of "abcdefgh", made by hand so that they do not depend on a version of the libraries.
var (
	helloRaw  = []byte("abcdefgh")
	helloS2   = append([]byte{8, 7 << 2}, helloRaw...) // length; a literal of 8 bytes
	helloZstd = append([]byte{
		0x28, 0xb5, 0x2f, 0xfd, // magic
		0x20, 8, // one segment; 8 bytes
		8<<3 | 1, 0, 0, // last block, raw, 8 bytes
	}, helloRaw...)
)

// smallPack is a pack of three records.
func smallPack(t testing.TB, kind packKind) (packID, []byte) {
	var p packBuilder
	if err := p.reset(plainSealer{}, kind); err != nil {
		t.Fatal(err)
	}
	for i, payload := range [][]byte{helloRaw, helloZstd, helloS2} {
		id := seqID(byte(0x10 * (i + 1)))
		e := p.add(&id, payload, Codec(i), len(helloRaw))
		if e.raw != 8 || int(e.stored) != recordHeaderLen+len(payload) {
			t.Fatalf("entry %+v", e)
		}
	}
	id, b := p.finish()
	return id, bytes.Clone(b)
}

func TestPackGolden(t *testing.T) {
	h := packHeader{kind: kindTree, salt: [saltLen]byte(seq(0xa0, saltLen))}
	golden(t, "pack-header", h.append(nil))
	tr := packTrailer{tableOff: 4096, tableLen: 16 + 2*40, records: 2, bodySum: 0x0102030405060708}
	golden(t, "pack-trailer", tr.append(nil))
	entries := []tableEntry{
		{id: seqID(1), off: 32, stored: 1000, raw: maxRaw, codec: CodecZstd},
		{id: seqID(2), off: 1032, stored: 3064, raw: 1, codec: CodecS2},
	}
	golden(t, "pack-table", appendTable(nil, entries))
	got, err := decodeTable(appendTable(nil, entries), tr)
	if err != nil || got[0] != entries[0] || got[1] != entries[1] {
		t.Errorf("table: got %+v, %v, want %+v", got, err, entries)
	}
	id, pack := smallPack(t, kindData)
	golden(t, "pack", pack)
	golden(t, "pack-id", id[:])
}

func TestPackReadsBack(t *testing.T) {
	id, pack := smallPack(t, kindData)
	d, err := newDecoder()
	if err != nil {
		t.Fatal(err)
	}
	pt, err := decodePackTail(plainSealer{}, pack[:packHeaderLen], pack, uint64(len(pack)))
	if err != nil {
		t.Fatal(err)
	}
	if pt.id != id || pt.header.kind != kindData || len(pt.entries) != 3 {
		t.Fatalf("got %+v", pt)
	}
	for i := range pt.entries {
		e := &pt.entries[i]
		payload, err := openRecord(pack[e.off:e.off+e.stored], plainBox{}, &e.id, e.codec, int(e.raw), uint64(e.off))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := d.decode(nil, payload, e.codec, int(e.raw))
		if err != nil || !bytes.Equal(plain, helloRaw) {
			t.Errorf("record %d: %q, %v", i, plain, err)
		}
	}
}

// resum sets the last 8 of the n bytes at off to the sum of those before.
func resum(b []byte, off, n int) {
	binary.LittleEndian.PutUint64(b[off+n-8:], xxhash.Sum64(b[off:off+n-8]))
}

func TestPackHeaderRefuses(t *testing.T) {
	good := packHeader{kind: kindData}.append(nil)
	for _, c := range []struct {
		name        string
		edit        func(b []byte) []byte
		sum         bool // made right again
		unsupported bool
	}{
		{"short", func(b []byte) []byte { return b[:31] }, false, false},
		{"empty", func([]byte) []byte { return nil }, false, false},
		{"magic", func(b []byte) []byte { b[0] = 'X'; return b }, true, false},
		{"sum", func(b []byte) []byte { b[24]++; return b }, false, false},
		{"salt changed", func(b []byte) []byte { b[9]++; return b }, false, false},
		{"version 0", func(b []byte) []byte { b[4] = 0; return b }, true, true},
		{"version 2", func(b []byte) []byte { b[4] = 2; return b }, true, true},
		{"flag", func(b []byte) []byte { b[7] = 1; return b }, true, true},
	} {
		b := c.edit(bytes.Clone(good))
		if c.sum {
			resum(b, 0, packHeaderLen)
		}
		if _, err := decodePackHeader(b); err == nil || errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%s: %v; unsupported: want %v", c.name, err, c.unsupported)
		}
	}
}

func TestPackTrailerRefuses(t *testing.T) {
	const packLen = 32 + 2*100 + 16 + 2*40 + 40
	good := packTrailer{tableOff: 232, tableLen: 96, records: 2}
	if _, err := decodePackTrailer(good.append(nil), packLen); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for _, c := range []struct {
		name string
		t    packTrailer
	}{
		{"table in the header", packTrailer{tableOff: 31, tableLen: packLen - 40 - 31}},
		{"table behind the end", packTrailer{tableOff: packLen, tableLen: 0}},
		{"table offset overflows", packTrailer{tableOff: 1<<64 - 1, tableLen: 1}},
		{"gap before the trailer", packTrailer{tableOff: 232, tableLen: 95, records: 1}},
		{"too many records for the table", packTrailer{tableOff: 232, tableLen: 96, records: 3}},
		{"record count overflows", packTrailer{tableOff: 232, tableLen: 96, records: 1<<32 - 1}},
		{"too many records for the pack", packTrailer{tableOff: 32 + 16, tableLen: packLen - 40 - 48, records: 2}},
		{"no room for a table", packTrailer{tableOff: packLen - 40, tableLen: 0}},
	} {
		if _, err := decodePackTrailer(c.t.append(nil), packLen); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
	for _, c := range []struct {
		name        string
		edit        func(b []byte) []byte
		packLen     uint64
		unsupported bool
	}{
		{"short", func(b []byte) []byte { return b[1:] }, packLen, false},
		{"long", func(b []byte) []byte { return append(b, 0) }, packLen, false},
		{"pack too short", func(b []byte) []byte { return b }, 32 + 40 + 15, false},
		{"pack of no length", func(b []byte) []byte { return b }, 0, false},
		{"magic", func(b []byte) []byte { b[28] = 'X'; resum(b, 0, trailerLen); return b }, packLen, false},
		{"sum", func(b []byte) []byte { b[0]++; return b }, packLen, false},
		{"version", func(b []byte) []byte { b[24] = 2; resum(b, 0, trailerLen); return b }, packLen, true},
	} {
		if _, err := decodePackTrailer(c.edit(good.append(nil)), c.packLen); err == nil || errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%s: %v; unsupported: want %v", c.name, err, c.unsupported)
		}
	}
}

func TestTableRefuses(t *testing.T) {
	tr := packTrailer{tableOff: 32 + 200, records: 2}
	for _, c := range []struct {
		name    string
		entries []tableEntry
	}{
		{"too few", []tableEntry{{stored: 200}}},
		{"too many", []tableEntry{{stored: 100}, {stored: 50}, {stored: 50}}},
		{"gap at the end", []tableEntry{{stored: 100}, {stored: 99}}},
		{"reaches into the table", []tableEntry{{stored: 100}, {stored: 101}}},
		{"shorter than a record's header", []tableEntry{{stored: 15}, {stored: 185}}},
		{"length overflows", []tableEntry{{stored: 1<<32 - 100}, {stored: 300}}},
	} {
		if got, err := decodeTable(appendTable(nil, c.entries), tr); err == nil {
			t.Errorf("%s: decoded %+v", c.name, got)
		}
	}
	if _, err := decodeTable(make([]byte, 79), tr); err == nil {
		t.Error("79 bytes for two records: no error")
	}
}

// TestPackTailRefusesEveryFlip: whatever bit of header, table or trailer changes, either decoding fails or the ID differs.
func TestPackTailRefusesEveryFlip(t *testing.T) {
	id, pack := smallPack(t, kindData)
	pt, err := decodePackTail(plainSealer{}, pack[:packHeaderLen], pack, uint64(len(pack)))
	if err != nil {
		t.Fatal(err)
	}
	for off := range pack {
		if off >= packHeaderLen && uint64(off) < pt.trailer.tableOff {
			continue // records are checked one by one
		}
		for bit := range 8 {
			bad := bytes.Clone(pack)
			bad[off] ^= 1 << bit
			if got, err := decodePackTail(plainSealer{}, bad[:packHeaderLen], bad, uint64(len(bad))); err == nil && got.id == id {
				t.Errorf("bit %d of byte %d changed unnoticed", bit, off)
			}
		}
	}
	for n := range pack {
		if _, err := decodePackTail(plainSealer{}, pack[:min(n, packHeaderLen)], pack[:n], uint64(n)); err == nil {
			t.Errorf("pack cut to %d bytes decoded", n)
		}
	}
}

func TestPackTailAsksForMore(t *testing.T) {
	_, pack := smallPack(t, kindData)
	var short *errShortTail
	_, err := decodePackTail(plainSealer{}, pack[:packHeaderLen], pack[len(pack)-trailerLen:], uint64(len(pack)))
	if !errors.As(err, &short) || short.need != 16+3*tableEntryLen+trailerLen {
		t.Fatalf("got %v", err)
	}
	tail := pack[uint64(len(pack))-short.need:]
	if _, err := decodePackTail(plainSealer{}, pack[:packHeaderLen], tail, uint64(len(pack))); err != nil {
		t.Fatalf("with as many as it asked for: %v", err)
	}
	if _, err := decodePackTail(plainSealer{}, pack[:packHeaderLen], pack, uint64(len(pack))-1); err == nil {
		t.Error("a tail longer than the pack: no error")
	}
}

func TestForeignSchemeIsRefused(t *testing.T) {
	_, pack := smallPack(t, kindData)
	pack[6] = 1
	resum(pack, 0, packHeaderLen)
	if _, err := decodePackTail(plainSealer{}, pack[:packHeaderLen], pack, uint64(len(pack))); err == nil {
		t.Error("a sealed object in a plain repository: no error")
	}
}

func TestPackObjectNames(t *testing.T) {
	id := packID(seq(0xe0, 32))
	for _, kind := range []packKind{kindData, kindTree} {
		got, k, ok := parsePackObject(id.object(kind))
		if got != id || k != kind || !ok {
			t.Errorf("%s: %v %v %v", id.object(kind), got, k, ok)
		}
	}
	s := id.String()
	for _, name := range []string{
		"", "packs/", "packs/data", "packs/data/e0", "packs/data/e0/", "packs/data/e1/" + s, "packs/data/e0/" + s[:63],
		"packs/data/e0/" + s + "0", "packs/data/e0/" + s[:62] + "zz", "packs/index/e0/" + s, "data/e0/" + s,
		"packs/data/E0/" + s, "packs/data/e0/" + s + "/", "/packs/data/e0/" + s,
	} {
		if id, _, ok := parsePackObject(name); ok {
			t.Errorf("%q parsed as %v", name, id)
		}
	}
}

func TestPackKindNames(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range []packKind{kindData, kindTree, kindIndex, kindBackup, kindVolume, 9} {
		s := k.String()
		if s == "" || seen[s] {
			t.Errorf("kind %d is called %q", uint8(k), s)
		}
		seen[s] = true
	}
}

// TestPackBuilderReuse: a builder's next pack has nothing of those before.
func TestPackBuilderReuse(t *testing.T) {
	_, want := smallPack(t, kindTree)
	var p packBuilder
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 3 {
		if err := p.reset(plainSealer{}, kindTree); err != nil {
			t.Fatal(err)
		}
		for range rnd.IntN(20) {
			id := seqID(byte(rnd.Uint32()))
			p.add(&id, make([]byte, rnd.IntN(1000)), CodecRaw, 5)
		}
		p.finish()
	}
	if err := p.reset(plainSealer{}, kindTree); err != nil {
		t.Fatal(err)
	}
	for i, payload := range [][]byte{helloRaw, helloZstd, helloS2} {
		id := seqID(byte(0x10 * (i + 1)))
		p.add(&id, payload, Codec(i), len(helloRaw))
	}
	if _, got := p.finish(); !bytes.Equal(got, want) {
		t.Fatalf("got %x, want %x", got, want)
	}
}

func FuzzPackHeader(f *testing.F) {
	f.Add(packHeader{kind: kindData}.append(nil))
	f.Add(packHeader{kind: kindVolume, scheme: 3, salt: [saltLen]byte{1}}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		fixed := bytes.Clone(b)
		if len(fixed) >= packHeaderLen {
			resum(fixed, 0, packHeaderLen) // so that fuzzing gets past the sum
		}
		for _, b := range [][]byte{b, fixed} {
			h, err := decodePackHeader(b)
			if err != nil {
				continue
			}
			if got := h.append(nil); !bytes.Equal(got, b[:packHeaderLen]) {
				t.Fatalf("got %x, want %x", got, b)
			}
		}
	})
}

func FuzzPackTrailer(f *testing.F) {
	f.Add(packTrailer{tableOff: 232, tableLen: 96, records: 2}.append(nil), uint64(232+96+40))
	f.Fuzz(func(t *testing.T, b []byte, packLen uint64) {
		b = bytes.Clone(b)
		if len(b) == trailerLen {
			resum(b, 0, trailerLen)
		}
		tr, err := decodePackTrailer(b, packLen)
		if err != nil {
			return
		}
		if got := tr.append(nil); !bytes.Equal(got, b) {
			t.Fatalf("got %x, want %x", got, b)
		}
		if tr.tableOff > packLen || uint64(tr.records)*tableEntryLen > packLen {
			t.Fatalf("%+v is out of a pack of %d", tr, packLen)
		}
	})
}

func FuzzTable(f *testing.F) {
	f.Add(appendTable(nil, []tableEntry{{stored: 100}, {stored: 100, raw: 5, codec: 2}}), uint64(232))
	f.Fuzz(func(t *testing.T, b []byte, tableOff uint64) {
		tr := packTrailer{tableOff: max(tableOff%maxPackLen, packHeaderLen), records: uint32(len(b) / tableEntryLen)}
		entries, err := decodeTable(b, tr)
		if err != nil {
			return
		}
		if got := appendTable(nil, entries); !bytes.Equal(got, b) {
			t.Fatalf("got %x, want %x", got, b)
		}
		off := uint64(packHeaderLen)
		for i, e := range entries {
			if uint64(e.off) != off {
				t.Fatalf("entry %d at %d, want %d", i, e.off, off)
			}
			off += uint64(e.stored)
		}
	})
}

func FuzzPackTail(f *testing.F) {
	_, pack := smallPack(f, kindData)
	f.Add(pack)
	f.Add(pack[:len(pack)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		if len(b) >= packHeaderLen+trailerLen { // so that fuzzing gets past the sums
			resum(b, 0, packHeaderLen)
			resum(b, len(b)-trailerLen, trailerLen)
			off := binary.LittleEndian.Uint64(b[len(b)-trailerLen:])
			if end := uint64(len(b) - trailerLen); off >= packHeaderLen && off < end && end-off >= recordHeaderLen {
				copy(b[off+8:], tableRecordID.tag())
				binary.LittleEndian.PutUint64(b[off:], xxhash.Sum64(b[off+8:end]))
			}
		}
		pt, err := decodePackTail(plainSealer{}, b[:min(len(b), packHeaderLen)], b, uint64(len(b)))
		if err != nil {
			return
		}
		for i := range pt.entries {
			e := &pt.entries[i]
			if uint64(e.off)+uint64(e.stored) > pt.trailer.tableOff {
				t.Fatalf("record %d reaches to %d", i, e.off+e.stored)
			}
			_ = checkRecordSum(b[e.off : e.off+e.stored])
		}
	})
}

func FuzzPackObject(f *testing.F) {
	id := packID(seq(0xe0, 32))
	f.Add(id.object(kindData))
	f.Add(id.object(kindTree))
	f.Add("packs/data/00/")
	f.Add("index/" + id.String())
	f.Fuzz(func(t *testing.T, name string) {
		if id, kind, ok := parsePackObject(name); ok && id.object(kind) != name {
			t.Fatalf("%q parsed as the name of %q", name, id.object(kind))
		}
		if file := segmentFile(name); file != "" && prefixIndex+file != name {
			t.Fatalf("%q is kept as %q", name, file)
		}
	})
}
