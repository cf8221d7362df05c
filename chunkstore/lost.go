package chunkstore

import "context"

// Lost returns an error when part of the backup is known to be lost, ErrNotFound or ErrCorrupt: then a new backup must not share
// subtrees with it. Only after a repair there is something to look at; a backup that was made since, or on one that was, is passed over.
// Otherwise its tree is walked, not its chunks.
func (r *Repository) Lost(ctx context.Context, b *Backup) error {
	trash := r.index.trashSet()
	if !trash.anyDamaged() || trash.within(b.Trash) {
		return nil
	}
	if last, root := trash.last(), b.Blob.Root; last != nil && last.hasRoot(&root) {
		return nil
	}
	blob := r.OpenBlob(b.Blob)
	for c, err := range blob.Chunks(ctx, 0, blob.Size()) {
		if err == nil {
			_, err = r.locate(ctx, "chunk", &c.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
