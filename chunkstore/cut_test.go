package chunkstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

type piece struct {
	off, end int
	hole     bool
}

// cutAll cuts span from pos on, and checks that load is asked for all that is looked at and nothing else.
func cutAll(t *testing.T, c *Cutter, span []byte, pos int) (pieces []piece) {
	t.Helper()
	seen := bytes.Repeat([]byte{0xee}, len(span)) // what was not loaded looks different
	loaded := pos
	for pos < len(span) {
		start := pos
		load := func(n int) error {
			if n > len(span) || n%CutBlock != 0 && n != len(span) {
				t.Fatalf("load(%d) is no border in %d", n, len(span))
			}
			if n > loaded {
				copy(seen[loaded:n], span[loaded:])
				loaded = n
			}
			return nil
		}
		end, hole, err := c.Next(seen, pos, load)
		if err != nil || end <= start || end > len(span) {
			t.Fatalf("Next(%d) in %d bytes: %d, %v, %v", start, len(span), end, hole, err)
		}
		if loaded > min(end+CutBlock, len(span)) {
			t.Fatalf("loaded up to %d for the piece that ends at %d", loaded, end)
		}
		pieces = append(pieces, piece{start, end, hole})
		pos = end
	}
	return pieces
}

// cutSpan is a random span: blocks that are zeros, repeated, random, or zeros but for one byte.
func cutSpan(rnd *rand.Rand, size int) []byte {
	span := make([]byte, size)
	for at := 0; at < size; {
		n := min(CutBlock*(1+rnd.IntN(90)), size-at)
		switch rnd.IntN(4) {
		case 0:
			for i := at; i < at+n; i++ {
				span[i] = byte(rnd.Uint32())
			}
		case 1:
			for i := at; i < at+n; i++ {
				span[i] = byte(i)
			}
		case 2:
			for i := at + rnd.IntN(CutBlock); i < at+n; i += CutBlock {
				span[i] = 1
			}
		}
		at += n
	}
	return span
}

func TestCutter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for _, c := range []*Cutter{
		{mask: 15, max: 256 << 10},
		{mask: 15, max: 256 << 10, seed: 12345},
		{mask: 0, max: 256 << 10},
		{mask: 1<<12 - 1, max: 64 << 10},
		{mask: 15, max: CutBlock},
	} {
		for _, size := range []int{0, 1, 4095, 4096, 4097, 8192, 100_000, 1 << 20, 1<<20 - 1} {
			span := cutSpan(rnd, size)
			pieces := cutAll(t, c, span, 0)
			at, covered := 0, 0
			for i, p := range pieces {
				if p.off != at || p.off%CutBlock != 0 {
					t.Fatalf("piece %d begins at %d, want %d", i, p.off, at)
				}
				for b := p.off; b < p.end; b += CutBlock {
					if block := span[b:min(b+CutBlock, p.end)]; isZero(block) != p.hole {
						t.Fatalf("block at %d is zero: %v, its piece a hole: %v", b, !p.hole, p.hole)
					}
				}
				if p.hole && p.end-p.off > CutBlock || p.end-p.off > c.max {
					t.Fatalf("piece %+v is too long", p)
				}
				at = p.end
				covered += p.end - p.off
			}
			if covered != size {
				t.Fatalf("pieces cover %d of %d", covered, size)
			}
			for range min(len(pieces), 8) { // from any border on, the same
				i := rnd.IntN(len(pieces))
				if again := cutAll(t, c, span, pieces[i].off); !slices.Equal(again, pieces[i:]) {
					t.Fatalf("cut from %d: %+v, want %+v", pieces[i].off, again[:1], pieces[i])
				}
			}
			var plain []piece // without load
			for pos := 0; pos < size; {
				end, hole, err := c.Next(span, pos, nil)
				if err != nil {
					t.Fatal(err)
				}
				plain = append(plain, piece{pos, end, hole})
				pos = end
			}
			if !slices.Equal(plain, pieces) {
				t.Fatal("without load the pieces are others")
			}
		}
	}
}

// TestCutterEnds: a block ends a chunk by its own content, whatever stands before it.
func TestCutterEnds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(13, 14))
	c := &Cutter{mask: 15, max: 256 << 10}
	seeded := &Cutter{mask: 15, max: 256 << 10, seed: 99}
	total, ends, differ := 0, 0, 0
	for range 4000 {
		block := make([]byte, CutBlock)
		for i := 0; i < len(block); i += 8 {
			block[i] = byte(rnd.Uint32())
		}
		block[1] = 1
		total++
		if c.ends(block) {
			ends++
		}
		if c.ends(block) != seeded.ends(block) {
			differ++
		}
	}
	if ends < total/16/2 || ends > total/16*2 {
		t.Errorf("%d of %d blocks end a chunk, want about 1 in 16", ends, total)
	}
	if differ < ends {
		t.Errorf("with a seed only %d of %d blocks differ", differ, total)
	}
}

func TestCutterMovedDataIsFoundAgain(t *testing.T) {
	rnd := rand.New(rand.NewPCG(15, 16))
	c := &Cutter{mask: 15, max: 256 << 10}
	data := make([]byte, 2<<20)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	content := func(span []byte) map[string]bool {
		m := map[string]bool{}
		for _, p := range cutAll(t, c, span, 0) {
			if !p.hole {
				m[string(span[p.off:p.end])] = true
			}
		}
		return m
	}
	before := content(append(make([]byte, 5*CutBlock), data...))
	after := content(append(cutSpan(rnd, 37*CutBlock), data...))
	found := 0
	for s := range before {
		if after[s] {
			found++
		}
	}
	if found < len(before)-2 {
		t.Errorf("%d of %d chunks found again after a move", found, len(before))
	}
}

func TestCutterPassesOnErrors(t *testing.T) {
	c := &Cutter{mask: 15, max: 256 << 10}
	want := errors.New("no data")
	_, _, err := c.Next(make([]byte, 8192), 4096, func(n int) error {
		if n != 8192 {
			t.Errorf("load(%d)", n)
		}
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

func FuzzCutter(f *testing.F) {
	f.Add([]byte("some"), uint32(5000), byte(4), uint64(0))
	f.Add([]byte{0}, uint32(100_000), byte(0), uint64(7))
	f.Fuzz(func(t *testing.T, pattern []byte, size uint32, bits byte, seed uint64) {
		if len(pattern) == 0 {
			pattern = []byte{0}
		}
		span := bytes.Repeat(pattern, int(size%(1<<20))/len(pattern)+1)
		c := &Cutter{mask: 1<<(bits%13) - 1, max: 16 * CutBlock, seed: seed}
		pieces := cutAll(t, c, span, 0)
		if i := len(pieces) / 2; !slices.Equal(cutAll(t, c, span, pieces[i].off), pieces[i:]) {
			t.Fatalf("cut from %d gives other pieces", pieces[i].off)
		}
	})
}

func BenchmarkCutter(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 1))
	span := make([]byte, 4<<20)
	for i := range span {
		span[i] = byte(rnd.Uint32())
	}
	c := &Cutter{mask: 15, max: 256 << 10}
	b.SetBytes(int64(len(span)))
	b.ReportAllocs()
	for b.Loop() {
		for pos := 0; pos < len(span); {
			pos, _, _ = c.Next(span, pos, nil)
		}
	}
}
