package chunkstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// treeReads counts reads of packs of trees.
type treeReads struct {
	backend.Backend
	n, whole int
}

func (b *treeReads) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if strings.HasPrefix(name, prefixPacks+"tree/") {
		b.n++
		if off == 0 {
			b.whole++
		}
	}
	return b.Backend.ReadAt(ctx, name, p, off)
}

// aBackup stores an image of some spans as a backup, as a host with that cache does.
func aBackup(t *testing.T, be backend.Backend, cache string, img []byte) *Backup {
	t.Helper()
	_, _ = Init(t.Context(), be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20})
	r := openFresh(t, be, cache)
	w := newTestWriter(t, r)
	b := &Backup{Volume: "v", Blob: putImage(t, r, w, img, nil)}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTreesOfThisHostCostNoRequests: what a host stored or read of trees, its next process has at hand.
func TestTreesOfThisHostCostNoRequests(t *testing.T) {
	be := &treeReads{Backend: mem.New()}
	img := sparseImage(rand.New(rand.NewPCG(1, 2)), 5<<20)
	writer, reader := t.TempDir(), t.TempDir()
	b := aBackup(t, be, writer, img)
	mustReadBlob(t, openFresh(t, be, writer), b.Blob, img)
	if be.n != 0 {
		t.Errorf("%d reads of trees that this host stored", be.n)
	}
	mustReadBlob(t, openFresh(t, be, reader), b.Blob, img)
	first := be.n
	if mustReadBlob(t, openFresh(t, be, reader), b.Blob, img); first == 0 || be.n != first {
		t.Errorf("%d reads of trees, then %d of what this host has read", first, be.n-first)
	}
	mustReadBlob(t, openFresh(t, be, ""), b.Blob, img)
	if be.n != 2*first {
		t.Errorf("%d reads without a cache, %d with an empty one", be.n-first, first)
	}
}

// TestTreeCacheGoneBad: a copy that has gone bad is read from the repository again, and mended.
func TestTreeCacheGoneBad(t *testing.T) {
	be := &treeReads{Backend: mem.New()}
	rnd := rand.New(rand.NewPCG(3, 4))
	img := sparseImage(rnd, 5<<20)
	cache := t.TempDir()
	b := aBackup(t, be, cache, img)
	r := openFresh(t, be, cache)
	paths, err := filepath.Glob(filepath.Join(cache, r.ID(), "trees", "*"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v, %v", paths, err)
	}
	for what, harm := range map[string]func([]byte) []byte{
		"bits":  func(p []byte) []byte { p[40] ^= 4; p[len(p)/3] ^= 1; p[len(p)/2] ^= 1; return p },
		"zeros": func(p []byte) []byte { clear(p); return p },
		"short": func(p []byte) []byte { return p[:len(p)/3] },
		"empty": func([]byte) []byte { return nil },
	} {
		p, err := os.ReadFile(paths[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := replaceFile(paths[0], harm(p)); err != nil {
			t.Fatal(err)
		}
		be.n = 0
		mustReadBlob(t, openFresh(t, be, cache), b.Blob, img)
		if be.n == 0 {
			t.Errorf("%s: nothing was read again", what)
		}
		be.n = 0
		if mustReadBlob(t, openFresh(t, be, cache), b.Blob, img); be.n != 0 {
			t.Errorf("%s: %d reads of what was mended", what, be.n)
		}
	}
}

// TestCopiesProveNothingOfTheRepository: who asks for the store's own bytes, and a check, see damage that copies hide.
func TestCopiesProveNothingOfTheRepository(t *testing.T) {
	be := mem.New()
	img := sparseImage(rand.New(rand.NewPCG(5, 6)), 3<<20)
	cache := t.TempDir()
	b := aBackup(t, be, cache, img)
	for _, name := range objectNames(t, be) {
		if strings.HasPrefix(name, prefixPacks+"tree/") {
			data, err := backend.ReadAll(t.Context(), be, name)
			if err != nil {
				t.Fatal(err)
			}
			clear(data[packHeaderLen : len(data)-trailerLen])
			if err := be.Put(t.Context(), name, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := readAllChunks(t.Context(), openFresh(t, be, cache).OpenBlob(b.Blob)); err != nil {
		t.Errorf("from copies: %v", err)
	}
	if err := readAllChunks(FromStore(t.Context()), openFresh(t, be, cache).OpenBlob(b.Blob)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("from the store: %v", err)
	}
	if rep, err := openFresh(t, be, cache).Check(t.Context(), CheckOptions{}); err != nil || len(rep.Damage) == 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

func readAllChunks(ctx context.Context, b *Blob) error {
	for _, err := range b.Chunks(ctx, 0, b.Size()) {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestPruneReadsPacksOfTreesWhole: marking costs a request for each pack of trees, not for each node.
func TestPruneReadsPacksOfTreesWhole(t *testing.T) {
	be := &treeReads{Backend: mem.New()}
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 3 {
		aBackup(t, be, "", sparseImage(rnd, 12<<20))
	}
	be.n = 0
	r := openFresh(t, be, "")
	rep, err := r.Prune(t.Context(), PruneOptions{})
	if err != nil || rep.Backups != 3 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if be.n != 3 || be.whole != 3 {
		t.Errorf("%d reads of 3 packs of trees, %d of them whole", be.n, be.whole)
	}
}

func TestTreeCacheStaysSmall(t *testing.T) {
	c := newTreeCache(t.TempDir(), "r", 100<<10)
	now := time.Now()
	for i := range 20 {
		id := packID{byte(i)}
		c.add(id, make([]byte, 10<<10), 0)
		if err := os.Chtimes(c.path(id), time.Time{}, now.Add(time.Duration(i-30)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	rec := appendRecord(nil, plainBox{}, &ID{}, []byte("in use"), CodecRaw, 6)
	c.add(packID{0}, rec, 0)
	old := now.Add(-40 * time.Hour)
	if err := os.Chtimes(c.path(packID{0}), time.Time{}, old); err != nil {
		t.Fatal(err)
	}
	if !c.read(packID{0}, make([]byte, len(rec)), 0) { // the oldest is used now
		t.Fatal("what was added is not there")
	}
	c.sweep()
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) > 9 || len(entries) < 5 {
		t.Errorf("%d files of 12 KiB stay, %v", len(entries), err)
	}
	for _, id := range []packID{{0}, {19}, {18}} {
		if _, err := os.Stat(c.path(id)); err != nil {
			t.Errorf("one of those used last is gone: %v", err)
		}
	}
	var none *treeCache
	none.add(packID{}, rec, 0)
	none.sweep()
	if none.read(packID{}, rec, 0) || newTreeCache("", "r", 1) != nil {
		t.Error("there is a cache without a folder")
	}
}

// TestTrashListsAreReadOnce: of a host's processes.
func TestTrashListsAreReadOnce(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	cache := t.TempDir()
	r, err := initAndOpen(be, cache)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var names []string
	for i := range 3 {
		name, err := r.putTrash(t.Context(), &trashList{Version: trashVersion, Packs: []trashedPack{{Object: packID{byte(i)}.object(kindData), Size: 100}}})
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	reads := func() int64 {
		t.Helper()
		be.Reset()
		r := openFresh(t, be, cache)
		if n := len(r.index.trashSet().lists); n != len(names) {
			t.Errorf("%d lists of %d", n, len(names))
		}
		return be.Calls(backendtest.ReadAt) - 1 // the configuration
	}
	if n := reads(); n != 3 {
		t.Errorf("%d reads of 3 lists", n)
	}
	if n := reads(); n != 0 {
		t.Errorf("%d reads of what this host has", n)
	}
	copies := func() []string {
		paths, err := filepath.Glob(filepath.Join(cache, r.ID(), "trash", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	if err := edit(copies()[1], func(b []byte) { b[len(b)/2] ^= 1 }); err != nil {
		t.Fatal(err)
	}
	if n := reads(); n != 1 {
		t.Errorf("%d reads for one copy gone bad", n)
	}
	if err := be.Delete(t.Context(), names[0]); err != nil {
		t.Fatal(err)
	}
	names = names[1:]
	if n := reads(); n != 0 || len(copies()) != 2 {
		t.Errorf("%d reads, %v", n, copies())
	}
}
