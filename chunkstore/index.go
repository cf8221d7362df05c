package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// index says where each record is: the segments of the repository, and what this process has put since and not yet
// written to a segment.
type index struct {
	r     *Repository
	cache *segmentCache // nil: segments are kept on the heap

	// changing is held, also during I/O, by whoever replaces segments: a refresh, a flush or a merge. It is taken before opening and mu.
	changing ioLock
	opening  ioLock // held, also during I/O, by who opens what is unread

	mu        sync.RWMutex     // guards all below
	segs      []*segment       // of those listed at the last refresh, and our own since, what is open
	unread    []backend.Object // the rest of those listed: nobody has looked anything up since
	pending   map[key]indexEntry
	packs     []packRef // of pending
	begun     uint64    // refreshes begun
	refreshed uint64    // the last refresh that succeeded, by its number
	trash     *trashSet
	void      map[packID]struct{} // packs that a repair under way is about to condemn
	trashRead time.Duration       // when trash was listed, by bootTime
}

func newIndex(r *Repository) (*index, error) {
	x := &index{r: r, changing: newIOLock(), opening: newIOLock(), pending: map[key]indexEntry{}, trash: newTrashSet(nil, nil), trashRead: r.bootTime()}
	if r.opts.CacheDir != "" {
		var err error
		if x.cache, err = openSegmentCache(r.opts.CacheDir, r.cfg.ID, r.sealer); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, s := range x.segs {
		errs = append(errs, s.release())
	}
	x.segs, x.unread, x.pending = nil, nil, nil
	return errors.Join(errs...)
}

// lookup finds a record as far as what is at hand tells; resolve fetches what it takes. A record is found in a condemned pack only
// when no other has it.
func (x *index) lookup(k *key) (location, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	l, found, _ := x.find(k, nil)
	return l, found
}

// hasLocal is has, as far as what is at hand tells; sure is false when the answer is no and more could be fetched.
func (x *index) hasLocal(k *key) (known, sure bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if len(x.trash.packs)+len(x.void) > 0 {
		var w wanted
		_, found, condemned := x.find(k, &w)
		w.release()
		defer w.release()
		known = found && !condemned
		return known, known || len(w) == 0 && len(x.unread) == 0
	}
	if _, ok := x.pending[*k]; ok {
		return true, true
	}
	sure = len(x.unread) == 0
	for _, s := range x.segs {
		_, ok, missing := s.probe(k)
		if ok {
			return true, true
		}
		sure = sure && missing < 0
	}
	return false, sure
}

// find is lookup; condemned says that only condemned packs have the record. It adds to w, unless that is nil, which frames could tell
// more. The caller holds mu.
func (x *index) find(k *key, w *wanted) (l location, found, condemned bool) {
	if e, ok := x.pending[*k]; ok {
		l = location{pack: x.packs[e.pack], off: e.off, stored: e.stored, raw: e.raw, codec: e.codec}
		if !x.condemned(l.pack.id) {
			return l, true, false
		}
		found = true
	}
	for _, s := range x.segs {
		i, ok, missing := s.probe(k)
		if missing >= 0 {
			w.add(s, missing, false)
		}
		if !ok {
			continue
		}
		if missing := s.missingPack(i); missing >= 0 {
			w.add(s, missing, true)
			continue
		}
		here, err := s.locationAt(i)
		if err == nil && !x.condemned(here.pack.id) {
			return here, true, false
		}
		if !found && err == nil {
			l, found = here, true
		}
	}
	return l, found, found
}

// condemned reports whether nobody may rely on the pack. The caller holds mu.
func (x *index) condemned(id packID) bool { return x.rank(id) > 0 }

// rank is the trash's. The caller holds mu.
func (x *index) rank(id packID) int {
	if _, void := x.void[id]; void {
		return 2
	}
	return x.trash.rank(id)
}

// setVoid says which packs are as good as condemned for this process.
func (x *index) setVoid(packs map[packID]struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.void = packs
}

// places returns every place of a record, as far as what is at hand tells, the best first.
func (x *index) places(k *key) []location {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.findAll(k, nil)
}

// findAll is places. It adds to w, unless that is nil, which frames could tell more. The caller holds mu.
func (x *index) findAll(k *key, w *wanted) (places []location) {
	add := func(l location) {
		if !slices.ContainsFunc(places, l.same) {
			places = append(places, l)
		}
	}
	if e, ok := x.pending[*k]; ok {
		add(location{pack: x.packs[e.pack], off: e.off, stored: e.stored, raw: e.raw, codec: e.codec})
	}
	for _, s := range x.segs {
		i, ok, missing := s.probe(k)
		if ok {
			missing = s.missingPack(i)
		}
		if missing >= 0 {
			w.add(s, missing, ok)
		} else if ok {
			if l, err := s.locationAt(i); err == nil {
				add(l)
			}
		}
	}
	slices.SortStableFunc(places, func(a, b location) int { return cmp.Compare(x.rank(a.pack.id), x.rank(b.pack.id)) })
	return places
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
		if old, ok := x.pending[k]; ok && x.rank(p.id) > x.rank(x.packs[old.pack].id) {
			continue
		}
		x.pending[k] = indexEntry{key: k, pack: n, off: e.off, stored: e.stored, raw: e.raw, codec: e.codec}
	}
	return len(x.pending)
}

// flush writes what is pending as a segment. Lookups go on.
func (x *index) flush(ctx context.Context) (stored int64, err error) {
	if err := x.changing.lock(ctx); err != nil {
		return 0, err
	}
	defer x.changing.unlock()
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
	seg, err := x.keep(name, pack, data)
	return seg, int64(len(pack)), err
}

// keep opens data, a whole valid segment, through the cache where there is one. pack is its object.
func (x *index) keep(name string, pack, data []byte) (*segment, error) {
	if x.cache != nil {
		if seg, err := x.cache.store(name, pack, data); err == nil {
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
	if err := x.changing.lock(ctx); err != nil {
		return err
	}
	defer x.changing.unlock()
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
	var objects []backend.Object
	listed := map[string]struct{}{}
	err := x.r.be.List(ctx, prefixIndex, func(o backend.Object) error {
		objects = append(objects, o)
		listed[o.Name] = struct{}{}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the index: %w", err)
	}
	cached := x.openCached(objects)
	x.mu.Lock()
	defer x.mu.Unlock()
	have := byName(x.segs)
	x.segs, x.unread = make([]*segment, 0, len(objects)), nil
	for _, o := range objects {
		from := have
		if from[o.Name] == nil {
			from = cached
		}
		if s := from[o.Name]; s != nil {
			x.segs = append(x.segs, s)
			delete(from, o.Name)
		} else {
			x.unread = append(x.unread, o)
		}
	}
	releaseAll(slices.Collect(maps.Values(have)))
	releaseAll(slices.Collect(maps.Values(cached)))
	if x.cache != nil {
		x.cache.retain(listed)
	}
	return nil
}

// openCached opens those of the objects that are not open and are in the cache.
func (x *index) openCached(objects []backend.Object) map[string]*segment {
	if x.cache == nil {
		return nil
	}
	x.mu.RLock()
	open := byName(x.segs)
	x.mu.RUnlock()
	cached := map[string]*segment{}
	for _, o := range objects {
		if open[o.Name] == nil {
			if s, err := x.cache.open(o.Name); err == nil {
				cached[o.Name] = s
			}
		}
	}
	return cached
}

func byName(segs []*segment) map[string]*segment {
	m := make(map[string]*segment, len(segs))
	for _, s := range segs {
		m[s.name] = s
	}
	return m
}

// snapshot returns the segments that are open, for walks over all of them. The caller releases them.
func (x *index) snapshot() []*segment {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, s := range x.segs {
		s.refs.Add(1)
	}
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
