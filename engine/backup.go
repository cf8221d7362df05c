package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/limit"
	"github.com/shalebackup/shale/engine/source"
)

// BackupOptions are options of Backup.
type BackupOptions struct {
	Volume      string            // name in the repository; required
	Base        string            // ID of the backup to compare with; empty: the newest that the source can be compared with
	Full        bool              // compare with none
	Labels      map[string]string // kept in the record
	Host        string            // kept in the record; default: the host's name
	Compression chunkstore.Compression
	Workers     int              // spans in work at once; default GOMAXPROCS, at least 2 so that reading and computing overlap
	ReadRate    *limit.Bucket    // at which all workers together read the source's data; nil: no limit
	LockFor     Period           // for which nothing that the backup needs can be deleted; zero: it is not locked
	LockMode    backend.LockMode // required for a lock
	Progress    Progress
}

// BackupResult is what a backup did.
type BackupResult struct {
	Backup *chunkstore.Backup // the record, as it was written
	Parent string             // ID of the backup it was compared with; empty: everything was read
	Reason string             // why everything was read
	Writer chunkstore.WriterStats
	Lock   *chunkstore.LockReport // nil: it was not to be locked
}

// Backup stores the volume that opener opens as a new backup in the repository.
func Backup(ctx context.Context, repo *chunkstore.Repository, opener source.Opener, o BackupOptions) (res *BackupResult, err error) {
	if !chunkstore.ValidVolumeName(o.Volume) {
		return nil, fmt.Errorf("volume name %q: letters, digits, '_', '.', '-', beginning with a letter or digit", o.Volume)
	}
	if !o.LockFor.IsZero() {
		if err := repo.CanLock(ctx); err != nil { // before anything is read
			return nil, fmt.Errorf("lock the backup: %w", err)
		}
	}
	start := time.Now()
	records := map[string]*chunkstore.Backup{}
	var harmed []string // backups that have lost something, and are compared with no more
	src, base, err := opener.Open(ctx, parents(ctx, repo, o, records, &harmed))
	if err != nil {
		return nil, err
	}
	if len(harmed) > 0 && base.Parent == nil {
		base.Reason = fmt.Sprintf("backup %s has lost data; %s", harmed[0], base.Reason)
	}
	defer func() { // also after a cancelled context: the source must be released
		err = errors.Join(err, src.Close(context.WithoutCancel(ctx), err == nil))
	}()
	rec := &chunkstore.Backup{Volume: o.Volume, Time: start.UTC(), Host: o.Host, Labels: o.Labels}
	if rec.Host == "" {
		if rec.Host, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("this host's name: %w", err)
		}
	}
	var parent *chunkstore.Backup
	if base.Parent != nil {
		if parent = records[base.Parent.ID]; parent == nil {
			return nil, fmt.Errorf("source compares with backup %s, which was not offered", base.Parent.ID)
		}
		rec.Parent = parent.ID
	}
	w, err := repo.NewWriter(ctx, chunkstore.WriterOptions{Compression: o.Compression})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if rec.Blob, err = storeBlob(ctx, repo, w, src, parent, o); err != nil {
		return nil, err
	}
	if err := w.Flush(ctx); err != nil {
		return nil, err
	}
	if s, ok := src.(rechecker); ok {
		if err := s.Recheck(ctx); err != nil {
			return nil, err
		}
	}
	rec.Source = src.State()
	rec.Counts = counts(src.Stats(), w.Stats(), start)
	if !o.LockFor.IsZero() {
		if err := w.Lock(ctx, rec, o.LockMode, o.LockFor.After(time.Now())); err != nil {
			return nil, fmt.Errorf("lock the backup: %w", err)
		}
	}
	if err := w.PutBackup(ctx, rec); err != nil {
		return nil, err
	}
	// The backup is complete. Merging the index is a service to the next, and may be left to it.
	_ = repo.CompactIndex(ctx)
	return &BackupResult{Backup: rec, Parent: rec.Parent, Reason: base.Reason, Writer: w.Stats(), Lock: w.LockReport()}, nil
}

// rechecker is a source that can tell whether all that it answered still holds. It is asked before the record is written.
type rechecker interface{ Recheck(context.Context) error }

func counts(s source.Stats, w chunkstore.WriterStats, start time.Time) chunkstore.Counts {
	return chunkstore.Counts{
		Read: s.BytesRead, MetadataBlocks: s.MetadataBlocks, Chunks: w.Chunks, New: w.NewBytes, NewChunks: w.NewChunks,
		NewNodes: w.NewNodes, Stored: w.Stored, Seconds: time.Since(start).Seconds(),
	}
}

// parents yields the candidates for the base, the newest first, and keeps their records. Those that have lost something are none.
func parents(ctx context.Context, repo *chunkstore.Repository, o BackupOptions, records map[string]*chunkstore.Backup, harmed *[]string) iter.Seq2[source.Parent, error] {
	return func(yield func(source.Parent, error) bool) {
		if o.Full {
			return
		}
		ids := []string{o.Base}
		if o.Base == "" {
			var err error
			if ids, err = repo.Backups(ctx, o.Volume); err != nil {
				yield(source.Parent{}, err)
				return
			}
			slices.Reverse(ids)
		}
		for _, id := range ids {
			b, err := repo.Backup(ctx, o.Volume, id)
			if errors.Is(err, chunkstore.ErrNotFound) && o.Base == "" {
				continue // went meanwhile
			}
			if err == nil {
				err = repo.Lost(ctx, b)
				if damaged(err) && o.Base == "" {
					*harmed = append(*harmed, id)
					continue
				}
			}
			if err != nil {
				yield(source.Parent{}, err)
				return
			}
			records[id] = b
			elsewhere := repo.Origin(b).Repository != repo.ID()
			if !yield(source.Parent{ID: id, Size: b.Blob.Size, State: b.Source, Elsewhere: elsewhere}, nil) {
				return
			}
		}
	}
}

// storeBlob stores the source's content, on the parent's tree where there is one.
func storeBlob(ctx context.Context, repo *chunkstore.Repository, w *chunkstore.Writer, src source.Source, parent *chunkstore.Backup, o BackupOptions) (chunkstore.BlobRef, error) {
	var base *chunkstore.Blob
	if parent != nil {
		base = repo.OpenBlob(parent.Blob)
	}
	builder, err := w.NewBlob(ctx, src.Size(), base)
	if err != nil {
		return chunkstore.BlobRef{}, err
	}
	workers := o.Workers
	if workers <= 0 {
		workers = max(2, runtime.GOMAXPROCS(0))
	}
	p := pipeline{
		src: paced(src, o.ReadRate), base: base, writer: w, builder: builder, cutter: repo.Cutter(), spanBytes: int64(repo.SpanBytes()),
		workers: workers, progress: progressOr(o.Progress),
	}
	if err := p.run(ctx); err != nil {
		return chunkstore.BlobRef{}, err
	}
	return builder.Finish(ctx)
}
