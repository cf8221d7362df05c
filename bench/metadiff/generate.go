package main

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/shalebackup/shale/thin/thintest"
)

// blockRange is a run of blocks that differ.
type blockRange struct{ begin, length uint64 }

// join appends one range to others, merging neighbours.
func join(ranges []blockRange, r blockRange) []blockRange {
	if l := len(ranges); l > 0 && ranges[l-1].begin+ranges[l-1].length == r.begin {
		ranges[l-1].length += r.length
		return ranges
	}
	return append(ranges, r)
}

const zones = 8 // of the data device, which runs are scattered over

// generate writes metadata with device 1 of n mappings, its snapshot 2, and then o.changed blocks of 1 mapped anew. It
// returns the metadata's length in blocks and the changed blocks.
func generate(path string, o options, n uint64) (blocks uint64, changed []blockRange, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, nil, err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	rng := rand.New(rand.NewPCG(o.seed, n))
	p := thintest.New(f, thintest.Config{DataBlocks: zones*n + uint64(o.changed), Fill: o.fill})
	if err := p.AddDevice(1, layout(rng, n)); err != nil {
		return 0, nil, err
	}
	if err := p.Snapshot(2, 1); err != nil {
		return 0, nil, err
	}
	for i, b := range scatter(rng, n, o.changed) {
		if err := p.Map(1, b, zones*n+uint64(i)); err != nil {
			return 0, nil, err
		}
		changed = join(changed, blockRange{b, 1})
	}
	if err := p.Commit(); err != nil {
		return 0, nil, fmt.Errorf("commit: %w", err)
	}
	return p.MetaBlocks(), changed, nil
}

// layout maps thin blocks 0..n-1 in runs of 1 to 128 blocks, each somewhere else than the one before.
func layout(rng *rand.Rand, n uint64) iter.Seq[thintest.Mapping] {
	return func(yield func(thintest.Mapping) bool) {
		var used [zones]uint64
		zone := uint64(0)
		for b := uint64(0); b < n; {
			zone = (zone + 1 + rng.Uint64N(zones-1)) % zones
			for end := min(n, b+1+rng.Uint64N(128)); b < end; b++ {
				if !yield(thintest.Mapping{Thin: b, Data: zone*n + used[zone]}) {
					return
				}
				used[zone]++
			}
		}
	}
}

// scatter chooses count of n blocks, each alone, and sorts them.
func scatter(rng *rand.Rand, n uint64, count int) []uint64 {
	chosen := map[uint64]bool{}
	var out []uint64
	for len(out) < count {
		if b := rng.Uint64N(n); !chosen[b] {
			chosen[b] = true
			out = append(out, b)
		}
	}
	slices.Sort(out)
	return out
}
