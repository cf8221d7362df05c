package source

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/pool"
)

// thinLive is a device of an active pool, open for backup.
type thinLive struct {
	thinVolume // reads data, and, while its meta is set, metadata

	opener   *thinLiveOpener
	vol      pool.Volume
	snap     liveSnapshot // nil: the volume is read as it is
	metadata liveMeta
	loaded   *loadedMaps // nil: metadata is held open
	stale    []thinState // of earlier backups: their snapshots go when this backup is kept
}

// freeze takes the snapshot, or makes sure that none is needed.
func (v *thinLive) freeze(ctx context.Context, status pool.Status) (err error) {
	v.metadata.host, v.metadata.pool = v.opener.host, v.vol.Pool
	v.state.Device = v.vol.DeviceID
	if v.opener.asIs {
		if v.vol.Device != "" && !v.vol.ReadOnly {
			return fmt.Errorf("thin volume %s is active: %w", v.vol.Name, ErrWritable)
		}
		v.metadata.unwritten = status.Mode == pool.ModeReadOnly
		return nil
	}
	if v.snap, err = v.opener.host.Snapshot(ctx, v.vol); err != nil {
		return err
	}
	v.state.Device = v.snap.Name().DeviceID
	return nil
}

// plan chooses the base and reads the mappings.
func (v *thinLive) plan(ctx context.Context, parents iter.Seq2[Parent, error]) (base Base, err error) {
	v.size = v.vol.SizeBytes
	err = v.metadata.use(ctx, func(r *thin.Reader) (hold bool, err error) {
		v.meta = r
		if v.state, err = readThinState(ctx, r, v.vol.Pool.ID(), v.state.Device); err != nil {
			return false, err
		}
		if base, err = v.chooseBase(ctx, parents); err != nil {
			return false, err
		}
		v.identify()
		if !v.metadata.unwritten {
			if v.loaded, err = v.load(ctx); err != nil {
				return false, err
			}
		}
		return v.loaded == nil, nil
	})
	windows := &mappingWindows{load: v.metadata.runs(v.state.Device)}
	v.maps = windows
	if v.loaded != nil {
		v.meta = nil
		v.loaded.rest = windows
		v.maps = v.loaded
	}
	return base, err
}

// chooseBase takes the newest parent whose device is there unchanged, and finds the snapshots that this backup makes superfluous: the
// base's, and older ones up to the first that is gone.
func (v *thinLive) chooseBase(ctx context.Context, parents iter.Seq2[Parent, error]) (Base, error) {
	next, stop := iter.Pull2(parents)
	defer stop()
	rest := func(yield func(Parent, error) bool) {
		for p, err, ok := next(); ok; p, err, ok = next() {
			if !yield(p, err) {
				return
			}
		}
	}
	base, err := chooseThinBase(ctx, &v.thinVolume, nil, rest)
	if err != nil || base.Parent == nil {
		return base, err
	}
	used, _ := decodeThinState(*base.Parent)
	if used.Snapshot != nil && !base.Parent.Elsewhere {
		v.stale = append(v.stale, used)
	}
	for p, err := range rest {
		if err != nil {
			return Base{}, err
		}
		if p.Elsewhere {
			continue
		}
		older, why := decodeThinState(p)
		if why != "" || older.Snapshot == nil {
			break
		}
		if there, err := v.unchanged(ctx, v.meta, older); err != nil || !there {
			return base, err
		}
		v.stale = append(v.stale, older)
	}
	return base, nil
}

// unchanged says whether the device of an earlier state is still there.
func (v *thinLive) unchanged(ctx context.Context, r *thin.Reader, then thinState) (bool, error) {
	now, err := readThinState(ctx, r, v.vol.Pool.ID(), then.Device)
	if errors.Is(err, thin.ErrNoDevice) {
		return false, nil
	}
	return err == nil && then.differs(now) == "", err
}

// identify completes the state by what later runs need.
func (v *thinLive) identify() {
	switch {
	case v.snap != nil:
		ref := v.snap.Name()
		v.state.Snapshot = &ref
	case v.vol.Pool.UUID == "":
		// A pool that is made anew by a script has the same name, and devices that look the same. The IDs of our own snapshots are
		// drawn at random, and thereby tell.
		v.state.NoBase = fmt.Sprintf("pool %s has no UUID to tell it from another of that name", v.vol.Pool.Name)
	}
}

// Extents implements Source.
func (v *thinLive) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	if v.loaded == nil {
		return v.thinVolume.Extents(ctx)
	}
	return v.loaded.each(ctx)
}

// Stats implements Source.
func (v *thinLive) Stats() Stats {
	return Stats{BytesRead: v.read.Load(), MetadataBlocks: v.metadata.read()}
}

// Recheck returns an error when the device was deleted or written to while it was read, or when the metadata was.
func (v *thinLive) Recheck(ctx context.Context) error {
	return v.metadata.use(ctx, func(r *thin.Reader) (bool, error) {
		if err := r.Recheck(); err != nil {
			return false, err
		}
		now, err := readThinState(ctx, r, v.state.Pool, v.state.Device)
		if errors.Is(err, thin.ErrNoDevice) {
			return false, fmt.Errorf("thin device %d was deleted: %w", v.state.Device, ErrChanged)
		}
		if err != nil {
			return false, err
		}
		now.Snapped = v.state.Snapped // a snapshot of it does not change it
		if why := v.state.differs(now); why != "" {
			return false, fmt.Errorf("%s: %w", why, ErrChanged)
		}
		v.stale = slices.DeleteFunc(v.stale, func(s thinState) bool {
			there, serr := v.unchanged(ctx, r, s)
			err = errors.Join(err, serr)
			return !there
		})
		return false, err
	})
}

// Close implements Source. That a snapshot could not be kept or deleted makes no backup a failure that is complete.
func (v *thinLive) Close(ctx context.Context, kept bool) (err error) {
	if v.data != nil {
		err = v.data.Close()
	}
	err = errors.Join(err, v.metadata.close(ctx))
	if !kept {
		if v.snap != nil {
			err = errors.Join(err, v.snap.Delete(ctx))
		}
		return err
	}
	if err != nil {
		v.opener.note("backup of %s is complete, but: %v", v.vol.Name, err)
	}
	if v.snap != nil {
		if err := v.snap.Keep(); err != nil {
			v.opener.note("the snapshot for the next backup of %s could not be kept: %v", v.vol.Name, err)
		}
	}
	if v.state.NoBase != "" {
		return nil // the old base serves the next backup, too
	}
	for _, s := range v.stale {
		if err := v.opener.host.Delete(ctx, v.vol.Pool, *s.Snapshot); err != nil && !errors.Is(err, pool.ErrNotFound) {
			v.opener.note("the snapshot of an earlier backup of %s could not be deleted, the next backup tries again: %v", v.vol.Name, err)
		}
	}
	return nil
}
