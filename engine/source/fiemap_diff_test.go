package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// fakeMap is a file's extents; each call of mapExtents may be preceded by a change of them.
type fakeMap struct {
	exts   []physExtent
	calls  int
	before func(call int, m *fakeMap)
	err    error
	raw    bool // answer all extents, whatever the question
}

func (m *fakeMap) mapExtents(dst []physExtent, off, length int64) ([]physExtent, error) {
	m.calls++
	if m.before != nil {
		m.before(m.calls, m)
	}
	for _, e := range m.exts {
		if len(dst) == cap(dst) {
			break
		}
		if m.raw || (e.end() > off && e.off < off+length) {
			dst = append(dst, e)
		}
	}
	return dst, m.err
}

// diffMaps runs a mapDiff to its end.
func diffMaps(ctx context.Context, old, new extentMapper, oldSize, newSize int64, batch int) (exts []Extent, looked int, err error) {
	d := mapDiff{
		old: old, new: new, oldSize: oldSize, newSize: newSize, batch: batch,
		check: func() error { return nil },
		count: func(n int) { looked += n },
		out:   &extentRounder{size: newSize, yield: func(e Extent) bool { exts = append(exts, e); return true }},
	}
	err = d.run(ctx)
	return exts, looked, err
}

func TestMapDiff(t *testing.T) {
	const k = 1024
	ext := func(off, length int64, phys uint64, flags ...uint32) physExtent {
		e := physExtent{off: off, len: length, phys: phys}
		for _, f := range flags {
			e.flags |= f
		}
		return e
	}
	one := []physExtent{ext(0, 64*k, 1<<20)}
	whole := []Extent{{Off: 0, Len: 64 * k}}
	tests := []struct {
		name             string
		old, new         []physExtent
		oldSize, newSize int64 // 64 KiB when 0
		want             []Extent
	}{
		{name: "both empty"},
		{name: "same", old: one, new: one},
		{name: "same, differently cut", old: one, new: []physExtent{ext(0, 3*k, 1<<20), ext(3*k, 61*k, 1<<20+3*k, fiemapLast|fiemapShared|fiemapMerged)}},
		{name: "elsewhere", old: one, new: []physExtent{ext(0, 64*k, 2<<20)}, want: whole},
		{name: "same place, shifted", old: one, new: []physExtent{ext(0, 64*k, 1<<20+4*k)}, want: whole},
		{name: "middle elsewhere", old: one,
			new:  []physExtent{ext(0, 8*k, 1<<20), ext(8*k, 4*k, 9<<20), ext(12*k, 52*k, 1<<20+12*k)},
			want: []Extent{{Off: 8 * k, Len: 4 * k}}},
		{name: "off the borders", old: one,
			new:  []physExtent{ext(0, 7*k, 1<<20), ext(7*k, 2*k, 9<<20), ext(9*k, 55*k, 1<<20+9*k)},
			want: []Extent{{Off: 4 * k, Len: 8 * k}}},
		{name: "two changes in one block", old: one,
			new:  []physExtent{ext(0, 1*k, 9<<20), ext(1*k, 1*k, 1<<20+1*k), ext(2*k, 1*k, 9<<20), ext(3*k, 61*k, 1<<20+3*k)},
			want: []Extent{{Off: 0, Len: 4 * k}}},
		{name: "punched", old: one, new: []physExtent{ext(0, 8*k, 1<<20), ext(16*k, 48*k, 1<<20+16*k)},
			want: []Extent{{Off: 8 * k, Len: 8 * k, Hole: true}}},
		{name: "punched off the borders", old: one, new: []physExtent{ext(0, 7*k, 1<<20), ext(17*k, 47*k, 1<<20+17*k)},
			want: []Extent{{Off: 4 * k, Len: 4 * k}, {Off: 8 * k, Len: 8 * k, Hole: true}, {Off: 16 * k, Len: 4 * k}}},
		{name: "all punched", old: one, want: []Extent{{Off: 0, Len: 64 * k, Hole: true}}},
		{name: "unwritten now", old: one, new: []physExtent{ext(0, 64*k, 1<<20, fiemapUnwritten)}, want: []Extent{{Off: 0, Len: 64 * k, Hole: true}}},
		{name: "unwritten then", old: []physExtent{ext(0, 64*k, 1<<20, fiemapUnwritten)}, new: one, want: whole},
		{name: "unwritten for hole", old: nil, new: []physExtent{ext(0, 64*k, 1<<20, fiemapUnwritten)}},
		{name: "unknown, as are both", old: []physExtent{ext(0, 64*k, 1<<20, 0x2)}, new: []physExtent{ext(0, 64*k, 1<<20, 0x2)}, want: whole},
		{name: "compressed then", old: []physExtent{ext(0, 64*k, 1<<20, 0x8)}, new: one, want: whole},
		{name: "inline now", old: one, new: []physExtent{ext(0, 64*k, 1<<20, 0x200)}, want: whole},
		{name: "compressed and unwritten", old: one, new: []physExtent{ext(0, 64*k, 1<<20, 0x8, fiemapUnwritten)}, want: whole},
		{name: "a flag of the future", old: one, new: []physExtent{ext(0, 64*k, 1<<20, 0x80000000)}, want: whole},
		{name: "no place", old: []physExtent{ext(0, 64*k, 0)}, new: []physExtent{ext(0, 64*k, 0)}, want: whole},
		{name: "compressed then, hole now", old: []physExtent{ext(0, 64*k, 1<<20, 0x8)}, want: []Extent{{Off: 0, Len: 64 * k, Hole: true}}},
		{name: "data into a hole", old: nil, new: []physExtent{ext(8*k, 4*k, 1<<20)}, want: []Extent{{Off: 8 * k, Len: 4 * k}}},
		{name: "grown with data", old: one, new: []physExtent{ext(0, 80*k, 1<<20)}, newSize: 80 * k, want: []Extent{{Off: 64 * k, Len: 16 * k}}},
		{name: "grown with data that the old reserved", old: []physExtent{ext(0, 80*k, 1<<20)}, new: []physExtent{ext(0, 80*k, 1<<20)},
			newSize: 80 * k, want: []Extent{{Off: 64 * k, Len: 16 * k}}},
		{name: "grown with a hole", old: one, new: one, newSize: 80 * k},
		{name: "grown out of a block", old: one, new: one, oldSize: 62*k + 1, want: []Extent{{Off: 60 * k, Len: 4 * k}}},
		{name: "grown from nothing", old: nil, new: one, oldSize: -1, want: whole},
		{name: "shrunk", old: one, new: one, newSize: 60 * k},
		{name: "shrunk into a block", old: one, new: []physExtent{ext(0, 60*k, 1<<20), ext(60*k, 4*k, 9<<20)}, newSize: 60*k + 100,
			want: []Extent{{Off: 60 * k, Len: 100}}},
		{name: "hole to an odd end", old: one, new: nil, newSize: 60*k + 100, want: []Extent{{Off: 0, Len: 60*k + 100, Hole: true}}},
		{name: "extents past the end", old: one, new: []physExtent{ext(0, 64*k, 1<<20), ext(64*k, 1<<30, 9<<20)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			oldSize, newSize := tt.oldSize, tt.newSize
			if oldSize == 0 {
				oldSize = 64 * k
			}
			if newSize == 0 {
				newSize = 64 * k
			}
			for _, batch := range []int{1, 2, 0} {
				got, _, err := diffMaps(t.Context(), &fakeMap{exts: tt.old}, &fakeMap{exts: tt.new}, max(oldSize, 0), newSize, batch)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("in batches of %d: got %v, want %v", batch, got, tt.want)
				}
			}
		})
	}
}

// fakeFile is a model of a file: what lies in each 512 bytes of it.
type fakeFile struct {
	units []fakeUnit
	size  int64 // bytes; may end within a unit, or before the last ones
}

type fakeUnit struct {
	phys    uint64 // 0: a hole
	flags   uint32
	content uint64 // of units whose place says nothing
}

const fakeUnitLen = 512

// bytes are those that a reader of n bytes sees; zeros behind the file's size.
func (f fakeFile) bytes(n int64) []byte {
	b := make([]byte, n)
	var seed [17]byte
	for i, u := range f.units {
		off := int64(i) * fakeUnitLen
		end := min(off+fakeUnitLen, n, f.size)
		if off >= end || u.phys == 0 || u.flags == fiemapUnwritten {
			continue
		}
		binary.LittleEndian.PutUint64(seed[:], u.phys)
		if u.flags&^fiemapPlain != 0 {
			binary.LittleEndian.PutUint64(seed[8:], u.content)
		} else {
			binary.LittleEndian.PutUint64(seed[8:], 0)
		}
		for j := off; j < end; j++ {
			seed[16] = byte(j / 64) // 64 bytes alike, for speed
			if j%64 == 0 || j == off {
				b[j] = byte(xxhash.Sum64(seed[:])) | 1
			} else {
				b[j] = b[j-1]
			}
		}
	}
	return b
}

// fakeExtents joins units to extents, not always as far as possible.
func (f fakeFile) extents(rnd *rand.Rand) []physExtent {
	var exts []physExtent
	for i, u := range f.units {
		if u.phys == 0 {
			continue
		}
		off := int64(i) * fakeUnitLen
		if n := len(exts) - 1; n >= 0 && exts[n].end() == off && exts[n].flags == u.flags && exts[n].phys+uint64(exts[n].len) == u.phys && rnd.IntN(8) > 0 {
			exts[n].len += fakeUnitLen
			continue
		}
		exts = append(exts, physExtent{off: off, len: fakeUnitLen, phys: u.phys, flags: u.flags})
	}
	return exts
}

// scribble overwrites runs of units: with new places, with places of the other file, with holes, with what places say nothing of.
func (f *fakeFile) scribble(rnd *rand.Rand, times int, other fakeFile) {
	for range times {
		start := rnd.IntN(len(f.units))
		run := f.units[start:min(len(f.units), start+1+rnd.IntN(40))]
		phys := uint64(1+rnd.IntN(1000)) * fakeUnitLen
		kind := rnd.IntN(6)
		for i := range run {
			u := fakeUnit{phys: phys + uint64(i)*fakeUnitLen}
			switch kind {
			case 0:
				u = fakeUnit{}
			case 1:
				u.flags = fiemapUnwritten
			case 2:
				u.flags, u.content = []uint32{0x2, 0x8 | fiemapShared, 0x8 | fiemapUnwritten, 0x100, 0x200}[rnd.IntN(5)], rnd.Uint64()
			case 3:
				if n := start + i; n < len(other.units) {
					u = other.units[n]
				}
			}
			run[i] = u
		}
	}
}

// Whatever lies where: what the diff says must be read, laid over the old file, is the new one; and blocks with the same places are not read.
func TestMapDiffProperty(t *testing.T) {
	seed := rand.Uint64()
	for round := range uint64(1000) {
		rnd := rand.New(rand.NewPCG(seed, round))
		newSize := func() fakeFile {
			n := 1 + rnd.IntN(300)
			return fakeFile{units: make([]fakeUnit, n), size: max(0, int64(n*fakeUnitLen)-rnd.Int64N(3*fakeUnitLen))}
		}
		old := newSize()
		old.scribble(rnd, rnd.IntN(20), old)
		new := newSize()
		copy(new.units, old.units)
		new.scribble(rnd, rnd.IntN(10), old)

		got, _, err := diffMaps(t.Context(), &fakeMap{exts: old.extents(rnd)}, &fakeMap{exts: new.extents(rnd)}, old.size, new.size, 1+rnd.IntN(9))
		if err != nil {
			t.Fatal(err)
		}
		want := new.bytes(new.size)
		have := old.bytes(new.size)
		read := make([]bool, (new.size+extentAlign-1)/extentAlign)
		for _, e := range got {
			if e.Off%extentAlign != 0 || (e.Len%extentAlign != 0 && e.End() != new.size) || e.Len <= 0 || e.End() > new.size {
				t.Fatalf("seed %d round %d: extent %+v breaks the rules", seed, round, e)
			}
			if e.Hole {
				clear(have[e.Off:e.End()])
			} else {
				copy(have[e.Off:e.End()], want[e.Off:e.End()])
			}
			for off := e.Off; off < e.End(); off += extentAlign {
				read[off/extentAlign] = true
			}
		}
		if !bytes.Equal(have, want) {
			t.Fatalf("seed %d round %d: old, new and extents do not fit\n%+v\n%+v\n%v", seed, round, old, new, got)
		}
		for i, r := range read {
			if r && samePlaces(old, new, i) {
				t.Fatalf("seed %d round %d: block %d is in %v, though it did not change", seed, round, i, got)
			}
		}
	}
}

// samePlaces reports whether block i of both files lies at the same known places, and ends in neither.
func samePlaces(old, new fakeFile, i int) bool {
	const per = extentAlign / fakeUnitLen
	if int64(i+1)*extentAlign > min(old.size, new.size) {
		return false
	}
	for u := i * per; u < (i+1)*per; u++ {
		o, n := old.units[u], new.units[u]
		if o != n || o.flags&^fiemapPlain != 0 {
			return false
		}
	}
	return true
}

// While the file system moves extents about, places are not compared across the move.
func TestMapDiffMoves(t *testing.T) {
	a, b := physExtent{len: 64 << 10, phys: 1 << 20}, physExtent{len: 64 << 10, phys: 2 << 20}
	t.Run("once", func(t *testing.T) {
		// The old file's bytes leave a for b, and the new one's, other bytes, come to a.
		old := &fakeMap{exts: []physExtent{a}, before: func(call int, m *fakeMap) {
			if call > 1 {
				m.exts = []physExtent{b}
			}
		}}
		got, _, err := diffMaps(t.Context(), old, &fakeMap{exts: []physExtent{a}}, 64<<10, 64<<10, 0)
		if want := []Extent{{Len: 64 << 10}}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
		if old.calls != 4 {
			t.Errorf("old map read %d times, want 4", old.calls)
		}
	})
	t.Run("without end", func(t *testing.T) {
		old := &fakeMap{before: func(call int, m *fakeMap) {
			m.exts = []physExtent{[]physExtent{a, b}[call%2]}
		}}
		const size = mapFallback + 8192
		got, _, err := diffMaps(t.Context(), old, &fakeMap{}, size, size, 0)
		if want := []Extent{{Len: mapFallback}}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want all of the first %d bytes", got, err, mapFallback)
		}
	})
}

// Answers that make no sense are not made sense of.
func TestMapDiffNonsense(t *testing.T) {
	good := []physExtent{{len: 64 << 10, phys: 1 << 20}}
	for name, bad := range map[string][]physExtent{
		"descending":       {{off: 8192, len: 4096, phys: 8192}, {off: 0, len: 4096, phys: 4096}},
		"overlapping":      {{off: 0, len: 8192, phys: 8192}, {off: 4096, len: 8192, phys: 4096}},
		"empty":            {{off: 0, len: 0, phys: 8192}},
		"before the range": {{off: -8192, len: 4096, phys: 8192}},
	} {
		for side := range 2 {
			maps := [2]*fakeMap{{exts: good}, {exts: good}}
			maps[side] = &fakeMap{exts: bad, raw: true}
			got, _, err := diffMaps(t.Context(), maps[0], maps[1], 64<<10, 64<<10, 0)
			if want := []Extent{{Len: 64 << 10}}; err != nil || !slices.Equal(got, want) {
				t.Errorf("%s, side %d: got %v, %v, want %v", name, side, got, err, want)
			}
		}
	}
}

func TestMapDiffErrors(t *testing.T) {
	boom := errors.New("boom")
	good, bad := &fakeMap{exts: []physExtent{{len: 8192, phys: 1 << 20}}}, &fakeMap{err: boom}
	if _, _, err := diffMaps(t.Context(), bad, good, 8192, 8192, 0); !errors.Is(err, boom) {
		t.Errorf("old map fails: got %v", err)
	}
	if _, _, err := diffMaps(t.Context(), good, bad, 8192, 8192, 0); !errors.Is(err, boom) {
		t.Errorf("new map fails: got %v", err)
	}
	late := &fakeMap{exts: good.exts, before: func(call int, m *fakeMap) {
		if call == 2 {
			m.err = boom
		}
	}}
	if _, _, err := diffMaps(t.Context(), late, good, 8192, 8192, 0); !errors.Is(err, boom) {
		t.Errorf("old map fails when read again: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := diffMaps(ctx, good, good, 8192, 8192, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// A reader that breaks off is not called again, wherever it does.
func TestMapDiffStops(t *testing.T) {
	var exts []physExtent
	for i := range int64(20) {
		exts = append(exts, physExtent{off: i * 8192, len: 4096, phys: uint64(1+i) << 20})
	}
	moving := &fakeMap{before: func(call int, m *fakeMap) { m.exts = []physExtent{{len: 1 << 20, phys: uint64(call) << 20}} }}
	for name, old := range map[string]*fakeMap{"holes": {}, "moving": moving} {
		all, _, err := diffMaps(t.Context(), old, &fakeMap{exts: exts}, 1<<20, 1<<20, 3)
		if err != nil || len(all) == 0 {
			t.Fatalf("%s: %v, %v", name, all, err)
		}
		for n := 1; n <= len(all); n++ {
			calls := 0
			d := mapDiff{
				old: old, new: &fakeMap{exts: exts}, oldSize: 1 << 20, newSize: 1 << 20, batch: 3,
				check: func() error { return nil },
				count: func(int) {},
				out:   &extentRounder{size: 1 << 20, yield: func(Extent) bool { calls++; return calls < n }},
			}
			if err := d.run(t.Context()); !errors.Is(err, errStopped) || calls != n {
				t.Errorf("%s: stopped at %d: %d calls, %v", name, n, calls, err)
			}
		}
	}
}

// The number of extents looked at stays in proportion to their number, however unlike the two files are cut.
func TestMapDiffCost(t *testing.T) {
	const size = 1 << 30
	even := []physExtent{{len: size, phys: 1 << 30}}
	var fine, front []physExtent
	for off := int64(0); off < size; off += 64 << 10 {
		fine = append(fine, physExtent{off: off, len: 4096, phys: uint64(size + off)})
	}
	for off := int64(0); off < size/16; off += 8192 {
		front = append(front, physExtent{off: off, len: 4096, phys: uint64(size + off)})
	}
	for _, tt := range []struct {
		name     string
		old, new []physExtent
	}{{"fine old", fine, even}, {"fine new", even, fine}, {"both fine", fine, fine}, {"fine at the front", front, fine}, {"the other way", fine, front}} {
		_, looked, err := diffMaps(t.Context(), &fakeMap{exts: tt.old}, &fakeMap{exts: tt.new}, size, size, 0)
		if err != nil {
			t.Fatal(err)
		}
		if limit := 4*(len(tt.old)+len(tt.new)) + 4*mapBatch; looked > limit {
			t.Errorf("%s: looked at %d extents of %d and %d, want at most %d", tt.name, looked, len(tt.old), len(tt.new), limit)
		}
	}
}
