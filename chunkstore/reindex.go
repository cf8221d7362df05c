package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// ReindexReport says what Reindex found.
type ReindexReport struct {
	Packs    int      `json:"packs"`
	Chunks   int64    `json:"chunks"`
	Segments int      `json:"segments"` // written
	Removed  int      `json:"removed"`  // segments replaced
	Damage   []Damage `json:"damage"`   // packs whose tables cannot be read
	Kept     int64    `json:"kept"`     // of their records, those that the old index knew and the new one knows too
}

// Reindex makes the index anew from the packs, whatever state it is in; the old one is asked only for packs whose own tables are
// damaged. Backups and other writers may run meanwhile: their
// packs are found, or are in segments written after this listing, which stay. It returns the repository, open.
func Reindex(ctx context.Context, be backend.Backend, o Options, progress func(done, total int)) (*Repository, *ReindexReport, error) {
	r, err := openWithoutIndex(ctx, be, o)
	if err != nil {
		return nil, nil, err
	}
	rep, err := r.reindex(ctx, progress)
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return r, rep, nil
}

func (r *Repository) reindex(ctx context.Context, progress func(done, total int)) (*ReindexReport, error) {
	var old, packs []string
	list := func(names *[]string) func(backend.Object) error {
		return func(o backend.Object) error {
			*names = append(*names, o.Name)
			return nil
		}
	}
	trash, err := r.index.refreshTrash(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.be.List(ctx, prefixIndex, list(&old)); err != nil {
		return nil, fmt.Errorf("list the index: %w", err)
	}
	if err := r.be.List(ctx, prefixPacks, list(&packs)); err != nil {
		return nil, fmt.Errorf("list packs: %w", err)
	}
	rep := &ReindexReport{Damage: []Damage{}}
	for i, object := range packs {
		if err := r.reindexPack(ctx, object, rep); err != nil {
			return nil, err
		}
		if progress != nil {
			progress(i+1, len(packs))
		}
	}
	if err := r.reindexYoung(ctx, old, packs, rep); err != nil {
		return nil, err
	}
	if err := r.reindexKept(ctx, old, rep); err != nil {
		return nil, err
	}
	if err := r.reindexFlush(ctx, rep); err != nil {
		return nil, err
	}
	// Where several packs have a record, the index names one that was not condemned when this began.
	if same, err := r.index.sameTrash(ctx, trash); err != nil {
		return nil, err
	} else if !same {
		return nil, fmt.Errorf("the old index segments stay beside the new ones: %w", errTrashChanged)
	}
	for _, name := range old {
		if r.index.lists(name) { // what we wrote is, to the byte, what was there
			continue
		}
		if err := r.be.Delete(ctx, name); err != nil {
			return nil, fmt.Errorf("remove old index segment: %w", err)
		}
		rep.Removed++
	}
	// Nor may a repair have found damaged what it names: the old segments may have known of another place.
	if now, err := r.index.refreshTrash(ctx); err != nil {
		return nil, err
	} else if !now.within(trash.names()) && now.anyDamaged() {
		return r.reindex(ctx, progress)
	}
	return rep, r.index.refresh(ctx)
}

// reindexPack adds the records of one pack to what is pending.
func (r *Repository) reindexPack(ctx context.Context, object string, rep *ReindexReport) error {
	id, kind, ok := parsePackObject(object)
	if !ok {
		return nil
	}
	t, size, err := r.readPackTable(ctx, object)
	var ce *CorruptError
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return nil
	case errors.As(err, &ce):
		rep.Damage = append(rep.Damage, Damage{Object: object, Off: ce.Off, Error: ce.Err.Error()})
		return nil
	case err != nil:
		return fmt.Errorf("read table of %s: %w", object, err)
	}
	rep.Packs++
	rep.Chunks += int64(len(t.entries))
	if r.index.addPending(packRef{id: id, salt: t.header.salt, kind: kind, size: size}, t.entries) >= maxPending {
		return r.reindexFlush(ctx, rep)
	}
	return nil
}

// listingLag is how long after it was put every listing tells of an object, on whatever store.
const listingLag = time.Hour

// reindexYoung adds packs that were not listed, and that young segments name: over NFS a listing may be older than the file that another host
// has just written.
func (r *Repository) reindexYoung(ctx context.Context, old, packs []string, rep *ReindexReport) error {
	now, err := r.storeTime(ctx)
	if err != nil {
		return err
	}
	listed := map[string]bool{}
	for _, object := range packs {
		listed[object] = true
	}
	for _, name := range old {
		o, err := r.be.Stat(ctx, name)
		if errors.Is(err, backend.ErrNotExist) || (err == nil && now.Sub(o.ModTime) > listingLag) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at old index segment: %w", err)
		}
		s, err := r.oldSegment(ctx, name)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		for i := range s.packs {
			p := s.pack(i)
			if object := p.id.object(p.kind); !listed[object] {
				listed[object] = true
				if err := r.reindexPack(ctx, object, rep); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// oldSegment reads a segment that is to be replaced; nil when it is gone or damaged.
func (r *Repository) oldSegment(ctx context.Context, name string) (*segment, error) {
	data, err := r.readObject(ctx, name, kindIndex)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, backend.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read old index segment: %w", err)
	}
	s, err := openSegment(name, data)
	if err != nil || verifySegment(s) != nil {
		return nil, nil
	}
	return s, nil
}

// reindexKept adds what the old index knows of packs whose tables are damaged: the records may be sound.
func (r *Repository) reindexKept(ctx context.Context, old []string, rep *ReindexReport) error {
	damaged := map[packID]bool{}
	for _, d := range rep.Damage {
		if id, _, ok := parsePackObject(d.Object); ok {
			damaged[id] = true
		}
	}
	if len(damaged) == 0 {
		return nil
	}
	for _, name := range old {
		s, err := r.oldSegment(ctx, name)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		for i := range s.packs {
			p := s.pack(i)
			if !damaged[p.id] {
				continue
			}
			entries := s.appendPackEntries(nil, uint32(i))
			rep.Kept += int64(len(entries))
			if r.index.addPending(p, entries) >= maxPending {
				if err := r.reindexFlush(ctx, rep); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (r *Repository) reindexFlush(ctx context.Context, rep *ReindexReport) error {
	n, err := r.index.flush(ctx)
	if err != nil {
		return err
	}
	if n > 0 {
		rep.Segments++
	}
	return r.index.compact(ctx)
}

// lists reports whether the segment of that name is in use.
func (x *index) lists(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, s := range x.segs {
		if s.name == name {
			return true
		}
	}
	return false
}
