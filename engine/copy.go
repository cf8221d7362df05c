package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
)

// CopyOptions are options of Copy and Sync.
type CopyOptions struct {
	Compression chunkstore.Compression // default: the destination's
	Workers     int                    // spans in work at once; default GOMAXPROCS, at least 2
	LockFor     Period                 // as in BackupOptions, of the copies that are made
	LockMode    backend.LockMode
	Progress    Progress
}

// CopyResult is what a copy did.
type CopyResult struct {
	Backup  *chunkstore.Backup // the record in the destination
	Existed bool               // the destination had the backup: nothing was done
	Writer  chunkstore.WriterStats
	Lock    *chunkstore.LockReport // nil: it was not to be locked
}

// Copy copies a backup of from's into another repository, whatever the keys, spans, cut and codec of the two. Its content is read,
// every chunk checked against its whole ID, and stored as any backup is: cut as the destination cuts, so that its tree is the one that a
// backup of the same content made there would have. The base is the nearest backup of the volume that both repositories have, so that
// what both have is neither read nor stored.
//
// The record keeps volume, time, host, labels, source state, and the ID unless the destination has another backup of that ID. Its Origin names the
// backup that was copied, or of which that is a copy; by it a backup that the destination has is recognised. An interrupted copy goes on
// when it is called again. Errors of reading from are a *SourceError.
func Copy(ctx context.Context, from *chunkstore.Repository, b *chunkstore.Backup, to *chunkstore.Repository, o CopyOptions) (*CopyResult, error) {
	if err := o.canLock(ctx, to); err != nil {
		return nil, err
	}
	source, err := openHistory(ctx, from, b.Volume)
	if err != nil {
		return nil, &SourceError{from.Location(), err}
	}
	source.add(b)
	dest, err := openHistory(ctx, to, b.Volume)
	if err != nil {
		return nil, err
	}
	c := copier{from: source, to: dest, o: o}
	return c.copy(ctx, b)
}

// canLock is asked before anything is read.
func (o *CopyOptions) canLock(ctx context.Context, to *chunkstore.Repository) error {
	if o.LockFor.IsZero() {
		return nil
	}
	if err := to.CanLock(ctx); err != nil {
		return fmt.Errorf("lock copies: %w", err)
	}
	return nil
}

// copier copies backups of one volume.
type copier struct {
	from, to *history
	o        CopyOptions
}

func (c *copier) copy(ctx context.Context, b *chunkstore.Backup) (*CopyResult, error) {
	origin := c.from.repo.Origin(b)
	if there, err := c.to.find(ctx, origin); err != nil {
		return nil, err
	} else if there != nil {
		return &CopyResult{Backup: there, Existed: true}, nil
	}
	base, copied, err := c.base(ctx, b)
	if err != nil {
		return nil, err
	}
	rec := chunkstore.Backup{
		ID: b.ID, Volume: b.Volume, Time: b.Time, Host: b.Host, Labels: b.Labels, Source: b.Source, Origin: &origin,
	}
	if base != nil {
		src, compared := newBackupSource(c.from.repo, b, base), rec
		compared.Parent = copied.ID
		res, err := c.store(ctx, src, copied, &compared)
		if !damaged(err) || !src.baseDamaged(ctx) {
			return res, err
		}
	}
	return c.store(ctx, newBackupSource(c.from.repo, b, nil), nil, &rec)
}

// base returns the nearest backup that both repositories have, as the two records; nil when there is none.
func (c *copier) base(ctx context.Context, b *chunkstore.Backup) (source, copied *chunkstore.Backup, err error) {
	for _, id := range c.from.nearest(b.ID) {
		if !c.to.has(id) {
			continue
		}
		source, err = c.from.record(ctx, id)
		if unusable(err) {
			continue
		}
		if err != nil {
			return nil, nil, &SourceError{c.from.repo.Location(), err}
		}
		copied, err = c.to.record(ctx, id)
		if unusable(err) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		same := c.from.repo.Origin(source) == c.to.repo.Origin(copied)
		if same && source.Blob.Size == copied.Blob.Size && source.Blob.Data == copied.Blob.Data {
			return source, copied, nil
		}
	}
	return nil, nil, nil
}

// unusable reports whether err is of a record that is damaged or went meanwhile.
func unusable(err error) bool { return damaged(err) || errors.Is(err, chunkstore.ErrUnsupported) }

// store writes the content and the record. copied is the base in the destination, nil for none.
func (c *copier) store(ctx context.Context, src *backupSource, copied, rec *chunkstore.Backup) (res *CopyResult, err error) {
	start := time.Now()
	to := c.to.repo
	w, err := to.NewWriter(ctx, chunkstore.WriterOptions{Compression: c.o.Compression})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if rec.Blob, err = storeBlob(ctx, to, w, src, copied, BackupOptions{Workers: c.o.Workers, Progress: c.o.Progress}); err != nil {
		return nil, err
	}
	if want := src.record.Blob; rec.Blob.Size != want.Size || rec.Blob.Data != want.Data { // holes are holes wherever chunks are cut
		return nil, fmt.Errorf("backup %s became %d of %d bytes, not %d of %d: its base %s is not what its record says; the copy was given up",
			rec.ID, rec.Blob.Data, rec.Blob.Size, want.Data, want.Size, rec.Parent)
	}
	if err := w.Flush(ctx); err != nil {
		return nil, err
	}
	rec.Counts = counts(src.Stats(), w.Stats(), start)
	if !c.o.LockFor.IsZero() {
		if err := w.Lock(ctx, rec, c.o.LockMode, c.o.LockFor.After(time.Now())); err != nil {
			return nil, fmt.Errorf("lock the copy: %w", err)
		}
	}
	there, err := c.putRecord(ctx, w, rec)
	if err != nil {
		return nil, err
	}
	_ = to.CompactIndex(ctx) // as in Backup
	if there != nil {
		return &CopyResult{Backup: there, Existed: true, Writer: w.Stats()}, nil
	}
	c.to.add(rec)
	return &CopyResult{Backup: rec, Writer: w.Stats(), Lock: w.LockReport()}, nil
}

// putRecord writes the record under an ID that is free. there is the same backup's when somebody else was quicker.
func (c *copier) putRecord(ctx context.Context, w *chunkstore.Writer, rec *chunkstore.Backup) (there *chunkstore.Backup, err error) {
	when := chunkstore.BackupTime(rec.ID)
	for range 32 {
		if c.to.has(rec.ID) { // another 20 random bits
			if rec.ID, err = chunkstore.NewBackupID(when); err != nil {
				return nil, err
			}
			continue
		}
		if err = w.PutBackup(ctx, rec); !errors.Is(err, backend.ErrExist) {
			return nil, err
		}
		if c.to, err = openHistory(ctx, c.to.repo, rec.Volume); err != nil {
			return nil, err
		}
		if there, err = c.to.find(ctx, *rec.Origin); err != nil || there != nil {
			return there, err
		}
	}
	return nil, fmt.Errorf("no free ID for a backup of %v: %w", when, backend.ErrExist)
}
