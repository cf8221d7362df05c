package chunkstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// objects writes anew the small objects that are damaged and can be had: names of volumes, and what a source that is a copy of this
// repository has.
func (p *repair) objects(ctx context.Context) error {
	if err := p.trashLists(ctx); err != nil {
		return err
	}
	records, err := p.r.listBackups(ctx, prefixBackups)
	if err != nil {
		return err
	}
	p.report.Backups = len(records)
	named := map[string]bool{}
	return p.r.walkBackups(ctx, records, func(object string, b *Backup, err error) error {
		if errors.Is(err, ErrCorrupt) {
			b, err = p.record(ctx, object)
		}
		switch {
		case errors.Is(err, ErrUnsupported), err == nil && b == nil:
			return nil // told by the check
		case err != nil || named[b.Volume]:
			return err
		}
		named[b.Volume] = true
		return p.volumeName(ctx, b.Volume)
	})
}

// twins yields the sources that are copies of this repository.
func (p *repair) twins() iter.Seq[*Repository] {
	return func(yield func(*Repository) bool) {
		for _, s := range p.o.From {
			if s.Repository != nil && s.Repository.sameIDs(p.r) && !yield(s.Repository) {
				return
			}
		}
	}
}

// record writes a damaged backup record anew; nil when nobody has it.
func (p *repair) record(ctx context.Context, object string) (*Backup, error) {
	for twin := range p.twins() {
		data, err := twin.readObject(ctx, object, kindBackup)
		if errors.Is(err, ErrCorrupt) || errors.Is(err, backend.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, err := decodeBackup(data)
		if err != nil || object != p.r.backupObject(b.Volume, b.ID) {
			continue
		}
		return b, p.putObject(ctx, object, kindBackup, data)
	}
	return nil, nil
}

func (p *repair) putObject(ctx context.Context, object string, kind packKind, data []byte) error {
	_, pack, err := p.r.buildObject(kind, data)
	if err != nil {
		return err
	}
	if err := p.r.be.Put(ctx, object, pack); err != nil {
		return fmt.Errorf("write %s anew: %w", object, err)
	}
	p.report.Objects = append(p.report.Objects, object)
	return nil
}

// volumeName writes the name of a volume anew, unless it is sound.
func (p *repair) volumeName(ctx context.Context, volume string) error {
	object := prefixVolumes + p.r.volumeKey(volume)
	_, err := p.r.readVolume(ctx, object)
	if !errors.Is(err, backend.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
		return err
	}
	data, err := json.Marshal(volumeObject{Volume: volume})
	if err != nil {
		return err
	}
	return p.putObject(ctx, object, kindVolume, data)
}

// trashLists replaces trash lists that cannot be read, without which nobody may write: by a copy that a twin has, or by none. They are
// there for backups that began before them. So one that has no copy is removed only when it is older than any of those can be, or on
// the word that there is none.
func (p *repair) trashLists(ctx context.Context) error {
	trash, err := p.r.index.refreshTrash(ctx)
	if err != nil || trash.err == nil {
		return err
	}
	now, err := p.r.storeTime(ctx)
	if err != nil {
		return err
	}
	var bad []backend.Object
	err = p.r.be.List(ctx, prefixTrash, func(o backend.Object) error {
		if trash.lists[o.Name] == nil {
			bad = append(bad, o)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the trash: %w", err)
	}
	for _, o := range bad {
		_, err := p.r.readTrash(ctx, o)
		if err == nil || errors.Is(err, backend.ErrNotExist) {
			continue
		}
		if !errors.Is(err, ErrCorrupt) {
			return err
		}
		name, copyErr := p.trashCopy(ctx, o)
		if copyErr != nil {
			return copyErr
		}
		p.report.Objects = append(p.report.Objects, o.Name)
		if name == o.Name {
			continue
		}
		if name == "" && !p.o.Alone && now.Sub(o.ModTime) < maxSession {
			return fmt.Errorf("nobody can write while this list of condemned packs cannot be read, and it may be removed only "+
				"when no backup is running on any host: %w", err)
		}
		if err := p.r.be.Delete(ctx, o.Name); err != nil {
			return fmt.Errorf("remove a trash list that cannot be read: %w", err)
		}
	}
	return p.r.index.refresh(ctx)
}

// trashCopy writes the trash list anew as a twin has it, and returns its name; none when nobody has it.
func (p *repair) trashCopy(ctx context.Context, o backend.Object) (string, error) {
	for twin := range p.twins() {
		t, err := twin.readTrash(ctx, o)
		if errors.Is(err, ErrCorrupt) || errors.Is(err, backend.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return p.r.putTrash(ctx, t)
	}
	return "", nil
}
