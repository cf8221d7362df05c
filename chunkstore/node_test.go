package chunkstore

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestLeafGolden(t *testing.T) {
	chunks := []Chunk{
		{Off: 8 << 20, Len: 4096, ID: seqID(1)},
		{Off: 8<<20 + 3*4096, Len: 256 << 10, ID: seqID(2)},
		{Off: 9<<20 - 8192, Len: 4097, ID: seqID(3)}, // ends with the blob, inside its last block
	}
	b := appendLeaf(nil, 8<<20, chunks)
	golden(t, "leaf", b)
	got, err := decodeLeaf(nil, b, 8<<20, 1<<20-4095)
	if err != nil || !slices.Equal(got, chunks) {
		t.Fatalf("got %+v, %v, want %+v", got, err, chunks)
	}
	// Decoding appends, and leaves what was there.
	got, err = decodeLeaf(got[:1], b, 8<<20, 1<<20-4095)
	if err != nil || !slices.Equal(got[1:], chunks) || got[0] != chunks[0] {
		t.Fatalf("appended: got %+v, %v", got, err)
	}
}

func TestNodeGolden(t *testing.T) {
	n := &node{level: 3}
	n.children[0], n.children[7], n.children[63] = seqID(1), seqID(7), seqID(63)
	b := n.append(nil)
	golden(t, "node", b)
	got, err := decodeNode(b, 3)
	if err != nil || *got != *n {
		t.Fatalf("got %+v, %v, want %+v", got, err, n)
	}
	if n.empty() || !new(node).empty() {
		t.Error("empty() is wrong")
	}
}

// leafBytes builds a leaf by hand: count, then gap and blocks for each chunk, then idBytes of IDs.
func leafBytes(count uint64, gaps []uint64, idBytes int) []byte {
	b := binary.AppendUvarint([]byte{tagLeaf}, count)
	for _, g := range gaps {
		b = binary.AppendUvarint(b, g)
	}
	return append(b, make([]byte, idBytes)...)
}

func TestLeafRefuses(t *testing.T) {
	const span = 1 << 20 // 256 blocks
	if _, err := decodeLeaf(nil, leafBytes(2, []uint64{0, 1, 254, 1}, 64), 0, span); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for _, c := range []struct {
		name    string
		b       []byte
		spanLen int
	}{
		{"empty", nil, span},
		{"only a tag", []byte{tagLeaf}, span},
		{"a node", append([]byte{tagNode, 1}, make([]byte, 40)...), span},
		{"no chunks", leafBytes(0, nil, 0), span},
		{"count behind the bytes", leafBytes(1<<40, []uint64{0, 1}, 32), span},
		{"count overflows", leafBytes(1<<64-1, []uint64{0, 1}, 32), span},
		{"no blocks", leafBytes(1, []uint64{0, 0}, 32), span},
		{"gap to the end", leafBytes(1, []uint64{256, 1}, 32), span},
		{"gap overflows", leafBytes(1, []uint64{1<<64 - 1, 2}, 32), span},
		{"chunk over the end", leafBytes(1, []uint64{255, 2}, 32), span},
		{"blocks overflow", leafBytes(1, []uint64{1, 1<<64 - 1}, 32), span},
		{"second chunk over the end", leafBytes(2, []uint64{0, 255, 1, 1}, 64), span},
		{"chunk behind a short end", leafBytes(2, []uint64{0, 1, 0, 1}, 64), 4096},
		{"too few IDs", leafBytes(1, []uint64{0, 1}, 31), span},
		{"too many IDs", leafBytes(1, []uint64{0, 1}, 33), span},
		{"span of no length", leafBytes(1, []uint64{0, 1}, 32), 0},
		{"longer than any chunk", leafBytes(1, []uint64{0, 4097}, 32), 4097 * 4096},
		{"count in two bytes", append([]byte{tagLeaf, 0x81, 0, 0, 1}, make([]byte, 32)...), span},
		{"gap in two bytes", append([]byte{tagLeaf, 1, 0x80, 0, 1}, make([]byte, 32)...), span},
		{"blocks in two bytes", append([]byte{tagLeaf, 1, 0, 0x81, 0}, make([]byte, 32)...), span},
		{"uvarint without end", append([]byte{tagLeaf, 1}, bytes.Repeat([]byte{0x80}, 40)...), span},
		{"uvarint of 11 bytes", append([]byte{tagLeaf, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, make([]byte, 40)...), span},
	} {
		if got, err := decodeLeaf(nil, c.b, 0, c.spanLen); err == nil {
			t.Errorf("%s: decoded %+v", c.name, got)
		}
	}
}

func TestNodeRefuses(t *testing.T) {
	head := func(tag, level byte, present uint64, ids int) []byte {
		b := binary.LittleEndian.AppendUint64([]byte{tag, level}, present)
		return append(b, bytes.Repeat([]byte{1}, 32*ids)...)
	}
	if _, err := decodeNode(head(tagNode, 1, 5, 2), 1); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	zeroID := head(tagNode, 1, 5, 2)
	clear(zeroID[10:42])
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"empty", nil},
		{"short", head(tagNode, 1, 0, 0)[:9]},
		{"a leaf", head(tagLeaf, 1, 5, 2)},
		{"level above", head(tagNode, 2, 5, 2)},
		{"level below", head(tagNode, 0, 5, 2)},
		{"no children", head(tagNode, 1, 0, 0)},
		{"too few IDs", head(tagNode, 1, 7, 2)},
		{"too many IDs", head(tagNode, 1, 4, 2)},
		{"all present, one ID", head(tagNode, 1, 1<<64-1, 1)},
		{"part of an ID", head(tagNode, 1, 5, 2)[:73]},
		{"child with the ID of holes", zeroID},
	} {
		if got, err := decodeNode(c.b, 1); err == nil {
			t.Errorf("%s: decoded %+v", c.name, got)
		}
	}
}

func TestRootLevelAndSlots(t *testing.T) {
	for _, c := range []struct {
		spans int64
		level int
	}{{0, 0}, {1, 0}, {2, 1}, {64, 1}, {65, 2}, {4096, 2}, {4097, 3}, {1 << 18, 3}, {1<<18 + 1, 4}, {1 << 43, 8}, {1<<63 - 1, 10}} {
		if got := rootLevel(c.spans); got != c.level {
			t.Errorf("%d spans: level %d, want %d", c.spans, got, c.level)
		}
	}
	for _, span := range []int64{0, 1, 63, 64, 65, 4095, 4096, 123456789, 1<<42 - 1} {
		var again int64
		for level := 8; level > 0; level-- {
			again = again<<nodeFanoutLog | int64(slot(span, level))
		}
		if again != span {
			t.Errorf("slots of %d lead to %d", span, again)
		}
	}
}

func TestLeafRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		spanLen := 1 + rnd.IntN(4<<20)
		base := int64(rnd.IntN(1000)) * 4 << 20
		var chunks []Chunk
		for at := 0; at < spanLen; {
			at += CutBlock * rnd.IntN(3)
			n := min(CutBlock*(1+rnd.IntN(64)), spanLen-at)
			if n <= 0 {
				break
			}
			c := Chunk{Off: base + int64(at), Len: n}
			c.ID[0], c.ID[31] = byte(rnd.Uint32()), 1
			chunks = append(chunks, c)
			at += n
		}
		if len(chunks) == 0 {
			continue
		}
		got, err := decodeLeaf(nil, appendLeaf(nil, base, chunks), base, spanLen)
		if err != nil || !slices.Equal(got, chunks) {
			t.Fatalf("span of %d: got %+v, %v, want %+v", spanLen, got, err, chunks)
		}
	}
}

func FuzzLeaf(f *testing.F) {
	f.Add(leafBytes(2, []uint64{0, 1, 254, 1}, 64), 1<<20)
	f.Add(leafBytes(1, []uint64{0, 1}, 32), 100)
	f.Fuzz(func(t *testing.T, b []byte, spanLen int) {
		if spanLen < 0 || spanLen > 16<<20 {
			return
		}
		chunks, err := decodeLeaf(nil, b, 0, spanLen)
		if err != nil {
			return
		}
		at := int64(0)
		for _, c := range chunks {
			if c.Off < at || c.Len <= 0 || c.End() > int64(spanLen) {
				t.Fatalf("chunk %+v after %d in a span of %d", c, at, spanLen)
			}
			at = c.End()
		}
		if got := appendLeaf(nil, 0, chunks); !bytes.Equal(got, b) {
			t.Fatalf("got %x, want %x", got, b)
		}
	})
}

func FuzzNode(f *testing.F) {
	n := &node{level: 1}
	n.children[3] = seqID(1)
	f.Add(n.append(nil), 1)
	f.Fuzz(func(t *testing.T, b []byte, level int) {
		n, err := decodeNode(b, level)
		if err != nil {
			return
		}
		if got := n.append(nil); !bytes.Equal(got, b) {
			t.Fatalf("got %x, want %x", got, b)
		}
	})
}
