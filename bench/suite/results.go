package main

import (
	"math"
	"slices"
	"time"
)

// metric is one of the numbers that a run gives.
type metric string

const (
	mWall     metric = "wall s"
	mCPU      metric = "CPU s"
	mPeak     metric = "peak MiB"
	mRead     metric = "read MiB"
	mOthers   metric = "others' CPU s"
	mStored   metric = "stored MiB"
	mFiles    metric = "files"
	mOnDisk   metric = "on disk MiB"
	mFirst    metric = "first byte ms"
	mSeq      metric = "sequential MB/s"
	mSeqCPU   metric = "server CPU s"
	mIOPS1    metric = "4 KiB, 1 reader, reads/s"
	mP50      metric = "p50 ms"
	mP99      metric = "p99 ms"
	mIOPS16   metric = "4 KiB, 16 readers, reads/s"
	mPerCPU   metric = "GB per CPU s"
	mNanos    metric = "look-up ns"
	mRead1    metric = "read ns"
	mSegments metric = "segments"
	mShrinks  metric = "smaller by"
	mOpenMS   metric = "open ms"
	mCold     metric = "first byte without local index ms"
)

// moreIsBetter says which metrics are speeds.
func (m metric) moreIsBetter() bool {
	return m == mSeq || m == mIOPS1 || m == mIOPS16 || m == mPerCPU
}

// sample is what one run of one tool gave.
type sample map[metric]float64

// sampleOf takes a cost into a sample.
func sampleOf(c cost) sample {
	return sample{mWall: c.Wall.Seconds(), mCPU: c.CPU.Seconds(), mPeak: float64(c.PeakKiB) / 1024, mRead: toMiB(c.Read), mOthers: c.Others.Seconds()}
}

func toMiB(n int64) float64 { return float64(n) / (1 << 20) }

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// row is one kind of run, by all tools that can.
type row struct {
	id, title, note string
	metrics         []metric // columns of its table
	tools           []string // in the order in which they first ran
	samples         map[string][]sample
	commands        map[string]string
}

func (r *row) add(tool string, s sample) {
	if _, ok := r.samples[tool]; !ok {
		r.tools = append(r.tools, tool)
	}
	r.samples[tool] = append(r.samples[tool], s)
}

// values of one metric, sorted, the best first.
func (r *row) values(tool string, m metric) []float64 {
	var v []float64
	for _, s := range r.samples[tool] {
		if x, ok := s[m]; ok {
			v = append(v, x)
		}
	}
	slices.Sort(v)
	if m.moreIsBetter() {
		slices.Reverse(v)
	}
	return v
}

// best is the tool's best run; NaN where there is none.
func (r *row) best(tool string, m metric) float64 {
	if v := r.values(tool, m); len(v) > 0 {
		return v[0]
	}
	return math.NaN()
}

func (r *row) median(tool string, m metric) float64 {
	v := r.values(tool, m)
	if len(v) == 0 {
		return math.NaN()
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// results are the rows in the order of the report.
type results struct{ rows []*row }

// row returns the row with the id, made when there is none.
func (r *results) row(id string) *row {
	for _, x := range r.rows {
		if x.id == id {
			return x
		}
	}
	x := &row{id: id, title: id, samples: map[string][]sample{}, commands: map[string]string{}}
	r.rows = append(r.rows, x)
	return x
}

// bestPeer is the peer with the best run of those whose names match; "" where none ran.
func (r *results) bestPeer(id string, m metric, match func(name string) bool) (string, float64) {
	x, name, best := r.row(id), "", math.NaN()
	for _, t := range x.tools {
		if isShale(t) || !match(t) {
			continue
		}
		v := x.best(t, m)
		if math.IsNaN(best) || m.moreIsBetter() && v > best || !m.moreIsBetter() && v < best {
			name, best = t, v
		}
	}
	return name, best
}
