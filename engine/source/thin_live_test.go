package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin/pool"
)

// liveBackups stands for a repository: the records of one volume, and what a backup of each would hold.
type liveBackups struct {
	t       *testing.T
	f       *fakePool
	o       thinLiveOpener
	notes   []string
	parents []Parent // oldest first
	images  map[string][]byte
}

func newLiveBackups(t *testing.T, f *fakePool) *liveBackups {
	b := &liveBackups{t: t, f: f, images: map[string][]byte{}}
	b.o = thinLiveOpener{host: f, most: maxLoaded, find: func(ctx context.Context) (pool.Volume, error) { return f.Resolve(ctx, "vol") }}
	b.o.note = func(format string, args ...any) { b.notes = append(b.notes, fmt.Sprintf(format, args...)) }
	return b
}

func (b *liveBackups) newestFirst() iter.Seq2[Parent, error] {
	return func(yield func(Parent, error) bool) {
		for _, p := range slices.Backward(b.parents) {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// read puts together what a backup from this source holds.
func (b *liveBackups) read(ctx context.Context, s Source, base Base) ([]byte, error) {
	img := make([]byte, s.Size())
	if base.Parent != nil {
		copy(img, b.images[base.Parent.ID])
	}
	last := int64(0)
	for e, err := range s.Extents(ctx) {
		if err != nil {
			return nil, err
		}
		if e.Off < last || e.Len <= 0 || e.End() > s.Size() {
			b.t.Errorf("extent %+v after %d in a volume of %d", e, last, s.Size())
		}
		last = e.End()
		p := img[e.Off:e.End()]
		clear(p)
		if !e.Hole {
			if err := s.ReadAt(ctx, p, e.Off); err != nil {
				return nil, err
			}
		}
	}
	return img, nil
}

func live(s Source) *thinLive {
	if w, ok := s.(*thinWhole); ok {
		return w.thinLive
	}
	return s.(*thinLive)
}

// run is a whole backup; the record is written when it returns no error.
func (b *liveBackups) run(ctx context.Context, meanwhile func(Source)) (base Base, stats Stats, err error) {
	s, base, err := b.o.Open(ctx, b.newestFirst())
	if err != nil {
		return base, stats, err
	}
	defer func() { err = errors.Join(err, s.Close(context.WithoutCancel(ctx), err == nil)) }()
	want := bytes.Clone(b.f.images[live(s).state.Device])
	if meanwhile != nil {
		meanwhile(s)
	}
	img, err := b.read(ctx, s, base)
	if err == nil {
		err = s.(interface{ Recheck(context.Context) error }).Recheck(ctx)
	}
	if err != nil {
		return base, stats, err
	}
	if !bytes.Equal(img, want) {
		b.t.Errorf("backup %d differs from the snapshot", len(b.parents))
	}
	id := fmt.Sprint(len(b.parents))
	b.parents = append(b.parents, Parent{ID: id, Size: s.Size(), State: s.State()})
	b.images[id] = img
	return base, s.Stats(), nil
}

func (b *liveBackups) mustRun(meanwhile func(Source)) (Base, Stats) {
	b.t.Helper()
	base, stats, err := b.run(b.t.Context(), meanwhile)
	if err != nil {
		b.t.Fatal(err)
	}
	return base, stats
}

// TestThinLiveChain: backups of a volume that is written between and during them are its snapshots, byte by byte; one snapshot stays.
func TestThinLiveChain(t *testing.T) {
	for name, most := range map[string]int{"mappings loaded": maxLoaded, "mappings held": 0} {
		t.Run(name, func(t *testing.T) {
			const blocks = 300
			r := rand.New(rand.NewPCG(1, 2))
			f := newFakePool(t, blocks*fakeBlock-512) // the last block is cut
			b := newLiveBackups(t, f)
			b.o.most = most
			f.write(r, 0, 120)
			change := func(Source) {
				for range 3 {
					f.write(r, r.Uint64N(blocks), 1+r.IntN(5))
					f.discard(r.Uint64N(blocks), 1+r.IntN(5))
				}
			}
			for n := range 6 {
				base, stats := b.mustRun(func(s Source) {
					if held := most == 0; f.held != held {
						t.Errorf("backup %d: reserved while data is read: %v", n, f.held)
					}
					change(s)
				})
				if (base.Parent == nil) != (n == 0) || n > 0 && base.Parent.ID != fmt.Sprint(n-1) {
					t.Errorf("backup %d: base %+v", n, base)
				}
				if n > 0 && (stats.BytesRead > 40*fakeBlock || stats.MetadataBlocks > 400) {
					t.Errorf("backup %d: %+v", n, stats)
				}
				if got := f.snapshots(); len(got) != 1 || !f.kept[got[0]] || f.held {
					t.Errorf("backup %d: snapshots %v, kept %v, reserved %v", n, got, f.kept, f.held)
				}
			}
			if len(b.notes) > 0 {
				t.Errorf("notes %q", b.notes)
			}
		})
	}
}

// TestThinLiveUnforeseen: what lies far from any change can be read, too.
func TestThinLiveUnforeseen(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	f := newFakePool(t, 600*fakeBlock)
	b := newLiveBackups(t, f)
	f.write(r, 0, 600)
	b.mustRun(nil)
	f.write(r, 3, 1)
	before := f.heldRuns
	b.mustRun(func(s Source) {
		p := make([]byte, 3*fakeBlock)
		if err := s.ReadAt(t.Context(), p, 500*fakeBlock+512); err != nil || !bytes.Equal(p, f.images[1][500*fakeBlock+512:][:len(p)]) {
			t.Errorf("unforeseen read: %v", err)
		}
		if n := f.heldRuns - before; n != 2 {
			t.Errorf("%d reservations, want one for planning and one for the read", n)
		}
	})
}

// TestThinLiveGrown: what the base maps behind the volume's old end was in no backup.
func TestThinLiveGrown(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	f := newFakePool(t, 40*fakeBlock)
	b := newLiveBackups(t, f)
	f.write(r, 0, 40)
	f.vol.SizeBytes = 20*fakeBlock + 512
	whole := f.images[1]
	f.images[1] = whole[:f.vol.SizeBytes]
	b.mustRun(nil)
	f.vol.SizeBytes = 40 * fakeBlock
	f.images[1] = whole
	if base, _ := b.mustRun(nil); base.Parent == nil {
		t.Errorf("no base: %s", base.Reason)
	}
}

// TestThinLiveFaults: whichever call fails, or is the one at which the context ends, nothing is left but the base.
func TestThinLiveFaults(t *testing.T) {
	for _, most := range []int{maxLoaded, 0} {
		for _, cancel := range []bool{false, true} {
			failed := 0
			for n := 0; ; n++ {
				r := rand.New(rand.NewPCG(1, 5))
				f := newFakePool(t, 30*fakeBlock)
				b := newLiveBackups(t, f)
				b.o.most = most
				f.write(r, 0, 15)
				b.mustRun(nil)
				f.write(r, 10, 5)
				ctx, stop := context.WithCancel(t.Context())
				count, at := 0, ""
				f.fail = func(call string) error {
					if count++; count != n+1 {
						return nil
					}
					at = call
					if cancel {
						stop()
						return nil
					}
					return errFault
				}
				_, _, err := b.run(ctx, nil)
				stop()
				f.fail = nil
				tidy := map[string]bool{"recover": true, "keep": true, "delete": true, "release": true}[at] || at == ""
				if err != nil {
					failed++
				} else if !tidy {
					t.Errorf("call %d, %s, failed (cancel %v), the backup did not", n, at, cancel)
				}
				if f.held {
					t.Errorf("call %d, %s: left reserved", n, at)
				}
				b.mustRun(nil) // it recovers, and leaves one snapshot whatever happened
				if got := f.snapshots(); len(got) != 1 {
					t.Errorf("call %d, %s (cancel %v): snapshots %v after the next backup", n, at, cancel, got)
				}
				if at == "" {
					break
				}
			}
			if failed < 4 {
				t.Errorf("only %d faults failed the backup", failed)
			}
		}
	}
}

var errFault = errors.New("fault")

// TestThinLiveKilled: a run that died after its record was written, before it kept its snapshot: the older base serves.
func TestThinLiveKilled(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 6))
	f := newFakePool(t, 100*fakeBlock)
	b := newLiveBackups(t, f)
	f.write(r, 0, 50)
	b.mustRun(nil)
	f.write(r, 10, 5)
	dead := false
	f.fail = func(call string) error {
		if dead = dead || call == "keep"; dead {
			return errFault
		}
		return nil
	}
	b.mustRun(nil)
	f.fail = nil
	f.write(r, 20, 5)
	b.notes = nil
	base, stats := b.mustRun(nil)
	if base.Parent == nil || base.Parent.ID != "0" || stats.BytesRead != 10*fakeBlock {
		t.Errorf("base %+v, %+v", base, stats)
	}
	if len(b.notes) != 1 || !strings.Contains(b.notes[0], "deleted") || len(f.snapshots()) != 1 {
		t.Errorf("notes %q, snapshots %v", b.notes, f.snapshots())
	}
}

// TestThinLiveOlderSnapshots: what a full backup, which knows no parents, has left is removed by the next.
func TestThinLiveOlderSnapshots(t *testing.T) {
	f := newFakePool(t, 100*fakeBlock)
	b := newLiveBackups(t, f)
	for range 3 {
		f.write(rand.New(rand.NewPCG(1, 7)), 0, 5)
		known := b.parents
		b.parents = nil
		b.mustRun(nil)
		p := b.parents[0]
		b.images[fmt.Sprint("full", len(known))] = b.images[p.ID]
		p.ID = fmt.Sprint("full", len(known))
		b.parents = append(known, p)
	}
	if n := len(f.snapshots()); n != 3 {
		t.Fatalf("%d snapshots: the test tests nothing", n)
	}
	b.mustRun(nil)
	if n := len(f.snapshots()); n != 1 {
		t.Errorf("%d snapshots are left", n)
	}
}

// TestThinLiveElsewhere: the snapshots of backups that were copied from another repository are bases, but that one's to delete.
func TestThinLiveElsewhere(t *testing.T) {
	f := newFakePool(t, 100*fakeBlock)
	b := newLiveBackups(t, f)
	var known []Parent
	for n := range 4 { // all full; this repository's own is the first
		f.write(rand.New(rand.NewPCG(uint64(n), 7)), 0, 5)
		b.parents = nil
		b.mustRun(nil)
		p := b.parents[0]
		image := b.images[p.ID]
		p.ID, p.Elsewhere = fmt.Sprint("full", n), n > 0
		b.images[p.ID] = image
		known = append(known, p)
	}
	var states []thinState
	for _, p := range known {
		s, _ := decodeThinState(p)
		states = append(states, s)
	}
	if err := f.Delete(t.Context(), pool.Pool{}, *states[2].Snapshot); err != nil { // by the other repository's next backup
		t.Fatal(err)
	}
	b.parents = known
	base, _ := b.mustRun(nil)
	if base.Parent == nil || base.Parent.ID != "full3" {
		t.Errorf("base %+v", base)
	}
	left := f.snapshots()
	for n, want := range []bool{false, true, false, true} {
		if got := slices.Contains(left, states[n].Device); got != want {
			t.Errorf("snapshot %d is left: %v", n, got)
		}
	}
	if len(left) != 3 {
		t.Errorf("%d snapshots are left, want two and a new one", len(left))
	}
}

func TestThinLiveDeletedMeanwhile(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 8))
	f := newFakePool(t, 100*fakeBlock)
	b := newLiveBackups(t, f)
	f.write(r, 0, 50)
	_, _, err := b.run(t.Context(), func(s Source) {
		f.thin.Delete(s.(*thinLive).state.Device)
		f.must(f.thin.Commit())
	})
	if !errors.Is(err, ErrChanged) || len(b.parents) > 0 {
		t.Errorf("the snapshot was deleted meanwhile: %v", err)
	}
}

func TestThinLiveBaseGone(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	f := newFakePool(t, 100*fakeBlock)
	b := newLiveBackups(t, f)
	f.write(r, 0, 50)
	b.mustRun(nil)
	f.remove(f.snapshots()[0])
	if base, stats := b.mustRun(nil); base.Parent != nil || !strings.Contains(base.Reason, "is gone") || stats.BytesRead != 50*fakeBlock {
		t.Errorf("base %+v, %+v", base, stats)
	}
}

// TestThinLiveAsIs: a snapshot of the user's own is read without taking one.
func TestThinLiveAsIs(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 10))
	f := newFakePool(t, 100*fakeBlock)
	b := newLiveBackups(t, f)
	b.o.asIs = true
	if _, _, err := b.run(t.Context(), nil); !errors.Is(err, ErrWritable) {
		t.Errorf("a volume in use: %v", err)
	}
	users := func(id uint32) {
		f.write(r, 30, 5)
		f.must(f.thin.Snapshot(id, 1))
		f.must(f.thin.Commit())
		f.images[id], f.kept[id] = bytes.Clone(f.images[1]), true
		f.vol.Device, f.vol.DeviceID = "", id
	}
	users(2)
	b.mustRun(nil)
	users(3)
	if base, _ := b.mustRun(nil); base.Parent != nil || !strings.Contains(base.Reason, "has no UUID") {
		t.Errorf("base %+v in a pool without UUID", base)
	}
	f.vol.Pool.UUID = "uuid"
	users(4)
	b.mustRun(nil)
	users(5)
	base, stats := b.mustRun(nil)
	if base.Parent == nil || stats.BytesRead != 5*fakeBlock {
		t.Errorf("base %+v, %+v", base, stats)
	}
	if got := f.snapshots(); !slices.Equal(got, []uint32{2, 3, 4, 5}) {
		t.Errorf("the user's snapshots are now %v", got)
	}
}

// TestThinLivePoolModes: what cannot be snapshotted is refused by its reason; what stands still can be read.
func TestThinLivePoolModes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 11))
	for mode, want := range map[pool.Mode]error{
		pool.ModeReadOnly: pool.ErrReadOnly, pool.ModeOutOfDataSpace: pool.ErrOutOfSpace, pool.ModeFailed: pool.ErrFailed,
	} {
		f := newFakePool(t, 100*fakeBlock)
		b := newLiveBackups(t, f)
		f.write(r, 0, 50)
		f.status.Mode = mode
		if _, _, err := b.run(t.Context(), nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", mode, err)
		}
		b.o.asIs, f.vol.ReadOnly = true, true
		_, _, err := b.run(t.Context(), nil)
		if mode == pool.ModeFailed {
			if !errors.Is(err, want) {
				t.Errorf("as it is, %s: %v", mode, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("as it is, %s: %v", mode, err)
		}
		if reserved := f.heldRuns > 0; reserved != (mode == pool.ModeOutOfDataSpace) {
			t.Errorf("%s: %d reservations", mode, f.heldRuns)
		}
	}
}

// TestThinLiveModeChanges: a pool that was read-only and is written while it is read.
func TestThinLiveModeChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 12))
	f := newFakePool(t, 100*fakeBlock)
	b := newLiveBackups(t, f)
	f.write(r, 0, 50)
	f.status.Mode = pool.ModeReadOnly
	b.o.asIs, f.vol.ReadOnly = true, true
	_, _, err := b.run(t.Context(), func(Source) { f.write(r, 60, 1) })
	if err == nil || len(b.parents) > 0 {
		t.Errorf("metadata was written meanwhile: %v", err)
	}
}

// TestThinLiveExternalOrigin: what comes from outside of the pool is read with the rest.
func TestThinLiveExternalOrigin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 13))
	f := newFakePool(t, 30*fakeBlock-512)
	b := newLiveBackups(t, f)
	f.vol.ExternalOrigin = "7:1"
	f.write(r, 3, 2)
	copy(f.images[1], bytes.Repeat([]byte("origin "), 100))
	for range 2 {
		base, stats := b.mustRun(func(Source) {
			if f.active != 1 || len(f.snapshots()) != 1 {
				t.Errorf("%d devices are active, snapshots %v", f.active, f.snapshots())
			}
		})
		if base.Parent != nil || !strings.Contains(base.Reason, "no data of its own") || stats.BytesRead != f.vol.SizeBytes {
			t.Errorf("base %+v, %+v", base, stats)
		}
	}
	f.fail = func(call string) error {
		if call == "activate" {
			return errFault
		}
		return nil
	}
	if _, _, err := b.run(t.Context(), nil); !errors.Is(err, errFault) {
		t.Errorf("got %v", err)
	}
	if f.active != 0 || len(f.snapshots()) > 0 {
		t.Errorf("left: %d active, snapshots %v", f.active, f.snapshots())
	}
}

func TestFindThin(t *testing.T) {
	h := pool.New(pool.Config{StateDir: t.TempDir()})
	for _, name := range []string{t.TempDir(), "/etc/passwd", "/dev/null"} {
		if _, found, err := FindThin(t.Context(), h, name); found || err != nil {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	for _, name := range []string{"/no/such/file", "no-such-file", "no/such", ""} {
		if _, found, err := FindThin(t.Context(), h, name); found || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: %v, %v", name, found, err)
		}
	}
}
