package chunkstore

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"context"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// readNames tells which objects were read.
type readNames struct {
	backend.Backend
	mu    sync.Mutex // guards names
	names map[string]bool
}

func (b *readNames) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	b.mu.Lock()
	b.names[name] = true
	b.mu.Unlock()
	return b.Backend.ReadAt(ctx, name, p, off)
}

// packsRead returns the data packs read since the last call. Tree packs are read by walks, too.
func (b *readNames) packsRead() (names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.names {
		if strings.HasPrefix(name, prefixPacks+"data") {
			names = append(names, name)
		}
	}
	b.names = map[string]bool{}
	slices.Sort(names)
	return names
}

// manyPacks is a repository of at least 20 data packs.
func manyPacks(t *testing.T) *mem.Backend {
	t.Helper()
	be := mem.New()
	if _, err := Init(t.Context(), be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	r := openSmall(t, be)
	defer r.Close()
	addPacks(t, r, 1, 24)
	return be
}

// addPacks stores n packs of one chunk each.
func addPacks(t *testing.T, r *Repository, from, n int) {
	t.Helper()
	for i := range n {
		w := newTestWriter(t, r)
		if _, err := w.PutChunk(t.Context(), fmt.Append(nil, "chunk ", from+i, strings.Repeat("x", i))); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func checkSubset(t *testing.T, be backend.Backend, cache string, level CheckLevel, s Subset) (*CheckReport, []string) {
	t.Helper()
	names := &readNames{Backend: be, names: map[string]bool{}}
	r, err := Open(t.Context(), names, Options{CacheDir: cache, Parallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rep, err := r.Check(t.Context(), CheckOptions{Level: level, Subset: s})
	if err != nil || rep.Subset == nil || len(rep.Damage) > 0 {
		t.Fatalf("%+v: %+v, %v", s, rep, err)
	}
	return rep, names.packsRead()
}

// TestSubsetReadsAll: shares follow one another, each pack is read once a turn, in the levels apart, across restarts and beside new packs.
func TestSubsetReadsAll(t *testing.T) {
	be, cache := manyPacks(t), t.TempDir()
	for _, share := range []Subset{{Share: 0.1}, {Share: 0.33}, {Bytes: 500}, {Bytes: 1}, {Share: 1}, {Bytes: 1 << 40}} {
		read, runs, left := map[string]int{}, 0, -1
		for turn := (*SubsetTurn)(nil); turn == nil || turn.Left.Objects > 0; runs++ {
			rep, packs := checkSubset(t, be, cache, CheckStored, share)
			turn = rep.Subset.Turn
			for _, p := range packs {
				read[p]++
			}
			if turn.Runs != runs+1 || rep.Subset.Packs.Objects != len(packs) || rep.BytesRead != rep.Subset.Packs.Bytes {
				t.Fatalf("%+v, run %d: %+v, %d packs read", share, runs, rep.Subset, len(packs))
			}
			if want := rep.Subset.All.Objects - len(read); turn.Left.Objects != max(0, want) {
				t.Fatalf("%+v, run %d: %d packs left, want %d", share, runs, turn.Left.Objects, want)
			}
			if left >= 0 && turn.RunsLeft > left+1 || (turn.RunsLeft == 0) != (turn.Left.Objects == 0) { // an estimate, by the packs read so far
				t.Fatalf("%+v, run %d: %d runs left after %d", share, runs, turn.RunsLeft, left)
			}
			left = turn.RunsLeft
			if runs > 0 && turn.DoneBy == nil {
				t.Fatalf("%+v: it is not said when all is read: %+v", share, turn)
			}
			if share.Share > 0 && rep.BytesRead < int64(share.Share*float64(rep.Subset.All.Bytes)) {
				t.Fatalf("%+v: %d bytes read of %d", share, rep.BytesRead, rep.Subset.All.Bytes)
			}
		}
		if len(read) != 24 || (share.Share > 0 && runs > int(1/share.Share)+2) {
			t.Fatalf("%+v: %d packs read in %d runs", share, len(read), runs)
		}
	}
}

// TestSubsetBesideNewPacks: whatever comes and goes meanwhile, what was there at a turn's beginning and still is was read at its end.
func TestSubsetBesideNewPacks(t *testing.T) {
	be, cache := manyPacks(t), t.TempDir()
	r := openSmall(t, be)
	defer r.Close()
	var old []string
	for _, name := range objectNames(t, be) {
		if strings.HasPrefix(name, prefixPacks+"data") {
			old = append(old, name)
		}
	}
	read := map[string]bool{}
	for run := 0; ; run++ {
		rep, packs := checkSubset(t, be, cache, CheckData, Subset{Share: 0.2})
		for _, p := range packs {
			read[p] = true
		}
		if run > 20 {
			t.Fatal("the turn does not end")
		}
		if rep.Subset.Turn.Left.Objects == 0 {
			break
		}
		addPacks(t, r, 1000+2*run, 2)
	}
	for _, name := range old {
		if !read[name] {
			t.Errorf("%s was never read", name)
		}
	}
}

// TestSubsetParts: n/m needs no memory, and parts 1/m to m/m are all packs, each once.
func TestSubsetParts(t *testing.T) {
	be := manyPacks(t)
	for _, of := range []int{1, 2, 7} {
		read := map[string]int{}
		for n := 1; n <= of; n++ {
			rep, packs := checkSubset(t, be, "", CheckStored, Subset{Part: n, Of: of})
			_, again := checkSubset(t, be, t.TempDir(), CheckStored, Subset{Part: n, Of: of})
			if rep.Subset.Turn != nil || !slices.Equal(packs, again) || rep.Subset.Packs.Objects != len(packs) {
				t.Errorf("%d/%d: %+v, %d and %d packs read", n, of, rep.Subset, len(packs), len(again))
			}
			for _, p := range packs {
				read[p]++
			}
		}
		if len(read) != 24 {
			t.Errorf("of %d: %d packs read", of, len(read))
		}
		for name, n := range read {
			if n != 1 {
				t.Errorf("of %d: %s read %d times", of, name, n)
			}
		}
	}
}

// TestSubsetWithoutMemory: a position that is lost or torn is no error; where a turn begins then is not always the same.
func TestSubsetWithoutMemory(t *testing.T) {
	be := manyPacks(t)
	begins := map[string]bool{}
	for range 20 {
		_, packs := checkSubset(t, be, "", CheckStored, Subset{Bytes: 1})
		begins[packs[0]] = true
	}
	if len(begins) < 3 {
		t.Errorf("20 checks that know of no other have read only %d packs", len(begins))
	}
	cache := t.TempDir()
	checkSubset(t, be, cache, CheckStored, Subset{Bytes: 1})
	files, err := filepath.Glob(filepath.Join(cache, "*", "check-stored"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	for _, text := range []string{"", "{", `{"from": "zz"}`, `{"from":"0","at":"0","runs":-1}`, `{"every":-5}`, "null"} {
		if err := os.WriteFile(files[0], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		rep, packs := checkSubset(t, be, cache, CheckStored, Subset{Bytes: 1})
		if len(packs) != 1 || rep.Subset.Turn.Runs != 1 || time.Since(rep.Subset.Turn.Begun) > time.Hour {
			t.Errorf("after %q: %d packs, %+v", text, len(packs), rep.Subset.Turn)
		}
	}
}

func TestSubsetFindsDamage(t *testing.T) {
	be, cache := manyPacks(t), t.TempDir()
	var object string
	for _, name := range objectNames(t, be) {
		if strings.HasPrefix(name, prefixPacks+"data") {
			object = name
		}
	}
	data, err := backend.ReadAll(t.Context(), be, object)
	if err != nil {
		t.Fatal(err)
	}
	data[packHeaderLen+20] ^= 1
	if err := be.Put(t.Context(), object, data); err != nil {
		t.Fatal(err)
	}
	found := 0
	for range 10 {
		r, err := Open(t.Context(), be, Options{CacheDir: cache})
		if err != nil {
			t.Fatal(err)
		}
		rep, err := r.Check(t.Context(), CheckOptions{Subset: Subset{Share: 0.1}})
		if err != nil {
			t.Fatal(err)
		}
		if named(rep, object) {
			found++
		}
		_ = r.Close()
	}
	if found == 0 {
		t.Error("damage was not found in a whole turn")
	}
}

func TestSubsetRefused(t *testing.T) {
	be := manyPacks(t)
	r := openSmall(t, be)
	defer r.Close()
	for _, s := range []Subset{{Share: -0.1}, {Share: 1.1}, {Bytes: -1}, {Part: 0, Of: 3}, {Part: 4, Of: 3}, {Part: 1}, {Share: 0.1, Bytes: 5}, {Share: 0.1, Part: 1, Of: 2}} {
		if _, err := r.Check(t.Context(), CheckOptions{Subset: s}); err == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}

// TestSubsetInterrupted: what an interrupted check has read counts.
func TestSubsetInterrupted(t *testing.T) {
	be, cache := manyPacks(t), t.TempDir()
	r, err := Open(t.Context(), be, Options{CacheDir: cache, Parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen int64
	_, err = r.Check(ctx, CheckOptions{Level: CheckStored, Subset: Subset{Share: 1}, Progress: func(done, total int64) {
		if seen = done; done > total/3 {
			cancel()
		}
	}})
	if err == nil {
		t.Fatal("not interrupted")
	}
	rep, _ := checkSubset(t, be, cache, CheckStored, Subset{Bytes: 1})
	if all := rep.Subset.All.Bytes; rep.Subset.Turn.Left.Bytes > all-seen/2 || rep.Subset.Turn.Runs != 2 {
		t.Errorf("interrupted after %d of %d bytes: %+v", seen, all, rep.Subset.Turn)
	}
}
