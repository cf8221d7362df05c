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
	onEntry  = -1 // cursor.at: the position is an entry of a leaf
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

// cursor walks one tree in the order of keys. Its position is either an entry of a leaf (at == onEntry) or a whole
// subtree that was not read yet: that of level `at`, leaves having level 0. A walker chooses to open a subtree or to
// step over it. Invariant: frames above the position are open, their i leads to it.
//
// No block is visited twice: a child's keys must lie between its key and the next key of its parent, and intervals of
// siblings are disjoint, so that a node which is linked twice fails at one of the two places. Damage thus ends walks.
type cursor struct {
	r      *Reader
	kind   treeKind
	root   uint64
	frames [maxDepth]frame // by level
	height int             // level of the root
	at     int
	done   bool
}

// newCursor stands at the whole tree below root. It reads the leftmost path to learn the tree's height; those nodes are
// kept and not read again by open. The caller closes the cursor.
func newCursor(ctx context.Context, r *Reader, kind treeKind, root uint64) (*cursor, error) {
	c := &cursor{r: r, kind: kind, root: root}
	if err := c.descend(ctx); err != nil {
		c.close()
		return nil, err
	}
	for a, b := 0, c.height; a < b; a, b = a+1, b-1 { // by depth -> by level
		c.frames[a], c.frames[b] = c.frames[b], c.frames[a]
	}
	for l := range c.height + 1 {
		if err := c.checkPlace(&c.frames[l], l); err != nil {
			c.close()
			return nil, err
		}
	}
	c.at = c.height
	return c, nil
}

// descend loads the leftmost path, the root into frame 0, and finds the height.
func (c *cursor) descend(ctx context.Context) error {
	block, first, last := c.root, uint64(0), uint64(math.MaxUint64)
	for depth := range maxDepth {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &c.frames[depth]
		if err := c.load(f, block, first, last); err != nil {
			return err
		}
		c.height = depth
		if f.leaf {
			return nil
		}
		if f.n == 0 {
			return damagef(block, "internal B-tree node has no entries")
		}
		if err := c.checkChildren(f, "child"); err != nil {
			return err
		}
		block, first, last = f.child(0)
		for up := range depth + 1 {
			if c.frames[up].block == block {
				return damagef(f.block, "child 0 is block %d, which is its own ancestor", block)
			}
		}
	}
	return damagef(c.root, "%s is deeper than %d levels", c.kind, maxDepth)
}

func (c *cursor) close() {
	for l := range c.frames {
		if buf := c.frames[l].buf; buf != nil {
			c.r.free(buf)
			c.frames[l].buf = nil
		}
	}
	c.done = true
}

// load reads a node into a frame and checks it, but for its level.
func (c *cursor) load(f *frame, block, first, last uint64) error {
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
	f.node, f.first, f.last, f.i = n, first, last, 0
	if n.n == 0 {
		return nil // checkPlace knows whether that can be
	}
	if k := n.key(0); k < first {
		return damagef(block, "first key %d lies before %d, where its parent puts it", k, first)
	}
	if k := n.key(n.n - 1); k > last {
		return damagef(block, "last key %d lies after %d, where its parent ends it", k, last)
	}
	return nil
}

// checkPlace checks what needs the node's level: its kind and its values.
func (c *cursor) checkPlace(f *frame, level int) error {
	switch {
	case f.leaf && level > 0:
		return damagef(f.block, "is a leaf, %d levels above the leaves of its tree", level)
	case !f.leaf && level == 0:
		return damagef(f.block, "is an internal node at the level of leaves")
	case f.n == 0 && (level > 0 || level < c.height):
		return damagef(f.block, "B-tree node has no entries and is not an empty tree")
	case !f.leaf:
		return c.checkChildren(f, "child")
	case c.kind == rootsTree:
		if err := c.checkDeviceIDs(f); err != nil {
			return err
		}
		return c.checkChildren(f, "tree of entry")
	case c.kind == detailsTree:
		return c.checkDeviceIDs(f)
	}
	return c.checkMappings(f)
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

func (c *cursor) checkDeviceIDs(f *frame) error {
	if f.n > 0 && f.key(f.n-1) > MaxDeviceID {
		return damagef(f.block, "device ID %d has more than 24 bits", f.key(f.n-1))
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

// subtree describes the subtree that the position is at; at >= 0.
func (c *cursor) subtree() (block, first, last uint64) {
	if c.at == c.height {
		return c.root, 0, math.MaxUint64
	}
	f := &c.frames[c.at+1]
	return f.child(f.i)
}

// span is the interval of keys of the position, an entry's or a subtree's.
func (c *cursor) span() (first, last uint64) {
	if c.at == onEntry {
		k := c.frames[0].key(c.frames[0].i)
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
	block, first, last := c.subtree()
	f := &c.frames[c.at]
	if f.buf == nil || f.block != block || f.first != first || f.last != last {
		if err := c.openNew(f, block, first, last); err != nil {
			return err
		}
	}
	f.i = 0
	c.at--
	c.done = f.n == 0
	return nil
}

func (c *cursor) openNew(f *frame, block, first, last uint64) error {
	if err := c.load(f, block, first, last); err != nil {
		f.block = 0 // never a tree's: a frame that failed is not taken for a node that was read
		return err
	}
	if err := c.checkPlace(f, c.at); err != nil {
		f.block = 0
		return err
	}
	return nil
}

// next steps over the entry or subtree at the position.
func (c *cursor) next() {
	for l := c.at + 1; l <= c.height; l++ {
		f := &c.frames[l]
		if f.i++; f.i < f.n {
			c.at = l - 1
			return
		}
	}
	c.done = true
}

// back closes what was opened but not walked: when the position is the very start of the subtree `block` of that level,
// it becomes that subtree and back returns true.
func (c *cursor) back(level int, block uint64) bool {
	if level > c.height || level <= c.at || c.frames[level].block != block {
		return false
	}
	for l := c.at + 1; l <= level; l++ {
		if c.frames[l].i != 0 {
			return false
		}
	}
	c.at = level
	return true
}

// seek moves from the whole tree to the first entry whose key is at least k; done when there is none.
func (c *cursor) seek(ctx context.Context, k uint64) error {
	for c.at != onEntry && !c.done {
		level := c.at
		if err := c.open(ctx); err != nil {
			return err
		}
		f := &c.frames[level]
		i := f.search(k)
		if level > 0 {
			if i == f.n || f.key(i) != k {
				i = max(i-1, 0)
			}
			f.i = i
		} else if i == f.n {
			f.i = max(i-1, 0) // the leaf ends before k: go on behind its last entry
			c.next()
			k = 0
		} else {
			f.i = i
		}
	}
	return nil
}
