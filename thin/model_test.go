package thin_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/thintest"
)

// model is a pool beside what its devices must be mapped to: thin block -> data block.
type model struct {
	img     thintest.Memory
	pool    *thintest.Pool
	devices map[uint32]map[uint64]uint64
	data    uint64 // next data block
	space   uint64 // thin blocks
}

// randomPool makes devices that share structure in all degrees: snapshots of snapshots, blocks mapped anew, added at all
// places so that nodes and roots split on one side, and removed so that trees shrink.
func randomPool(t *testing.T, rng *rand.Rand, discard bool) *model {
	t.Helper()
	m := &model{devices: map[uint32]map[uint64]uint64{}, space: 1 + rng.Uint64N(3000)}
	fill := []int{3, 6, 12, 30, 126, 168, 252}[rng.IntN(7)]
	m.pool = thintest.New(&m.img, thintest.Config{DataBlocks: 1 << 20, Fill: fill})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m.devices[1] = map[uint64]uint64{}
	density := rng.Uint64N(4)
	must(m.pool.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		for b := range m.space {
			if density == 0 || rng.Uint64N(4) < density-1 {
				continue
			}
			if rng.IntN(4) == 0 {
				m.data++
			}
			m.data++
			m.devices[1][b] = m.data
			if !yield(thintest.Mapping{Thin: b, Data: m.data}) {
				return
			}
		}
	}))
	for id := uint32(2); id < 5; id++ {
		origin := 1 + rng.Uint32N(id-1)
		must(m.pool.Snapshot(id, origin))
		m.devices[id] = maps.Clone(m.devices[origin])
		for range []int{0, 1, 40, 400}[rng.IntN(4)] {
			victim := 1 + rng.Uint32N(id)
			begin := rng.Uint64N(m.space + 50)
			for b := begin; b < begin+1+rng.Uint64N(10); b++ {
				if discard && rng.IntN(2) == 0 {
					must(m.pool.Unmap(victim, b))
					delete(m.devices[victim], b)
					continue
				}
				m.data++
				must(m.pool.Map(victim, b, m.data))
				m.devices[victim][b] = m.data
			}
		}
	}
	must(m.pool.Commit())
	return m
}

// naiveDiff compares two devices block by block.
func naiveDiff(from, to map[uint64]uint64, unchanged bool) (out []thin.Change) {
	keys := map[uint64]bool{}
	for b := range from {
		keys[b] = true
	}
	for b := range to {
		keys[b] = true
	}
	for _, b := range slices.Sorted(maps.Keys(keys)) {
		f, inFrom := from[b]
		x, inTo := to[b]
		c := thin.Change{Kind: thin.Changed, Thin: b, Len: 1, FromData: f, ToData: x}
		switch {
		case !inFrom:
			c.Kind = thin.Added
		case !inTo:
			c.Kind = thin.Removed
		case f == x && !unchanged:
			continue
		case f == x:
			c.Kind = thin.Unchanged
		}
		if l := len(out); l > 0 {
			p := &out[l-1]
			if p.Kind == c.Kind && p.Thin+p.Len == b && (!inFrom || p.FromData+p.Len == f) && (!inTo || p.ToData+p.Len == x) {
				p.Len++
				continue
			}
		}
		out = append(out, c)
	}
	return out
}

func naiveRuns(dev map[uint64]uint64, start, end uint64) (out []thin.Run) {
	for _, b := range slices.Sorted(maps.Keys(dev)) {
		if b < start || b >= end {
			continue
		}
		if l := len(out); l > 0 && out[l-1].Thin+out[l-1].Len == b && out[l-1].Data+out[l-1].Len == dev[b] {
			out[l-1].Len++
			continue
		}
		out = append(out, thin.Run{Thin: b, Data: dev[b], Len: 1})
	}
	return out
}

// withoutTime forgets when runs were mapped, which the model does not know.
func withoutTime(runs []thin.Run) []thin.Run {
	for i := range runs {
		runs[i].Time = 0
	}
	return runs
}

var (
	firstSeed = flag.Uint64("seed", 0, "first seed of the random pools")
	seedCount = flag.Uint64("seeds", 25, "number of random pools")
)

func TestModel(t *testing.T) {
	t.Parallel()
	for seed := *firstSeed; seed < *firstSeed+*seedCount; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := randomPool(t, rng, true)
		r := newReader(t, m.img, thin.Options{})
		for id, dev := range m.devices {
			if got := withoutTime(mustCollect(t, r.Runs(t.Context(), id))); !slices.Equal(got, naiveRuns(dev, 0, m.space+100)) {
				t.Fatalf("seed %d: runs of %d: got %v\nwant %v", seed, id, got, naiveRuns(dev, 0, m.space+100))
			}
			start := rng.Uint64N(m.space + 20)
			end := start + 1 + rng.Uint64N(m.space)
			got := withoutTime(mustCollect(t, r.RunsOf(t.Context(), id, thin.RunOptions{Start: start, End: end})))
			if !slices.Equal(got, naiveRuns(dev, start, end)) {
				t.Fatalf("seed %d: runs of %d in %d..%d: got %v\nwant %v", seed, id, start, end, got, naiveRuns(dev, start, end))
			}
			for to, other := range m.devices {
				for _, unchanged := range []bool{false, true} {
					got := mustCollect(t, r.Diff(t.Context(), id, to, thin.DiffOptions{Unchanged: unchanged}))
					if want := naiveDiff(dev, other, unchanged); !slices.Equal(got, want) {
						t.Fatalf("seed %d: difference of %d and %d (unchanged: %v): got %v\nwant %v", seed, id, to, unchanged, got, want)
					}
				}
			}
		}
	}
}

// TestModelAgainstTools lets the installed tools read what thintest wrote.
func TestModelAgainstTools(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"thin_delta", "thin_dump"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs thin-provisioning-tools 0.9: %v", err)
		}
	}
	path := filepath.Join(t.TempDir(), "meta")
	output := func(name string, args ...string) []byte {
		t.Helper()
		b, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, b)
		}
		return b
	}
	for seed := range uint64(6) {
		m := randomPool(t, rand.New(rand.NewPCG(seed, 2)), false)
		if err := os.WriteFile(path, m.img, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := thin.Open(path, thin.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var dump bytes.Buffer
		if err := r.WriteDumpXML(t.Context(), &dump); err != nil {
			t.Fatal(err)
		}
		diffText(t, fmt.Sprintf("seed %d: dump", seed), dump.Bytes(), output("thin_dump", path))
		for to := uint32(2); to < 5; to++ {
			var plain, verbose bytes.Buffer
			if err := r.WriteDeltaXML(t.Context(), &plain, 1, to, false); err != nil {
				t.Fatal(err)
			}
			if err := r.WriteDeltaXML(t.Context(), &verbose, 1, to, true); err != nil {
				t.Fatal(err)
			}
			args := []string{"--thin1", "1", "--thin2", fmt.Sprint(to), path}
			diffText(t, fmt.Sprintf("seed %d: delta 1-%d", seed, to), plain.Bytes(), output("thin_delta", args...))
			diffText(t, fmt.Sprintf("seed %d: verbose delta 1-%d", seed, to), verbose.Bytes(), output("thin_delta", append(args, "--verbose")...))
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiffCost: blocks read follow the change, also when the origin's root has split since.
func TestDiffCost(t *testing.T) {
	var img thintest.Memory
	p := thintest.New(&img, thintest.Config{DataBlocks: 1 << 20, Fill: 6})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const n = 6 * 6 * 6 * 6 * 6 // the origin's tree is full: five levels
	must(p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		for b := uint64(0); b < n && yield(thintest.Mapping{Thin: 2 * b, Data: b}); b++ {
		}
	}))
	must(p.Snapshot(2, 1))
	must(p.Snapshot(3, 1))
	must(p.Map(2, n, 1<<19))   // changed
	must(p.Map(3, n+1, 1<<19)) // added: splits up to the root
	must(p.Snapshot(4, 3))
	for b := uint64(0); b < 2*n; b += 2 * (n / 10) {
		must(p.Unmap(4, b))
	}
	must(p.Commit())
	for _, c := range []struct {
		from, to uint32
		blocks   uint64 // most, for the device's tree itself
		changes  int
	}{{1, 1, 0, 0}, {1, 2, 10, 1}, {2, 1, 10, 1}, {1, 3, 17, 1}, {3, 1, 17, 1}, {2, 3, 17, 2}, {3, 4, 110, 11}} {
		r := newReader(t, img, thin.Options{})
		before := r.Stats().BlocksRead
		for _, id := range []uint32{c.from, c.to} {
			if _, err := r.MappingRoot(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		lookups := r.Stats().BlocksRead - before
		changes := mustCollect(t, r.Diff(t.Context(), c.from, c.to, thin.DiffOptions{}))
		read := r.Stats().BlocksRead - before - 2*lookups
		if read > c.blocks || len(changes) != c.changes {
			t.Errorf("%d-%d: %d blocks read for %d changes, want at most %d for %d", c.from, c.to, read, len(changes), c.blocks, c.changes)
		}
		t.Logf("%d-%d: %d blocks read, %d changes", c.from, c.to, read, len(changes))
	}
}
