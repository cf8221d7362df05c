package thin

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// errStop ends a walk whose consumer wants no more; it is never yielded.
var errStop = errors.New("thin: stopped")

// ChangeKind says how a run of thin blocks differs between two devices.
type ChangeKind uint8

// The kinds of a [Change], with thin_delta's words for them.
const (
	Unchanged ChangeKind = iota + 1 // "same": mapped to one data block in both
	Changed                         // "different": mapped in both, to different data blocks
	Removed                         // "left_only": mapped in from only
	Added                           // "right_only": mapped in to only
)

func (k ChangeKind) String() string {
	switch k {
	case Unchanged:
		return "unchanged"
	case Changed:
		return "changed"
	case Removed:
		return "removed"
	case Added:
		return "added"
	}
	return fmt.Sprintf("ChangeKind(%d)", uint8(k))
}

// Change is a run of thin blocks of one kind that lie in consecutive data blocks, on each side that maps them.
type Change struct {
	Kind     ChangeKind
	Thin     uint64 // first block of the devices, in pool blocks
	Len      uint64 // pool blocks, at least 1
	FromData uint64 // first data block in from; 0 when Added
	ToData   uint64 // first data block in to; 0 when Removed
}

// DiffOptions choose what Diff yields.
type DiffOptions struct {
	// Unchanged yields the unchanged runs too. One of the trees is then read whole: the cost follows the device.
	Unchanged bool
}

// Diff yields what differs between two devices of the pool, in the order of thin blocks and in runs as long as they can
// be. Two blocks are equal when they are mapped to the same data block; a block rewritten with the same bytes is Changed.
// Subtrees that both share are skipped unread. An error is the last it yields.
func (r *Reader) Diff(ctx context.Context, from, to uint32, opts DiffOptions) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		d := differ{ctx: ctx, r: r, unchanged: opts.Unchanged, yield: yield}
		err := d.run(from, to)
		if err == nil {
			err = d.flush()
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(Change{}, fmt.Errorf("difference of devices %d and %d: %w", from, to, err))
		}
	}
}

// differ walks two trees together. Both stand at the same place or one is ahead; whatever is behind is worked off first,
// so that shared subtrees meet, also where the trees differ in height or in how nodes were split.
type differ struct {
	ctx       context.Context
	r         *Reader
	unchanged bool
	yield     func(Change, error) bool
	a, b      *cursor // from, to
	pending   Change  // the run that may still grow
}

func (d *differ) run(from, to uint32) error {
	rootA, err := d.r.MappingRoot(d.ctx, from)
	if err != nil {
		return err
	}
	rootB, err := d.r.MappingRoot(d.ctx, to)
	if err != nil {
		return err
	}
	if rootA == rootB && !d.unchanged {
		return nil
	}
	d.a, d.b = newCursor(d.r, blocksTree, rootA), newCursor(d.r, blocksTree, rootB)
	defer d.a.close()
	defer d.b.close()
	for !d.a.done || !d.b.done {
		if err := d.step(); err != nil {
			return err
		}
	}
	return nil
}

// step does one thing: it steps over what is shared or opens one subtree or works off the entries of leaves.
func (d *differ) step() error {
	a, b := d.a, d.b
	switch {
	case a.done:
		return d.alone(b, Added)
	case b.done:
		return d.alone(a, Removed)
	case a.onEntry() && b.onEntry():
		return d.merge(a.top(), b.top())
	}
	firstA, lastA := a.span()
	firstB, lastB := b.span()
	switch {
	case lastA < firstB:
		return d.alone(a, Removed)
	case lastB < firstA:
		return d.alone(b, Added)
	case d.meet():
		return d.skip()
	case b.onEntry() || !a.onEntry() && d.above(): // they overlap: the larger has to show its parts
		return a.open(d.ctx)
	default:
		return b.open(d.ctx)
	}
}

// above tells whether a stands at a higher level than b, or at the same. Levels count from the leaves: roots split, so
// that the same subtree can be at different depths. Before a leaf was read the trees are taken for equally high; a wrong
// guess costs a few more blocks, never the answer.
func (d *differ) above() bool {
	heightA, heightB := d.a.leafDepth, d.b.leafDepth
	if heightA < 0 || heightB < 0 {
		return d.a.depth <= d.b.depth
	}
	return heightA-d.a.depth >= heightB-d.b.depth
}

// meet tells whether both stand at one shared subtree, of which one may have been opened already. Their intervals overlap:
// a subtree that two trees have at different places is damage, and has to be opened to be found.
func (d *differ) meet() bool {
	a, b := d.a, d.b
	if a.onEntry() {
		block, _, _ := b.subtree()
		return a.back(block)
	}
	blockA, _, _ := a.subtree()
	if b.onEntry() {
		return b.back(blockA)
	}
	blockB, _, _ := b.subtree()
	return blockA == blockB || b.back(blockA) || a.back(blockB)
}

// skip steps over the shared subtree that both stand at. When it has to be yielded it is read where a has it, and must fit
// into where b has it.
func (d *differ) skip() error {
	block, first, last := d.b.subtree()
	d.b.next()
	if !d.unchanged {
		d.a.next()
		return nil
	}
	depth := d.a.depth
	for {
		if d.a.onEntry() {
			if k, _ := d.a.span(); k < first || k > last {
				return damagef(block, "key %d does not lie in %d..%d, where the other device has this subtree", k, first, last)
			}
		}
		if err := d.alone(d.a, Unchanged); err != nil {
			return err
		}
		if d.a.done || d.a.depth <= depth {
			return nil
		}
	}
}

// alone opens the subtree that c stands at, or works off the rest of its leaf up to where the other side stands.
func (d *differ) alone(c *cursor, kind ChangeKind) error {
	if !c.onEntry() {
		return c.open(d.ctx)
	}
	f := c.top()
	if err := d.emit(kind, f.key(f.i), f.value(f.i)>>timeBits, f.value(f.i)>>timeBits); err != nil {
		return err
	}
	c.next()
	return nil
}

// merge works off two leaves until one of them ends.
func (d *differ) merge(a, b *frame) error {
	for {
		keyA, keyB := a.key(a.i), b.key(b.i)
		dataA, dataB := a.value(a.i)>>timeBits, b.value(b.i)>>timeBits
		stepA, stepB := keyA <= keyB, keyB <= keyA
		var err error
		switch {
		case keyA < keyB:
			err = d.emit(Removed, keyA, dataA, 0)
		case keyB < keyA:
			err = d.emit(Added, keyB, 0, dataB)
		case dataA != dataB:
			err = d.emit(Changed, keyA, dataA, dataB)
		case d.unchanged:
			err = d.emit(Unchanged, keyA, dataA, dataB)
		}
		if err != nil {
			return err
		}
		// A leaf's last entry is stepped over by its cursor, which knows what follows.
		endA, endB := stepA && a.i+1 == a.n, stepB && b.i+1 == b.n
		if endA || endB {
			if stepA {
				d.a.next()
			}
			if stepB {
				d.b.next()
			}
			return nil
		}
		if stepA {
			a.i++
		}
		if stepB {
			b.i++
		}
	}
}

// emit adds one block to the run that grows, or begins a new one.
func (d *differ) emit(kind ChangeKind, thin, fromData, toData uint64) error {
	switch kind {
	case Added:
		fromData = 0
	case Removed:
		toData = 0
	}
	p := &d.pending
	if p.Len > 0 && p.Kind == kind && thin == p.Thin+p.Len &&
		(kind == Added || fromData == p.FromData+p.Len) && (kind == Removed || toData == p.ToData+p.Len) {
		p.Len++
		return nil
	}
	err := d.flush()
	d.pending = Change{Kind: kind, Thin: thin, Len: 1, FromData: fromData, ToData: toData}
	return err
}

// flush yields the run that grew.
func (d *differ) flush() error {
	if d.pending.Len == 0 {
		return nil
	}
	done := d.pending
	d.pending = Change{}
	if !d.yield(done, nil) {
		return errStop
	}
	return nil
}
