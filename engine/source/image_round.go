package source

import "errors"

// extentAlign is what extents are rounded to, in bytes: the store finds holes and ends chunks at these borders.
const extentAlign = 4096

// errStopped: the reader of a sequence wants no more of it. It never leaves the package.
var errStopped = errors.New("stopped")

// rangeKind says how a range of the volume relates to what is known of it.
type rangeKind uint8

const (
	rangeNone  rangeKind = iota
	rangeEqual           // known already: equal to the base, or a hole where there is no base
	rangeHole            // differs from the base, and reads as zeros
	rangeData            // must be read
)

// extentRounder makes extents of ranges: whole blocks of extentAlign bytes (the last one ends at size), neighbours joined.
// A block with more than one kind in it must be read.
type extentRounder struct {
	size  int64
	yield func(Extent) bool

	pos   int64     // end of what was added
	block rangeKind // kind of the block that pos lies in, up to pos; rangeNone on a border
	run   Extent    // not yet yielded; its length is 0 when there is none
}

// add takes the range from the end of the last one up to end. It returns false when no more is wanted.
func (r *extentRounder) add(end int64, kind rangeKind) bool {
	for r.pos < end {
		start := r.pos &^ (extentAlign - 1)
		blockEnd := min(start+extentAlign, r.size)
		if r.pos == start && end >= blockEnd {
			r.pos = end
			if end < r.size {
				r.pos = end &^ (extentAlign - 1)
			}
			if !r.emit(start, r.pos, kind) {
				return false
			}
			continue
		}
		r.pos = min(blockEnd, end)
		switch r.block {
		case rangeNone:
			r.block = kind
		case kind:
		default:
			r.block = rangeData
		}
		if r.pos == blockEnd {
			kind := r.block
			r.block = rangeNone
			if !r.emit(start, blockEnd, kind) {
				return false
			}
		}
	}
	return true
}

// finish yields what is still held back, once everything up to size was added.
func (r *extentRounder) finish() bool {
	run := r.run
	r.run = Extent{}
	return run.Len == 0 || r.yield(run)
}

// emit takes whole blocks.
func (r *extentRounder) emit(off, end int64, kind rangeKind) bool {
	if r.run.Len > 0 && r.run.End() == off && kind != rangeEqual && r.run.Hole == (kind == rangeHole) {
		r.run.Len = end - r.run.Off
		return true
	}
	if !r.finish() {
		return false
	}
	if kind != rangeEqual {
		r.run = Extent{Off: off, Len: end - off, Hole: kind == rangeHole}
	}
	return true
}
