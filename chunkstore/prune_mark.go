package chunkstore

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// look lists what there is. Records come before the index: what they need is in it. The index comes before the packs: what it names
// and is not there is gone.
func (p *prune) look(ctx context.Context) error {
	records, err := p.r.listBackups(ctx, prefixBackups)
	if err != nil {
		return err
	}
	p.records = records
	if err := p.r.index.refresh(ctx); err != nil {
		return err
	}
	if p.segs, _, err = p.r.index.whole(ctx); err != nil {
		return err
	}
	slices.SortFunc(p.segs, func(a, b *segment) int { return cmp.Compare(b.count, a.count) }) // most is found in the first
	if p.shared, err = sharedEntries(ctx, p.segs); err != nil {
		return err
	}
	if p.trash = p.r.index.trashSet(); p.trash.err != nil {
		return p.trash.err
	}
	p.packs = map[packID]*prunedPack{}
	err = p.r.be.List(ctx, prefixPacks, func(o backend.Object) error {
		if id, kind, ok := parsePackObject(o.Name); ok {
			p.packs[id] = &prunedPack{id: id, kind: kind, size: o.Size, mod: o.ModTime, condemned: p.trash.condemned(id), damaged: p.trash.damaged(id), sealing: int64(p.r.sealer.overhead())}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list packs: %w", err)
	}
	for _, t := range p.trash.lists {
		due := !t.mod.Add(p.o.Grace).After(p.now) || p.r.off.graceWait
		for _, c := range t.Packs {
			id, _, _ := parsePackObject(c.Object)
			if pack := p.packs[id]; pack != nil && due {
				pack.due = true
			}
		}
	}
	for _, s := range p.segs {
		p.seen = append(p.seen, make([]atomic.Uint64, (s.count+63)/64))
		uses := make([]*prunedPack, s.packs)
		for i := range uses {
			if uses[i] = p.packs[s.pack(i).id]; uses[i] != nil {
				uses[i].named = true
			}
		}
		p.uses = append(p.uses, uses)
	}
	return nil
}

// sharedEntries returns a bit for each entry of each segment: another segment has its key too. One pass over all of the index spares
// each look-up all segments but the one that has the record.
func sharedEntries(ctx context.Context, segs []*segment) ([][]uint64, error) {
	shared, number := make([][]uint64, len(segs)), map[*segment]int{}
	for i, s := range segs {
		shared[i], number[s] = make([]uint64, (s.count+63)/64), i
	}
	set := func(c mergeCursor) { shared[number[c.seg]][c.at/64] |= 1 << (c.at % 64) }
	m := newSegmentMerge(segs)
	var last mergeCursor
	for n := 0; len(m.cursors) > 0; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c := &m.cursors[0]
		if n > 0 && bytes.Equal(last.seg.keyAt(last.at), c.seg.keyAt(c.at)) {
			set(last)
			set(*c)
		}
		last = *c
		if c.at++; c.at == c.seg.count {
			heap.Pop(m)
		} else {
			heap.Fix(m, 0)
		}
	}
	return shared, nil
}

// choose returns the place of a record to keep: segment, entry, pack. Of several, one that is not condemned; of those the one in the
// newest pack, so that a prune that was interrupted while it copied finds its copies, and the packs that it copied from unused.
func (p *prune) choose(k *key) (seg, entry int, pack *prunedPack) {
	for i, s := range p.segs {
		j, ok := s.find(k)
		if !ok {
			continue
		}
		if n := int(s.entryAt(j).pack); n < len(p.uses[i]) && p.uses[i][n] != nil {
			if here := p.uses[i][n]; pack == nil || here.better(pack) {
				seg, entry, pack = i, j, here
			}
		}
		if p.shared[i][j/64]&(1<<(j%64)) == 0 {
			break
		}
	}
	return seg, entry, pack
}

func (p *prunedPack) better(other *prunedPack) bool {
	if p.condemned != other.condemned {
		return other.condemned
	}
	if p.damaged != other.damaged {
		return other.damaged
	}
	if !p.mod.Equal(other.mod) {
		return p.mod.After(other.mod)
	}
	return bytes.Compare(p.id[:], other.id[:]) < 0
}

// need notes that a backup needs the record; seen says that this was known.
func (p *prune) need(what string, id *ID) (seen bool, err error) {
	k := id.key()
	i, j, pack := p.choose(&k)
	if pack == nil {
		return false, &NotFoundError{What: what, Name: id.String()}
	}
	bit := uint64(1) << (j % 64)
	return p.seen[i][j/64].Or(bit)&bit != 0, nil
}

// mark walks the trees of all backups.
func (p *prune) mark(ctx context.Context) error {
	ctx = inBulk(ctx)
	p.roots = map[key]struct{}{}
	total := int64(len(p.records))
	err := p.r.walkBackups(ctx, p.records, func(object string, b *Backup, err error) error {
		if err != nil {
			return fmt.Errorf("what %s needs cannot be told: %w", object, err)
		}
		p.report.Backups++
		p.roots[b.Blob.Root.key()] = struct{}{}
		w := pruneWalk{p: p, blob: p.r.OpenBlob(b.Blob)}
		if err := w.subtree(ctx, b.Blob.Root, w.blob.level, 0); err != nil {
			return fmt.Errorf("what backup %s of volume %s needs cannot be told: %w", b.ID, b.Volume, err)
		}
		p.o.Progress("backups", int64(p.report.Backups), total)
		return nil
	})
	if err != nil {
		return err
	}
	for i, s := range p.segs {
		for j := range s.count {
			if p.seen[i][j/64].Load()&(1<<(j%64)) != 0 {
				e := s.entryAt(j)
				pack := p.uses[i][e.pack]
				pack.live += int64(e.stored)
				pack.records++
			}
		}
	}
	return nil
}

type pruneWalk struct {
	p    *prune
	blob *Blob
}

func (w *pruneWalk) subtree(ctx context.Context, id ID, level int, number int64) error {
	if id.IsZero() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	seen, err := w.p.need("tree node", &id)
	if err != nil || seen {
		return err
	}
	if level == 0 {
		return w.leaf(ctx, id, number)
	}
	n, err := w.p.r.loadNode(ctx, id, level)
	if err != nil {
		return err
	}
	if level > 1 {
		for s := range nodeFanout {
			if err := w.subtree(ctx, n.children[s], level-1, number<<nodeFanoutLog+int64(s)); err != nil {
				return err
			}
		}
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(w.p.r.atOnce)
	for s := range nodeFanout {
		if !n.children[s].IsZero() {
			g.Go(func() error { return w.subtree(ctx, n.children[s], 0, number<<nodeFanoutLog+int64(s)) })
		}
	}
	return g.Wait()
}

func (w *pruneWalk) leaf(ctx context.Context, id ID, span int64) error {
	chunks, err := w.p.r.loadLeaf(ctx, id, w.blob.spanLen(span))
	if err != nil {
		return err
	}
	for i := range chunks {
		if _, err := w.p.need("chunk", &chunks[i].ID); err != nil {
			return err
		}
	}
	return nil
}

// sortedKeys returns the keys of m, ascending.
func sortedKeys(m map[key]struct{}) []key {
	keys := make([]key, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int { return bytes.Compare(a[:], b[:]) })
	return keys
}

// copyOut copies the records to keep out of packs that are to go. A pack whose records cannot be read stays.
func (p *prune) copyOut(ctx context.Context, repack, rescue []*prunedPack) (err error) {
	p.keep = map[packID]struct{}{}
	packs := slices.Concat(rescue, repack)
	if p.r.off.rescue {
		packs = repack
	}
	if len(packs) == 0 {
		return nil
	}
	w, err := p.r.newWriter(ctx, WriterOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	var total int64
	for _, pack := range packs {
		total += pack.live
	}
	var done, rescued atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.r.atOnce)
	for _, pack := range packs {
		g.Go(func() error {
			err := p.copyPack(gctx, w, pack)
			if errors.Is(err, ErrCorrupt) || errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrShort) {
				p.leave(pack, err)
				return nil
			}
			if pack.condemned {
				rescued.Add(pack.live)
			}
			p.o.Progress("copy", done.Add(pack.live), total)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	p.report.Rescued = rescued.Load()
	p.report.Copied = done.Load() - rescued.Load()
	return w.Flush(ctx)
}

// leave keeps a pack that cannot be copied.
func (p *prune) leave(pack *prunedPack, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep[pack.id] = struct{}{}
	d := Damage{Object: pack.object(), Error: err.Error()}
	var ce *CorruptError
	if errors.As(err, &ce) {
		d.Off, d.Error = ce.Off, ce.Err.Error()
	}
	p.report.Damage = append(p.report.Damage, d)
}

// copyPack copies the records of a pack that are to be kept.
func (p *prune) copyPack(ctx context.Context, w *Writer, pack *prunedPack) error {
	t, _, err := p.r.readPackTable(ctx, pack.object())
	if err != nil {
		return err
	}
	bx, err := p.r.box(ctx, t.header.kind, t.header.salt)
	if err != nil {
		return err
	}
	to := w.data
	if pack.kind == kindTree {
		to = w.tree
	}
	entries := slices.DeleteFunc(t.entries, func(e tableEntry) bool { return !p.kept(pack, &e) })
	buf, opened := p.r.bufs.get(batchMax), p.r.bufs.get(p.r.cfg.MaxChunk)
	defer p.r.bufs.put(buf)
	defer p.r.bufs.put(opened)
	for len(entries) > 0 {
		n, from, end := 1, entries[0].off, entries[0].off+entries[0].stored
		for n < len(entries) && entries[n].off-end <= batchGap && entries[n].off+entries[n].stored-from <= batchMax {
			end = entries[n].off + entries[n].stored
			n++
		}
		*buf = slices.Grow((*buf)[:0], int(end-from))[:end-from]
		if err := p.r.be.ReadAt(ctx, pack.object(), *buf, int64(from)); err != nil {
			return fmt.Errorf("read %s at %d: %w", pack.object(), from, err)
		}
		for i := range entries[:n] {
			e := &entries[i]
			payload, err := openRecordTo(*opened, (*buf)[e.off-from:][:e.stored], bx, &e.id, e.codec, int(e.raw), uint64(e.off))
			if err != nil {
				return &CorruptError{Object: pack.object(), Off: int64(e.off), Err: err}
			}
			if err := to.add(ctx, &e.id, payload, e.codec, int(e.raw)); err != nil {
				return err
			}
		}
		entries = entries[n:]
	}
	return nil
}

// kept says whether the record in this place is one to keep.
func (p *prune) kept(pack *prunedPack, e *tableEntry) bool {
	k := e.id.key()
	i, j, chosen := p.choose(&k)
	return chosen == pack && p.seen[i][j/64].Load()&(1<<(j%64)) != 0 && p.segs[i].entryAt(j).off == e.off
}
