package engine

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/shalebackup/shale/chunkstore"
)

// SyncOptions are options of Sync.
type SyncOptions struct {
	CopyOptions
	Volume string // only this one's backups; empty: every volume's
	// Newer leaves out backups that are older than the newest that the destination has of the volume: so that what was forgotten there does
	// not come again.
	Newer bool
	// Copied is told of each backup that was copied, from one goroutine; may be nil.
	Copied func(*CopyResult)
}

// SyncReport is what Sync did.
type SyncReport struct {
	Volumes int // looked at
	Backups int // of these, in the source and not left out
	Copied  int
	Existed int   // the destination had them
	Older   int   // left out by SyncOptions.Newer
	Read    int64 // plain bytes of chunks read from the source
	Stored  int64 // bytes of all objects put in the destination
	Adopted int64 // packs of an interrupted run taken over
	Damage  []SyncDamage
}

// SyncDamage is a backup that was not copied, for damage in either repository; or damage in what lists the volumes.
type SyncDamage struct {
	Volume, Backup string // empty when the volumes cannot be listed
	Err            error
}

// Sync copies every backup of from's that the other repository lacks, the oldest first. It deletes nothing. A backup that cannot be
// copied for its damage is in the report, and the next ones are copied; any other error ends it, with the report of what was done
// beside it. See Copy.
func Sync(ctx context.Context, from, to *chunkstore.Repository, o SyncOptions) (*SyncReport, error) {
	rep := &SyncReport{}
	if err := o.canLock(ctx, to); err != nil {
		return rep, err
	}
	volumes, err := rep.volumes(ctx, from, o.Volume)
	if err != nil {
		return rep, &SourceError{from.Location(), err}
	}
	for _, volume := range volumes {
		rep.Volumes++
		if err := rep.volume(ctx, from, to, volume, o); err != nil {
			return rep, err
		}
	}
	return rep, nil
}

// volumes are those to look at. Where the name of one is damaged they are gathered from the backup records, which have it too.
func (rep *SyncReport) volumes(ctx context.Context, from *chunkstore.Repository, volume string) ([]string, error) {
	if volume != "" {
		return []string{volume}, mustHaveVolume(ctx, from, volume)
	}
	names, err := from.Volumes(ctx)
	if err == nil || ctx.Err() != nil || !damaged(err) {
		return names, err
	}
	rep.Damage = append(rep.Damage, SyncDamage{Err: &SourceError{from.Location(), err}})
	found := map[string]struct{}{}
	err = from.WalkBackups(ctx, "", func(_ string, b *chunkstore.Backup, err error) error {
		if err == nil {
			found[b.Volume] = struct{}{}
		}
		if damaged(err) { // told of with its volume, if that has any other
			err = nil
		}
		return err
	})
	return slices.Sorted(maps.Keys(found)), err
}

// volume copies one volume's backups.
func (rep *SyncReport) volume(ctx context.Context, from, to *chunkstore.Repository, volume string, o SyncOptions) error {
	source, err := openHistory(ctx, from, volume)
	if err == nil {
		err = source.readAll(ctx)
	}
	if err != nil {
		return &SourceError{from.Location(), err}
	}
	dest, err := openHistory(ctx, to, volume)
	if err == nil {
		err = dest.readAll(ctx)
	}
	if err != nil {
		return err
	}
	newest := "" // IDs sort by time
	if o.Newer && len(dest.ids) > 0 {
		newest = dest.ids[len(dest.ids)-1]
	}
	c := copier{from: source, to: dest, o: o.CopyOptions}
	for _, id := range source.ids {
		if id < newest && !dest.has(id) {
			rep.Older++
			continue
		}
		res, err := c.copyID(ctx, id)
		if errors.Is(err, errBackupWent) {
			continue
		}
		rep.Backups++
		switch {
		case err != nil && ctx.Err() == nil && damaged(err):
			rep.Damage = append(rep.Damage, SyncDamage{volume, id, err})
			continue
		case err != nil:
			return err
		case res.Existed:
			rep.Existed++
		default:
			rep.Copied++
			rep.Read += res.Backup.Counts.Read
			if o.Copied != nil {
				o.Copied(res)
			}
		}
		rep.Stored += res.Writer.Stored
		rep.Adopted += res.Writer.Adopted
	}
	return nil
}

// errBackupWent: a backup was deleted in the source since it was listed.
var errBackupWent = errors.New("the backup was deleted meanwhile")

// copyID copies a backup that was listed.
func (c *copier) copyID(ctx context.Context, id string) (*CopyResult, error) {
	b, err := c.from.record(ctx, id)
	var res *CopyResult
	if err != nil {
		err = &SourceError{c.from.repo.Location(), err}
	} else {
		res, err = c.copy(ctx, b)
	}
	if !damaged(err) {
		return res, err
	}
	if _, again := c.from.repo.Backup(ctx, c.from.volume, id); errors.Is(again, chunkstore.ErrNotFound) {
		return nil, errBackupWent
	}
	return nil, err
}
