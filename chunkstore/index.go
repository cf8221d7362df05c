package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// index says where each record is: the segments of the repository, and what this process has put since and not yet
// written to a segment.
type index struct {
	r     *Repository
	cache *segmentCache // nil: segments are kept on the heap

	// changing is held, also during I/O, by whoever replaces segments: a refresh, a flush or a merge. It is taken before mu.
	changing sync.Mutex

	mu        sync.RWMutex // guards all below
	segs      []*segment   // those listed at the last refresh, and our own since
	old       []*segment   // no longer listed, perhaps still in use: their memory stays until close
	pending   map[key]indexEntry
	packs     []packRef // of pending
	begun     uint64    // refreshes begun
	refreshed uint64    // the last refresh that succeeded, by its number
	trash     *trashSet
	trashRead time.Duration // when trash was listed, by bootTime
}

func newIndex(r *Repository) (*index, error) {
	x := &index{r: r, pending: map[key]indexEntry{}, trash: newTrashSet(nil, nil), trashRead: r.bootTime()}
	if r.opts.CacheDir != "" {
		var err error
		if x.cache, err = openSegmentCache(r.opts.CacheDir, r.cfg.ID); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, s := range slices.Concat(x.segs, x.old) {
		errs = append(errs, unmapSegment(s))
	}
	x.segs, x.old, x.pending = nil, nil, nil
	return errors.Join(errs...)
}

// lookup finds a record, in a condemned pack only when no other has it. A damaged local entry counts as missing: a writer then
// stores the chunk again, a reader refreshes.
func (x *index) lookup(k *key) (location, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	l, found, _ := x.find(k)
	return l, found
}

// has reports whether a writer may rely on the record: some pack has it that is not condemned.
func (x *index) has(k *key) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if len(x.trash.packs) > 0 {
		_, found, condemned := x.find(k)
		return found && !condemned
	}
	if _, ok := x.pending[*k]; ok {
		return true
	}
	for _, s := range x.segs {
		if _, ok := s.find(k); ok {
			return true
		}
	}
	return false
}

// find is lookup; condemned says that only condemned packs have the record. The caller holds mu.
func (x *index) find(k *key) (l location, found, condemned bool) {
	if e, ok := x.pending[*k]; ok {
		l = location{pack: x.packs[e.pack], off: e.off, stored: e.stored, raw: e.raw, codec: e.codec}
		if !x.trash.condemned(l.pack.id) {
			return l, true, false
		}
		found = true
	}
	for _, s := range x.segs {
		i, ok := s.find(k)
		if !ok {
			continue
		}
		here, err := s.locationAt(i)
		if err == nil && !x.trash.condemned(here.pack.id) {
			return here, true, false
		}
		if !found && err == nil {
			l, found = here, true
		}
	}
	return l, found, found
}

// places returns every place of a record, those in condemned packs last.
func (x *index) places(k *key) []location {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var good, condemned []location
	add := func(l location) {
		switch {
		case slices.ContainsFunc(good, l.same), slices.ContainsFunc(condemned, l.same):
		case x.trash.condemned(l.pack.id):
			condemned = append(condemned, l)
		default:
			good = append(good, l)
		}
	}
	if e, ok := x.pending[*k]; ok {
		add(location{pack: x.packs[e.pack], off: e.off, stored: e.stored, raw: e.raw, codec: e.codec})
	}
	for _, s := range x.segs {
		if i, ok := s.find(k); ok {
			if l, err := s.locationAt(i); err == nil {
				add(l)
			}
		}
	}
	return append(good, condemned...)
}

// addPending makes the records of a stored pack known. Returns how many entries are pending now.
func (x *index) addPending(p packRef, entries []tableEntry) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := uint32(len(x.packs))
	x.packs = append(x.packs, p)
	for i := range entries {
		e := &entries[i]
		k := e.id.key()
		if old, ok := x.pending[k]; ok && x.trash.condemned(p.id) && !x.trash.condemned(x.packs[old.pack].id) {
			continue
		}
		x.pending[k] = indexEntry{key: k, pack: n, off: e.off, stored: e.stored, raw: e.raw, codec: e.codec}
	}
	return len(x.pending)
}

// flush writes what is pending as a segment. Lookups go on.
func (x *index) flush(ctx context.Context) (stored int64, err error) {
	x.changing.Lock()
	defer x.changing.Unlock()
	x.mu.RLock()
	packs := slices.Clone(x.packs)
	entries := make([]indexEntry, 0, len(x.pending))
	for _, e := range x.pending {
		entries = append(entries, e)
	}
	x.mu.RUnlock()
	if len(packs) == 0 {
		return 0, nil
	}
	run, err := newRun()
	if err != nil {
		return 0, err
	}
	seg, stored, err := x.put(ctx, encodeSegment(run, packs, sortEntries(entries)))
	if err != nil {
		return stored, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segs = append(x.segs, seg)
	for k, e := range x.pending { // what came while we wrote stays, renumbered
		if int(e.pack) < len(packs) {
			delete(x.pending, k)
		} else {
			e.pack -= uint32(len(packs))
			x.pending[k] = e
		}
	}
	x.packs = slices.Clone(x.packs[len(packs):])
	return stored, nil
}

// put stores the bytes of a segment in the backend, then in the cache.
func (x *index) put(ctx context.Context, data []byte) (*segment, int64, error) {
	id, pack, err := x.r.buildObject(kindIndex, data)
	if err != nil {
		return nil, 0, err
	}
	name := prefixIndex + id.String()
	if err := x.r.be.Put(ctx, name, pack); err != nil {
		return nil, 0, fmt.Errorf("write index segment: %w", err)
	}
	seg, err := x.keep(name, data)
	return seg, int64(len(pack)), err
}

// keep opens data, a whole valid segment, through the cache where there is one.
func (x *index) keep(name string, data []byte) (*segment, error) {
	if x.cache != nil {
		if seg, err := x.cache.store(name, data); err == nil {
			return seg, nil
		} // a full cache disk costs memory, not the backup
	}
	return openSegment(name, data)
}

// refresh makes the segments those that the backend lists.
func (x *index) refresh(ctx context.Context) error {
	return x.refreshAfter(ctx, x.refreshes())
}

// refreshes counts the refreshes begun.
func (x *index) refreshes() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.begun
}

// refreshAfter is refresh, unless one has succeeded that began after number seen: many who miss something share one.
func (x *index) refreshAfter(ctx context.Context, seen uint64) error {
	x.changing.Lock()
	defer x.changing.Unlock()
	x.mu.Lock()
	done := x.refreshed > seen
	x.begun++
	begun := x.begun
	x.mu.Unlock()
	if done {
		return nil
	}
	for try := 0; ; try++ {
		err := x.refreshOnce(ctx)
		if err == nil {
			x.mu.Lock()
			x.refreshed = begun
			x.mu.Unlock()
			return nil
		}
		// A segment that went between listing and reading was merged into another by some writer: list again.
		if try == 3 || !errors.Is(err, backend.ErrNotExist) {
			return err
		}
	}
}

func (x *index) refreshOnce(ctx context.Context) error {
	// The trash comes first: a list that is gone by now had its packs taken out of the index before.
	if _, err := x.refreshTrash(ctx); err != nil {
		return err
	}
	var names []string
	err := x.r.be.List(ctx, prefixIndex, func(o backend.Object) error {
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the index: %w", err)
	}
	have := map[string]*segment{}
	x.mu.RLock()
	for _, s := range x.segs {
		have[s.name] = s
	}
	x.mu.RUnlock()

	segs := make([]*segment, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(x.r.opts.Parallel)
	for i, name := range names {
		if segs[i] = have[name]; segs[i] != nil {
			delete(have, name)
			continue
		}
		g.Go(func() (err error) {
			segs[i], err = x.fetch(gctx, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		for i, s := range segs {
			if s != nil && have[names[i]] == nil && !x.uses(s) {
				_ = unmapSegment(s)
			}
		}
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range have {
		x.old = append(x.old, s)
	}
	x.segs = segs
	if x.cache != nil {
		x.cache.retain(names)
	}
	return nil
}

func (x *index) uses(s *segment) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Contains(x.segs, s)
}

// fetch opens a segment from the cache or else from the backend.
func (x *index) fetch(ctx context.Context, name string) (*segment, error) {
	if x.cache != nil {
		if seg, err := x.cache.open(name); err == nil {
			return seg, nil
		}
	}
	data, err := x.r.readObject(ctx, name, kindIndex)
	if err != nil {
		return nil, fmt.Errorf("read index segment: %w", err)
	}
	seg, err := openSegment(name, data)
	if err == nil {
		err = verifySegment(seg)
	}
	if err != nil {
		return nil, &CorruptError{Object: name, Err: err}
	}
	return x.keep(name, data)
}

// sound returns s, or what the backend has where the local copy has gone bad. The caller holds changing.
func (x *index) sound(ctx context.Context, s *segment) (_ *segment, healed bool, err error) {
	if verifySegment(s) == nil {
		return s, false, nil
	}
	if x.cache != nil {
		x.cache.remove(s.name)
	}
	fresh, err := x.fetch(ctx, s.name)
	if err != nil {
		return nil, false, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segs = slices.Clone(x.segs)
	if i := slices.Index(x.segs, s); i >= 0 {
		x.segs[i] = fresh
		x.old = append(x.old, s)
	}
	return fresh, true, nil
}

// heal replaces local copies of segments that have gone bad, and returns their number.
func (x *index) heal(ctx context.Context) (healed int, err error) {
	x.changing.Lock()
	defer x.changing.Unlock()
	for _, s := range x.snapshot() {
		if err := ctx.Err(); err != nil {
			return healed, err
		}
		_, bad, err := x.sound(ctx, s)
		if err != nil {
			return healed, err
		}
		if bad {
			healed++
		}
	}
	return healed, nil
}

// snapshot returns the current segments, for walks over all entries. They stay valid until close.
func (x *index) snapshot() []*segment {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.segs)
}

// segmentFile is a segment's file name in the cache, "" for a name that is no segment's.
func segmentFile(name string) string {
	s, ok := strings.CutPrefix(name, prefixIndex)
	if !ok || !isHex(s, len(packID{})) {
		return ""
	}
	return s
}
