package thin_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/thintest"
)

// benchPool is a file with the metadata of a device of n mappings and its snapshot, from which it differs in `changed`
// blocks, evenly spread. The command bench/metadiff measures larger ones beside thin_delta.
func benchPool(b *testing.B, n, changed uint64) *thin.Reader {
	b.Helper()
	path := filepath.Join(b.TempDir(), "meta")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	p := thintest.New(f, thintest.Config{DataBlocks: 4 * n})
	err = p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		for t := uint64(0); t < n && yield(thintest.Mapping{Thin: t, Data: t + t/20}); t++ { // runs of 20 blocks
		}
	})
	err = errors.Join(err, p.Snapshot(2, 1))
	for i := range changed {
		err = errors.Join(err, p.Map(1, i*(n/changed), 2*n+i))
	}
	if err := errors.Join(err, p.Commit(), f.Close()); err != nil {
		b.Fatal(err)
	}
	r, err := thin.Open(path, thin.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

func benchWalk[V any](b *testing.B, r *thin.Reader, walk func() func(func(V, error) bool)) {
	before, n := r.Stats().BlocksRead, 0
	b.ReportAllocs()
	for b.Loop() {
		for _, err := range walk() {
			if err != nil {
				b.Fatal(err)
			}
		}
		n++
	}
	blocks := (r.Stats().BlocksRead - before) / uint64(n)
	b.SetBytes(int64(blocks) * thin.BlockSize)
	b.ReportMetric(float64(blocks), "blocks/op")
}

func BenchmarkDiff(b *testing.B) {
	r := benchPool(b, 1<<20, 2000)
	benchWalk(b, r, func() func(func(thin.Change, error) bool) {
		return r.Diff(b.Context(), 2, 1, thin.DiffOptions{})
	})
}

func BenchmarkRuns(b *testing.B) {
	r := benchPool(b, 1<<20, 2000)
	benchWalk(b, r, func() func(func(thin.Run, error) bool) { return r.Runs(b.Context(), 1) })
}
