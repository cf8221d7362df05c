package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// ObjectLock keeps what a backup needs from being deleted, by anyone, where the backend has such locks (backend.ObjectLocker): its
// packs, its record, its volume's name, and what the whole repository needs to be read. The index is left out, which the packs alone can
// make anew.
type ObjectLock struct {
	Mode  backend.LockMode `json:"mode"`
	Until time.Time        `json:"until"` // at least
}

// LockReport is what a lock took.
type LockReport struct {
	ObjectLock
	Objects  int `json:"objects"`  // looked at: those that no earlier lock is known to cover
	Extended int `json:"extended"` // of these, locked now, or for longer
}

// ErrNoObjectLock: the backend has no object locks.
var ErrNoObjectLock = errors.New("this kind of repository has no object locks; S3 buckets can have them")

const (
	// lockSlack: locks are made to last by this part of their length longer than asked for, so that the next backups, which want a later
	// end, find it covered, and need to look only at what is new.
	lockSlack = 8
	// lockRequests is how many locks are looked at or made at once: they move no bytes, only wait for answers.
	lockRequests = 16
)

// lockedPrefixes are of objects beside the configuration that each backup needs to be read.
var lockedPrefixes = []string{prefixKeys, prefixEpochs}

// CanLock returns nil where backups can be locked, and else says why not.
func (r *Repository) CanLock(ctx context.Context) error {
	l, ok := backend.As[backend.ObjectLocker](r.be)
	if !ok {
		return ErrNoObjectLock
	}
	return l.CanRetain(ctx)
}

// locker returns what knows about locks; nil where there are none.
func (r *Repository) locker(ctx context.Context) (backend.ObjectLocker, error) {
	l, ok := backend.As[backend.ObjectLocker](r.be)
	if !ok {
		return nil, nil
	}
	err := l.CanRetain(ctx)
	if errors.Is(err, backend.ErrNoLock) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for object locks: %w", err)
	}
	return l, nil
}

// writerLock is the lock that a Writer puts on what its backups need.
type writerLock struct {
	w      *Writer
	locker backend.ObjectLocker
	want   ObjectLock // to the end that is made, with slack

	mu   sync.Mutex // guards all below
	done map[string]struct{}
	rep  LockReport
}

// Lock locks the packs that b's blob needs, which is flushed, and has PutBackup lock the rest with the record; b.Lock then says so. What
// b's parent needs too is passed over where the parent's own lock covers it. It comes right before PutBackup.
func (w *Writer) Lock(ctx context.Context, b *Backup, mode backend.LockMode, until time.Time) error {
	if err := w.r.CanLock(ctx); err != nil {
		return err
	}
	left := time.Until(until)
	if left <= 0 {
		return fmt.Errorf("a lock until %s: that is past", until.Format(time.RFC3339))
	}
	locker, _ := backend.As[backend.ObjectLocker](w.r.be)
	l := &writerLock{
		w: w, locker: locker, want: ObjectLock{mode, until.Add(left / lockSlack).UTC().Truncate(time.Second)}, done: map[string]struct{}{},
	}
	base, covered, err := l.base(ctx, b, until)
	if err != nil {
		return err
	}
	walk := lockWalk{r: w.r, blob: w.r.OpenBlob(b.Blob), base: base, packs: map[string]struct{}{}}
	if err := walk.subtree(ctx, b.Blob.Root, walk.blob.level, 0); err != nil {
		return fmt.Errorf("what the backup needs cannot be told: %w", err)
	}
	if err := l.objects(ctx, walk.packs); err != nil {
		return err
	}
	b.Lock = &ObjectLock{mode, l.want.Until}
	if base != nil && covered.Before(b.Lock.Until) {
		b.Lock.Until = covered
	}
	l.rep.ObjectLock = *b.Lock
	w.lock = l
	return nil
}

// LockReport says what Lock and PutBackup locked; nil when nothing was to be locked.
func (w *Writer) LockReport() *LockReport {
	if w.lock == nil {
		return nil
	}
	w.lock.mu.Lock()
	defer w.lock.mu.Unlock()
	rep := w.lock.rep
	return &rep
}

// base returns the blob of b's parent, and to when its lock covers it, if that is as late as until. A record may have been copied from another
// repository, so it counts only when it is locked itself.
func (l *writerLock) base(ctx context.Context, b *Backup, until time.Time) (*Blob, time.Time, error) {
	none := time.Time{}
	if b.Parent == "" {
		return nil, none, nil
	}
	r := l.w.r
	p, err := r.Backup(ctx, b.Volume, b.Parent)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
		return nil, none, nil
	}
	if err != nil {
		return nil, none, err
	}
	if p.Lock == nil || p.Lock.Until.Before(until) || (p.Lock.Mode != l.want.Mode && p.Lock.Mode != backend.Compliance) {
		return nil, none, nil
	}
	held, err := l.locker.Retained(ctx, r.backupObject(p.Volume, p.ID))
	if err != nil || held.Before(p.Lock.Until) {
		return nil, none, err
	}
	return r.OpenBlob(p.Blob), p.Lock.Until, nil
}

// objects locks them, but for those that are locked already.
func (l *writerLock) objects(ctx context.Context, names map[string]struct{}) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lockRequests)
	for name := range names {
		l.mu.Lock()
		_, locked := l.done[name]
		l.mu.Unlock()
		if locked {
			continue
		}
		g.Go(func() error {
			longer, err := l.locker.Retain(ctx, name, l.want.Mode, l.want.Until)
			if err != nil {
				return err
			}
			l.mu.Lock()
			l.done[name] = struct{}{}
			l.rep.Objects++
			if longer {
				l.rep.Extended++
			}
			l.mu.Unlock()
			return nil
		})
	}
	return g.Wait()
}

// recorded locks the record, what the repository needs to be read, and what the Writer has put since Lock: a prune may have made it store
// something anew.
func (l *writerLock) recorded(ctx context.Context, b *Backup) error {
	names := map[string]struct{}{objectConfig: {}, l.w.r.backupObject(b.Volume, b.ID): {}, prefixVolumes + l.w.r.volumeKey(b.Volume): {}}
	for _, prefix := range lockedPrefixes {
		err := l.w.r.be.List(ctx, prefix, func(o backend.Object) error {
			names[o.Name] = struct{}{}
			return nil
		})
		if err != nil {
			return fmt.Errorf("list the keys: %w", err)
		}
	}
	l.w.mu.Lock()
	for _, name := range l.w.packs {
		names[name] = struct{}{}
	}
	l.w.mu.Unlock()
	if err := l.objects(ctx, names); err != nil {
		return fmt.Errorf("backup %s is recorded, but not all that it needs is locked: %w", b.ID, err)
	}
	return nil
}

// lockWalk finds the packs that a blob needs.
type lockWalk struct {
	r          *Repository
	blob, base *Blob // what base has in the same place is passed over; nil: none

	mu    sync.Mutex // guards packs
	packs map[string]struct{}
}

// subtree walks the subtree at level with that number.
func (w *lockWalk) subtree(ctx context.Context, id ID, level int, number int64) error {
	if id.IsZero() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.base != nil {
		old, virtual, err := w.base.subtree(ctx, level, number)
		if err != nil {
			return err
		}
		if old == id && !virtual {
			return nil
		}
	}
	if err := w.needs(ctx, "tree node", &id); err != nil {
		return err
	}
	if level == 0 {
		chunks, err := w.r.loadLeaf(ctx, id, w.blob.spanLen(number))
		if err != nil {
			return err
		}
		for i := range chunks {
			if err := w.needs(ctx, "chunk", &chunks[i].ID); err != nil {
				return err
			}
		}
		return nil
	}
	n, err := w.r.loadNode(ctx, id, level)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if level == 1 { // leaves are many, and far away
		g.SetLimit(lockRequests)
	} else {
		g.SetLimit(1)
	}
	for slot := range nodeFanout {
		g.Go(func() error {
			return w.subtree(ctx, n.children[slot], level-1, number<<nodeFanoutLog+int64(slot))
		})
	}
	return g.Wait()
}

// needs notes the pack that has the record.
func (w *lockWalk) needs(ctx context.Context, what string, id *ID) error {
	l, err := w.r.locate(ctx, what, id)
	if err != nil {
		return err
	}
	name := l.pack.id.object(l.pack.kind)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packs[name] = struct{}{}
	return nil
}

// retained returns an error that is backend.ErrRetained when the object is locked.
func retained(ctx context.Context, l backend.ObjectLocker, name string) error {
	if l == nil {
		return nil
	}
	until, err := l.Retained(ctx, name)
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	if err == nil && !until.IsZero() {
		err = &backend.RetainedError{Name: name, Until: until}
	}
	return err
}
