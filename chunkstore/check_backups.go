package chunkstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// backups walks the trees of all backups. A subtree met before is not walked again, unless something is damaged: then
// every backup is asked what it loses.
func (c *check) backups(ctx context.Context) error {
	ctx = inBulk(FromStore(ctx))
	if len(c.gone) > 0 { // what moved is found in the index as it is now
		if err := c.r.index.refresh(ctx); err != nil {
			return err
		}
		segs, _, err := c.r.index.whole(ctx)
		if err != nil {
			return err
		}
		releaseAll(segs)
	}
	if len(c.bad) > 0 || len(c.short) > 0 {
		return c.walkAll(ctx, true)
	}
	before := len(c.report.Damage)
	if err := c.walkAll(ctx, false); err != nil || len(c.report.Damage) == before {
		return err
	}
	// The walk itself found damage: names of all that it touches need a full one, with what is known to be bad.
	c.report.Damage = c.report.Damage[:before]
	c.lost = nil // the walk is the first to note any
	return c.walkAll(ctx, true)
}

func (c *check) walkAll(ctx context.Context, full bool) error {
	c.report.Backups = 0
	volumes := map[string]bool{}
	return c.r.walkBackups(ctx, c.backupObjects, func(object string, b *Backup, err error) error {
		c.report.Backups++
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) {
			c.damage(object, 0, err)
			return nil
		}
		if err != nil {
			return err
		}
		if !volumes[b.Volume] {
			volumes[b.Volume] = true
			if err := c.volume(ctx, b.Volume); err != nil {
				return err
			}
		}
		w := checkWalk{c: c, b: b, blob: c.r.OpenBlob(b.Blob), full: full}
		if err := w.subtree(ctx, b.Blob.Root, w.blob.level, 0); err != nil {
			return fmt.Errorf("check backup %s of volume %s: %w", b.ID, b.Volume, err)
		}
		if !w.skipped && w.data != b.Blob.Data {
			c.damage(object, 0, fmt.Errorf("record says %d bytes of data, the tree has %d", b.Blob.Data, w.data))
		}
		return nil
	})
}

// volume checks that a volume with backups is listed by name.
func (c *check) volume(ctx context.Context, volume string) error {
	object := prefixVolumes + c.r.volumeKey(volume)
	_, err := c.r.readVolume(ctx, object)
	if errors.Is(err, backend.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		c.damage(object, 0, fmt.Errorf("the name of volume %s, written anew by its next backup: %w", volume, err))
		return nil
	}
	return err
}

// checkWalk walks one backup's tree.
type checkWalk struct {
	c       *check
	b       *Backup
	blob    *Blob
	full    bool  // also what was seen before
	skipped bool  // some subtree was, or cannot be read: data does not count it
	data    int64 // bytes of chunks
}

// mark notes that the entry of id is in use. known is whether it is in the index, seen whether it was marked before.
func (c *check) mark(id *ID) (known, seen bool) {
	k := id.key()
	moved := false
	for i, s := range c.segs {
		if j, ok := s.find(&k); ok {
			if c.isGone(s, j) {
				moved = true
				continue
			}
			bit := uint64(1) << (j % 64)
			return true, c.seen[i][j/64].Or(bit)&bit != 0
		}
	}
	if moved { // by a prune, to where the index as it is now says
		l, ok := c.r.index.lookup(&k)
		_, gone := c.gone[l.pack.id]
		return ok && !gone, false
	}
	return false, false
}

// walked reports whether the subtree id, marked before or not, has been walked and need not be again. Where it was walked at the
// edge of a blob only, that says nothing of other places.
func (c *check) walked(id *ID, edge, seen bool) bool {
	k := id.key()
	if edge {
		if !seen {
			c.edges[k] = struct{}{}
		}
		return false
	}
	_, only := c.edges[k]
	delete(c.edges, k)
	return seen && !only
}

// isGone says whether entry j of the segment is in a pack that a prune has deleted.
func (c *check) isGone(s *segment, j int) bool {
	if len(c.gone) == 0 {
		return false
	}
	n := int(s.entryAt(j).pack)
	if n >= s.packs {
		return false
	}
	_, gone := c.gone[s.pack(n).id]
	return gone
}

// touch adds a range of this backup to a damage. Neighbouring ranges are merged.
func (w *checkWalk) touch(n int, off, end int64) {
	d := &w.c.report.Damage[n]
	end = min(end, w.b.Blob.Size)
	if last := len(d.Touches) - 1; last >= 0 {
		t := &d.Touches[last]
		if t.Backup == w.b.ID && t.Volume == w.b.Volume && t.End() == off {
			t.Len = end - t.Off
			return
		}
	}
	d.Touches = append(d.Touches, DamagedRange{w.b.Volume, w.b.ID, Range{off, end - off}})
}

// subtree checks the subtree id at level with that number. Its error is of reading at all.
func (w *checkWalk) subtree(ctx context.Context, id ID, level int, number int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if id.IsZero() {
		return nil
	}
	spanBytes := int64(w.blob.r.cfg.SpanBytes)
	from := number << (nodeFanoutLog * level) * spanBytes
	end := (number + 1) << (nodeFanoutLog * level) * spanBytes
	if from >= w.b.Blob.Size {
		w.touch(w.c.damage(w.blob.r.backupObject(w.b.Volume, w.b.ID), 0, fmt.Errorf("tree reaches to %d, behind the end at %d", from, w.b.Blob.Size)), 0, 0)
		return nil
	}
	known, seen := w.c.mark(&id)
	k := id.key()
	if n, bad := w.c.unreadable(&k); bad {
		w.skipped = true
		w.touch(n, from, end)
		return nil
	}
	if !known {
		w.skipped = true
		w.lost(&id, "tree node", from, end)
		return nil
	}
	// What stands at a blob's end, or is its root, is right only for a blob of that size.
	edge := level == w.blob.level || end > w.b.Blob.Size
	if w.c.walked(&id, edge, seen) && !w.full {
		w.skipped = true
		return nil
	}
	var err error
	if level == 0 {
		err = w.leaf(ctx, id, number)
	} else {
		err = w.node(ctx, id, level, number)
	}
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
		w.skipped = true
		if _, readErr := w.blob.r.readNode(ctx, &id); readErr != nil {
			w.touch(w.c.damageLost(&id, "", 0, err), from, end)
		} else { // it is what was written, and does not belong here: other backups may be right to use it
			w.touch(w.c.damage("", 0, err), from, end)
		}
		return nil
	}
	return err
}

// lost notes a record that no index segment knows.
func (w *checkWalk) lost(id *ID, what string, from, end int64) {
	w.touch(w.c.damageLost(id, "index", 0, fmt.Errorf("%s %v is in no index segment", what, id)), from, end)
}

func (w *checkWalk) node(ctx context.Context, id ID, level int, number int64) error {
	n, err := w.blob.r.loadNode(ctx, id, level)
	if err != nil {
		return err
	}
	for s := range nodeFanout {
		if err := w.subtree(ctx, n.children[s], level-1, number<<nodeFanoutLog+int64(s)); err != nil {
			return err
		}
	}
	return nil
}

func (w *checkWalk) leaf(ctx context.Context, id ID, span int64) error {
	chunks, err := w.blob.r.loadLeaf(ctx, id, w.blob.spanLen(span))
	if err != nil {
		return err
	}
	base := span * int64(w.blob.r.cfg.SpanBytes)
	for i := range chunks {
		c := &chunks[i]
		w.data += int64(c.Len)
		known, _ := w.c.mark(&c.ID)
		k := c.ID.key()
		if n, bad := w.c.unreadable(&k); bad {
			w.touch(n, base+c.Off, base+c.End())
		} else if !known {
			w.lost(&c.ID, "chunk", base+c.Off, base+c.End())
		} else if err := w.wrongLength(c); err != nil {
			w.touch(w.c.damage("", 0, err), base+c.Off, base+c.End())
		}
	}
	return nil
}

// wrongLength is the error of a chunk whose record has another length than the blob says.
func (w *checkWalk) wrongLength(c *Chunk) error {
	k := c.ID.key()
	l, ok := w.blob.r.index.lookup(&k)
	if !ok || int(l.raw) == c.Len {
		return nil
	}
	return &CorruptError{
		Object: l.pack.id.object(l.pack.kind), Off: int64(l.off), Err: fmt.Errorf("chunk of %d bytes where a blob says %d", l.raw, c.Len),
	}
}
