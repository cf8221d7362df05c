package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine/source"
)

// SourceError is a failure to read the repository that is copied from.
type SourceError struct {
	Location string // of the repository
	Err      error
}

func (e *SourceError) Error() string { return fmt.Sprintf("read from %s: %v", e.Location, e.Err) }
func (e *SourceError) Unwrap() error { return e.Err }

// backupSource is a backup in a repository as a source for another: what differs from its base is known from their trees.
type backupSource struct {
	repo   *chunkstore.Repository
	record *chunkstore.Backup
	blob   *chunkstore.Blob
	base   *chunkstore.Blob // nil: none
	read   atomic.Int64     // plain bytes of chunks
	undiff atomic.Bool      // the two trees could not be compared
}

var _ source.Source = (*backupSource)(nil)

func newBackupSource(repo *chunkstore.Repository, record, base *chunkstore.Backup) *backupSource {
	s := &backupSource{repo: repo, record: record, blob: repo.OpenBlob(record.Blob)}
	if base != nil {
		s.base = repo.OpenBlob(base.Blob)
	}
	return s
}

func (s *backupSource) fail(err error) error { return &SourceError{s.repo.Location(), err} }

// Size implements source.Source.
func (s *backupSource) Size() int64 { return s.blob.Size() }

// Extents implements source.Source: chunks that follow each other are one extent.
func (s *backupSource) Extents(ctx context.Context) iter.Seq2[source.Extent, error] {
	return func(yield func(source.Extent, error) bool) {
		for rg, err := range s.ranges(ctx) {
			if err != nil {
				s.undiff.Store(true)
				yield(source.Extent{}, s.fail(err))
				return
			}
			if !s.rangeExtents(ctx, rg, yield) {
				return
			}
		}
	}
}

// ranges are those that may differ from the base.
func (s *backupSource) ranges(ctx context.Context) iter.Seq2[chunkstore.Range, error] {
	if s.base != nil {
		return s.blob.Diff(ctx, s.base)
	}
	return func(yield func(chunkstore.Range, error) bool) { yield(chunkstore.Range{Len: s.Size()}, nil) }
}

// rangeExtents yields the data in a range, and the holes too where there is a base, which may have data there. It returns false
// when no more is wanted, or after an error.
func (s *backupSource) rangeExtents(ctx context.Context, rg chunkstore.Range, yield func(source.Extent, error) bool) bool {
	end := min(rg.End(), s.Size())
	at := rg.Off // all before is yielded, but for data
	var data source.Extent
	flush := func() bool {
		e := data
		data = source.Extent{}
		return e.Len == 0 || yield(e, nil)
	}
	hole := func(to int64) bool {
		return s.base == nil || at >= to || yield(source.Extent{Off: at, Len: to - at, Hole: true}, nil)
	}
	for c, err := range s.blob.Chunks(ctx, rg.Off, end) {
		if err != nil {
			yield(source.Extent{}, s.fail(err))
			return false
		}
		off, to := max(c.Off, rg.Off), min(c.End(), end)
		if off > at && (!flush() || !hole(off)) {
			return false
		}
		if data.Len == 0 {
			data.Off = off
		}
		data.Len, at = to-data.Off, to
	}
	return flush() && hole(end)
}

// ReadAt implements source.Source. Every chunk is checked against its whole ID.
func (s *backupSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	clear(p)
	var chunks []chunkstore.Chunk
	for c, err := range s.blob.Chunks(ctx, off, off+int64(len(p))) {
		if err != nil {
			return s.fail(err)
		}
		chunks = append(chunks, c)
	}
	err := s.repo.VerifyChunks(ctx, chunks, func(i int, data []byte) error {
		c := &chunks[i]
		s.read.Add(int64(len(data)))
		if c.Off < off {
			data = data[off-c.Off:]
		}
		copy(p[max(c.Off-off, 0):], data)
		return nil
	})
	if err != nil {
		return s.fail(err)
	}
	return nil
}

// baseDamaged reports whether the trees could not be compared though that of the backup itself can be read.
func (s *backupSource) baseDamaged(ctx context.Context) bool {
	if s.base == nil || !s.undiff.Load() {
		return false
	}
	for _, err := range s.blob.Chunks(ctx, 0, s.Size()) {
		if err != nil {
			return false
		}
	}
	return true
}

// State implements source.Source: the content is the same, so whatever an incremental backup of the volume may compare with the one
// it may compare with the other.
func (s *backupSource) State() json.RawMessage { return s.record.Source }

// Stats implements source.Source.
func (s *backupSource) Stats() source.Stats { return source.Stats{BytesRead: s.read.Load()} }

// Close implements source.Source.
func (s *backupSource) Close(context.Context, bool) error { return nil }
