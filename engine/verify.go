package engine

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore"
)

// VerifyReport is what Verify read and found.
type VerifyReport struct {
	Volume string         `json:"volume"`
	Backup string         `json:"backup"`
	Size   int64          `json:"size"`
	Data   int64          `json:"data"`   // bytes that are not holes, by the record
	Read   int64          `json:"read"`   // plain bytes read and found right
	Damage []VerifyDamage `json:"damage"` // empty: every byte can be restored
}

// VerifyDamage is a part of the backup that cannot be read.
type VerifyDamage struct {
	chunkstore.Range
	Error string `json:"error"`
}

// Verify reads every chunk of a backup and checks it against its ID. Damage is in the report; the error is of reading at all.
func Verify(ctx context.Context, repo *chunkstore.Repository, b *chunkstore.Backup, progress Progress) (*VerifyReport, error) {
	v := verify{
		repo: repo, blob: repo.OpenBlob(b.Blob), progress: progressOr(progress),
		rep: VerifyReport{Volume: b.Volume, Backup: b.ID, Size: b.Blob.Size, Data: b.Blob.Data, Damage: []VerifyDamage{}},
	}
	v.progress.Total(b.Blob.Data)
	g, ctx := errgroup.WithContext(chunkstore.FromStore(ctx))
	work := make(chan []chunkstore.Chunk)
	g.Go(func() error {
		defer close(work)
		return v.walk(ctx, work)
	})
	for range repo.Parallel() {
		g.Go(func() error {
			for chunks := range work {
				if err := v.chunks(ctx, chunks); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	v.rep.Damage = joined(v.rep.Damage)
	return &v.rep, nil
}

type verify struct {
	repo     *chunkstore.Repository
	blob     *chunkstore.Blob
	progress Progress

	mu  sync.Mutex // guards rep
	rep VerifyReport
}

// walk hands out all chunks in batches.
func (v *verify) walk(ctx context.Context, work chan<- []chunkstore.Chunk) error {
	var batch []chunkstore.Chunk
	fetch := 0
	flush := func() error {
		full := batch
		batch, fetch = nil, 0
		return send(ctx, work, full)
	}
	take := func(chunks []chunkstore.Chunk) error {
		for _, c := range chunks {
			batch = append(batch, c)
			if fetch += c.Len; fetch >= restoreBatch {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	lost := func(r chunkstore.Range, err error) error {
		v.damage(r, err)
		return nil
	}
	if err := v.blob.Survey(ctx, take, lost); err != nil {
		return err
	}
	return flush()
}

func send(ctx context.Context, work chan<- []chunkstore.Chunk, batch []chunkstore.Chunk) error {
	if len(batch) == 0 {
		return nil
	}
	select {
	case work <- batch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// chunks reads a batch; when that fails, the rest of it one by one, to tell which it is.
func (v *verify) chunks(ctx context.Context, chunks []chunkstore.Chunk) error {
	done := make([]bool, len(chunks))
	err := v.repo.VerifyChunks(ctx, chunks, func(i int, data []byte) error {
		done[i] = true
		v.progress.Add(int64(len(data)))
		v.mu.Lock()
		defer v.mu.Unlock()
		v.rep.Read += int64(len(data))
		return nil
	})
	if err == nil || !damaged(err) {
		return err
	}
	if len(chunks) == 1 {
		v.damage(chunkstore.Range{Off: chunks[0].Off, Len: int64(chunks[0].Len)}, err)
		return nil
	}
	for i := range chunks {
		if !done[i] {
			if err := v.chunks(ctx, chunks[i:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// joined sorts damage and joins neighbours that have one cause: an inner node may stand for many spans.
func joined(damage []VerifyDamage) []VerifyDamage {
	slices.SortFunc(damage, func(a, b VerifyDamage) int { return cmp.Compare(a.Off, b.Off) })
	var out []VerifyDamage
	for _, d := range damage {
		if n := len(out); n > 0 && out[n-1].End() == d.Off && out[n-1].Error == d.Error {
			out[n-1].Len += d.Len
			continue
		}
		out = append(out, d)
	}
	return out
}

func damaged(err error) bool {
	var c *chunkstore.CorruptError
	if errors.As(err, &c) && c.InIndex() { // what cannot be looked up may be sound
		return false
	}
	return errors.Is(err, chunkstore.ErrCorrupt) || errors.Is(err, chunkstore.ErrNotFound)
}

func (v *verify) damage(r chunkstore.Range, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rep.Damage = append(v.rep.Damage, VerifyDamage{r, err.Error()})
}
