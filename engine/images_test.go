package engine_test

import (
	"bytes"
	"math/rand/v2"

	"github.com/shalebackup/shale/engine/source"
)

// imageMaker makes random sparse images and tells of them in random ways.
type imageMaker struct {
	rng  *rand.Rand
	pool []byte // content that comes again
}

func newImageMaker(rng *rand.Rand) imageMaker {
	m := imageMaker{rng: rng, pool: make([]byte, 64*block)}
	fill(rng, m.pool)
	return m
}

func fill(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// size is a volume's length: often on a border, often not.
func (m imageMaker) size() int {
	n := m.rng.IntN(4*spanBytes) + 1
	switch m.rng.IntN(4) {
	case 0:
		return n
	case 1:
		return n/spanBytes*spanBytes + spanBytes
	case 2:
		return n/block*block + block
	}
	return n/sector*sector + sector
}

// next returns the image some writes later.
func (m imageMaker) next(before []byte) []byte {
	img := bytes.Clone(before)
	switch m.rng.IntN(6) {
	case 0: // another size
		n := m.size()
		img = append(img, make([]byte, max(0, n-len(img)))...)[:n]
	case 1: // a little more or less
		n := max(0, len(img)+m.rng.IntN(2*block)-block)
		img = append(img, make([]byte, max(0, n-len(img)))...)[:n]
	}
	for range m.rng.IntN(8) {
		m.change(img)
	}
	return img
}

// change writes once: new bytes, bytes seen elsewhere, or zeros.
func (m imageMaker) change(img []byte) {
	if len(img) == 0 {
		return
	}
	grain := []int{1, sector, block}[m.rng.IntN(3)]
	longest := []int{block, 64 << 10, spanBytes, 2 * spanBytes}[m.rng.IntN(4)]
	off := m.rng.IntN(len(img)) / grain * grain
	p := img[off:min(len(img), off+(m.rng.IntN(longest)/grain+1)*grain)]
	switch m.rng.IntN(5) {
	case 0, 1:
		fill(m.rng, p)
	case 2:
		copy(p, m.pool[m.rng.IntN(len(m.pool))/grain*grain:])
	case 3:
		copy(p, img[m.rng.IntN(len(img))/grain*grain:])
	default:
		clear(p)
	}
}

// Kinds of a sector, as extents tell of it.
const (
	untold = iota
	toldHole
	toldData
)

// dataExtents tells a full source's extents: all that is not zeros, and some of the rest.
func (m imageMaker) dataExtents(img []byte) []source.Extent {
	told := make([]int, (len(img)+sector-1)/sector)
	for i := range told {
		if !zeroSector(img, i) {
			told[i] = toldData
		}
	}
	m.overReport(img, told)
	return m.extents(told, len(img))
}

// changedExtents tells what differs between two images, and some of what does not.
func (m imageMaker) changedExtents(before, img []byte) []source.Extent {
	told := make([]int, (len(img)+sector-1)/sector)
	hole := false // in what follows, zeros are told as a hole
	for i := range told {
		if m.rng.IntN(16) == 0 {
			hole = !hole
		}
		if bytes.Equal(sectorOf(before, i, len(img)), sectorOf(img, i, len(img))) {
			continue
		}
		told[i] = toldData
		if hole && zeroSector(img, i) {
			told[i] = toldHole
		}
	}
	m.overReport(img, told)
	return m.extents(told, len(img))
}

// overReport tells of ranges more than it had to.
func (m imageMaker) overReport(img []byte, told []int) {
	for range m.rng.IntN(4) {
		if len(told) == 0 {
			return
		}
		from := m.rng.IntN(len(told))
		to := min(len(told), from+1+m.rng.IntN([]int{8, 64, 1024}[m.rng.IntN(3)]))
		hole := m.rng.IntN(2) == 0
		for i := from; i < to; i++ {
			if told[i] == untold {
				told[i] = toldData
				if hole && zeroSector(img, i) {
					told[i] = toldHole
				}
			}
		}
	}
}

// extents joins sectors of a kind, and sometimes leaves a seam.
func (m imageMaker) extents(told []int, size int) (out []source.Extent) {
	for i, k := range told {
		if k == untold {
			continue
		}
		off := int64(i) * sector
		n := min(sector, int64(size)-off)
		if last := len(out) - 1; last >= 0 && out[last].End() == off && out[last].Hole == (k == toldHole) && m.rng.IntN(64) > 0 {
			out[last].Len += n
			continue
		}
		out = append(out, source.Extent{Off: off, Len: n, Hole: k == toldHole})
	}
	return out
}

// sectorOf returns a sector of an image as one of size bytes would show it.
func sectorOf(img []byte, i, size int) []byte {
	var p [sector]byte
	if off := i * sector; off < len(img) {
		copy(p[:min(sector, size-off)], img[off:])
	}
	return p[:]
}

func zeroSector(img []byte, i int) bool {
	return bytes.Count(sectorOf(img, i, len(img)), []byte{0}) == sector
}
