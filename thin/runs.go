package thin

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// Run is a run of thin blocks that lie in consecutive data blocks.
type Run struct {
	Thin uint64 // first block of the device, in pool blocks
	Data uint64 // first block of the data device, in pool blocks
	Len  uint64 // pool blocks, at least 1
	Time uint32 // the pool's time when the first block was mapped; of all blocks with RunOptions.ByTime
}

// RunOptions choose what Runs yields.
type RunOptions struct {
	Start  uint64 // first thin block; a run that begins before it is cut
	End    uint64 // thin block behind the last, 0 for no end
	ByTime bool   // end a run where the time changes, as thin_dump does
}

// Runs yields the mapped runs of a device in the order of thin blocks, as long as they can be. Whole blocks are mapped:
// the last may reach beyond the device's size, which the metadata does not know. An error is the last it yields; behind
// the last run, it may be that the runs are not as many blocks as the pool counts.
func (r *Reader) Runs(ctx context.Context, id uint32) iter.Seq2[Run, error] {
	return r.RunsOf(ctx, id, RunOptions{})
}

// RunsOf is Runs for a part of the device.
func (r *Reader) RunsOf(ctx context.Context, id uint32, opts RunOptions) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		var run Run
		err := r.runs(ctx, id, opts, func(next Run) bool {
			if run.join(next, opts.ByTime) {
				return true
			}
			done := run
			run = next
			return done.Len == 0 || yield(done, nil)
		})
		switch {
		case errors.Is(err, errStop):
		case err != nil:
			yield(Run{}, fmt.Errorf("device %d: %w", id, err))
		case run.Len > 0:
			yield(run, nil)
		}
	}
}

// join appends next when it follows on both sides.
func (r *Run) join(next Run, byTime bool) bool {
	if r.Len == 0 || next.Thin != r.Thin+r.Len || next.Data != r.Data+r.Len || byTime && next.Time != r.Time {
		return false
	}
	r.Len += next.Len
	return true
}

// runs calls each with the runs inside leaves, unmerged across leaves; errStop when it returned false.
func (r *Reader) runs(ctx context.Context, id uint32, opts RunOptions, each func(Run) bool) error {
	root, err := r.MappingRoot(ctx, id)
	if err != nil {
		return err
	}
	c := newCursor(r, blocksTree, root)
	defer c.close()
	if err := c.seek(ctx, opts.Start); err != nil {
		return err
	}
	var mapped uint64
	for !c.done {
		if !c.onEntry() {
			if _, first, _ := c.subtree(); opts.End > 0 && first >= opts.End {
				return nil
			}
			if err := c.open(ctx); err != nil {
				return err
			}
			continue
		}
		f := c.top()
		run := f.run(opts)
		if run.Len == 0 {
			return nil
		}
		if !each(run) {
			return errStop
		}
		mapped += run.Len
		c.next()
	}
	if opts.Start > 0 || opts.End > 0 {
		return nil
	}
	return r.checkMapped(ctx, id, root, mapped)
}

// checkMapped compares a whole walk with the pool's own count, so that no mapping is missed silently.
func (r *Reader) checkMapped(ctx context.Context, id uint32, root, mapped uint64) error {
	dev, err := r.Device(ctx, id)
	if errors.Is(err, ErrNoDevice) {
		return damagef(r.sb.DetailsRoot, "device %d has a mapping tree and no details", id)
	}
	if err == nil && dev.MappedBlocks != mapped {
		return damagef(root, "the mapping tree holds %d blocks, the details count %d", mapped, dev.MappedBlocks)
	}
	return err
}

// run takes the run that begins at the frame's entry and leaves the frame at its last one. Its length is 0 at the end.
func (f *frame) run(opts RunOptions) Run {
	k, v := f.key(f.i), f.value(f.i)
	if opts.End > 0 && k >= opts.End {
		return Run{}
	}
	run := Run{Thin: k, Data: v >> timeBits, Len: 1, Time: uint32(v & timeMask)}
	for f.i+1 < f.n {
		k, v := f.key(f.i+1), f.value(f.i+1)
		if opts.End > 0 && k >= opts.End || k != run.Thin+run.Len || v>>timeBits != run.Data+run.Len ||
			opts.ByTime && uint32(v&timeMask) != run.Time {
			break
		}
		run.Len++
		f.i++
	}
	return run
}
