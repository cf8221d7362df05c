package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
)

// Label is a label that a backup may have: KEY=VALUE, or KEY with whatever value.
type Label struct {
	Key   string
	Value string
	Any   bool // whatever value
}

// ParseLabel reads "KEY" or "KEY=VALUE".
func ParseLabel(s string) (Label, error) {
	key, value, ok := strings.Cut(s, "=")
	if key == "" {
		return Label{}, fmt.Errorf("label %q: KEY or KEY=VALUE is expected", s)
	}
	return Label{Key: key, Value: value, Any: !ok}, nil
}

// On reports whether the backup has the label.
func (l Label) On(b *chunkstore.Backup) bool {
	v, ok := b.Labels[l.Key]
	return ok && (l.Any || v == l.Value)
}

// ForgetOptions are options of Forget.
type ForgetOptions struct {
	Retention Retention
	Volume    string    // only this one's backups; empty: every volume's
	Labels    []Label   // only backups that have all of these; the others are neither counted nor touched
	DryRun    bool      // only decide
	Now       time.Time // default: this host's clock
	Progress  Progress  // counts backups deleted
}

// ForgetReport is what Forget decided and did.
type ForgetReport struct {
	Decisions []Decision // by volume, the newest backup first
	Forgotten int        // records deleted, or to be deleted with DryRun
	Damage    []error    // records that cannot be read: they were left, and counted for no rule
}

// forgetParallel is how many records are deleted at once.
const forgetParallel = 8

// Forget deletes the records of the backups that the retention does not keep. Nothing is deleted before all of them are read and
// decided on. What only they needed stays until a prune. Errors: those of Retention.Validate; a *chunkstore.NotFoundError for a
// volume that the repository does not have. With an error beside it, the report says what was decided, and how many were deleted.
func Forget(ctx context.Context, repo *chunkstore.Repository, o ForgetOptions) (*ForgetReport, error) {
	if err := o.Retention.Validate(); err != nil {
		return nil, err
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	rep := &ForgetReport{}
	backups, err := rep.candidates(ctx, repo, o)
	if err != nil {
		return nil, err
	}
	rep.Decisions = o.Retention.Decide(backups, o.Now)
	var gone []*chunkstore.Backup
	for _, d := range rep.Decisions {
		if !d.Kept() {
			gone = append(gone, d.Backup)
		}
	}
	if o.DryRun {
		rep.Forgotten = len(gone)
		return rep, nil
	}
	rep.Forgotten, err = deleteBackups(ctx, repo, gone, progressOr(o.Progress))
	return rep, err
}

// candidates reads the records that the options choose.
func (rep *ForgetReport) candidates(ctx context.Context, repo *chunkstore.Repository, o ForgetOptions) (backups []*chunkstore.Backup, err error) {
	if o.Volume != "" {
		if err := mustHaveVolume(ctx, repo, o.Volume); err != nil {
			return nil, err
		}
	}
	err = repo.WalkBackups(ctx, o.Volume, func(_ string, b *chunkstore.Backup, err error) error {
		switch {
		case damaged(err):
			rep.Damage = append(rep.Damage, err)
			return nil
		case err != nil:
			return fmt.Errorf("read backup record: %w", err)
		}
		if !slices.ContainsFunc(o.Labels, func(l Label) bool { return !l.On(b) }) {
			backups = append(backups, b)
		}
		return nil
	})
	return backups, err
}

// mustHaveVolume fails when the repository never had a backup of the volume: a name mistyped.
func mustHaveVolume(ctx context.Context, repo *chunkstore.Repository, volume string) error {
	ids, err := repo.Backups(ctx, volume)
	if err != nil || len(ids) > 0 {
		return err
	}
	volumes, err := repo.Volumes(ctx)
	if err == nil && !slices.Contains(volumes, volume) {
		err = &chunkstore.NotFoundError{What: "volume", Name: volume}
	}
	return err
}

// deleteBackups deletes records and says how many are gone.
func deleteBackups(ctx context.Context, repo *chunkstore.Repository, gone []*chunkstore.Backup, progress Progress) (int, error) {
	progress.Total(int64(len(gone)))
	errs := make([]error, len(gone))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(forgetParallel)
	for i, b := range gone {
		g.Go(func() error {
			errs[i] = repo.DeleteBackup(gctx, b.Volume, b.ID)
			if errors.Is(errs[i], chunkstore.ErrNotFound) {
				errs[i] = nil // somebody else was quicker
			}
			progress.Add(1)
			if errors.Is(errs[i], backend.ErrRetained) {
				return nil // the others are deleted all the same
			}
			return errs[i]
		})
	}
	err := g.Wait()
	n := 0
	var locked []error
	for _, err := range errs {
		switch {
		case err == nil:
			n++
		case errors.Is(err, backend.ErrRetained):
			locked = append(locked, err)
		}
	}
	return n, errors.Join(append(locked, err)...)
}
