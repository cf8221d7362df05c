package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func testPacks() []packRef {
	return []packRef{
		{id: packID(seq(0x10, 32)), salt: [saltLen]byte(seq(0x40, saltLen)), kind: kindData, size: 1 << 20},
		{id: packID(seq(0x20, 32)), kind: kindTree, size: maxPackLen},
	}
}

func testEntries() []indexEntry {
	return []indexEntry{
		{key: key(seq(1, 16)), pack: 0, off: 32, stored: 16, raw: 1, codec: CodecRaw},
		{key: key(seq(2, 16)), pack: 1, off: maxPackLen - maxRaw, stored: maxRaw, raw: maxRaw, codec: CodecZstd},
		{key: key(seq(3, 16)), pack: 0, off: 0x1234, stored: 0x5678, raw: 0x9abc, codec: CodecS2},
	}
}

func TestSegmentGolden(t *testing.T) {
	packs, entries := testPacks(), testEntries()
	b := encodeSegment(0x1122334455667788, packs, entries)
	golden(t, "segment", b)
	s, err := openSegment("x", b)
	if err == nil {
		err = verifySegment(s)
	}
	if err != nil || s.run != 0x1122334455667788 || s.packs != 2 || s.count != 3 {
		t.Fatalf("got %+v, %v", s, err)
	}
	for i := range entries {
		if got := s.entryAt(i); got != entries[i] {
			t.Errorf("entry %d: got %+v, want %+v", i, got, entries[i])
		}
		l, err := s.locationAt(i)
		e := entries[i]
		if want := (location{packs[e.pack], e.off, e.stored, e.raw, e.codec}); err != nil || l != want {
			t.Errorf("location %d: got %+v, %v, want %+v", i, l, err, want)
		}
	}
	for i := range packs {
		if got := s.pack(i); got != packs[i] {
			t.Errorf("pack %d: got %+v, want %+v", i, got, packs[i])
		}
	}
}

func TestSegmentRefusesToOpen(t *testing.T) {
	good := encodeSegment(1, testPacks(), testEntries())
	for n := range good {
		if _, err := openSegment("x", good[:n]); err == nil {
			t.Errorf("opened the first %d of %d bytes", n, len(good))
		}
	}
	for _, c := range []struct {
		name string
		edit func(b []byte)
	}{
		{"magic", func(b []byte) { b[7] = '2' }},
		{"a pack more", func(b []byte) { b[8]++ }},
		{"all packs there can be", func(b []byte) { binary.LittleEndian.PutUint32(b[8:], 1<<32-1) }},
		{"an entry more", func(b []byte) { b[12]++ }},
		{"all entries there can be", func(b []byte) { binary.LittleEndian.PutUint32(b[12:], 1<<32-1) }},
		{"no entries", func(b []byte) { b[12] = 0 }},
		{"flags", func(b []byte) { b[28] = 1 }},
		{"more flags", func(b []byte) { b[63] = 1 }},
	} {
		b := bytes.Clone(good)
		c.edit(b)
		if _, err := openSegment("x", b); err == nil {
			t.Errorf("%s: opened", c.name)
		}
	}
}

func TestSegmentRefusesToVerify(t *testing.T) {
	const packs, entries = segmentHeaderLen + keyLen, segmentHeaderLen + keyLen + 2*segmentPackLen
	good := encodeSegment(1, testPacks(), testEntries())
	for _, c := range []struct {
		name        string
		edit        func(b []byte)
		unsupported bool
	}{
		{"pack of kind 0", func(b []byte) { b[packs+48] = 0 }, false},
		{"pack of kind index", func(b []byte) { b[packs+48] = byte(kindIndex) }, false},
		{"pack flags", func(b []byte) { b[packs+55] = 1 }, true},
		{"pack of no length", func(b []byte) { binary.LittleEndian.PutUint64(b[packs+56:], 0) }, false},
		{"pack too long", func(b []byte) { binary.LittleEndian.PutUint64(b[packs+56:], maxPackLen+1) }, false},
		{"pack of negative length", func(b []byte) { binary.LittleEndian.PutUint64(b[packs+56:], 1<<64-1) }, false},
		{"entry in no pack", func(b []byte) { b[entries+16] = 2 }, false},
		{"entry in the largest pack", func(b []byte) { binary.LittleEndian.PutUint32(b[entries+16:], 1<<32-1) }, false},
		{"entry in the header", func(b []byte) { b[entries+20] = 31 }, false},
		{"entry behind the pack", func(b []byte) { binary.LittleEndian.PutUint32(b[entries+20:], 1<<20-15) }, false},
		{"entry at the highest offset", func(b []byte) { binary.LittleEndian.PutUint32(b[entries+20:], 1<<32-1) }, false},
		{"entry shorter than a record", func(b []byte) { b[entries+24] = 15 }, false},
		{"entry flags", func(b []byte) { b[entries+31] = 1 }, true},
		{"out of order", func(b []byte) { b[entries+32] = 9 }, false},
		{"not the fence's", func(b []byte) { b[entries] = 0 }, false},
		{"behind the last", func(b []byte) { b[40] = 0 }, false},
		{"before the last", func(b []byte) { b[40]++ }, false},
		{"a node more", func(b []byte) { b[24]++ }, false},
		{"a byte more", func(b []byte) { b[32]++ }, false},
		{"twice the same", func(b []byte) { copy(b[entries+32:], b[entries:entries+16]) }, false},
	} {
		b := bytes.Clone(good)
		c.edit(b)
		s, err := openSegment("x", b)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if err := verifySegment(s); err == nil || errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%s: %v; unsupported: want %v", c.name, err, c.unsupported)
		}
	}
}

// segmentOf makes a segment of these keys, each entry's raw length telling its place.
func segmentOf(t testing.TB, keys []key) *segment {
	t.Helper()
	entries := make([]indexEntry, len(keys))
	for i := range keys {
		entries[i] = indexEntry{key: keys[i], off: 32, stored: 16, raw: uint32(i) & maxRaw}
	}
	s, err := openSegment("x", encodeSegment(1, testPacks(), entries))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keySets are sets of keys that a search by value may find hard.
func keySets(rnd *rand.Rand) map[string]func(n int) []key {
	random := func(k *key, from int) {
		for i := from; i < len(k); i++ {
			k[i] = byte(rnd.Uint32())
		}
	}
	return map[string]func(n int) []key{
		"uniform": func(n int) []key {
			keys := make([]key, n)
			for i := range keys {
				random(&keys[i], 0)
			}
			return keys
		},
		"clustered": func(n int) []key { // a few far clusters
			keys := make([]key, n)
			for i := range keys {
				keys[i][0] = []byte{0, 1, 0x80, 0xff}[rnd.IntN(4)]
				random(&keys[i], 6)
			}
			return keys
		},
		"equal prefixes": func(n int) []key { // the first 8 bytes, by which one interpolates, are all alike
			keys := make([]key, n)
			for i := range keys {
				copy(keys[i][:], "prefixed")
				random(&keys[i], 8)
			}
			return keys
		},
		"few prefixes": func(n int) []key {
			keys := make([]key, n)
			for i := range keys {
				keys[i][7] = byte(rnd.IntN(3))
				random(&keys[i], 14)
			}
			return keys
		},
		"powers of two": func(n int) []key { // the worst for interpolation: each step halves the values, not the places
			keys := make([]key, n)
			for i := range keys {
				binary.BigEndian.PutUint64(keys[i][:], 1<<(63-i%64))
				random(&keys[i], 14)
			}
			return keys
		},
		"consecutive at the ends": func(n int) []key {
			keys := make([]key, n)
			for i := range keys {
				v := uint64(i / 2)
				if i%2 == 1 {
					v = -v - 1
				}
				binary.BigEndian.PutUint64(keys[i][:], v)
			}
			return keys
		},
	}
}

func sortKeys(keys []key) []key {
	slices.SortFunc(keys, func(a, b key) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(keys)
}

func TestSegmentFind(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for name, set := range keySets(rnd) {
		for _, n := range []int{0, 1, 2, 3, 15, 16, 17, 18, 19, 64, 1000, 2048, 2049, 5000, 20000} {
			keys := sortKeys(set(n))
			s := segmentOf(t, keys)
			in := map[key]int{}
			for i, k := range keys {
				in[k] = i
			}
			ask := slices.Clone(keys)
			for _, k := range keys { // and neighbours of those that are there
				for range 2 {
					k[rnd.IntN(16)] ^= 1 << rnd.IntN(8)
					ask = append(ask, k)
				}
			}
			ask = append(ask, key{}, key(bytes.Repeat([]byte{0xff}, 16)))
			for _, k := range ask {
				want, there := in[k]
				if got, ok := s.find(&k); ok != there || ok && got != want {
					t.Fatalf("%s, %d entries, key %x: got %d %v, want %d %v", name, len(keys), k, got, ok, want, there)
				}
			}
		}
	}
}

// TestSegmentFindInDamage: in a segment gone bad, find ends, and what it finds is what was asked for.
func TestSegmentFindInDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	for name, set := range keySets(rnd) {
		keys := sortKeys(set(500))
		s := segmentOf(t, keys)
		for range 200 {
			s.data[segmentHeaderLen+rnd.IntN(len(s.data)-segmentHeaderLen)] = byte(rnd.Uint32())
			for _, k := range keys {
				if i, ok := s.find(&k); ok && !bytes.Equal(s.keyAt(i), k[:]) {
					t.Fatalf("%s: asked for %x, found %x", name, k, s.keyAt(i))
				}
			}
		}
	}
}

func FuzzSegment(f *testing.F) {
	f.Add(encodeSegment(1, testPacks(), testEntries()))
	f.Add(encodeSegment(1, nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		if len(b) >= segmentHeaderLen { // so that fuzzing gets past the lengths
			copy(b, segmentMagic)
			h := segmentHead{packs: int(min(binary.LittleEndian.Uint32(b[8:]), 1<<12)), count: int(min(binary.LittleEndian.Uint32(b[12:]), 1<<13))}
			binary.LittleEndian.PutUint32(b[8:], uint32(h.packs))
			binary.LittleEndian.PutUint32(b[12:], uint32(h.count))
			b = append(b, make([]byte, max(0, h.size()-len(b)))...)[:h.size()]
		}
		s, err := openSegment("fuzz", b)
		if err != nil {
			return
		}
		sound := verifySegment(s) == nil
		var packs []packRef
		for i := range s.packs {
			packs = append(packs, s.pack(i))
		}
		var entries []indexEntry
		for i := range s.count {
			e := s.entryAt(i)
			entries = append(entries, e)
			_, _ = s.locationAt(i)
			if at, ok := s.find(&e.key); sound && (!ok || at != i) {
				t.Fatalf("entry %d of %d: found %d %v", i, s.count, at, ok)
			}
		}
		if sound && !bytes.Equal(encodeSegment(s.run, packs, entries), b) {
			t.Fatal("encodes to other bytes")
		}
	})
}

// BenchmarkSegmentFind looks up keys in 8 million entries, 256 MB.
func BenchmarkSegmentFind(b *testing.B) {
	for _, n := range []int{1 << 16, 1 << 19, 8 << 20} {
		rnd := rand.New(rand.NewPCG(1, uint64(n)))
		keys := make([]key, n)
		for i := range keys {
			binary.BigEndian.PutUint64(keys[i][:], rnd.Uint64())
			binary.BigEndian.PutUint64(keys[i][8:], rnd.Uint64())
		}
		keys = sortKeys(keys)
		s := segmentOf(b, keys)
		ask := make([]key, 1<<16)
		for _, hit := range []bool{true, false} {
			for i := range ask {
				ask[i] = keys[rnd.IntN(len(keys))]
				if !hit {
					binary.BigEndian.PutUint64(ask[i][:], rnd.Uint64())
				}
			}
			b.Run(fmt.Sprintf("entries=%d/hit=%v", n, hit), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if _, ok := s.find(&ask[i&(1<<16-1)]); ok != hit {
						b.Fatal("not as expected")
					}
					i++
				}
			})
		}
	}
}
