package chunkstore

import (
	"bytes"
	"container/heap"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
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
// The merged ones are removed after what replaces them is durable; whoever has listed but not read them lists again.
func (r *Repository) CompactIndex(ctx context.Context) error {
	r.index.changing.Lock()
	defer r.index.changing.Unlock()
	for {
		merge := mergeable(r.index.snapshot())
		if merge == nil {
			return nil
		}
		if err := r.index.merge(ctx, merge); err != nil {
			return fmt.Errorf("merge index segments: %w", err)
		}
	}
}

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

// merge writes one run in place of the given segments. The caller holds changing.
func (x *index) merge(ctx context.Context, in []*segment) error {
	run, err := newRun()
	if err != nil {
		return err
	}
	for i, s := range in { // a local copy that has gone bad must not get into the repository
		if in[i], _, err = x.sound(ctx, s); err != nil {
			return err
		}
	}
	m := newSegmentMerge(in)
	var out []*segment
	for {
		packs, entries, err := m.next(ctx, maxSegment)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			break
		}
		seg, _, err := x.put(ctx, encodeSegment(run, packs, entries))
		if err != nil {
			return err
		}
		out = append(out, seg)
	}
	x.mu.Lock()
	x.segs = append(slices.DeleteFunc(slices.Clone(x.segs), func(s *segment) bool { return slices.Contains(in, s) }), out...)
	x.old = append(x.old, in...)
	x.mu.Unlock()
	for _, s := range in {
		if err := x.r.be.Delete(ctx, s.name); err != nil {
			return err
		}
	}
	return nil
}

// segmentMerge is a merge of sorted segments: a heap of cursors by their next key.
type segmentMerge struct {
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
	for len(m.cursors) > 0 && len(entries) < limit {
		if len(entries)%4096 == 0 && ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		c := &m.cursors[0]
		e := c.seg.entryAt(c.at)
		if !m.begun || e.key != m.last {
			l, err := c.seg.locationAt(c.at)
			if err != nil {
				return nil, nil, &CorruptError{Object: c.seg.name, Err: err}
			}
			n, ok := number[l.pack.id]
			if !ok {
				n = uint32(len(packs))
				number[l.pack.id] = n
				packs = append(packs, l.pack)
			}
			e.pack = n
			entries = append(entries, e)
			m.last, m.begun = e.key, true
		}
		if c.at++; c.at == c.seg.count {
			heap.Pop(m)
		} else {
			heap.Fix(m, 0)
		}
	}
	return packs, entries, nil
}
