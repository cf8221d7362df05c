package chunkstore

import (
	"bytes"
	"container/heap"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/shalebackup/shale/chunkstore/backend"
)

const (
	// mergeRuns is how many runs of like size are merged to one: each entry is rewritten once for every factor of it.
	mergeRuns = 8
	// maxSegment bounds the entries of one segment; a longer run is cut, and its segments hold separate ranges of keys.
	maxSegment = 1 << 19
)

// newRun makes a run's number.
func newRun() (uint64, error) {
	var b [8]byte
	_, err := rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// CompactIndex merges index segments when there are many, so that their number grows with the logarithm of the repository.
// The merged ones are removed after what replaces them is durable; whoever has listed but not read them lists again. When a prune
// condemns packs meanwhile, the merge is taken back and left to the next call.
func (r *Repository) CompactIndex(ctx context.Context) error {
	if !r.index.mergeable() {
		return nil
	}
	if err := r.index.refresh(ctx); err != nil { // the segments may be long gone, and with them the packs that they name
		return fmt.Errorf("merge index segments: %w", err)
	}
	return r.index.compact(ctx)
}

// mergeable reports whether there may be something to merge.
func (x *index) mergeable() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if len(x.unread) > 0 {
		return len(x.segs)+len(x.unread) >= mergeRuns
	}
	return mergeable(x.segs) != nil
}

// compact is CompactIndex for segments that were listed or written just now.
func (x *index) compact(ctx context.Context) error {
	if err := x.changing.lock(ctx); err != nil {
		return err
	}
	defer x.changing.unlock()
	for {
		more, err := x.compactOnce(ctx)
		if errors.Is(err, errTrashChanged) || errors.Is(err, backend.ErrNotExist) { // another host merges them too
			return nil
		}
		if err != nil {
			return fmt.Errorf("merge index segments: %w", err)
		}
		if !more {
			return nil
		}
	}
}

// compactOnce merges once, if there is something to merge. The caller holds changing.
func (x *index) compactOnce(ctx context.Context) (merged bool, err error) {
	if err := x.openUnread(ctx); err != nil {
		return false, err
	}
	segs := x.snapshot()
	defer releaseAll(segs)
	merge := mergeable(segs)
	if merge == nil {
		return false, nil
	}
	_, err = x.merge(ctx, merge, nil)
	return true, err
}

// errTrashChanged: a prune condemned packs while segments were merged.
var errTrashChanged = errors.New("a prune has condemned packs meanwhile")

// mergeable returns the segments of mergeRuns or more runs of like size, nil if there are none.
func mergeable(segs []*segment) []*segment {
	runs := map[uint64][]*segment{}
	size := map[uint64]int{}
	for _, s := range segs {
		runs[s.run] = append(runs[s.run], s)
		size[s.run] += s.count
	}
	tiers := map[int][]uint64{}
	for run, n := range size {
		tier := bits.Len(uint(n)) / bits.Len(mergeRuns-1)
		tiers[tier] = append(tiers[tier], run)
	}
	for _, tier := range tiers {
		if len(tier) >= mergeRuns {
			var out []*segment
			for _, run := range tier {
				out = append(out, runs[run]...)
			}
			return out
		}
	}
	return nil
}

// merge writes one run in place of the given segments, without the entries that drop names, which may be nil. Where several packs have a
// record, it keeps the entry of the best by its rank in the trash. The caller holds changing and references to the segments, and has
// refreshed the index. Returns how many segments it
// wrote.
func (x *index) merge(ctx context.Context, in []*segment, drop func(*key, *location) bool) (int, error) {
	trash := x.trashSet()
	if trash.err != nil {
		return 0, trash.err
	}
	out, err := x.mergeRun(ctx, in, trash, drop)
	if err != nil {
		return 0, err
	}
	x.replace(in, out)
	// What was left out because another pack has the record counts on that pack: no prune may have condemned it since. As nothing is
	// deleted before a grace is over, these calls need only be done in much less than that.
	same, err := x.sameTrash(ctx, trash)
	if err != nil {
		return 0, err
	}
	if !same && !x.r.off.mergeRule {
		return 0, x.unmerge(ctx, in, out)
	}
	for _, s := range in {
		if err := x.r.be.Delete(ctx, s.name); err != nil {
			return 0, err
		}
	}
	return len(out), x.keepSound(ctx, in, out, trash)
}

// keepSound puts merged segments back when a repair has meanwhile condemned as damaged a pack that the run counts on: another, sound
// place of the record may be named by them alone.
func (x *index) keepSound(ctx context.Context, in, out []*segment, trash *trashSet) error {
	if same, err := x.sameTrash(ctx, trash); err != nil || same {
		return err
	}
	now, err := x.refreshTrash(ctx)
	if err != nil {
		return err
	}
	counted := slices.ContainsFunc(out, func(s *segment) bool {
		for i := range s.packs {
			if id := s.pack(i).id; now.damaged(id) && !trash.damaged(id) {
				return true
			}
		}
		return false
	})
	if !counted {
		return nil
	}
	for _, s := range in {
		back, _, err := x.put(ctx, s.data)
		if err != nil {
			return err
		}
		x.replace(nil, []*segment{back})
	}
	return errTrashChanged
}

func (x *index) mergeRun(ctx context.Context, in []*segment, trash *trashSet, drop func(*key, *location) bool) (out []*segment, err error) {
	run, err := newRun()
	if err != nil {
		return nil, err
	}
	if _, err := x.completeAll(ctx, in); err != nil { // a local copy that has gone bad must not get into the repository
		return nil, err
	}
	defer func() {
		if err != nil {
			releaseAll(out)
			out = nil
		}
	}()
	m := newSegmentMerge(in)
	m.trash, m.drop = trash, drop
	for {
		packs, entries, err := m.next(ctx, maxSegment)
		if err != nil || len(entries) == 0 {
			return out, err
		}
		seg, _, err := x.put(ctx, encodeSegment(run, packs, entries))
		if err != nil {
			return out, err
		}
		out = append(out, seg)
	}
}

// sameTrash lists the trash again.
func (x *index) sameTrash(ctx context.Context, trash *trashSet) (bool, error) {
	same := true
	err := x.r.be.List(ctx, prefixTrash, func(o backend.Object) error {
		same = same && trash.lists[o.Name] != nil
		return nil
	})
	return same, err
}

// unmerge takes back what merge wrote.
func (x *index) unmerge(ctx context.Context, in, out []*segment) error {
	for _, s := range in {
		s.refs.Add(1)
	}
	x.replace(out, in)
	for _, s := range out {
		if err := x.r.be.Delete(ctx, s.name); err != nil {
			return err
		}
	}
	return errTrashChanged
}

// replace puts segments in the place of others, and takes over the references to the new ones.
func (x *index) replace(old, with []*segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	segs := make([]*segment, 0, len(x.segs)+len(with))
	for _, s := range x.segs {
		if slices.Contains(old, s) {
			_ = s.release() // as in releaseAll
		} else {
			segs = append(segs, s)
		}
	}
	x.segs = append(segs, with...)
}

// segmentMerge is a merge of sorted segments: a heap of cursors by their next key.
type segmentMerge struct {
	trash   *trashSet                  // entries of its packs lose against others; nil: none
	drop    func(*key, *location) bool // entries that are left out; nil: none
	cursors []mergeCursor
	last    key
	begun   bool
}

type mergeCursor struct {
	seg *segment
	at  int
}

func newSegmentMerge(in []*segment) *segmentMerge {
	m := &segmentMerge{}
	for _, s := range in {
		if s.count > 0 {
			m.cursors = append(m.cursors, mergeCursor{s, 0})
		}
	}
	heap.Init(m)
	return m
}

func (m *segmentMerge) Len() int { return len(m.cursors) }
func (m *segmentMerge) Less(i, j int) bool {
	a, b := m.cursors[i], m.cursors[j]
	return bytes.Compare(a.seg.keyAt(a.at), b.seg.keyAt(b.at)) < 0
}
func (m *segmentMerge) Swap(i, j int) { m.cursors[i], m.cursors[j] = m.cursors[j], m.cursors[i] }
func (m *segmentMerge) Push(x any)    { m.cursors = append(m.cursors, x.(mergeCursor)) }
func (m *segmentMerge) Pop() any {
	last := m.cursors[len(m.cursors)-1]
	m.cursors = m.cursors[:len(m.cursors)-1]
	return last
}

// next returns up to limit merged entries and the packs that they count in. An entry that lies outside its pack is an error.
func (m *segmentMerge) next(ctx context.Context, limit int) (packs []packRef, entries []indexEntry, err error) {
	number := map[packID]uint32{}
	uses := []int{} // entries by pack
	for n := 0; len(m.cursors) > 0; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		c := &m.cursors[0]
		e := c.seg.entryAt(c.at)
		again := m.begun && e.key == m.last
		if len(entries) >= limit && !again {
			break
		}
		l, err := c.seg.locationAt(c.at)
		if err != nil {
			return nil, nil, &CorruptError{Object: c.seg.name, Err: err}
		}
		if c.at++; c.at == c.seg.count {
			heap.Pop(m)
		} else {
			heap.Fix(m, 0)
		}
		if m.drop != nil && m.drop(&e.key, &l) {
			continue
		}
		if again {
			old := entries[len(entries)-1].pack
			if m.rank(l.pack.id) >= m.rank(packs[old].id) {
				continue
			}
			uses[old]--
			entries = entries[:len(entries)-1]
		}
		p, ok := number[l.pack.id]
		if !ok {
			p = uint32(len(packs))
			number[l.pack.id] = p
			packs, uses = append(packs, l.pack), append(uses, 0)
		}
		e.pack = p
		uses[p]++
		entries = append(entries, e)
		m.last, m.begun = e.key, true
	}
	packs, entries = unusedPacksOut(packs, entries, uses)
	return packs, entries, nil
}

func (m *segmentMerge) rank(id packID) int {
	if m.trash == nil {
		return 0
	}
	return m.trash.rank(id)
}

// unusedPacksOut takes out packs without entries and numbers the rest anew.
func unusedPacksOut(packs []packRef, entries []indexEntry, uses []int) ([]packRef, []indexEntry) {
	if !slices.Contains(uses, 0) {
		return packs, entries
	}
	number := make([]uint32, len(packs))
	var kept []packRef
	for i, n := range uses {
		number[i] = uint32(len(kept))
		if n > 0 {
			kept = append(kept, packs[i])
		}
	}
	for i := range entries {
		entries[i].pack = number[entries[i].pack]
	}
	return kept, entries
}
