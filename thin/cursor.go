package thin

import (
	"context"
	"math"
)

// treeKind says what a tree's leaves hold and what can be checked of it.
type treeKind int

const (
	rootsTree   treeKind = iota // device ID -> root of its tree
	detailsTree                 // device ID -> struct disk_device_details
	blocksTree                  // thin block -> data block << 24 | time
)

func (k treeKind) String() string {
	return [...]string{"mapping tree", "details tree", "device's mapping tree"}[k]
}

func (k treeKind) valueSize() int {
	if k == detailsTree {
		return detailsSize
	}
	return 8
}

const (
	maxDepth = 16 // levels; a kernel's node has at least 84 children, so that 16 GiB of metadata has 4
	timeBits = 24 // of a mapping, below the data block
	timeMask = 1<<timeBits - 1
)

// MaxDeviceID is the largest ID of a thin device (MAX_DEV_ID of dm-thin.c).
const MaxDeviceID = 1<<24 - 1

// frame is one open node of a cursor's path. Its entries' keys lie in first..last.
type frame struct {
	node
	buf         *[]byte
	first, last uint64
	i           int // the entry that the position is at or below
}

// cursor walks one tree in the order of keys. Its position is either an entry of a leaf or a whole subtree that was not
// read yet, at first the whole tree. A walker chooses to open a subtree or to step over it.
//
// No block is visited twice: a child's keys must lie between its key and the next key of its parent, and intervals of
// siblings are disjoint, so that a node which is linked twice fails at one of the two places. Damage thus ends walks.
type cursor struct {
	r         *Reader
	kind      treeKind
	root      uint64
	frames    [maxDepth]frame // from the root; those below depth are open and their i leads to the position
	depth     int
	leafDepth int // depth of the leaves' frames, -1 until one was read: all leaves lie at one depth
	done      bool
}

// newCursor stands at the whole tree below root and has read nothing. The caller closes it.
func newCursor(r *Reader, kind treeKind, root uint64) *cursor {
	return &cursor{r: r, kind: kind, root: root, leafDepth: -1}
}

func (c *cursor) close() {
	for d := range c.frames {
		if buf := c.frames[d].buf; buf != nil {
			c.r.free(buf)
			c.frames[d].buf = nil
		}
	}
	c.done = true
}

// onEntry tells whether the position is an entry of the leaf c.top(), not a subtree.
func (c *cursor) onEntry() bool { return c.depth > 0 && c.frames[c.depth-1].leaf }

// top is the frame that the position is an entry or a child of; depth > 0.
func (c *cursor) top() *frame { return &c.frames[c.depth-1] }

// subtree describes the subtree that the position is at.
func (c *cursor) subtree() (block, first, last uint64) {
	if c.depth == 0 {
		return c.root, 0, math.MaxUint64
	}
	f := c.top()
	return f.child(f.i)
}

// span is the interval of keys of the position, an entry's or a subtree's.
func (c *cursor) span() (first, last uint64) {
	if c.onEntry() {
		f := c.top()
		k := f.key(f.i)
		return k, k
	}
	_, first, last = c.subtree()
	return first, last
}

// open reads the subtree at the position and moves to its first child or entry.
func (c *cursor) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.depth == maxDepth {
		return damagef(c.root, "%s is deeper than %d levels", c.kind, maxDepth)
	}
	block, first, last := c.subtree()
	f := &c.frames[c.depth]
	if f.buf == nil || f.block != block || f.first != first || f.last != last { // else it was read, and closed by back
		if err := c.load(f, block, first, last); err != nil {
			f.block = 0 // never a tree's: a frame that failed is not taken for a node that was read
			return err
		}
	}
	f.i = 0
	c.depth++
	c.done = f.n == 0
	return nil
}

// load reads a node into a frame and checks it.
func (c *cursor) load(f *frame, block, first, last uint64) error {
	for d := range c.depth {
		if c.frames[d].block == block {
			return damagef(c.top().block, "child %d is block %d, which is its own ancestor", c.top().i, block)
		}
	}
	if f.buf == nil {
		f.buf = c.r.block()
	}
	if err := c.r.readBlock(block, *f.buf); err != nil {
		return err
	}
	n, err := decodeNode(*f.buf, block, c.kind.valueSize())
	if err != nil {
		return err
	}
	f.node, f.first, f.last = n, first, last
	if err := c.checkPlace(f); err != nil {
		return err
	}
	return c.checkValues(f)
}

// checkPlace checks a node against what its parent and its sisters say of it.
func (c *cursor) checkPlace(f *frame) error {
	if f.n == 0 {
		if c.depth > 0 || !f.leaf {
			return damagef(f.block, "B-tree node has no entries and is not an empty tree")
		}
	} else if k := f.key(0); k < f.first {
		return damagef(f.block, "first key %d lies before %d, where its parent puts it", k, f.first)
	} else if k := f.key(f.n - 1); k > f.last {
		return damagef(f.block, "last key %d lies after %d, where its parent ends it", k, f.last)
	}
	switch {
	case f.leaf && c.leafDepth < 0:
		c.leafDepth = c.depth
	case f.leaf && c.leafDepth != c.depth:
		return damagef(f.block, "is a leaf at level %d of its tree, others are at %d", c.depth, c.leafDepth)
	case !f.leaf && c.leafDepth == c.depth:
		return damagef(f.block, "is an internal node at level %d of its tree, where the leaves are", c.depth)
	}
	return nil
}

func (c *cursor) checkValues(f *frame) error {
	switch {
	case !f.leaf:
		return c.checkChildren(f, "child")
	case c.kind == blocksTree:
		return c.checkMappings(f)
	case f.n > 0 && f.key(f.n-1) > MaxDeviceID:
		return damagef(f.block, "device ID %d has more than 24 bits", f.key(f.n-1))
	case c.kind == rootsTree:
		return c.checkChildren(f, "tree of entry")
	}
	return nil
}

func (c *cursor) checkChildren(f *frame, what string) error {
	limit := c.r.limit()
	for i := range f.n {
		if v := f.value(i); v == 0 || v >= limit {
			return damagef(f.block, "%s %d is block %d, not in 1..%d", what, i, v, limit-1)
		}
	}
	return nil
}

func (c *cursor) checkMappings(f *frame) error {
	if f.n == 0 {
		return nil
	}
	if k, most := f.key(f.n-1), math.MaxInt64/c.r.sb.BlockSize; k >= most {
		return damagef(f.block, "thin block %d lies beyond any device (%d blocks)", k, most)
	}
	limit := c.r.sb.NrDataBlocks
	for i := range f.n {
		if data := f.value(i) >> timeBits; data >= limit {
			return damagef(f.block, "thin block %d is mapped to data block %d, the data device has %d", f.key(i), data, limit)
		}
	}
	return nil
}

// child gives the block of the entry i of an internal node and the interval its keys lie in.
func (f *frame) child(i int) (block, first, last uint64) {
	last = f.last
	if i+1 < f.n {
		last = f.key(i+1) - 1
	}
	return f.value(i), f.key(i), last
}

// next steps over the entry or subtree at the position.
func (c *cursor) next() {
	for d := c.depth - 1; d >= 0; d-- {
		f := &c.frames[d]
		if f.i++; f.i < f.n {
			c.depth = d + 1
			return
		}
	}
	c.done = true
}

// back closes what was opened but not walked: when the position is the very start of the subtree `block`, it becomes that
// subtree and back returns true.
func (c *cursor) back(block uint64) bool {
	for d := c.depth - 1; d >= 0 && c.frames[d].i == 0; d-- {
		if c.frames[d].block == block {
			c.depth = d
			return true
		}
	}
	return false
}

// seek moves from the whole tree to the first entry whose key is at least k; done when there is none.
func (c *cursor) seek(ctx context.Context, k uint64) error {
	for !c.done && !c.onEntry() {
		if err := c.open(ctx); err != nil {
			return err
		}
		f := c.top()
		i := f.search(k)
		switch {
		case !f.leaf && (i == f.n || f.key(i) != k):
			f.i = max(i-1, 0)
		case f.leaf && i == f.n: // the leaf ends before k: go on behind its last entry
			f.i = max(i-1, 0)
			c.next()
			k = 0
		default:
			f.i = i
		}
	}
	return nil
}
