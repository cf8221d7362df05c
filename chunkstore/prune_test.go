package chunkstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// pruneFixture is a repository of backups of a changing image, of which every second is deleted.
type pruneFixture struct {
	be   *mem.Backend
	imgs map[string][]byte // by backup ID
}

func newPruneFixture(t *testing.T) *pruneFixture {
	t.Helper()
	f := &pruneFixture{be: mem.New(), imgs: map[string][]byte{}}
	r := openTest(t, f.be, Options{})
	rnd := rand.New(rand.NewPCG(5, 6))
	img := sparseImage(rnd, 6<<20)
	var ids []string
	for range 6 {
		for range 4 {
			off := rnd.IntN(len(img) - 400_000)
			copy(img[off:], sparseImage(rnd, 400_000))
		}
		w := newTestWriter(t, r)
		b := &Backup{Volume: "v", Blob: putImage(t, r, w, img, nil)}
		if err := errors.Join(w.PutBackup(t.Context(), b), w.Close()); err != nil {
			t.Fatal(err)
		}
		f.imgs[b.ID] = append([]byte(nil), img...)
		ids = append(ids, b.ID)
	}
	for i := 0; i < len(ids); i += 2 {
		if err := r.DeleteBackup(t.Context(), "v", ids[i]); err != nil {
			t.Fatal(err)
		}
		delete(f.imgs, ids[i])
	}
	return f
}

func (f *pruneFixture) stored(t *testing.T) (n int64) {
	t.Helper()
	if err := f.be.List(t.Context(), prefixPacks, func(o backend.Object) error {
		n += o.Size
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// verify reads all backups, through a fresh index and through r's.
func (f *pruneFixture) verify(t *testing.T, be backend.Backend) {
	t.Helper()
	r := openTest(t, be, Options{})
	all, err := r.ListBackups(t.Context(), "")
	if err != nil || len(all) != len(f.imgs) {
		t.Fatalf("%d backups, want %d; %v", len(all), len(f.imgs), err)
	}
	for _, b := range all {
		mustReadBlob(t, r, b.Blob, f.imgs[b.ID])
	}
}

func mustPrune(t *testing.T, r *Repository, o PruneOptions) *PruneReport {
	t.Helper()
	rep, err := r.Prune(t.Context(), o)
	if err != nil || len(rep.Damage) > 0 {
		t.Fatalf("prune: %+v, %v", rep, err)
	}
	return rep
}

// Nine tenths of what is dead comes back in one run, and a reader whose index is old goes on reading.
func TestPruneFreesAtOnce(t *testing.T) {
	f := newPruneFixture(t)
	old := openTest(t, f.be, Options{CacheDir: t.TempDir()})
	r := openTest(t, f.be, Options{CacheDir: t.TempDir()})
	before := f.stored(t)
	rep := mustPrune(t, r, PruneOptions{MaxUnused: 0})
	dead, freed := before-rep.Needed, before-f.stored(t)
	if freed*10 < dead*9 {
		t.Errorf("%d of %d dead bytes freed; %+v", freed, dead, rep)
	}
	if rep.Freed.Bytes-rep.Copied > freed+freed/10 || rep.Backups != 3 || rep.Condemned.Objects != 0 {
		t.Errorf("%d freed, but the report says %+v", freed, rep)
	}
	f.verify(t, f.be)
	for id, img := range f.imgs {
		b, err := old.Backup(t.Context(), "v", id)
		if err != nil {
			t.Fatal(err)
		}
		mustReadBlob(t, old, b.Blob, img)
		var chunks []Chunk
		for c, err := range old.OpenBlob(b.Blob).Chunks(t.Context(), 0, b.Blob.Size) {
			if err != nil {
				t.Fatal(err)
			}
			chunks = append(chunks, c)
		}
		if err := old.ReadChunks(t.Context(), chunks, func(int, []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if again := mustPrune(t, r, PruneOptions{MaxUnused: 0}); again.Freed.Objects != 0 || again.Repacked.Objects != 0 {
		t.Errorf("a second prune found more: %+v", again)
	}
}

func TestPruneInTwoPhases(t *testing.T) {
	f := newPruneFixture(t)
	imgs := f.imgs
	synctest.Test(t, func(t *testing.T) {
		f := &pruneFixture{be: mem.New(), imgs: imgs}
		copyObjects(t, f.be, newPruneObjects(t, imgs))
		r := openTest(t, f.be, Options{})
		ids, err := r.Backups(t.Context(), "v")
		if err != nil || len(ids) != len(imgs) {
			t.Fatalf("%v, %v", ids, err)
		}
		gone := ids[0]
		if err := r.DeleteBackup(t.Context(), "v", gone); err != nil {
			t.Fatal(err)
		}
		want := map[string][]byte{}
		for _, id := range ids[1:] {
			want[id] = imgs[id]
		}
		f.imgs = want
		before := f.stored(t)
		o := PruneOptions{Grace: time.Hour}
		if rep := mustPrune(t, r, o); rep.Condemned.Objects != 0 || rep.Young.Bytes+rep.Unused == 0 {
			t.Errorf("young packs: %+v", rep)
		}
		time.Sleep(2 * time.Hour)
		rep := mustPrune(t, r, o)
		if rep.Condemned.Objects == 0 || rep.Freed.Objects != 0 || rep.FreeAfter == nil || !rep.FreeAfter.Equal(time.Now().Add(time.Hour)) {
			t.Errorf("first phase: %+v", rep)
		}
		check, err := r.Check(t.Context(), CheckOptions{})
		if err != nil || check.Condemned != rep.Condemned.Objects || len(check.Damage) > 0 {
			t.Errorf("check: %+v, %v", check, err)
		}
		if again := mustPrune(t, r, o); again.Waiting != rep.Condemned || again.Freed.Objects != 0 {
			t.Errorf("before the grace is over: %+v", again)
		}
		time.Sleep(time.Hour)
		if last := mustPrune(t, r, o); last.Freed != rep.Condemned || f.stored(t) >= before {
			t.Errorf("second phase: %+v, want %+v freed", last, rep.Condemned)
		}
		f.verify(t, f.be)
		time.Sleep(trashKeep + time.Hour)
		mustPrune(t, r, o)
		if err := f.be.List(t.Context(), prefixTrash, func(o backend.Object) error { return errors.New(o.Name) }); err != nil {
			t.Errorf("a trash list stays: %v", err)
		}
	})
}

// newPruneObjects makes a repository with these images, each in packs of its own, and returns its objects.
func newPruneObjects(t *testing.T, imgs map[string][]byte) map[string][]byte {
	t.Helper()
	be := mem.New()
	r := openTest(t, be, Options{})
	for id, img := range imgs {
		w := newTestWriter(t, r)
		b := &Backup{Volume: "v", ID: id, Blob: putImage(t, r, w, img, nil)}
		if err := errors.Join(w.PutBackup(t.Context(), b), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return objectsOf(t, be)
}

func objectsOf(t *testing.T, be backend.Backend) map[string][]byte {
	t.Helper()
	objects := map[string][]byte{}
	if err := be.List(t.Context(), "", func(o backend.Object) (err error) {
		objects[o.Name], err = backend.ReadAll(t.Context(), be, o.Name)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return objects
}

func copyObjects(t *testing.T, be backend.Backend, objects map[string][]byte) {
	t.Helper()
	for name, data := range objects {
		if err := be.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPruneDryRunChangesNothing(t *testing.T) {
	f := newPruneFixture(t)
	be := backendtest.NewCounting(f.be)
	r := openTest(t, be, Options{})
	be.Reset()
	rep := mustPrune(t, r, PruneOptions{DryRun: true})
	if n := be.Calls(backendtest.Put) + be.Calls(backendtest.PutIfAbsent) + be.Calls(backendtest.Delete); n != 0 {
		t.Errorf("%d writes", n)
	}
	did := mustPrune(t, r, PruneOptions{})
	if !rep.DryRun || rep.Freed.Objects == 0 || rep.Freed != did.Freed || rep.Copied != did.Copied || rep.Repacked != did.Repacked {
		t.Errorf("foretold %+v, done %+v", rep, did)
	}
}

// What stays unused is at most what was allowed, and little is copied for it.
func TestPruneLeavesWhatMayStayUnused(t *testing.T) {
	f := newPruneFixture(t)
	r := openTest(t, f.be, Options{})
	none := mustPrune(t, r, PruneOptions{DryRun: true, MaxUnused: 1})
	some := mustPrune(t, r, PruneOptions{DryRun: true, MaxUnused: 0.1})
	if none.Repacked.Objects != 0 || some.Unused > (some.Packs.Bytes-none.Freed.Bytes)/10 || some.Unused > none.Unused {
		t.Errorf("all may stay: %+v\na tenth may: %+v", none, some)
	}
}

// A prune that dies at any write harms nothing, and the next one finishes its work.
func TestPruneEveryCrashPoint(t *testing.T) {
	objects := objectsOf(t, newPruneFixture(t).be)
	imgs := newPruneFixtureImages(t, objects)
	points := 0
	for _, stop := range []func(backend.Backend, int) *backendtest.Stopped{backendtest.StopAfter, backendtest.StopAfterLost} {
		for n := 1; ; n++ {
			f := &pruneFixture{be: mem.New(), imgs: imgs}
			copyObjects(t, f.be, objects)
			be := stop(f.be, n)
			r, err := Open(t.Context(), be, Options{Parallel: 1})
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.Prune(t.Context(), PruneOptions{})
			if err != nil && !errors.Is(err, backendtest.ErrStopped) {
				t.Fatalf("write %d: %v", n, err)
			}
			_ = r.Close()
			f.verify(t, be.Survivors())
			next := openTest(t, f.be, Options{})
			rep := mustPrune(t, next, PruneOptions{BreakLock: true})
			f.verify(t, f.be)
			if dead := f.stored(t) - rep.Needed; dead*10 > f.stored(t) {
				t.Errorf("write %d: the next prune leaves %d dead bytes", n, dead)
			}
			points++
			if t.Failed() || err == nil {
				break
			}
		}
	}
	if points < 20 {
		t.Errorf("only %d crash points", points)
	}
}

// newPruneFixtureImages reads the backups of a repository.
func newPruneFixtureImages(t *testing.T, objects map[string][]byte) map[string][]byte {
	t.Helper()
	be := mem.New()
	copyObjects(t, be, objects)
	r := openTest(t, be, Options{})
	all, err := r.ListBackups(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	imgs := map[string][]byte{}
	for _, b := range all {
		imgs[b.ID] = make([]byte, b.Blob.Size)
		if _, err := r.OpenBlob(b.Blob).ReadAt(t.Context(), imgs[b.ID], 0); err != nil {
			t.Fatal(err)
		}
	}
	return imgs
}

func TestPruneLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := mem.New()
		r := openTest(t, be, Options{})
		lock, err := r.lockPrune(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*time.Hour + time.Minute) // it is renewed
		_, err = r.Prune(t.Context(), PruneOptions{})
		var held *LockedError
		if !errors.As(err, &held) || !errors.Is(err, ErrLocked) || held.PID == 0 || time.Since(held.Since) > lockRenew {
			t.Fatalf("got %v, want %v", err, ErrLocked)
		}
		lock.stop()
		time.Sleep(lockStale) // its holder is dead
		other, err := r.lockPrune(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.release(); err != nil {
			t.Fatal(err)
		}
		if _, err := be.Stat(t.Context(), objectLock); err != nil {
			t.Errorf("the lock of another was given back: %v", err)
		}
		if _, err := r.Prune(t.Context(), PruneOptions{BreakLock: true}); err != nil {
			t.Error(err)
		}
		if err := other.release(); err != nil {
			t.Error(err)
		}
		if err := be.List(t.Context(), "prune/", func(o backend.Object) error { return errors.New(o.Name) }); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
}

// Where something is missing that a backup needs, nothing is deleted.
func TestPruneRefusesWhatItCannotTell(t *testing.T) {
	for name, prefix := range map[string]string{"a tree": prefixPacks + "tree", "data": prefixPacks + "data", "the index": prefixIndex} {
		f := newPruneFixture(t)
		objects := objectsOf(t, f.be)
		be := mem.New()
		lost := false
		for object, data := range objects {
			if !lost && len(object) > len(prefix) && object[:len(prefix)] == prefix && neededObject(t, f, object) {
				lost = true
				continue
			}
			if err := be.Put(t.Context(), object, data); err != nil {
				t.Fatal(err)
			}
		}
		r, err := Open(t.Context(), be, Options{})
		if err != nil {
			t.Fatal(err)
		}
		before := len(objectsOf(t, be))
		_, err = r.Prune(t.Context(), PruneOptions{})
		if !lost || !(errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt)) || len(objectsOf(t, be)) != before {
			t.Errorf("%s is lost (%v): %v, %d of %d objects left", name, lost, err, len(objectsOf(t, be)), before)
		}
		_ = r.Close()
	}
}

// neededObject says whether some backup cannot be read without the object.
func neededObject(t *testing.T, f *pruneFixture, object string) bool {
	t.Helper()
	be := mem.New()
	for name, data := range objectsOf(t, f.be) {
		if name != object {
			if err := be.Put(t.Context(), name, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rep, err := r.Check(context.Background(), CheckOptions{})
	return err == nil && len(rep.Damage) > 0 && len(rep.Damage[0].Touches) > 0
}

func TestPruneOptions(t *testing.T) {
	r := openTest(t, mem.New(), Options{})
	for _, o := range []PruneOptions{{Grace: -1}, {MaxUnused: -0.1}, {MaxUnused: 1.1}} {
		if _, err := r.Prune(t.Context(), o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	if rep := mustPrune(t, r, PruneOptions{}); rep.Packs.Objects != 0 {
		t.Errorf("an empty repository: %+v", rep)
	}
}
