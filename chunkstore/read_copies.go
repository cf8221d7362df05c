package chunkstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Two hosts that stored the same chunk at once stored it twice, and a repair or a prune that was cut short leaves second copies too. So a
// record that cannot be read where the index first says is looked for in every other place that the index knows.

// readAny calls read with the places of a record, the best first, until one is good.
func (r *Repository) readAny(ctx context.Context, what string, id *ID, read func(location) error) error {
	l, err := r.locate(ctx, what, id)
	if err != nil {
		return err
	}
	if err = read(l); err == nil || !errors.Is(err, ErrCorrupt) {
		return err
	}
	return r.readElsewhere(ctx, id, l, err, read)
}

// readElsewhere is readAny for a record that could not be read at l because of err, which it returns if no other place is good. A
// prune may have moved the record: the index is listed again before it is given up.
func (r *Repository) readElsewhere(ctx context.Context, id *ID, l location, err error, read func(location) error) error {
	if !errors.Is(err, ErrCorrupt) {
		return err
	}
	k := id.key()
	seen := r.index.refreshes()
	tried := []location{l}
	for again := false; ; again = true {
		for _, other := range r.index.resolveAll(ctx, &k) {
			if slices.ContainsFunc(tried, other.same) {
				continue
			}
			tried = append(tried, other)
			next := read(other)
			if next == nil {
				r.spared(err)
				return nil
			}
			if !errors.Is(next, ErrCorrupt) {
				return next
			}
		}
		failure, now := readFailure{l.pack.id, errors.Is(err, backend.ErrNotExist)}, r.bootTime()
		if again || !r.failures.worthListing(failure, now) || r.index.refreshAfter(ctx, seen) != nil {
			return err
		}
		r.failures.listed(failure, now)
	}
}

// same reports whether two locations are one place.
func (l location) same(o location) bool { return l.pack.id == o.pack.id && l.off == o.off }

// spared tells of damage that another copy made good. A missing pack is none: a prune may have removed it.
func (r *Repository) spared(err error) {
	if r.opts.Damaged != nil && !errors.Is(err, backend.ErrNotExist) {
		r.opts.Damaged(err)
	}
}

// readFailures remember which packs could not be read, so that the index is not listed again for each of the thousands of
// records in a pack that is lost.
type readFailures struct {
	mu sync.Mutex // guards at
	at map[readFailure]time.Duration
}

type readFailure struct {
	pack    packID
	missing bool
}

// listAgain is how long a failed pack's records are believed to be nowhere else.
const listAgain = time.Minute

// worthListing reports whether the index may say something new of the pack.
func (f *readFailures) worthListing(k readFailure, now time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, ok := f.at[k]
	return !ok || now-last >= listAgain
}

func (f *readFailures) listed(k readFailure, now time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at == nil {
		f.at = map[readFailure]time.Duration{}
	}
	f.at[k] = now
}
