package chunkstore

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// vault is a backend with object locks. It refuses to delete what is locked, or, with versions, hides it.
type vault struct {
	backend.Backend
	versions bool

	mu    sync.Mutex // guards all below
	now   time.Time
	until map[string]time.Time
	asked int // calls of Retain
}

var _ backend.ObjectLocker = (*vault)(nil)

func newVault(versions bool) *vault {
	return &vault{Backend: mem.New(), versions: versions, now: time.Now(), until: map[string]time.Time{}}
}

func (v *vault) CanRetain(context.Context) error { return nil }

func (v *vault) Retain(ctx context.Context, name string, _ backend.LockMode, until time.Time) (bool, error) {
	if _, err := v.Stat(ctx, name); err != nil {
		return false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked++
	longer := v.until[name].Before(until)
	if longer {
		v.until[name] = until
	}
	return longer, nil
}

func (v *vault) Retained(_ context.Context, name string) (time.Time, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if until := v.until[name]; until.After(v.now) {
		return until, nil
	}
	return time.Time{}, nil
}

func (v *vault) Put(ctx context.Context, name string, data []byte) error {
	if until, _ := v.Retained(ctx, name); !v.versions && !until.IsZero() {
		return &backend.RetainedError{Name: name, Until: until}
	}
	return v.Backend.Put(ctx, name, data)
}

func (v *vault) Delete(ctx context.Context, name string) error {
	if until, _ := v.Retained(ctx, name); !v.versions && !until.IsZero() {
		return &backend.RetainedError{Name: name, Until: until}
	}
	return v.Backend.Delete(ctx, name)
}

// lockedAlone returns a backend that holds what is locked, and nothing else.
func (v *vault) lockedAlone(t *testing.T) backend.Backend {
	t.Helper()
	be := mem.New()
	for name := range v.until {
		p, err := backend.ReadAll(t.Context(), v, name)
		if err == nil {
			err = be.Put(t.Context(), name, p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return be
}

// lockedBackup makes a backup of img that is locked for so long; parent may be nil.
func lockedBackup(t *testing.T, r *Repository, img []byte, parent *Backup, length time.Duration) (*Backup, *LockReport) {
	t.Helper()
	w := newTestWriter(t, r)
	b := &Backup{Volume: "v"}
	var base *Blob
	if parent != nil {
		base, b.Parent = r.OpenBlob(parent.Blob), parent.ID
	}
	b.Blob = putImage(t, r, w, img, base)
	err := w.Flush(t.Context())
	if err == nil {
		err = w.Lock(t.Context(), b, backend.Governance, time.Now().Add(length))
	}
	if err == nil {
		err = w.PutBackup(t.Context(), b)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b, w.LockReport()
}

// changed returns img with something new in one place.
func changed(rnd *rand.Rand, img []byte) []byte {
	img = slices.Clone(img)
	copy(img[rnd.IntN(len(img)-50_000):], sparseImage(rnd, 50_000))
	return img
}

// Of all that an attacker can leave, what is locked is enough to read the backups.
func TestLockedObjectsAreEnough(t *testing.T) {
	v := newVault(false)
	r := openTest(t, v, Options{})
	rnd := rand.New(rand.NewPCG(1, 2))
	imgs := map[string][]byte{}
	img := sparseImage(rnd, 6<<20)
	var parent *Backup
	for range 3 {
		parent, _ = lockedBackup(t, r, img, parent, time.Hour)
		imgs[parent.ID] = img
		img = changed(rnd, img)
	}
	be := v.lockedAlone(t)
	again, _, err := Reindex(t.Context(), be, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	list, err := again.ListBackups(t.Context(), "v")
	if err != nil || len(list) != len(imgs) {
		t.Fatalf("%d backups, %v", len(list), err)
	}
	for _, b := range list {
		mustReadBlob(t, again, b.Blob, imgs[b.ID])
		if b.Lock == nil || b.Lock.Mode != backend.Governance {
			t.Errorf("the record says %+v", b.Lock)
		}
	}
}

// A lock covers what is shared with earlier backups too: as long as an earlier lock does, nothing of that is looked at.
func TestLockExtends(t *testing.T) {
	v := newVault(false)
	r := openTest(t, v, Options{})
	rnd := rand.New(rand.NewPCG(3, 4))
	img := sparseImage(rnd, 30<<20)
	first, rep := lockedBackup(t, r, img, nil, 10*time.Hour)
	if rep.Objects != len(v.until) || rep.Extended != rep.Objects {
		t.Errorf("first: %+v, %d objects are locked", rep, len(v.until))
	}
	all := len(v.until)

	second, rep := lockedBackup(t, r, changed(rnd, img), first, 11*time.Hour)
	if rep.Objects >= all || rep.Extended == 0 {
		t.Errorf("second: %+v, though the first lock, of %d objects, has not much less time", rep, all)
	}
	if second.Lock.Until.After(first.Lock.Until) || second.Lock.Until.Before(time.Now().Add(11*time.Hour-time.Minute)) {
		t.Errorf("second is locked until %v, the first, which it shares with, until %v", second.Lock.Until, first.Lock.Until)
	}

	third, rep := lockedBackup(t, r, changed(rnd, img), second, 20*time.Hour)
	if rep.Objects < all {
		t.Errorf("third: %+v, of more than %d objects", rep, all)
	}
	needs := lockWalk{r: r, blob: r.OpenBlob(third.Blob), packs: map[string]struct{}{}}
	if err := needs.subtree(t.Context(), third.Blob.Root, needs.blob.level, 0); err != nil {
		t.Fatal(err)
	}
	needs.packs[r.backupObject("v", third.ID)] = struct{}{}
	needs.packs[objectConfig] = struct{}{}
	for name := range needs.packs {
		if until := v.until[name]; until.Before(time.Now().Add(20*time.Hour - time.Minute)) {
			t.Errorf("%s is locked until %v", name, until)
		}
	}
}

// A record that claims a lock and is not locked itself, as one copied from elsewhere, is not believed.
func TestLockOfCopiedRecord(t *testing.T) {
	v := newVault(false)
	r := openTest(t, v, Options{})
	rnd := rand.New(rand.NewPCG(5, 6))
	img := sparseImage(rnd, 3<<20)
	first, _ := lockedBackup(t, r, img, nil, 10*time.Hour)
	clear(v.until)
	_, rep := lockedBackup(t, r, changed(rnd, img), first, 10*time.Hour)
	if rep.Extended != rep.Objects || rep.Objects != len(v.until) || len(v.until) < 5 {
		t.Errorf("%+v, %d objects are locked", rep, len(v.until))
	}
}

// A backup that is not to be locked has no lock in its record, whatever it was copied from.
func TestNoLockInRecord(t *testing.T) {
	r := openTest(t, newVault(false), Options{})
	w := newTestWriter(t, r)
	b := &Backup{Volume: "v", Blob: putImage(t, r, w, sparseImage(rand.New(rand.NewPCG(7, 8)), 1<<20), nil), Lock: &ObjectLock{Mode: "compliance"}}
	if err := errors.Join(w.PutBackup(t.Context(), b), w.Close()); err != nil || b.Lock != nil || w.LockReport() != nil {
		t.Errorf("%v, lock %+v, report %+v", err, b.Lock, w.LockReport())
	}
}

func TestLockRefused(t *testing.T) {
	r := openTest(t, mem.New(), Options{})
	if err := r.CanLock(t.Context()); !errors.Is(err, ErrNoObjectLock) {
		t.Errorf("in memory: %v", err)
	}
	r = openTest(t, newVault(false), Options{})
	w := newTestWriter(t, r)
	defer w.Close()
	if err := w.Lock(t.Context(), &Backup{Volume: "v"}, backend.Governance, time.Now().Add(-time.Second)); err == nil || !strings.Contains(err.Error(), "past") {
		t.Errorf("a lock that has ended: %v", err)
	}
}

// Delete and prune leave alone what is locked, and say so, whether the place refuses or would hide it; later they do not.
func TestPruneLeavesLocked(t *testing.T) {
	for _, versions := range []bool{false, true} {
		v := newVault(versions)
		r := openTest(t, v, Options{})
		rnd := rand.New(rand.NewPCG(9, 10))
		img := sparseImage(rnd, 6<<20)
		locked, _ := lockedBackup(t, r, img, nil, time.Hour)
		w := newTestWriter(t, r)
		free := &Backup{Volume: "v", Blob: putImage(t, r, w, sparseImage(rnd, 3<<20), nil)}
		if err := errors.Join(w.PutBackup(t.Context(), free), w.Close()); err != nil {
			t.Fatal(err)
		}
		before := maps.Clone(v.until)

		err := r.DeleteBackup(t.Context(), "v", locked.ID)
		var retained *backend.RetainedError
		if !errors.As(err, &retained) || retained.Until.IsZero() {
			t.Fatalf("delete of a locked backup: %v", err)
		}
		if err := r.DeleteBackup(t.Context(), "v", free.ID); err != nil {
			t.Fatal(err)
		}
		// The record goes another way.
		if err := v.Backend.Delete(t.Context(), r.backupObject("v", locked.ID)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			rep := mustPrune(t, r, PruneOptions{})
			if rep.Locked.Objects == 0 || rep.Condemned.Objects != 0 {
				t.Errorf("versions %t: %+v", versions, rep)
			}
		}
		for name := range before {
			if _, err := v.Stat(t.Context(), name); err != nil && name != r.backupObject("v", locked.ID) {
				t.Errorf("versions %t: %s is locked, and: %v", versions, name, err)
			}
		}
		v.now = v.now.Add(3 * time.Hour)
		rep := mustPrune(t, r, PruneOptions{})
		if rep.Locked.Objects != 0 || rep.Freed.Objects == 0 {
			t.Errorf("versions %t: when the lock has ended: %+v", versions, rep)
		}
	}
}

// A pack that was condemned before it was locked is left when its time comes, and the rest goes.
func TestSweepLeavesLocked(t *testing.T) {
	v := newVault(false)
	r := openTest(t, v, Options{})
	rnd := rand.New(rand.NewPCG(11, 12))
	w := newTestWriter(t, r)
	b := &Backup{Volume: "v", Blob: putImage(t, r, w, sparseImage(rnd, 6<<20), nil)}
	if err := errors.Join(w.PutBackup(t.Context(), b), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteBackup(t.Context(), "v", b.ID); err != nil {
		t.Fatal(err)
	}
	r.off.young, r.off.graceWait = true, false
	rep := mustPrune(t, r, PruneOptions{Grace: time.Hour})
	if rep.Condemned.Objects < 2 {
		t.Fatalf("%+v", rep)
	}
	var first string
	_ = v.List(t.Context(), prefixPacks, func(o backend.Object) error {
		first = o.Name
		return errors.New("enough")
	})
	if _, err := v.Retain(t.Context(), first, backend.Governance, v.now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	r.off.graceWait = true
	rep = mustPrune(t, r, PruneOptions{Grace: time.Hour})
	if rep.Locked.Objects != 1 || rep.Freed.Objects == 0 {
		t.Errorf("%+v", rep)
	}
	if _, err := v.Stat(t.Context(), first); err != nil {
		t.Errorf("the locked pack: %v", err)
	}
	v.now = v.now.Add(3 * time.Hour)
	if rep = mustPrune(t, r, PruneOptions{Grace: time.Hour}); rep.Locked.Objects != 0 || rep.Freed.Objects != 1 {
		t.Errorf("when the lock has ended: %+v", rep)
	}
}
