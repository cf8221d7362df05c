package source

import (
	"context"
	"iter"
	"sort"

	"github.com/shalebackup/shale/thin"
)

const (
	maxLoaded   = 1 << 19  // runs and extents kept in memory, 32 bytes each
	regionBytes = 16 << 20 // around a change, mappings are kept: unchanged bytes beside it are read, too, inside their span
)

// loadedMaps are mappings read in advance, so that no metadata is needed later.
type loadedMaps struct {
	v       *thinLive
	extents []Extent   // what differs from the base; not used without one
	regions []thin.Run // parts of the device whose mappings are known: Thin and Len
	known   []thin.Run // the mapped runs in them
	rest    mapper     // for what lies outside of the regions
}

// load reads what is mapped, or what differs from the base and the mappings around it. It returns nil when that is too much.
func (v *thinLive) load(ctx context.Context) (*loadedMaps, error) {
	m := &loadedMaps{v: v}
	ok, err := true, error(nil)
	if v.base == nil {
		all := thin.Run{Len: 1 << 62}
		m.regions = []thin.Run{all}
		ok, err = m.loadRegion(ctx, all)
	} else {
		ok, err = m.loadChanges(ctx)
	}
	if err != nil || !ok {
		return nil, err
	}
	return m, nil
}

// full says that no more may be kept.
func (m *loadedMaps) full() bool {
	return len(m.extents)+len(m.regions)+len(m.known) > m.v.opener.most
}

func (m *loadedMaps) loadRegion(ctx context.Context, region thin.Run) (ok bool, err error) {
	o := thin.RunOptions{Start: region.Thin, End: region.Thin + region.Len}
	if region.Thin == 0 && region.Len == 1<<62 {
		o.End = 0 // all of it: then the runs are checked against the pool's own count
	}
	for r, err := range m.v.meta.RunsOf(ctx, m.v.state.Device, o) {
		if err != nil {
			return false, err
		}
		if m.known = append(m.known, r); m.full() {
			return false, nil
		}
	}
	return true, nil
}

func (m *loadedMaps) loadChanges(ctx context.Context) (ok bool, err error) {
	for e, err := range m.v.difference(ctx) {
		if err != nil {
			return false, err
		}
		if n := len(m.extents); n > 0 && m.extents[n-1].End() == e.Off && m.extents[n-1].Hole == e.Hole {
			m.extents[n-1].Len += e.Len // they differ only in where their data lies
			continue
		}
		if m.extents = append(m.extents, e); m.full() {
			return false, nil
		}
	}
	bs := int64(m.v.state.BlockSize)
	for _, e := range m.extents {
		from, to := e.Off/regionBytes*regionBytes, (e.End()+regionBytes-1)/regionBytes*regionBytes
		start, end := uint64(from/bs), uint64((to+bs-1)/bs)
		if n := len(m.regions); n > 0 && start <= m.regions[n-1].Thin+m.regions[n-1].Len {
			m.regions[n-1].Len = end - m.regions[n-1].Thin
			continue
		}
		m.regions = append(m.regions, thin.Run{Thin: start, Len: end - start})
	}
	for _, r := range m.regions {
		if ok, err := m.loadRegion(ctx, r); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// each yields the extents.
func (m *loadedMaps) each(ctx context.Context) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for _, e := range m.extents {
			if !m.offer(ctx, e, yield) {
				return
			}
		}
		if m.v.base != nil {
			return
		}
		for _, r := range m.known {
			if e, ok := m.v.extent(r.Thin, r.Len, false); ok && !m.offer(ctx, e, yield) {
				return
			}
		}
	}
}

func (m *loadedMaps) offer(ctx context.Context, e Extent, yield func(Extent, error) bool) bool {
	if err := ctx.Err(); err != nil {
		yield(Extent{}, err)
		return false
	}
	return yield(e, nil)
}

// runs implements mapper.
func (m *loadedMaps) runs(ctx context.Context, start, end uint64) ([]thin.Run, error) {
	i := endsBehind(m.regions, start)
	if i == len(m.regions) || m.regions[i].Thin > start || m.regions[i].Thin+m.regions[i].Len < end {
		return m.rest.runs(ctx, start, end)
	}
	first := endsBehind(m.known, start)
	last := first
	for last < len(m.known) && m.known[last].Thin < end {
		last++
	}
	return appendClipped(nil, m.known[first:last], start, end), nil
}

// endsBehind finds the first of ascending runs that ends behind a block.
func endsBehind(runs []thin.Run, block uint64) int {
	return sort.Search(len(runs), func(i int) bool { return runs[i].Thin+runs[i].Len > block })
}
