package engine_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
)

// flipObject damages an object that a backend holds.
func flipObject(t *testing.T, be backend.Backend, name string, at int) {
	t.Helper()
	b, err := backend.ReadAll(t.Context(), be, name)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := be.Put(t.Context(), name, b); err != nil {
		t.Fatal(err)
	}
}

// added lists the objects under a prefix that fn adds.
func added(t *testing.T, be backend.Backend, prefix string, fn func()) (names []string) {
	t.Helper()
	before := map[string]bool{}
	for _, name := range objects(t, be, prefix) {
		before[name] = true
	}
	fn()
	for _, name := range objects(t, be, prefix) {
		if !before[name] {
			names = append(names, name)
		}
	}
	return names
}

func TestSync(t *testing.T) {
	from, to := memRepo(t), memRepo(t)
	image := randomImage(1, 2*mib)
	for n := range 3 {
		for _, volume := range []string{"a", "b"} {
			image[n*mib/2] ^= 1
			backup(t, from, plainVolume(image), engine.BackupOptions{Volume: volume, Full: true})
		}
		time.Sleep(time.Millisecond)
	}
	var order []string
	o := engine.SyncOptions{Volume: "b", Copied: func(res *engine.CopyResult) { order = append(order, res.Backup.ID) }}
	sync := func(volumes, copied, existed int) *engine.SyncReport {
		t.Helper()
		rep, err := engine.Sync(t.Context(), from, to, o)
		if err != nil || rep.Volumes != volumes || rep.Backups != copied+existed || rep.Copied != copied || rep.Existed != existed || len(rep.Damage) > 0 {
			t.Errorf("%+v, %v; want %d volumes, %d copied, %d there", rep, err, volumes, copied, existed)
		}
		return rep
	}
	if rep := sync(1, 3, 0); rep.Read < 2*mib || rep.Read > 3*mib || rep.Stored < 2*mib || rep.Stored > 3*mib {
		t.Errorf("read %d, stored %d", rep.Read, rep.Stored)
	}
	list := mustHaveBackups(t, to, 3)
	for i, b := range list {
		if b.ID != order[i] || i > 0 && b.Parent != list[i-1].ID {
			t.Errorf("%d: %s on %s, copied in the order %v", i, b.ID, b.Parent, order)
		}
	}
	o.Volume = ""
	sync(2, 3, 3)
	sync(2, 0, 6)
	if rep := sync(2, 0, 6); rep.Read+rep.Stored != 0 {
		t.Errorf("nothing to do: %+v", rep)
	}
	if err := errors.Join(to.DeleteBackup(t.Context(), "b", list[0].ID), to.DeleteBackup(t.Context(), "b", list[1].ID)); err != nil {
		t.Fatal(err)
	}
	o.Newer = true // what was forgotten does not come again
	if rep := sync(2, 0, 4); rep.Older != 2 {
		t.Errorf("%d were left out", rep.Older)
	}
	time.Sleep(time.Millisecond)
	backup(t, from, plainVolume(image), engine.BackupOptions{Volume: "b", Full: true})
	sync(2, 1, 4)
	o.Newer = false
	sync(2, 2, 5)
	var missing *chunkstore.NotFoundError
	if _, err := engine.Sync(t.Context(), from, to, engine.SyncOptions{Volume: "c"}); !errors.As(err, &missing) || missing.What != "volume" {
		t.Errorf("a volume that is not there: %v", err)
	}
	if rep, err := engine.Sync(t.Context(), to, to, engine.SyncOptions{}); err != nil || rep.Existed != 7 {
		t.Errorf("to itself: %+v, %v", rep, err)
	}
}

// One damaged backup, whatever of it is damaged, is told of, and the others are copied.
func TestSyncOverDamage(t *testing.T) {
	for what, prefix := range map[string]string{"a chunk": "packs/data/", "the tree": "packs/tree/", "the record": "backups/"} {
		t.Run(what, func(t *testing.T) {
			be := mem.New()
			r, err := openUnchecked(t, be)
			if err != nil {
				t.Fatal(err)
			}
			var all []*chunkstore.Backup
			var hit []string
			var images [][]byte
			for n := range 4 { // each has half a MiB of its own, gone again in the next
				image := randomImage(9, 3*mib/2)
				copy(image[mib/2:], randomImage(uint64(n), mib/2))
				images = append(images, image)
				new := added(t, be, prefix, func() {
					all = append(all, backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol", Full: true}).Backup)
				})
				if n == 1 {
					hit = new
				}
				time.Sleep(time.Millisecond)
			}
			for _, name := range hit {
				flipObject(t, be, name, 60)
			}
			from, err := openUnchecked(t, be) // that has no nodes in memory
			if err != nil {
				t.Fatal(err)
			}
			to := memRepo(t)
			rep, err := engine.Sync(t.Context(), from, to, engine.SyncOptions{})
			if err != nil || rep.Copied != 3 || rep.Backups != 4 || len(rep.Damage) != 1 || rep.Damage[0].Backup != all[1].ID {
				t.Fatalf("%+v, %v", rep, err)
			}
			var se *engine.SourceError
			if !errors.As(rep.Damage[0].Err, &se) || !strings.Contains(rep.Damage[0].Err.Error(), prefix) {
				t.Errorf("damage is told as %v", rep.Damage[0].Err)
			}
			for i, b := range mustHaveBackups(t, to, 3) {
				n := []int{0, 2, 3}[i]
				if b.ID != all[n].ID || b.Parent != []string{"", all[0].ID, all[2].ID}[i] {
					t.Errorf("%s on %s is copied", b.ID, b.Parent)
				}
				mustHold(t, to, b, images[n])
			}
		})
	}
}

// A volume whose name is damaged is found by its records.
func TestSyncVolumeDamaged(t *testing.T) {
	be := mem.New()
	from, err := openUnchecked(t, be)
	if err != nil {
		t.Fatal(err)
	}
	for _, volume := range []string{"a", "b"} {
		names := added(t, be, "volumes/", func() {
			backup(t, from, plainVolume(randomImage(1, mib)), engine.BackupOptions{Volume: volume})
		})
		if volume == "b" {
			flipObject(t, be, names[0], 60)
		}
	}
	to := memRepo(t)
	rep, err := engine.Sync(t.Context(), from, to, engine.SyncOptions{})
	if err != nil || rep.Volumes != 2 || rep.Copied != 2 || len(rep.Damage) != 1 || rep.Damage[0].Volume != "" ||
		!strings.Contains(rep.Damage[0].Err.Error(), "volumes/") {
		t.Errorf("%+v, %v", rep, err)
	}
	mustHaveBackups(t, to, 2)
}

// A source whose older backup was damaged since it was copied: the next one cannot be compared with it, and is copied whole.
func TestSyncBaseDamaged(t *testing.T) {
	be := mem.New()
	r, err := openUnchecked(t, be)
	if err != nil {
		t.Fatal(err)
	}
	to := memRepo(t)
	image := randomImage(9, 3*mib)
	var first *chunkstore.Backup
	tree := added(t, be, "packs/tree/", func() {
		first = backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	})
	mustCopy(t, r, first, to)
	time.Sleep(time.Millisecond)
	for off := 0; off < len(image); off += mib { // every leaf is another
		image[off] ^= 1
	}
	second := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol", Full: true}).Backup
	for _, name := range tree {
		flipObject(t, be, name, 60)
	}
	from, err := openUnchecked(t, be)
	if err != nil {
		t.Fatal(err)
	}
	res := mustCopy(t, from, second, to)
	if res.Backup.Parent != "" || res.Backup.Counts.New > mib {
		t.Errorf("copied as %+v", res.Backup)
	}
	mustHold(t, to, res.Backup, image)
}

// What was forgotten and pruned while it was to be copied is no damage.
func TestSyncForgottenMeanwhile(t *testing.T) {
	be := mem.New()
	r, err := openUnchecked(t, be)
	if err != nil {
		t.Fatal(err)
	}
	image := randomImage(1, mib)
	backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "a"})
	gone := backup(t, r, plainVolume(randomImage(2, mib)), engine.BackupOptions{Volume: "a", Full: true}).Backup
	o := engine.SyncOptions{Copied: func(*engine.CopyResult) { // the first
		if err := r.DeleteBackup(t.Context(), "a", gone.ID); err != nil {
			t.Error(err)
		}
		if _, err := r.Prune(t.Context(), chunkstore.PruneOptions{}); err != nil {
			t.Error(err)
		}
	}}
	from, err := openUnchecked(t, be)
	if err != nil {
		t.Fatal(err)
	}
	to := memRepo(t)
	rep, err := engine.Sync(t.Context(), from, to, o)
	if err != nil || rep.Backups != 1 || len(rep.Damage) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	mustHold(t, to, mustHaveBackups(t, to, 1)[0], image)
}

// Whichever call to the destination fails, Sync ends with its error, and the next completes what is missing.
func TestSyncDestinationFails(t *testing.T) {
	from := memRepo(t)
	for n := range uint64(2) {
		backup(t, from, plainVolume(randomImage(n, mib/4)), engine.BackupOptions{Volume: "vol", Full: true})
		time.Sleep(time.Millisecond)
	}
	for _, method := range []backendtest.Method{backendtest.Put, backendtest.PutIfAbsent, backendtest.ReadAt, backendtest.List} {
		failed := 0
		for n := 1; ; n++ {
			be := mem.New()
			r := openRepo(t, be)
			faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: method, N: n + 1, Optional: true}) // the first is of opening
			to, err := chunkstore.Open(t.Context(), faulty, chunkstore.Options{})
			if err == nil {
				_, err = engine.Sync(t.Context(), from, to, engine.SyncOptions{})
				_ = to.Close()
			}
			if err != nil && !errors.Is(err, backendtest.ErrInjected) {
				t.Errorf("%v %d: %v", method, n, err)
			}
			if err != nil {
				failed++
			}
			if rep, err := engine.Sync(t.Context(), from, r, engine.SyncOptions{}); err != nil || rep.Copied+rep.Existed != 2 {
				t.Errorf("%v %d: then %+v, %v", method, n, rep, err)
			}
			mustHaveBackups(t, r, 2)
			if !faulty.Fired() {
				break
			}
		}
		if failed == 0 {
			t.Errorf("no %v failed", method)
		}
	}
}
