package source

import (
	"context"
	"sync"

	"github.com/shalebackup/shale/thin"
)

const (
	windowBlocks = 256 // pool blocks of one window: about a leaf of the mapping tree
	maxWindows   = 64  // kept at once
)

// mappingWindows keeps the mappings of the parts of a device read last. A span is read in several pieces, and each would
// walk the mapping tree from its root. Safe for many goroutines.
type mappingWindows struct {
	load runLoader

	mu      sync.Mutex // guards all below
	windows map[uint64]*mappingWindow
	order   []uint64 // of windows, the oldest first
}

// runLoader reads a part of a device's mappings.
type runLoader func(ctx context.Context, o thin.RunOptions) ([]thin.Run, error)

func readerRuns(r *thin.Reader, device uint32) runLoader {
	return func(ctx context.Context, o thin.RunOptions) (runs []thin.Run, err error) {
		for run, err := range r.RunsOf(ctx, device, o) {
			if err != nil {
				return nil, err
			}
			runs = append(runs, run)
		}
		return runs, nil
	}
}

type mappingWindow struct {
	once sync.Once
	runs []thin.Run
	err  error
}

// runs returns the mapped runs in [start, end), in pool blocks, cut to it.
func (m *mappingWindows) runs(ctx context.Context, start, end uint64) ([]thin.Run, error) {
	var out []thin.Run
	for n := start / windowBlocks; n*windowBlocks < end; n++ {
		w := m.window(n)
		w.once.Do(func() {
			w.runs, w.err = m.load(ctx, thin.RunOptions{Start: n * windowBlocks, End: (n + 1) * windowBlocks})
		})
		if w.err != nil {
			m.forget(n, w)
			return nil, w.err
		}
		out = appendClipped(out, w.runs, start, end)
	}
	return out, nil
}

// appendClipped appends the parts of runs that lie in [start, end).
func appendClipped(out, runs []thin.Run, start, end uint64) []thin.Run {
	for _, r := range runs {
		if from, to := max(r.Thin, start), min(r.Thin+r.Len, end); from < to {
			out = append(out, thin.Run{Thin: from, Data: r.Data + from - r.Thin, Len: to - from})
		}
	}
	return out
}

func (m *mappingWindows) window(n uint64) *mappingWindow {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.windows[n]; w != nil {
		return w
	}
	if m.windows == nil {
		m.windows = map[uint64]*mappingWindow{}
	}
	if len(m.order) == maxWindows {
		delete(m.windows, m.order[0])
		m.order = m.order[1:]
	}
	w := &mappingWindow{}
	m.windows[n] = w
	m.order = append(m.order, n)
	return w
}

// forget drops a window that could not be loaded, so that the next asks again.
func (m *mappingWindows) forget(n uint64, failed *mappingWindow) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.windows[n] == failed {
		m.windows[n] = &mappingWindow{}
	}
}
