package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// What a Writer does so that a prune beside it never takes away what its backup needs (docs/adr/0007):
//
//  1. It begins by listing the trash, then the index. From then on it treats as unknown what only condemned packs have.
//  2. Before its record is put, it lists the trash again. If that has lists that the Writer did not know when it began, it walks the
//     blob and stores anew what only condemned packs have; and looks again, until there is nothing new. A subtree shared with
//     an earlier backup is passed over when that one is known not to need the condemned packs.
//  3. After its record is put, it looks once more. Only a Writer that stood still between 2 and here for longer than a grace finds
//     something gone then; it takes its record back.

// beginWriting returns the names of the trash lists.
func (r *Repository) beginWriting(ctx context.Context) ([]string, error) {
	if err := r.index.refresh(ctx); err != nil {
		return nil, err
	}
	trash := r.index.trashSet()
	if trash.err != nil {
		return nil, fmt.Errorf("what a prune has condemned cannot be told: %w", trash.err)
	}
	if r.off.trashAtStart {
		r.index.forgetTrash()
		return nil, nil
	}
	return trash.names(), nil
}

// shares notes that a blob of this Writer has subtrees of base.
func (w *Writer) shares(base BlobRef) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bases[base.Root] = base
}

// finished notes that this Writer stored a blob, or found it stored.
func (w *Writer) finished(root ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.built[root] = struct{}{}
}

// saveFromTrash is step 2 for a record that is about to be put; all it needs is flushed. It fills in b.Trash.
func (w *Writer) saveFromTrash(ctx context.Context, b *Backup) error {
	if w.r.off.beforeRecord {
		return nil
	}
	var known map[ID][]string
	seen, walked := w.trash, false
	for {
		trash, err := w.r.index.refreshTrash(ctx)
		if err != nil {
			return err
		}
		if trash.err != nil {
			return fmt.Errorf("what a prune has condemned cannot be told: %w", trash.err)
		}
		if w.r.bootTime()-w.begun > maxSession {
			return fmt.Errorf("a backup must be done within %d days: %w", int(maxSession.Hours())/24, ErrPruned)
		}
		b.Trash = trash.names()
		if known == nil && len(trash.lists) > 0 {
			if known, err = w.parentTrash(ctx, b); err != nil {
				return err
			}
		}
		base, sound := w.soundBase(trash, b, known)
		if trash.within(seen) && (sound || walked) {
			return nil
		}
		if err := w.r.index.refresh(ctx); err != nil {
			return err
		}
		if err := w.save(ctx, b.Blob, base); err != nil {
			return err
		}
		seen, walked = trash.names(), true
	}
}

// checkRecorded is step 3.
func (w *Writer) checkRecorded(ctx context.Context, b *Backup) error {
	if w.r.off.afterRecord {
		return nil
	}
	for seen := b.Trash; ; {
		trash, err := w.r.index.refreshTrash(ctx)
		if err != nil {
			return fmt.Errorf("backup %s is recorded; whether a prune took from it was not found out: %w", b.ID, err)
		}
		if trash.within(seen) {
			return nil
		}
		if err = w.r.index.refresh(ctx); err == nil {
			err = w.save(ctx, b.Blob, nil)
		}
		if errors.Is(err, ErrPruned) || errors.Is(err, ErrCorrupt) { // by a prune, or a repair found it lost
			return errors.Join(err, w.r.be.Delete(ctx, w.r.backupObject(b.Volume, b.ID)))
		}
		if err != nil {
			return fmt.Errorf("backup %s is recorded; whether a prune took from it was not found out: %w", b.ID, err)
		}
		seen = trash.names()
	}
}

// parentTrash returns the trash lists whose packs b's parent is known not to need; never nil.
func (w *Writer) parentTrash(ctx context.Context, b *Backup) (map[ID][]string, error) {
	if b.Parent == "" {
		return map[ID][]string{}, nil
	}
	p, err := w.r.Backup(ctx, b.Volume, b.Parent)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
		return map[ID][]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	return map[ID][]string{p.Blob.Root: p.Trash}, nil
}

// soundBase reports whether all that blobs of this Writer share with earlier ones is known to have a place outside the trash. The
// base it returns is one that is, nil if there is none or too many.
func (w *Writer) soundBase(trash *trashSet, b *Backup, known map[ID][]string) (base *Blob, sound bool) {
	if w.r.off.baseRule {
		return nil, true
	}
	w.mu.Lock()
	bases := slices.Collect(maps.Values(w.bases))
	if _, ok := w.built[b.Blob.Root]; !ok && !b.Blob.Root.IsZero() { // somebody else's, taken whole
		bases = append(bases, b.Blob)
	}
	w.mu.Unlock()
	last := trash.last()
	sound = true
	for _, ref := range bases {
		root := ref.Root
		if (last != nil && last.hasRoot(&root)) || (known[root] != nil && trash.within(known[root])) || len(trash.lists) == 0 {
			if len(bases) == 1 {
				base = w.r.OpenBlob(ref)
			}
			continue
		}
		sound = false
	}
	return base, sound
}

// save stores anew what of the blob only condemned packs have, and flushes. What base has in the same place is passed over.
func (w *Writer) save(ctx context.Context, ref BlobRef, base *Blob) error {
	s := saver{w: w, blob: w.r.OpenBlob(ref), base: base}
	if err := s.subtree(ctx, ref.Root, s.blob.level, 0); err != nil {
		return err
	}
	return w.Flush(ctx)
}

type saver struct {
	w          *Writer
	blob, base *Blob
}

// subtree saves the subtree at level with that number.
func (s *saver) subtree(ctx context.Context, id ID, level int, number int64) error {
	if id.IsZero() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.base != nil {
		old, virtual, err := s.base.subtree(ctx, level, number)
		if err != nil {
			return prunedError(err)
		}
		if old == id && !virtual {
			return nil
		}
	}
	if err := s.record(ctx, s.w.tree, &id); err != nil {
		return err
	}
	if level == 0 {
		chunks, err := s.w.r.loadLeaf(ctx, id, s.blob.spanLen(number))
		if err != nil {
			return prunedError(err)
		}
		for i := range chunks {
			if err := s.record(ctx, s.w.data, &chunks[i].ID); err != nil {
				return err
			}
		}
		return nil
	}
	n, err := s.w.r.loadNode(ctx, id, level)
	if err != nil {
		return prunedError(err)
	}
	for slot := range nodeFanout {
		if err := s.subtree(ctx, n.children[slot], level-1, number<<nodeFanoutLog+int64(slot)); err != nil {
			return err
		}
	}
	return nil
}

// record stores the record of id anew if only condemned packs have it.
func (s *saver) record(ctx context.Context, to *packStream, id *ID) error {
	w := s.w
	w.adding.RLock()
	defer w.adding.RUnlock()
	fresh, err := w.claim(ctx, id)
	if err != nil || !fresh {
		return err
	}
	if err := w.copyRecord(ctx, to, id); err != nil {
		w.fail(err) // others were told that id is taken care of
		return err
	}
	return nil
}

// copyRecord copies a record from wherever it is, as it is.
func (w *Writer) copyRecord(ctx context.Context, to *packStream, id *ID) error {
	k := id.key()
	l, ok, err := w.r.resolve(ctx, &k)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%v: %w", id, ErrPruned)
	}
	err = w.copyRecordAt(ctx, to, id, l)
	if errors.Is(err, ErrCorrupt) {
		err = w.r.readElsewhere(ctx, id, l, err, func(l location) error { return w.copyRecordAt(ctx, to, id, l) })
	}
	return prunedError(err)
}

func (w *Writer) copyRecordAt(ctx context.Context, to *packStream, id *ID, l location) error {
	buf := w.r.bufs.get(int(l.stored))
	defer w.r.bufs.put(buf)
	object := l.pack.id.object(l.pack.kind)
	if err := w.r.be.ReadAt(ctx, object, *buf, int64(l.off)); err != nil {
		return readError(object, int64(l.off), err)
	}
	bx, err := w.r.box(ctx, l.pack.kind, l.pack.salt)
	if err != nil {
		return err
	}
	payload, err := openRecord(*buf, bx, id, l.codec, int(l.raw), uint64(l.off))
	if err != nil {
		return &CorruptError{Object: object, Off: int64(l.off), Err: err}
	}
	return to.add(ctx, id, payload, l.codec, int(l.raw))
}

// prunedError: what is gone was removed by the prune whose trash list was just read.
func prunedError(err error) error {
	if errors.Is(err, backend.ErrNotExist) || errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w (%w)", ErrPruned, err)
	}
	return err
}
