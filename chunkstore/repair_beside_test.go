package chunkstore

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// packsOf returns the names of data packs.
func (s *pruneScene) packsOf(kind string) (names []string) {
	for _, name := range objectNames(s.t, s.be) {
		if strings.HasPrefix(name, prefixPacks+kind) {
			names = append(names, name)
		}
	}
	return names
}

func (s *pruneScene) rot(object string) {
	s.t.Helper()
	data, err := backend.ReadAll(s.t.Context(), s.be, object)
	s.must(err)
	for i := packHeaderLen; i < len(data); i++ {
		data[i] ^= 0x11
	}
	s.must(s.be.Put(s.t.Context(), object, data))
}

// repairScene plays a scene under a fake clock.
func repairScene(t *testing.T, scene func(t *testing.T, s *pruneScene)) {
	synctest.Test(t, func(t *testing.T) {
		s := &pruneScene{t: t}
		s.init()
		scene(t, s)
	})
}

// TestRepairBesideABackup: a backup that counted on what a repair finds lost is not recorded; the next one stores it.
func TestRepairBesideABackup(t *testing.T) {
	for _, when := range []string{"before the chunks", "before the record"} {
		repairScene(t, func(t *testing.T, s *pruneScene) {
			s.backUp(s.host(s.be), sceneImage(1))
			for _, object := range s.packsOf("data") {
				s.must(s.be.Delete(t.Context(), object))
			}
			late := s.host(s.be)
			var put func() error
			if when == "before the record" {
				_, put = s.store(late, sceneImage(1), nil) // nothing is new
			}
			if rep := mustRepair(t, s.be, RepairOptions{}); len(rep.Lost) != 1 {
				t.Fatalf("%+v", rep)
			}
			if put == nil {
				_, put = s.store(late, sceneImage(1), nil)
			}
			err := put()
			if when == "before the record" {
				if !errors.Is(err, ErrPruned) && !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s: %v", when, err)
				}
				s.backUp(s.host(s.be), sceneImage(1))
			} else if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			s.must(s.verify())
		})
	}
}

// TestRepairBetweenTrashAndRecord: a repair that comes between a writer's last look at the trash and its record is seen by the look after that.
func TestRepairBetweenTrashAndRecord(t *testing.T) {
	for _, c := range []struct{ rot, whole bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
		rot := c.rot
		repairScene(t, func(t *testing.T, s *pruneScene) {
			s.backUp(s.host(s.be), sceneImage(1))
			object := s.packsOf("data")[0]
			if rot {
				s.rot(object)
			} else {
				s.must(s.be.Delete(t.Context(), object))
			}
			s.deleteAll(s.host(s.be))
			hook := &hooked{Backend: s.be, before: once(prefixBackups, func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				be := &hooked{Backend: s.be, after: once(prefixTrash, func() {
					if !c.whole { // it dies when it has condemned, before it takes anything out of the index
						cancel()
					}
				})}
				if _, err := Repair(ctx, be, Options{}, RepairOptions{Level: CheckStored}); (err == nil) != c.whole {
					t.Fatal(err)
				}
			})}
			_, put := s.store(s.host(hook), sceneImage(1), nil) // nothing is new
			if err := put(); !errors.Is(err, ErrPruned) && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			if left, err := s.host(s.be).Backups(t.Context(), "v"); err != nil || len(left) > 0 {
				t.Fatalf("the record stays: %v, %v", left, err)
			}
			s.backUp(s.host(s.be), sceneImage(1))
			s.must(s.verify())
		})
	}
}

// TestRepairBesideAPrune: a prune that counts on a damaged pack condemns the other copies, and a repair that counts on those condemns the
// damaged pack. The next prune takes what is needed from the sound one, also when a reindex brought the damaged places back.
func TestRepairBesideAPrune(t *testing.T) {
	for _, reindex := range []string{"", "before", "after", "before", "after", "before", "after"} { // names of packs, and so their order, are random
		repairScene(t, func(t *testing.T, s *pruneScene) { repairBesideAPrune(t, s, reindex) })
	}
}

func repairBesideAPrune(t *testing.T, s *pruneScene, reindex string) {
	_, first := s.store(s.host(s.be), sceneImage(1), nil)
	_, second := s.store(s.host(s.be), sceneImage(1), nil) // two copies
	s.must(first())
	time.Sleep(time.Minute) // the newer is kept
	s.must(second())
	old := s.packsOf("data")
	time.Sleep(3 * modelGrace)

	p := &prune{r: s.host(s.be), o: PruneOptions{Grace: modelGrace, Progress: func(string, int64, int64) {}}, now: time.Now()}
	s.must(p.look(t.Context()))
	s.must(p.mark(t.Context()))
	dead, _, _ := p.plan()
	if len(dead) == 0 {
		t.Fatal("the prune condemns nothing")
	}
	var kept string
	for _, object := range old {
		if id, _, _ := parsePackObject(object); p.packs[id].live > 0 {
			kept = object
		}
	}
	s.rot(kept)
	repair := func() {
		rep := mustRepair(t, s.be, RepairOptions{Level: CheckStored})
		if len(rep.Lost) > 0 || rep.Salvaged != (Salvage{}) || rep.Condemned.Objects != 1 {
			t.Fatalf("%+v", rep)
		}
	}
	if reindex == "before" { // it has read the tables, and does not know of the repair
		hook := &hooked{Backend: s.be, before: once(prefixIndex, repair)}
		if _, _, err := Reindex(t.Context(), hook, Options{Parallel: 1}, nil); !errors.Is(err, errTrashChanged) {
			t.Fatal(err)
		}
	} else {
		repair()
	}
	s.must(p.condemn(t.Context(), dead))
	if reindex == "after" {
		anew, _, err := Reindex(t.Context(), s.be, Options{Parallel: 1}, nil)
		s.must(err)
		s.must(anew.Close())
	}
	s.must(s.verify())
	for range 3 {
		time.Sleep(2 * modelGrace)
		s.prune(s.host(s.be))
		s.must(s.verify())
	}
	for _, object := range s.packsOf("data") {
		if object == kept {
			t.Error("the damaged pack is still there")
		}
	}
	mustBeWhole(t, "at the end", s.be, nil)
}

// TestRepairKeepsSoundRecords: a backup that is recorded while a repair works may need what is sound in a pack that is condemned then.
func TestRepairKeepsSoundRecords(t *testing.T) {
	repairScene(t, func(t *testing.T, s *pruneScene) {
		img := sceneImage(1)
		r := s.host(s.be)
		s.backUp(r, img)
		s.deleteAll(r) // so that the repair sees nothing needed
		object := s.packsOf("data")[0]
		data, err := backend.ReadAll(t.Context(), s.be, object)
		s.must(err)
		pt, err := decodePackTail(plainSealer{}, data[:packHeaderLen], data, uint64(len(data)))
		s.must(err)
		if len(pt.entries) < 2 {
			t.Fatalf("%d records", len(pt.entries))
		}
		data[len(data)-1] ^= 1 // the trailer alone
		s.must(s.be.Put(t.Context(), object, data))
		_, put := s.store(s.host(s.be), img, nil)
		hook := &hooked{Backend: s.be, before: once(prefixTrash, func() { s.must(put()) })}
		rep := mustRepair(t, hook, RepairOptions{Level: CheckStored})
		if rep.Condemned.Objects != 1 {
			t.Fatalf("%+v", rep)
		}
		s.must(s.verify())
		for range 3 {
			time.Sleep(2 * modelGrace)
			s.prune(s.host(s.be))
			s.must(s.verify())
		}
	})
}

// TestLostBackupIsNoBase: after a repair it is known which backups have lost something, until they are whole.
func TestLostBackupIsNoBase(t *testing.T) {
	repairScene(t, func(t *testing.T, s *pruneScene) {
		r := s.host(s.be)
		s.backUp(r, sceneImage(1))
		all, err := r.ListBackups(t.Context(), "v")
		s.must(err)
		s.must(r.Lost(t.Context(), all[0]))
		for _, object := range s.packsOf("data") {
			s.must(s.be.Delete(t.Context(), object))
		}
		mustRepair(t, s.be, RepairOptions{})
		r = s.host(s.be)
		if err := r.Lost(t.Context(), all[0]); !errors.Is(err, ErrNotFound) {
			t.Errorf("a backup that has lost data: %v", err)
		}
		s.backUp(r, sceneImage(1))
		r = s.host(s.be)
		s.must(r.Lost(t.Context(), all[0]))
		s.must(s.verify())
	})
}

// TestRepairTrashList: a list of condemned packs that cannot be read stops all writers. It is had from a copy, or goes when nobody can need it.
func TestRepairTrashList(t *testing.T) {
	repairScene(t, func(t *testing.T, s *pruneScene) {
		s.garbage(1)
		s.backUp(s.host(s.be), sceneImage(2))
		s.prune(s.host(s.be))
		var list string
		for _, name := range objectNames(t, s.be) {
			if strings.HasPrefix(name, prefixTrash) {
				list = name
			}
		}
		good := cloneBackend(t, s.be)
		twin := s.host(good)
		s.must(s.be.Put(t.Context(), list, []byte("rotten")))
		if _, err := s.host(s.be).NewWriter(t.Context(), WriterOptions{}); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("a writer begins: %v", err)
		}
		for _, c := range []struct {
			name  string
			o     RepairOptions
			sleep time.Duration
			fails bool
		}{
			{name: "young", fails: true}, {name: "alone", o: RepairOptions{Alone: true}}, {name: "old", sleep: maxSession},
			{name: "twin", o: RepairOptions{From: []RepairSource{{Name: "twin", Repository: twin}}}},
		} {
			be := cloneBackend(t, s.be)
			time.Sleep(c.sleep)
			_, err := Repair(t.Context(), be, Options{}, c.o)
			if (err != nil) != c.fails {
				t.Errorf("%s: %v", c.name, err)
			}
			if err == nil {
				s.be, be = be, s.be
				s.backUp(s.host(s.be), sceneImage(3))
				s.prune(s.host(s.be))
				s.must(s.verify())
				s.be = be
			}
		}
	})
}
