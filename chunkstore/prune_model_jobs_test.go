package chunkstore

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// image is two spans with a few blocks out of a small pool, so that backups share much and what was deleted comes back.
func (h *pruneHost) image(old []byte) []byte {
	img := make([]byte, 2<<20)
	copy(img, old)
	for range 1 + h.rnd.IntN(3) {
		at := (h.rnd.IntN(2)<<8 + h.rnd.IntN(3)) * 4096
		n := h.rnd.IntN(modelPool + 1)
		copy(img[at:], bytes.Repeat([]byte{byte(n)}, 4096))
	}
	return img
}

func (h *pruneHost) backUp() error {
	ctx := h.m.ctx
	s, r := h.at()
	all, err := r.ListBackups(ctx, "")
	if err != nil {
		return err
	}
	b := &Backup{Volume: "v"}
	var base *Blob
	var old []byte
	if len(all) > 0 && h.rnd.IntN(4) > 0 {
		parent := all[h.rnd.IntN(len(all))]
		if r.Lost(ctx, parent) == nil {
			base, old = r.OpenBlob(parent.Blob), s.images[parent.ID]
			if h.rnd.IntN(4) > 0 {
				b.Parent = parent.ID
			}
		}
	}
	err = h.storeBackup(b, h.image(old), base, old)
	if errors.Is(err, ErrPruned) || (base != nil && (errors.Is(err, ErrNotFound) || errors.Is(err, backend.ErrNotExist))) {
		h.m.count.pruned++ // its base or its own chunks were removed: it failed, as it should
		return nil
	}
	if err == nil {
		h.m.count.backups++
	}
	return err
}

// storeBackup stores an image as a backup.
func (h *pruneHost) storeBackup(b *Backup, img []byte, base *Blob, old []byte) error {
	ctx := h.m.ctx
	s, r := h.at()
	w, err := r.NewWriter(ctx, WriterOptions{Compression: "none"})
	if err != nil {
		return err
	}
	defer w.Close()
	var changed func(int64) bool
	if base != nil {
		changed = func(span int64) bool { return spanDiffers(old, img, span<<20) }
	}
	if b.ID, err = NewBackupID(time.Now()); err != nil {
		return err
	}
	if b.Blob, err = storeImage(ctx, r, w, img, base, changed); err != nil {
		return err
	}
	s.images[b.ID], s.trying[b.ID], h.trying = img, true, b.ID
	if err = w.PutBackup(ctx, b); !h.dead.Load() {
		delete(s.trying, b.ID)
	}
	return err
}

// copyBackup copies a backup from the other store, reading it as it goes.
func (h *pruneHost) copyBackup() error {
	h.other = 1 - h.store
	from, err := h.open(h.other)
	if err != nil {
		return err
	}
	all, err := from.ListBackups(h.m.ctx, "v")
	if err != nil || len(all) == 0 {
		return err
	}
	b := all[h.rnd.IntN(len(all))]
	img := make([]byte, b.Blob.Size)
	if _, err := from.OpenBlob(b.Blob).ReadAt(h.m.ctx, img, 0); err != nil {
		return h.unlessDeleted(h.other, b.ID, err)
	}
	if !bytes.Equal(img, h.m.stores[h.other].images[b.ID]) {
		return fmt.Errorf("backup %s read to be copied is not what was stored", b.ID)
	}
	if err = h.storeBackup(&Backup{Volume: "v", Labels: map[string]string{"copy-of": b.ID}}, img, nil, nil); errors.Is(err, ErrPruned) {
		h.m.count.pruned++
		return nil
	}
	if err == nil {
		h.m.count.copies++
	}
	return err
}

// unlessDeleted is err, nil when the backup that could not be read is no longer listed.
func (h *pruneHost) unlessDeleted(store int, id string, err error) error {
	if _, gone := h.m.stores[store].be.Stat(h.m.ctx, h.r[store].backupObject("v", id)); gone != nil {
		return nil
	}
	return err
}

func (h *pruneHost) forget() error {
	_, r := h.at()
	all, err := r.Backups(h.m.ctx, "v")
	if err != nil || len(all) == 0 || (len(all) < 4 && h.rnd.IntN(2) == 0) {
		return err
	}
	err = r.DeleteBackup(h.m.ctx, "v", all[h.rnd.IntN(len(all))])
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (h *pruneHost) prune() error {
	h.m.count.prunes++
	_, r := h.at()
	_, err := r.Prune(h.m.ctx, PruneOptions{Grace: modelGrace, MaxUnused: []float64{0, 0.3}[h.rnd.IntN(2)], BreakLock: h.rnd.IntN(3) == 0})
	if errors.Is(err, ErrLocked) || errors.Is(err, backend.ErrExist) || errors.Is(err, backend.ErrNotExist) {
		return nil // of two prunes, one may run into what the other removed
	}
	return err
}

// repair looks for damage and mends it, from the images. When nothing was damaged meanwhile all is whole.
func (h *pruneHost) repair() error {
	s, _ := h.at()
	harms := s.harms
	h.m.count.repairs++
	o := s.opened
	o.CacheDir = h.cache
	rep, err := Repair(h.m.ctx, &gate{h, h.store}, o, RepairOptions{Level: CheckStored, From: s.sources(), BreakLock: h.rnd.IntN(2) == 0})
	if errors.Is(err, ErrLocked) || errors.Is(err, backend.ErrExist) || errors.Is(err, backend.ErrNotExist) {
		return nil // as of two prunes
	}
	if err == nil && s.harmed && s.harms == harms && len(rep.Lost)+len(rep.Left) == 0 && !h.dead.Load() {
		h.m.count.heals++
		s.harmed = false
	}
	return err
}

func (h *pruneHost) compact() error {
	_, r := h.at()
	return r.CompactIndex(h.m.ctx)
}

func (h *pruneHost) reindex() error {
	r, rep, err := Reindex(h.m.ctx, &gate{h, h.store}, h.m.stores[h.store].opened, nil)
	if errors.Is(err, errTrashChanged) {
		return nil
	}
	if err == nil && len(rep.Damage) > 0 && !h.m.tainted(h, h.store) && !h.m.kind.harm {
		err = fmt.Errorf("%+v", rep.Damage)
	}
	if err == nil {
		err = r.Close()
	}
	return err
}

// read reads a backup through an index that may be old.
func (h *pruneHost) read() error {
	s, r := h.at()
	all, err := r.ListBackups(h.m.ctx, "v")
	if err != nil || len(all) == 0 {
		return err
	}
	b := all[h.rnd.IntN(len(all))]
	got := make([]byte, b.Blob.Size)
	if _, err := r.OpenBlob(b.Blob).ReadAt(h.m.ctx, got, 0); err != nil {
		return h.unlessDeleted(h.store, b.ID, err)
	}
	if !bytes.Equal(got, s.images[b.ID]) {
		return fmt.Errorf("backup %s read through an old index is not what was stored", b.ID)
	}
	return nil
}
