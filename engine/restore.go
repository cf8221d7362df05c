package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore"
)

// ErrTargetExists: the target holds something and the options do not allow to change it.
var ErrTargetExists = errors.New("target exists")

// RestoreOptions are options of Restore.
type RestoreOptions struct {
	// Overwrite allows a target that exists, and is required for a block device. What it holds already is kept: only what differs
	// is written. Without it the target appears under its name when it is complete.
	Overwrite bool
	// Holds is the backup that the target is known to hold, unchanged: only what differs between the two is fetched, and nothing
	// of the target is read. Nil: not known.
	Holds *chunkstore.Backup
	// Blank says that a target which exists reads as zeros, as a new thin volume does.
	Blank bool
	// Verify reads the target once more when it is complete and checks every chunk against its ID.
	Verify   bool
	Workers  int // default: the repository's Parallel
	Progress Progress
}

// RestoreResult is what a restore did.
type RestoreResult struct {
	Target  string `json:"target"`
	Size    int64  `json:"size"`    // bytes of the volume
	Data    int64  `json:"data"`    // bytes that are not holes
	Fetched int64  `json:"fetched"` // plain bytes that came from the repository
	Written int64  `json:"written"` // bytes written to the target, holes punched not counted
	Kept    int64  `json:"kept"`    // bytes that the target held already
}

// Restore writes a backup to a file or a block device. A restore that was interrupted goes on when it is called again with the
// same options. A file that did not exist is built beside the target, in ".NAME.BACKUP.shale-restore".
func Restore(ctx context.Context, repo *chunkstore.Repository, b *chunkstore.Backup, dest string, o RestoreOptions) (*RestoreResult, error) {
	if o.Workers <= 0 {
		o.Workers = repo.Parallel()
	}
	path, rename, err := restorePath(b, dest, o)
	if err != nil {
		return nil, err
	}
	t, err := openTarget(path, b.Blob.Size, rename)
	if err != nil {
		return nil, err
	}
	r := restore{repo: repo, blob: repo.OpenBlob(b.Blob), target: t, o: o, progress: progressOr(o.Progress)}
	err = r.run(ctx)
	if err == nil {
		err = t.sync()
	}
	if err == nil && o.Verify {
		err = r.verifyTarget(ctx)
	}
	if err = errors.Join(err, t.close()); err != nil {
		return nil, fmt.Errorf("restore to %s: %w", dest, err)
	}
	if rename {
		if err := renameDurably(path, dest); err != nil {
			return nil, fmt.Errorf("restore to %s: %w", dest, err)
		}
	}
	return &RestoreResult{
		Target: dest, Size: b.Blob.Size, Data: b.Blob.Data,
		Fetched: r.fetched.Load(), Written: r.written.Load(), Kept: r.kept.Load(),
	}, nil
}

// restorePath says which file to write, and whether it is to be renamed to dest in the end.
func restorePath(b *chunkstore.Backup, dest string, o RestoreOptions) (path string, rename bool, err error) {
	st, err := os.Stat(dest)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if o.Holds != nil {
			return "", false, fmt.Errorf("%s: it is said to hold backup %s, but does not exist", dest, o.Holds.ID)
		}
		dir, name := filepath.Split(dest)
		return filepath.Join(dir, "."+name+"."+b.ID+".shale-restore"), true, nil
	case err != nil:
		return "", false, err
	case !st.Mode().IsRegular() && st.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice:
		return "", false, fmt.Errorf("%s is neither a file nor a block device", dest)
	case !o.Overwrite:
		return "", false, fmt.Errorf("%s: %w; --overwrite brings it to the backup's state", dest, ErrTargetExists)
	}
	return dest, false, nil
}

// restore is one run of Restore.
type restore struct {
	repo     *chunkstore.Repository
	blob     *chunkstore.Blob
	target   *target
	o        RestoreOptions
	progress Progress

	fetched, written, kept atomic.Int64
}

// restoreBatch is how many bytes one worker fetches at a time.
const restoreBatch = 4 << 20

// piece is a range of the target and its chunks; the gaps between them are holes.
type piece struct {
	chunkstore.Range
	chunks []chunkstore.Chunk
}

func (r *restore) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan piece)
	g.Go(func() error {
		defer close(work)
		return r.plan(ctx, work)
	})
	for range r.o.Workers {
		g.Go(func() error {
			w := restoreWorker{r: r, buf: make([]byte, r.repo.Cutter().MaxChunk())}
			for p := range work {
				if err := w.piece(ctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// plan hands out the pieces that may have to change, in the target's order.
func (r *restore) plan(ctx context.Context, work chan<- piece) error {
	if r.o.Holds == nil {
		r.progress.Total(r.blob.Ref().Data)
		return r.planRange(ctx, work, chunkstore.Range{Len: r.blob.Size()})
	}
	for rg, err := range r.blob.Diff(ctx, r.repo.OpenBlob(r.o.Holds.Blob)) {
		if err != nil {
			return err
		}
		rg.Len = min(rg.End(), r.blob.Size()) - rg.Off
		if rg.Len <= 0 {
			continue
		}
		r.progress.Total(rg.Len)
		if err := r.planRange(ctx, work, rg); err != nil {
			return err
		}
	}
	return nil
}

// planRange cuts a range, which begins and ends between chunks, into pieces.
func (r *restore) planRange(ctx context.Context, work chan<- piece, rg chunkstore.Range) error {
	p := piece{Range: chunkstore.Range{Off: rg.Off}}
	send := func(end int64) error {
		p.Len = end - p.Off
		if p.Len > 0 {
			select {
			case work <- p:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		p = piece{Range: chunkstore.Range{Off: end}}
		return nil
	}
	fetch := 0
	for c, err := range r.blob.Chunks(ctx, rg.Off, rg.End()) {
		if err != nil {
			return err
		}
		if fetch > 0 && fetch+c.Len > restoreBatch {
			if err := send(c.Off); err != nil {
				return err
			}
			fetch = 0
		}
		p.chunks = append(p.chunks, c)
		fetch += c.Len
	}
	return send(rg.End())
}

// restoreWorker brings pieces of the target to the backup's state.
type restoreWorker struct {
	r   *restore
	buf []byte // as long as the longest chunk
}

func (w *restoreWorker) piece(ctx context.Context, p piece) error {
	at := p.Off
	for _, c := range p.chunks {
		if err := w.hole(ctx, at, c.Off); err != nil {
			return err
		}
		at = c.End()
	}
	if err := w.hole(ctx, at, p.End()); err != nil {
		return err
	}
	missing := p.chunks
	if w.r.mustCompare() {
		var err error
		if missing, err = w.missing(ctx, p.chunks); err != nil {
			return err
		}
	}
	r := w.r
	return r.repo.VerifyChunks(ctx, missing, func(i int, data []byte) error {
		if err := r.target.write(data, missing[i].Off); err != nil {
			return err
		}
		r.fetched.Add(int64(len(data)))
		r.written.Add(int64(len(data)))
		r.progress.Add(int64(len(data)))
		return nil
	})
}

// mustCompare reports whether the target may hold anything that is not known.
func (r *restore) mustCompare() bool { return !r.o.Blank && r.o.Holds == nil && !r.target.fresh }

// hole makes [off, end) read as zeros.
func (w *restoreWorker) hole(ctx context.Context, off, end int64) error {
	r := w.r
	switch {
	case off >= end || r.o.Blank || r.target.fresh:
		return nil
	case r.o.Holds != nil:
		return r.target.punch(off, end)
	}
	return r.target.eachData(ctx, w.buf, off, end, func(p []byte, at int64) error {
		if zero(p) { // reads as a hole already
			return nil
		}
		return r.target.punch(at, at+int64(len(p)))
	})
}

// missing returns the chunks that the target does not hold in their places.
func (w *restoreWorker) missing(ctx context.Context, chunks []chunkstore.Chunk) ([]chunkstore.Chunk, error) {
	var out []chunkstore.Chunk
	for _, c := range chunks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		held, err := w.r.holds(w.buf, c)
		if err != nil {
			return nil, err
		}
		if !held {
			out = append(out, c)
			continue
		}
		w.r.kept.Add(int64(c.Len))
		w.r.progress.Add(int64(c.Len))
	}
	return out, nil
}

// holds reports whether the target has the chunk in its place.
func (r *restore) holds(buf []byte, c chunkstore.Chunk) (bool, error) {
	data, err := r.target.nextData(c.Off, c.End())
	if err != nil || data > c.Off { // no chunk begins with a hole
		return false, err
	}
	p := buf[:c.Len]
	if err := r.target.read(p, c.Off); err != nil {
		return false, err
	}
	return r.repo.ChunkID(p) == c.ID, nil
}

// verifyTarget reads the target and compares it with the backup's tree.
func (r *restore) verifyTarget(ctx context.Context) error {
	if err := r.target.dropCache(); err != nil {
		return err
	}
	buf := make([]byte, r.repo.Cutter().MaxChunk())
	hole := func(off, end int64) error {
		return r.target.eachData(ctx, buf, off, end, func(p []byte, at int64) error {
			if !zero(p) {
				return fmt.Errorf("verify: what should be a hole at %d reads as data", at)
			}
			return nil
		})
	}
	at := int64(0)
	for c, err := range r.blob.Chunks(ctx, 0, r.blob.Size()) {
		if err != nil {
			return err
		}
		if err := hole(at, c.Off); err != nil {
			return err
		}
		held, err := r.holds(buf, c)
		if err != nil {
			return err
		}
		if !held {
			return fmt.Errorf("verify: %d bytes at %d of the target are not those of the backup", c.Len, c.Off)
		}
		at = c.End()
	}
	return hole(at, r.blob.Size())
}

// zero reports whether p is all zeros.
func zero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if string(p[:n]) != zeros[:n] {
			return false
		}
		p = p[n:]
	}
	return true
}

var zeros = string(make([]byte, 4096))
