package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/shalebackup/shale/engine/source"
)

const (
	blockLen   = 4096
	spanLen    = 4 << 20
	volumeName = "volume"
)

// volume is the simulated volume: chunk i is a block at i times the stride, the rest is zeros. A version changes some chunks of the one
// before it.
type volume struct {
	o       options
	version int
	changed []int // chunks of this version that differ from the one before, ascending
}

// at returns a version of the volume; the first is 0.
func at(o options, version int) *volume {
	v := &volume{o: o, version: version}
	rnd := rand.New(rand.NewPCG(uint64(version), 1))
	seen := map[int]bool{}
	for version > 0 && len(v.changed) < o.changes {
		if i := rnd.IntN(o.chunks); !seen[i] {
			seen[i] = true
			v.changed = append(v.changed, i)
		}
	}
	slices.Sort(v.changed)
	return v
}

// chunk fills p, a block of zeros, with chunk i as a version that changed it has it.
func chunk(p []byte, i, version int) {
	binary.LittleEndian.PutUint64(p, uint64(i)*0x9e3779b97f4a7c15+1)
	binary.LittleEndian.PutUint64(p[8:], uint64(version+1)*0xbf58476d1ce4e5b9)
}

// Open implements source.Opener: the newest backup is the base.
func (v *volume) Open(_ context.Context, parents iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	for p, err := range parents {
		return v, source.Base{Parent: &p}, err
	}
	return v, source.Base{Reason: "there is none"}, nil
}

// Size implements source.Source.
func (v *volume) Size() int64 { return int64(v.o.chunks) * v.o.stride }

// Extents implements source.Source.
func (v *volume) Extents(context.Context) iter.Seq2[source.Extent, error] {
	return func(yield func(source.Extent, error) bool) {
		for _, i := range v.changed {
			if !yield(source.Extent{Off: int64(i) * v.o.stride, Len: blockLen}, nil) {
				return
			}
		}
	}
}

// ReadAt implements source.Source. Only what changed is asked for.
func (v *volume) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	first := (off + v.o.stride - 1) / v.o.stride
	for i := first; i*v.o.stride+blockLen <= off+int64(len(p)); i++ {
		version := 0
		if _, ok := slices.BinarySearch(v.changed, int(i)); ok {
			version = v.version
		}
		chunk(p[i*v.o.stride-off:], int(i), version)
	}
	return nil
}

// State implements source.Source.
func (v *volume) State() json.RawMessage { return json.RawMessage(`{"kind":"scale"}`) }

// Stats implements source.Source.
func (v *volume) Stats() source.Stats { return source.Stats{} }

// Close implements source.Source.
func (v *volume) Close(context.Context, bool) error { return nil }
