package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// hooked is a backend that tells before and after it puts an object.
type hooked struct {
	backend.Backend
	before, after func(name string)
}

func (h *hooked) Put(ctx context.Context, name string, data []byte) error {
	return h.hook(name, func() error { return h.Backend.Put(ctx, name, data) })
}

func (h *hooked) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return h.hook(name, func() error { return h.Backend.PutIfAbsent(ctx, name, data) })
}

func (h *hooked) hook(name string, put func() error) error {
	if h.before != nil {
		h.before(name)
	}
	err := put()
	if h.after != nil {
		h.after(name)
	}
	return err
}

// once calls fn for the first name that begins with prefix.
func once(prefix string, fn func()) func(string) {
	done := false
	return func(name string) {
		if !done && strings.HasPrefix(name, prefix) {
			done = true
			fn()
		}
	}
}

// pruneScene is a repository with what two hosts do to it, and a model of what it holds.
type pruneScene struct {
	t    *testing.T
	be   *mem.Backend
	off  pruneRules
	want map[string][]byte // by backup ID: what may be listed
}

// init begins with an empty repository.
func (s *pruneScene) init() {
	s.be, s.want = mem.New(), map[string][]byte{}
	_, err := Init(s.t.Context(), s.be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20, CutBits: -1, MaxChunk: 4096})
	s.must(err)
}

func (s *pruneScene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *pruneScene) host(be backend.Backend) *Repository {
	s.t.Helper()
	r, err := Open(s.t.Context(), be, Options{Parallel: 1})
	s.must(err)
	begun := time.Now()
	r.off, r.bootTime = s.off, func() time.Duration { return time.Since(begun) }
	return r
}

// image is two blocks of a kind each.
func sceneImage(kind byte) []byte {
	img := make([]byte, 1<<20+4096)
	copy(img, bytes.Repeat([]byte{kind}, 4096))
	copy(img[1<<20:], bytes.Repeat([]byte{kind + 100}, 4096))
	return img
}

// store begins a backup and stores the image, all but the record; put ends it.
func (s *pruneScene) store(r *Repository, img []byte, base *Blob) (w *Writer, put func() error) {
	s.t.Helper()
	w, err := r.NewWriter(s.t.Context(), WriterOptions{})
	s.must(err)
	ref, err := storeImage(s.t.Context(), r, w, img, base, func(int64) bool { return base == nil })
	s.must(err)
	return w, func() error {
		b := &Backup{Volume: "v", Blob: ref}
		id, err := NewBackupID(time.Now())
		s.must(err)
		b.ID = id
		s.want[id] = img
		return errors.Join(w.PutBackup(s.t.Context(), b), w.Close())
	}
}

func (s *pruneScene) backUp(r *Repository, img []byte) {
	s.t.Helper()
	_, put := s.store(r, img, nil)
	s.must(put())
}

// garbage leaves an old backup's packs in the repository, which nobody needs.
func (s *pruneScene) garbage(kind byte) {
	s.t.Helper()
	r := s.host(s.be)
	s.backUp(r, sceneImage(kind))
	s.deleteAll(r)
	time.Sleep(2 * modelGrace)
}

func (s *pruneScene) deleteAll(r *Repository) {
	s.t.Helper()
	ids, err := r.Backups(s.t.Context(), "v")
	s.must(err)
	for _, id := range ids {
		s.must(r.DeleteBackup(s.t.Context(), "v", id))
	}
}

func (s *pruneScene) prune(r *Repository) {
	s.t.Helper()
	_, err := r.Prune(s.t.Context(), PruneOptions{Grace: modelGrace})
	s.must(err)
}

// verify reads all that is listed.
func (s *pruneScene) verify() error {
	r, err := Open(context.Background(), s.be, Options{Parallel: 1})
	if err != nil {
		return err
	}
	defer r.Close()
	all, err := r.ListBackups(context.Background(), "")
	if err != nil {
		return err
	}
	for _, b := range all {
		got := make([]byte, b.Blob.Size)
		if _, err := r.OpenBlob(b.Blob).ReadAt(context.Background(), got, 0); err != nil {
			return fmt.Errorf("backup %s: %w", b.ID, err)
		}
		if !bytes.Equal(got, s.want[b.ID]) {
			return fmt.Errorf("backup %s is not what was stored", b.ID)
		}
	}
	return nil
}

// failAsPruned lets a backup fail for the reason that it may.
func failAsPruned(err error) error {
	if errors.Is(err, ErrPruned) {
		return nil
	}
	return err
}

// TestPruneRulesAreNeeded plays, for each rule of the protocol, a scene that goes well, and does not without the rule.
func TestPruneRulesAreNeeded(t *testing.T) {
	for _, tt := range []struct {
		rule  string
		off   pruneRules
		scene func(s *pruneScene) error
	}{
		{"a Writer knows what was condemned before it began", pruneRules{trashAtStart: true}, func(s *pruneScene) error {
			s.garbage(1)
			s.prune(s.host(s.be))
			_, put := s.store(s.host(s.be), sceneImage(1), nil)
			time.Sleep(2 * modelGrace)
			s.prune(s.host(s.be))
			return errors.Join(put(), s.verify()) // it must succeed
		}},
		{"a Writer looks again before its record", pruneRules{beforeRecord: true}, func(s *pruneScene) error {
			s.garbage(1)
			var seen error
			be := &hooked{Backend: s.be, after: once(prefixBackups, func() { seen = s.verify() })}
			_, put := s.store(s.host(be), sceneImage(1), nil)
			s.prune(s.host(s.be))
			time.Sleep(2 * modelGrace)
			s.prune(s.host(s.be))
			return errors.Join(failAsPruned(put()), seen, s.verify())
		}},
		{"a Writer that stood still looks after its record", pruneRules{afterRecord: true}, func(s *pruneScene) error {
			s.garbage(1)
			be := &hooked{Backend: s.be, before: once(prefixBackups, func() {
				s.prune(s.host(s.be))
				time.Sleep(2 * modelGrace)
				s.prune(s.host(s.be))
			})}
			_, put := s.store(s.host(be), sceneImage(1), nil)
			return errors.Join(failAsPruned(put()), s.verify())
		}},
		{"a base must be known not to need what is condemned", pruneRules{baseRule: true}, func(s *pruneScene) error {
			r := s.host(s.be)
			s.backUp(r, sceneImage(1))
			all, err := r.ListBackups(s.t.Context(), "v")
			s.must(err)
			s.deleteAll(r)
			time.Sleep(2 * modelGrace)
			s.prune(s.host(s.be))
			_, put := s.store(r, sceneImage(1), r.OpenBlob(all[0].Blob))
			time.Sleep(2 * modelGrace)
			s.prune(s.host(s.be))
			return errors.Join(failAsPruned(put()), s.verify())
		}},
		{"a prune rescues what records put meanwhile need", pruneRules{rescue: true}, func(s *pruneScene) error {
			s.garbage(1)
			_, put := s.store(s.host(s.be), sceneImage(1), nil)
			s.prune(s.host(&hooked{Backend: s.be, before: once(prefixTrash, func() { s.must(put()) })}))
			time.Sleep(2 * modelGrace)
			s.prune(s.host(s.be))
			return s.verify()
		}},
		{"a prune deletes only what was condemned a grace ago", pruneRules{graceWait: true}, func(s *pruneScene) error {
			s.garbage(1)
			be := &hooked{Backend: s.be, before: once(prefixBackups, func() {
				s.prune(s.host(s.be))
				s.prune(s.host(s.be))
			})}
			_, put := s.store(s.host(be), sceneImage(1), nil)
			return errors.Join(put(), s.verify()) // it must succeed
		}},
		{"a prune condemns only what is older than a grace", pruneRules{young: true}, func(s *pruneScene) error {
			w, put := s.store(s.host(s.be), sceneImage(1), nil)
			s.must(w.Flush(s.t.Context()))
			s.prune(s.host(s.be))
			time.Sleep(modelGrace)
			s.prune(s.host(s.be))
			return errors.Join(put(), s.verify()) // it must succeed
		}},
		{"a merge is taken back when packs were condemned meanwhile", pruneRules{mergeRule: true}, func(s *pruneScene) error {
			for range 8 { // which of two entries a merge keeps is chance
				if err := s.mergeAcrossPrune(); err != nil {
					return err
				}
			}
			return nil
		}},
		{"a trash list outlives its packs", pruneRules{tombstone: true}, func(s *pruneScene) error {
			for kind := range byte(mergeRuns) {
				s.backUp(s.host(s.be), sceneImage(kind+1))
			}
			s.deleteAll(s.host(s.be))
			time.Sleep(2 * modelGrace)
			merging := s.host(&hooked{Backend: s.be, before: once(prefixIndex, func() {
				for range 3 {
					s.prune(s.host(s.be))
					time.Sleep(2 * modelGrace)
				}
			})})
			s.must(merging.CompactIndex(s.t.Context()))
			s.backUp(s.host(s.be), sceneImage(1))
			return s.verify()
		}},
		{"no pack has the name of an earlier one", pruneRules{freshNames: true}, func(s *pruneScene) error {
			s.garbage(1)
			s.prune(s.host(s.be))
			s.backUp(s.host(s.be), sceneImage(1))
			time.Sleep(2 * modelGrace)
			s.prune(s.host(s.be))
			return s.verify()
		}},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			play := func(off pruneRules) error {
				var played error
				synctest.Test(t, func(t *testing.T) {
					s := &pruneScene{t: t, off: off}
					s.init()
					played = tt.scene(s)
				})
				return played
			}
			if err := play(pruneRules{}); err != nil {
				t.Errorf("with all rules: %v", err)
			}
			if err := play(tt.off); err == nil {
				t.Error("nothing goes wrong without the rule")
			} else {
				t.Logf("without it: %v", err)
			}
		})
	}
}

// mergeAcrossPrune: two packs have the same records; a merge keeps the entries of one while a prune condemns that one, and then a
// Writer relies on the other.
func (s *pruneScene) mergeAcrossPrune() error {
	s.init()
	host := s.host(s.be)
	_, first := s.store(host, sceneImage(50), nil)
	_, second := s.store(s.host(s.be), sceneImage(50), nil)
	s.must(first())
	time.Sleep(time.Minute)
	s.must(second())
	for kind := range byte(mergeRuns - 2) {
		s.backUp(s.host(s.be), sceneImage(kind+1))
	}
	time.Sleep(2 * modelGrace)
	reached, release, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	merging := s.host(&hooked{Backend: s.be, before: once(prefixIndex, func() {
		close(reached)
		<-release
	})})
	var merged error
	go func() {
		defer close(done)
		merged = merging.CompactIndex(s.t.Context())
	}()
	<-reached
	s.prune(host)
	time.Sleep(2 * modelGrace)
	_, put := s.store(s.host(&hooked{Backend: s.be, before: once(prefixBackups, func() {
		close(release)
		<-done
		s.prune(s.host(s.be))
	})}), sceneImage(50), nil)
	s.deleteAll(host)
	return errors.Join(put(), merged, s.verify())
}
