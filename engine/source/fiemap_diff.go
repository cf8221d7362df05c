package source

import (
	"context"
	"fmt"
	"math"
	"slices"
)

const (
	mapBatch    = 512      // extents asked for at once
	mapTries    = 3        // of one window, before it is given up as changed
	mapFallback = 16 << 20 // bytes given up so
)

// mapDiff compares two files by the places of their bytes.
//
// Both maps are read side by side in windows, each as far as one batch of extents of either file reaches, so that memory
// does not grow with their number. A file system may move bytes meanwhile (defragmentation, btrfs balance), and a place that one
// file had may become the other's: equal addresses mean equal bytes only when both were true at one moment. So the old file's
// extents are read before and after the new one's; a window in which they differ is read again, and after a few tries taken as changed.
type mapDiff struct {
	old, new         extentMapper
	oldSize, newSize int64
	batch            int            // extents; 0 means mapBatch
	check            func() error   // called before what was learnt is used
	count            func(int)      // told of the extents looked at
	out              *extentRounder // takes the result

	buf [3][]physExtent // old, new, old again
}

// run feeds out with every byte of [0, newSize). It returns errStopped when out wants no more.
func (d *mapDiff) run(ctx context.Context) error {
	if d.batch == 0 {
		d.batch = mapBatch
	}
	for i := range d.buf {
		d.buf[i] = make([]physExtent, 0, d.batch)
	}
	for off := int64(0); off < d.newSize; {
		end, ok, err := d.window(ctx, off)
		if err != nil {
			return err
		}
		if !ok {
			end = min(off+mapFallback, d.newSize)
			if !d.out.add(end, rangeData) {
				return errStopped
			}
		} else if !d.compare(off, end) {
			return errStopped
		}
		off = end
	}
	if !d.out.finish() {
		return errStopped
	}
	return nil
}

// window reads both maps from off on and returns how far it knows them. It is not ok when they would not hold still.
func (d *mapDiff) window(ctx context.Context, off int64) (end int64, ok bool, err error) {
	for range mapTries {
		if err := ctx.Err(); err != nil {
			return 0, false, err
		}
		oldEnd, okOld, err := d.read(&d.buf[0], d.old, off, min(d.oldSize, d.newSize))
		if err != nil {
			return 0, false, fmt.Errorf("map the base: %w", err)
		}
		newEnd, okNew, err := d.read(&d.buf[1], d.new, off, d.newSize)
		if err != nil {
			return 0, false, fmt.Errorf("map the image: %w", err)
		}
		if _, _, err := d.read(&d.buf[2], d.old, off, min(d.oldSize, d.newSize)); err != nil {
			return 0, false, fmt.Errorf("map the base: %w", err)
		}
		if err := d.check(); err != nil {
			return 0, false, err
		}
		if okOld && okNew && slices.Equal(d.buf[0], d.buf[2]) {
			return min(oldEnd, newEnd), true, nil
		}
	}
	return 0, false, nil
}

// read fills buf with the extents from off to limit, cut there, and returns how far they are known: d.newSize when nothing follows.
// It is not ok when what the file system answered makes no sense.
func (d *mapDiff) read(buf *[]physExtent, m extentMapper, off, limit int64) (end int64, ok bool, err error) {
	*buf = (*buf)[:0]
	if off >= limit {
		return d.newSize, true, nil
	}
	exts, err := m.mapExtents(*buf, off, limit-off)
	if err != nil {
		return 0, false, err
	}
	*buf = exts
	d.count(len(exts))
	pos := off
	for i, e := range exts {
		if e.len <= 0 || e.end() <= pos || (i > 0 && e.off < pos) {
			return 0, false, nil
		}
		pos = e.end()
	}
	if len(exts) < d.batch || pos >= limit {
		end = d.newSize
	} else {
		end = pos
	}
	// Cut at the limit: behind the end of the old file nothing is known to be equal, whatever its last block holds.
	for i := len(exts) - 1; i >= 0 && exts[i].end() > limit; i-- {
		if exts[i].off >= limit {
			*buf = exts[:i]
			continue
		}
		exts[i].len = limit - exts[i].off
	}
	return end, true, nil
}

// compare feeds out with [off, end) from the two batches in buf. It returns false when out wants no more.
func (d *mapDiff) compare(off, end int64) bool {
	o, n := mapCursor{exts: d.buf[0]}, mapCursor{exts: d.buf[1]}
	for off < end {
		old, oldEnd := o.at(off)
		new, newEnd := n.at(off)
		next := min(oldEnd, newEnd, end)
		kind := rangeData
		switch {
		case new.hole && old.hole, new.plain && old.plain && new.phys == old.phys:
			kind = rangeEqual
		case new.hole:
			kind = rangeHole
		}
		if !d.out.add(next, kind) {
			return false
		}
		off = next
	}
	return true
}

// place is where a byte lies: nowhere (it reads as zero), at phys, or unknown.
type place struct {
	hole, plain bool
	phys        uint64
}

// mapCursor walks a batch of extents, forwards only.
type mapCursor struct {
	exts []physExtent
}

// at returns the place of the byte at off, and the end of the range that goes on from there.
func (c *mapCursor) at(off int64) (place, int64) {
	for len(c.exts) > 0 && c.exts[0].end() <= off {
		c.exts = c.exts[1:]
	}
	if len(c.exts) == 0 {
		return place{hole: true}, math.MaxInt64
	}
	e := c.exts[0]
	switch {
	case e.off > off:
		return place{hole: true}, e.off
	case e.flags&^fiemapPlain != 0:
		return place{}, e.end()
	case e.flags&fiemapUnwritten != 0: // allocated, never written: reads as zeros
		return place{hole: true}, e.end()
	case e.phys == 0: // the superblock's place, or a driver's way to say unknown; never a file's
		return place{}, e.end()
	}
	return place{plain: true, phys: e.phys + uint64(off-e.off)}, e.end()
}
