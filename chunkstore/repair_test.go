package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// memContent is an image in memory as a source of repairs.
type memContent struct {
	img  []byte
	data []int64 // offsets of blocks that are not zero
}

func imageContent(img []byte) *memContent {
	c := &memContent{img: img}
	for at := 0; at < len(img); at += CutBlock {
		if !isZero(img[at:min(at+CutBlock, len(img))]) {
			c.data = append(c.data, int64(at))
		}
	}
	return c
}

func (c *memContent) Size() int64 { return int64(len(c.img)) }

func (c *memContent) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(c.img)) {
		return errors.New("read outside the image")
	}
	copy(p, c.img[off:])
	return nil
}

func (c *memContent) NextData(_ context.Context, off int64) (int64, int64, error) {
	i, _ := slices.BinarySearch(c.data, off/CutBlock*CutBlock)
	if i == len(c.data) {
		return c.Size(), c.Size(), nil
	}
	return max(c.data[i], off), min(c.data[i]+CutBlock, c.Size()), nil
}

func imagesOf(all []stored) (from []RepairSource) {
	for _, b := range all {
		from = append(from, RepairSource{Name: "image of " + b.ID, Content: imageContent(b.img)})
	}
	return from
}

// allObjects is what a backend holds.
func allObjects(t *testing.T, be backend.Backend) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range objectNames(t, be) {
		data, err := backend.ReadAll(t.Context(), be, name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = data
	}
	return out
}

func mustRepair(t *testing.T, be backend.Backend, o RepairOptions) *RepairReport {
	t.Helper()
	rep, err := Repair(t.Context(), be, Options{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// mustBeWhole checks everything, and reads it.
func mustBeWhole(t *testing.T, name string, be backend.Backend, all []stored) {
	t.Helper()
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	defer r.Close()
	rep, err := r.Check(t.Context(), CheckOptions{Level: CheckData})
	if err != nil || len(rep.Damage) > 0 {
		t.Fatalf("%s: check: %+v, %v", name, rep, err)
	}
	for _, b := range all {
		if slices.Contains(lossOf(t, r, b), true) {
			t.Fatalf("%s: backup %s of %s cannot be read", name, b.ID, b.Volume)
		}
	}
}

// mustStay repairs again: nothing is left to do.
func mustStay(t *testing.T, name string, be backend.Backend, o RepairOptions) {
	t.Helper()
	before := allObjects(t, be)
	if rep := mustRepair(t, be, o); len(rep.Lost) > 0 || rep.Salvaged != (Salvage{}) {
		t.Errorf("%s: repaired again: %+v", name, rep)
	}
	if after := allObjects(t, be); !maps.EqualFunc(before, after, bytes.Equal) {
		t.Errorf("%s: repaired again: %d objects, then %d", name, len(before), len(after))
	}
}

// sweep prunes twice, as if graces had passed, and checks that only what is needed is left.
func sweep(t *testing.T, name string, be backend.Backend) {
	t.Helper()
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rep, err := r.Prune(t.Context(), PruneOptions{})
	if err != nil || len(rep.Damage) > 0 {
		t.Errorf("%s: prune: %+v, %v", name, rep, err)
	}
	if rep, err = r.Prune(t.Context(), PruneOptions{}); err != nil || rep.Freed.Objects+rep.Condemned.Objects+rep.Waiting.Objects > 0 {
		t.Errorf("%s: the second prune: %+v, %v", name, rep, err)
	}
}

// TestRepairFromCopies: damage of one of two copies is made good from the other, and the next check finds nothing.
func TestRepairFromCopies(t *testing.T) {
	good, b := twoCopies(t)
	rnd := rand.New(rand.NewPCG(5, 5))
	for _, object := range objectNames(t, good) {
		if !strings.HasPrefix(object, prefixPacks) {
			continue
		}
		data, err := backend.ReadAll(t.Context(), good, object)
		if err != nil {
			t.Fatal(err)
		}
		for what, left := range damages(rnd, data) {
			if !fullTest() && rnd.IntN(5) > 0 {
				continue
			}
			be := cloneBackend(t, good)
			if err = be.Put(t.Context(), object, left); left == nil {
				err = be.Delete(t.Context(), object)
			}
			if err != nil {
				t.Fatal(err)
			}
			name := what + " " + object
			rep := mustRepair(t, be, RepairOptions{Level: CheckStored})
			if len(rep.Damage) == 0 || len(rep.Lost)+len(rep.Left) > 0 || rep.Condemned.Objects != 1 {
				t.Errorf("%s: %+v", name, rep)
			}
			mustBeWhole(t, name, be, []stored{b})
			mustStay(t, name, be, RepairOptions{Level: CheckStored})
			sweep(t, name, be)
			mustBeWhole(t, name+", pruned", be, []stored{b})
			if t.Failed() {
				return
			}
		}
	}
}

// otherRepository has the same backups under another secret.
func otherRepository(t *testing.T, all []stored) *Repository {
	t.Helper()
	be := mem.New()
	if _, err := Init(t.Context(), be, InitOptions{SpanBytes: 2 << 20}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	for _, b := range all {
		w := newTestWriter(t, r)
		if err := w.PutBackup(t.Context(), &Backup{Volume: b.Volume, Blob: putImage(t, r, w, b.img, nil)}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// TestRepairFindsEverything damages every object in every way, and repairs from images, from a copy of the repository, and from one of
// another secret: whatever is content comes back.
func TestRepairFindsEverything(t *testing.T) {
	good, all := smallRepository(t)
	rnd := rand.New(rand.NewPCG(6, 6))
	twin, err := Open(t.Context(), cloneBackend(t, good), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	other := otherRepository(t, all)
	sources := map[string][]RepairSource{
		"images": imagesOf(all), "twin": {{Name: "twin", Repository: twin}}, "other": {{Name: "other", Repository: other}},
	}
	for _, object := range objectNames(t, good) {
		if object == objectConfig {
			continue
		}
		data, err := backend.ReadAll(t.Context(), good, object)
		if err != nil {
			t.Fatal(err)
		}
		for what, left := range damages(rnd, data) {
			if what == "delete" && strings.HasPrefix(object, prefixBackups) {
				continue // a backup that was deleted
			}
			for kind, from := range sources {
				if !fullTest() && rnd.IntN(8) > 0 {
					continue
				}
				be := cloneBackend(t, good)
				if err = be.Put(t.Context(), object, left); left == nil {
					err = be.Delete(t.Context(), object)
				}
				if err != nil {
					t.Fatal(err)
				}
				name := kind + ": " + what + " " + object[:min(len(object), 24)]
				rep := mustRepair(t, be, RepairOptions{Level: CheckStored, From: from})
				if strings.HasPrefix(object, prefixBackups) && kind != "twin" {
					if len(rep.Lost) > 0 || len(rep.Left) != 1 || rep.Left[0].Object != object {
						t.Fatalf("%s: %+v", name, rep)
					}
					continue
				}
				if len(rep.Lost)+len(rep.Left) > 0 {
					t.Fatalf("%s: %+v", name, rep)
				}
				mustBeWhole(t, name, be, all)
				mustStay(t, name, be, RepairOptions{Level: CheckStored})
				sweep(t, name, be)
				mustBeWhole(t, name+", pruned", be, all)
				if t.Failed() {
					return
				}
			}
		}
	}
}

// lose deletes the packs of that kind.
func lose(t *testing.T, be backend.Backend, kind string) (n int) {
	t.Helper()
	for _, object := range objectNames(t, be) {
		if strings.HasPrefix(object, prefixPacks+kind) {
			n++
			if err := be.Delete(t.Context(), object); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// TestRepairAllIsLost: every tree, every pack, all come back from what the sources hold, in small rounds too.
func TestRepairAllIsLost(t *testing.T) {
	good, all := smallRepository(t)
	for _, kind := range []string{"data", "tree", ""} {
		for _, limit := range []int{0, 3} {
			if limit == 3 && kind == "data" && !fullTest() {
				continue
			}
			be := cloneBackend(t, good)
			if lose(t, be, kind) == 0 {
				t.Fatal("nothing to lose")
			}
			r, err := Open(t.Context(), be, Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := &repair{r: r, o: RepairOptions{From: imagesOf(all), Progress: func(string, int64, int64) {}}, limit: limit}
			if err := p.run(t.Context()); err != nil || len(p.report.Lost)+len(p.report.Left) > 0 {
				t.Fatalf("%q, %d: %+v, %v", kind, limit, p.report, err)
			}
			if p.report.Found[0].Chunks == 0 && p.report.Found[0].Nodes == 0 {
				t.Errorf("%q: nothing was found in the first source: %+v", kind, p.report.Found)
			}
			_ = r.Close()
			mustBeWhole(t, kind, be, all)
		}
	}
}

// TestRepairThenBackup is the life of a repository that lost a pack: a check says so; after a repair, what is whole is readable, and what
// is lost is exactly told and not in the index; a full backup of the volume makes the old ones whole.
func TestRepairThenBackup(t *testing.T) {
	good, all := smallRepository(t)
	for i, object := range objectNames(t, good) {
		if !strings.HasPrefix(object, prefixPacks) || (!fullTest() && i%3 > 0) {
			continue
		}
		be := cloneBackend(t, good)
		if err := be.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		r := openTest(t, be, Options{})
		if rep, err := r.Check(t.Context(), CheckOptions{}); err != nil || !named(rep, object) {
			t.Fatalf("%s: %+v, %v", object, rep, err)
		}
		rep := mustRepair(t, be, RepairOptions{})
		if rep.Condemned.Objects != 1 || len(rep.Lost) == 0 {
			t.Fatalf("%s: %+v", object, rep)
		}
		if err := r.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		compareRepaired(t, object, r, rep, all)
		before := allObjects(t, be)
		again := mustRepair(t, be, RepairOptions{})
		if len(again.Lost) != len(rep.Lost) || again.Condemned.Objects > 0 || !maps.EqualFunc(before, allObjects(t, be), bytes.Equal) {
			t.Errorf("%s: repaired again: %+v", object, again)
		}
		for _, b := range all { // the sources as they are now
			w := newTestWriter(t, r)
			if err := w.PutBackup(t.Context(), &Backup{Volume: b.Volume, Blob: putImage(t, r, w, b.img, nil)}); err != nil {
				t.Fatal(err)
			}
		}
		mustBeWhole(t, object, be, all)
		sweep(t, object, be)
		mustBeWhole(t, object+", pruned", be, all)
	}
}

// compareRepaired compares what a repair says is lost with what cannot be read, and with what writers count on.
func compareRepaired(t *testing.T, name string, r *Repository, rep *RepairReport, all []stored) {
	t.Helper()
	for _, b := range all {
		says := make([]bool, (len(b.img)+CutBlock-1)/CutBlock)
		for _, l := range rep.Lost {
			if l.Volume != b.Volume || l.Backup != b.ID {
				continue
			}
			var sum int64
			for i, rg := range l.Ranges {
				markBlocks(says, rg.Off, rg.End())
				if sum += rg.Len; i > 0 && rg.Off <= l.Ranges[i-1].End() {
					t.Errorf("%s: ranges are not ascending and apart: %+v", name, l.Ranges)
				}
			}
			if sum != l.Bytes {
				t.Errorf("%s: %d bytes are said to be lost, the ranges have %d", name, l.Bytes, sum)
			}
		}
		if lost := lossOf(t, r, b); !slices.Equal(lost, says) {
			t.Errorf("%s: what is said to be lost of %s is not what cannot be read", name, b.ID)
		}
		for c, err := range r.OpenBlob(b.Blob).Chunks(t.Context(), 0, b.Blob.Size) {
			if err != nil {
				break
			}
			k := c.ID.key()
			has, hasErr := r.index.has(t.Context(), &k)
			if _, err := r.ReadChunk(t.Context(), c.ID, nil); (err == nil) != has || hasErr != nil {
				t.Errorf("%s: chunk at %d: the index has it: %v, reading it: %v", name, c.Off, has, err)
			}
		}
	}
}

// TestRepairDryRun: it says what a repair then does, and changes nothing.
func TestRepairDryRun(t *testing.T) {
	good, all := smallRepository(t)
	rnd := rand.New(rand.NewPCG(7, 7))
	for i, object := range objectNames(t, good) {
		if object == objectConfig || (!fullTest() && i%3 > 0) {
			continue
		}
		be := cloneBackend(t, good)
		data, err := backend.ReadAll(t.Context(), be, object)
		if err != nil {
			t.Fatal(err)
		}
		data[rnd.IntN(len(data))] ^= 8
		if err := be.Put(t.Context(), object, data); err != nil {
			t.Fatal(err)
		}
		o := RepairOptions{Level: CheckData, DryRun: true, From: imagesOf(all)[1:]}
		before := allObjects(t, be)
		would := mustRepair(t, be, o)
		if !maps.EqualFunc(before, allObjects(t, be), bytes.Equal) {
			t.Fatalf("%s: a dry run changed something", object)
		}
		o.DryRun = false
		did := mustRepair(t, be, o)
		if would.DryRun = false; !sameRepair(would, did) {
			t.Errorf("%s:\nwould %+v\ndid   %+v", object, would, did)
		}
	}
}

func sameRepair(a, b *RepairReport) bool {
	same := func(x, y LostBackup) bool { return x.Backup == y.Backup && slices.Equal(x.Ranges, y.Ranges) }
	return len(a.Damage) == len(b.Damage) && len(a.Left) == len(b.Left) && a.Salvaged == b.Salvaged && slices.Equal(a.Found, b.Found) &&
		a.Condemned == b.Condemned && slices.EqualFunc(a.Lost, b.Lost, same) && slices.Equal(a.Objects, b.Objects) && a.Indexed == b.Indexed && a.Reindexed == b.Reindexed
}

// TestRepairEveryCrash kills a repair at each of its writes, before and after it: nothing more is lost than was, and the next repair
// brings all back.
func TestRepairEveryCrash(t *testing.T) {
	good, all := smallRepository(t)
	harmed := cloneBackend(t, good)
	gone := map[string]bool{}
	for i, object := range objectNames(t, harmed) { // some packs go, some rot, a segment goes
		data, err := backend.ReadAll(t.Context(), harmed, object)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(object, prefixPacks) && i%3 == 0:
			gone[object] = true
			err = harmed.Delete(t.Context(), object)
		case strings.HasPrefix(object, prefixPacks) && i%3 == 1:
			data[40] ^= 1
			err = harmed.Put(t.Context(), object, data)
		case strings.HasPrefix(object, prefixIndex) && len(gone) == 0:
			gone[object] = true
			err = harmed.Delete(t.Context(), object)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	loss := func(be backend.Backend) (n int) {
		r, err := Open(t.Context(), be, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, b := range all {
			for _, lost := range lossOf(t, r, b) {
				if lost {
					n++
				}
			}
		}
		return n
	}
	before, step := loss(harmed), 1
	if !fullTest() {
		step = 4
	}
	if before == 0 {
		t.Fatal("nothing is lost")
	}
	for name, stop := range map[string]func(backend.Backend, int) *backendtest.Stopped{"before": backendtest.StopAfter, "after": backendtest.StopAfterLost} {
		for n := 1; ; n += step {
			be := cloneBackend(t, harmed)
			stopped := stop(be, n)
			o := RepairOptions{Level: CheckStored, From: imagesOf(all), BreakLock: true}
			_, err := Repair(t.Context(), stopped, Options{}, o)
			if err != nil && !errors.Is(err, backendtest.ErrStopped) {
				t.Fatalf("%s write %d: %v", name, n, err)
			}
			_ = stopped.Survivors()
			if after := loss(be); after > before || (err == nil && after > 0) {
				t.Fatalf("%s write %d: %d blocks were lost, then %d", name, n, before, after)
			}
			if rep := mustRepair(t, be, o); len(rep.Lost)+len(rep.Left) > 0 {
				t.Fatalf("%s write %d: %+v", name, n, rep)
			}
			mustBeWhole(t, name, be, all)
			if err == nil {
				t.Logf("%s: %d writes", name, n)
				break
			}
		}
	}
}

// TestRepairPassesOnErrors: a backend that fails is no damage.
func TestRepairPassesOnErrors(t *testing.T) {
	good, all := smallRepository(t)
	for _, f := range []backendtest.Fault{
		{Method: backendtest.List, Prefix: prefixIndex}, {Method: backendtest.List, Prefix: prefixPacks}, {Method: backendtest.List, Prefix: prefixPacks, N: 2},
		{Method: backendtest.List, Prefix: prefixBackups}, {Method: backendtest.List, Prefix: prefixTrash}, {Method: backendtest.ReadAt, Prefix: prefixPacks + "data"},
		{Method: backendtest.ReadAt, Prefix: prefixPacks + "tree"}, {Method: backendtest.ReadAt, Prefix: prefixBackups}, {Method: backendtest.Put, Prefix: prefixPacks},
		{Method: backendtest.Put, Prefix: prefixIndex}, {Method: backendtest.Put, Prefix: prefixTrash}, {Method: backendtest.Delete, Prefix: prefixIndex},
	} {
		be := cloneBackend(t, good)
		for _, object := range objectNames(t, be) {
			if strings.HasPrefix(object, prefixPacks+"data") {
				if err := be.Delete(t.Context(), object); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		_, err := Repair(t.Context(), backendtest.NewFaulty(t, be, f), Options{Parallel: 1}, RepairOptions{Level: CheckStored, From: imagesOf(all), BreakLock: true})
		if !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("%v of %q fails: %v", f.Method, f.Prefix, err)
		}
		if rep := mustRepair(t, be, RepairOptions{Level: CheckStored, From: imagesOf(all), BreakLock: true}); len(rep.Lost) > 0 {
			t.Errorf("after %v of %q: %+v", f.Method, f.Prefix, rep)
		}
		mustBeWhole(t, "after an error", be, all)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Repair(ctx, good, Options{}, RepairOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestRepairAsksBeforeMuch: when much is missing, the store may not be all there.
func TestRepairAsksBeforeMuch(t *testing.T) {
	be := manyPacks(t)
	r := openSmall(t, be)
	addPacks(t, r, 100, 20)
	_ = r.Close()
	lose(t, be, "data")
	before := allObjects(t, be)
	if _, err := Repair(t.Context(), be, Options{}, RepairOptions{}); !errors.Is(err, ErrMuchDamage) {
		t.Fatalf("all packs are gone: %v", err)
	}
	if !maps.EqualFunc(before, allObjects(t, be), bytes.Equal) {
		t.Error("something was changed")
	}
	if rep := mustRepair(t, be, RepairOptions{Force: true}); rep.Condemned.Objects != 44 {
		t.Errorf("%+v", rep)
	}
}

// TestRepairMovedContent: a chunk whose place has other content now is found where the content has moved to, and one whose neighbours
// changed, so that it is cut otherwise, in its old place.
func TestRepairMovedContent(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	rnd := rand.New(rand.NewPCG(8, 8))
	img := make([]byte, 3<<20)
	for i := range img[:1<<20] {
		img[i] = byte(rnd.Uint32())
	}
	w := newTestWriter(t, r)
	b := &Backup{Volume: "v", Blob: putImage(t, r, w, img, nil)}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	lose(t, be, "data")
	moved := make([]byte, 4<<20)
	copy(moved[2<<20:], img[:1<<20]) // as a file that was copied
	if rep := mustRepair(t, be, RepairOptions{DryRun: true, From: []RepairSource{{Name: "moved", Content: imageContent(moved)}}}); len(rep.Lost) > 0 {
		t.Errorf("moved: %+v", rep.Lost)
	}
	changed := bytes.Clone(img)
	harmed := map[int64]bool{}
	for c, err := range r.OpenBlob(b.Blob).Chunks(t.Context(), 0, b.Blob.Size) { // every second chunk's last block
		if err != nil {
			t.Fatal(err)
		}
		if harmed[c.Off] = len(harmed)%2 == 0; harmed[c.Off] {
			clear(changed[c.End()-1 : c.End()])
			changed[c.End()-1] = img[c.End()-1] + 1
		}
	}
	rep := mustRepair(t, be, RepairOptions{From: []RepairSource{{Name: "changed", Content: imageContent(changed)}}})
	if len(rep.Lost) != 1 {
		t.Fatalf("%+v", rep.Lost)
	}
	for _, rg := range rep.Lost[0].Ranges {
		if !harmed[rg.Off] {
			t.Errorf("%+v is lost, and was there", rg)
		}
	}
	if rep := mustRepair(t, be, RepairOptions{From: []RepairSource{{Name: "img", Content: imageContent(img)}}}); len(rep.Lost) > 0 {
		t.Errorf("%+v", rep.Lost)
	}
}
