package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

func mustCopy(t *testing.T, from *chunkstore.Repository, b *chunkstore.Backup, to *chunkstore.Repository) *engine.CopyResult {
	t.Helper()
	res, err := engine.Copy(t.Context(), from, b, to, engine.CopyOptions{})
	if err != nil {
		t.Fatalf("copy %s: %v", b.ID, err)
	}
	return res
}

// sameBackup compares a copy with what it is of, but for what is the repository's own.
func sameBackup(t *testing.T, from *chunkstore.Repository, b *chunkstore.Backup, to *chunkstore.Repository, copied *chunkstore.Backup) {
	t.Helper()
	if copied.Volume != b.Volume || !copied.Time.Equal(b.Time) || copied.Host != b.Host || !reflect.DeepEqual(copied.Labels, b.Labels) ||
		!bytes.Equal(copied.Source, b.Source) || to.Origin(copied) != from.Origin(b) || copied.Blob.Size != b.Blob.Size || copied.Blob.Data != b.Blob.Data {
		t.Errorf("copy is\n%+v\nof\n%+v", copied, b)
	}
}

// randomRepo has random span, cut and codec, and may be encrypted.
func randomRepo(t *testing.T, rng *rand.Rand) *chunkstore.Repository {
	t.Helper()
	pick := func(of ...int) int { return of[rng.IntN(len(of))] }
	o := chunkstore.InitOptions{
		SpanBytes: pick(1<<20, 1<<20, 2<<20, 4<<20), PackBytes: 1 << 20, CutBits: pick(-1, 1, 2, 4, 12), MaxChunk: pick(4<<10, 12<<10, 64<<10, 1<<20),
		Compression: []chunkstore.Compression{"none", "s2", "zstd:1"}[rng.IntN(3)],
	}
	if rng.IntN(2) == 0 {
		return openSealed(t, o)
	}
	return openRepoWith(t, mem.New(), o)
}

// openSealed makes and opens an encrypted repository, which has a master key of its own. The test's clean-up checks it.
func openSealed(t *testing.T, o chunkstore.InitOptions) *chunkstore.Repository {
	t.Helper()
	o.Recipients = []chunkstore.Recipient{testRecipient(t)}
	return openRepoWith(t, mem.New(), o)
}

// Random histories of images, copied from A to B and from there to C, one by one or by Sync: every copy gives back its bytes, and its
// root is that of a direct backup of the same content into the same repository, whatever the parameters of the three.
func TestCopyIsBackup(t *testing.T) {
	seed := *propertySeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for i := range uint64(max(1, *propertyRounds/5)) {
		s := seed + i
		ok := t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(s, 4))
			repos := []*chunkstore.Repository{randomRepo(t, rng), randomRepo(t, rng), randomRepo(t, rng)}
			images := newImageMaker(rng)
			now := make([]byte, images.size())
			byOrigin := map[chunkstore.Origin][]byte{}
			for n := range 5 {
				now = images.next(now)
				full := &volume{image: now, full: images.dataExtents(now)}
				b := backup(t, repos[0], full, engine.BackupOptions{Volume: "vol", Full: true, Labels: map[string]string{"n": fmt.Sprint(n)}}).Backup
				byOrigin[repos[0].Origin(b)] = now
				if rng.IntN(2) == 0 {
					sameBackup(t, repos[0], b, repos[1], mustCopy(t, repos[0], b, repos[1]).Backup)
				}
				time.Sleep(time.Millisecond) // two backups of one millisecond have no order
			}
			for hop := range 2 {
				from, to := repos[hop], repos[hop+1]
				if _, err := engine.Sync(t.Context(), from, to, engine.SyncOptions{}); err != nil {
					t.Fatal(err)
				}
				list := mustHaveBackups(t, to, 5)
				for i, b := range mustHaveBackups(t, from, 5) {
					sameBackup(t, from, b, to, list[i])
				}
			}
			for _, r := range repos[1:] {
				for _, b := range mustHaveBackups(t, r, 5) {
					image := byOrigin[r.Origin(b)]
					if len(image) > 0 {
						mustHold(t, r, b, image)
					}
					direct := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "direct", Full: true})
					if direct.Backup.Blob != b.Blob || direct.Writer.NewChunks+direct.Writer.NewNodes != 0 {
						t.Fatalf("copy is %+v, a direct backup %+v, which stored %d chunks and %d nodes more", b.Blob, direct.Backup.Blob, direct.Writer.NewChunks, direct.Writer.NewNodes)
					}
				}
			}
		})
		if !ok {
			t.Fatalf("again: go test ./engine -run TestCopyIsBackup -property.rounds=1 -property.seed=%d", s)
		}
	}
}

// What both have is neither read nor stored, though the two cut differently: the cost of a second copy follows the change.
func TestCopyCostFollowsChange(t *testing.T) {
	const maxChunk = 64 << 10
	from := openRepoWith(t, mem.New(), chunkstore.InitOptions{SpanBytes: 4 << 20, PackBytes: 1 << 20, MaxChunk: maxChunk, Compression: "none"})
	counting := backendtest.NewCounting(mem.New())
	to := openRepoWith(t, counting, chunkstore.InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20, MaxChunk: maxChunk, CutBits: 2, Compression: "s2"})
	image := randomImage(1, 12*mib)
	clear(image[5*mib : 7*mib])
	o := engine.BackupOptions{Volume: "vol", Full: true}
	first := backup(t, from, plainVolume(image), o).Backup
	res := mustCopy(t, from, first, to)
	if c := res.Backup.Counts; res.Backup.Parent != "" || c.Read < 10*mib || c.Read > 11*mib || c.New != 10*mib {
		t.Errorf("the first copy read %d bytes and stored %d", c.Read, c.New)
	}
	changes := []int{1*mib + 5, 3*mib - 1, 6 * mib, 8*mib + 4096, 11 * mib}
	for _, off := range changes {
		image[off] ^= 0x55
	}
	clear(image[9*mib : 10*mib])
	time.Sleep(time.Millisecond)
	second := backup(t, from, plainVolume(image), o).Backup
	res = mustCopy(t, from, second, to)
	// The source's changed chunk, the destination's chunks that it touches, one before them, and the source's that these touch, of 16 and 32 KiB.
	if c, limit := res.Backup.Counts, int64(len(changes)+2)*maxChunk; res.Backup.Parent != first.ID || c.Read > limit || c.New > limit {
		t.Errorf("the second copy read %d bytes and stored %d, both should be below %d; parent %q", c.Read, c.New, limit, res.Backup.Parent)
	}
	t.Logf("second copy: read %d KiB, new %d KiB, %d nodes", res.Backup.Counts.Read>>10, res.Backup.Counts.New>>10, res.Backup.Counts.NewNodes)
	mustHold(t, to, res.Backup, image)

	puts := counting.Calls(backendtest.Put) + counting.Calls(backendtest.PutIfAbsent)
	for _, b := range []*chunkstore.Backup{first, second} {
		res := mustCopy(t, from, b, to)
		if !res.Existed || res.Backup.ID != b.ID || res.Writer != (chunkstore.WriterStats{}) {
			t.Errorf("copied again: %+v", res)
		}
	}
	if n := counting.Calls(backendtest.Put) + counting.Calls(backendtest.PutIfAbsent); n != puts {
		t.Errorf("%d objects were put for backups that were there", n-puts)
	}
	if res := mustCopy(t, to, mustHaveBackups(t, to, 2)[0], from); !res.Existed || res.Backup.ID != first.ID {
		t.Errorf("a copy that is copied back: %+v", res)
	}
}

// The base is the nearest that both have, before or after; deleted ones do not count.
func TestCopyBase(t *testing.T) {
	from, to := memRepo(t), memRepo(t)
	var all []*chunkstore.Backup
	for i := range 5 {
		all = append(all, backup(t, from, plainVolume(randomImage(uint64(i), mib)), engine.BackupOptions{Volume: "vol", Full: true}).Backup)
		time.Sleep(time.Millisecond)
	}
	parent := func(i, want int) {
		t.Helper()
		id := ""
		if want >= 0 {
			id = all[want].ID
		}
		if got := mustCopy(t, from, all[i], to).Backup.Parent; got != id {
			t.Errorf("copy of %d is based on %q, want %q (of %d)", i, got, id, want)
		}
	}
	parent(3, -1)
	parent(1, 3)
	parent(2, 1)
	if err := from.DeleteBackup(t.Context(), "vol", all[3].ID); err != nil {
		t.Fatal(err)
	}
	parent(4, 2)
	parent(0, 1)
}

// The ID is another where it is taken, and the copy is recognised all the same.
func TestCopyIDTaken(t *testing.T) {
	from, to := memRepo(t), memRepo(t)
	image := randomImage(1, mib)
	b := backup(t, from, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	w, err := to.NewWriter(t.Context(), chunkstore.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.PutBackup(t.Context(), &chunkstore.Backup{ID: b.ID, Volume: "vol", Time: b.Time}); err != nil {
		t.Fatal(err)
	}
	res := mustCopy(t, from, b, to)
	if res.Existed || res.Backup.ID == b.ID || !chunkstore.BackupTime(res.Backup.ID).Equal(chunkstore.BackupTime(b.ID)) {
		t.Errorf("copied as %+v", res)
	}
	mustHold(t, to, res.Backup, image)
	if again := mustCopy(t, from, b, to); !again.Existed || again.Backup.ID != res.Backup.ID {
		t.Errorf("copied again: %+v", again)
	}
	third := memRepo(t)
	direct := mustCopy(t, from, b, third)
	if again := mustCopy(t, to, res.Backup, third); !again.Existed || again.Backup.ID != direct.Backup.ID {
		t.Errorf("copied by two ways: %+v", again)
	}
}

// Many at once copy the same backup: one record.
func TestCopyAtOnce(t *testing.T) {
	from, to := memRepo(t), memRepo(t)
	b := backup(t, from, plainVolume(randomImage(1, 2*mib)), engine.BackupOptions{Volume: "vol"}).Backup
	results := make(chan error)
	for range 4 {
		go func() {
			_, err := engine.Copy(context.WithoutCancel(t.Context()), from, b, to, engine.CopyOptions{})
			results <- err
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	mustHaveBackups(t, to, 1)
}

// parentNoter notes the first parent that it is offered, and takes it.
type parentNoter struct {
	*volume
	parent source.Parent
}

func (v *parentNoter) Open(_ context.Context, parents iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	for p, err := range parents {
		v.parent = p
		return v, source.Base{Parent: &v.parent}, err
	}
	return nil, source.Base{}, errSource
}

// A backup into the destination compares with the copy, and is told whose the snapshot is.
func TestBackupOnCopy(t *testing.T) {
	from, to := memRepo(t), memRepo(t)
	image := randomImage(1, 2*mib)
	b := backup(t, from, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	copied := mustCopy(t, from, b, to).Backup
	image[mib] ^= 1
	v := &parentNoter{volume: &volume{image: image, changed: []source.Extent{{Off: mib, Len: sector}}, base: true}}
	res := backup(t, to, v, engine.BackupOptions{Volume: "vol"})
	if res.Parent != copied.ID || !v.parent.Elsewhere || !bytes.Equal(v.parent.State, b.Source) {
		t.Errorf("compared with %q: %+v", res.Parent, v.parent)
	}
	mustHold(t, to, res.Backup, image)
	back := mustCopy(t, to, res.Backup, from) // and home again
	if back.Backup.Parent != b.ID || back.Backup.Counts.Read > mib/2 {
		t.Errorf("copied back as %+v", back.Backup)
	}
	v = &parentNoter{volume: &volume{image: image, base: true}}
	if backup(t, from, v, engine.BackupOptions{Volume: "vol", Base: b.ID}); v.parent.Elsewhere {
		t.Error("the repository's own backup is taken for another's")
	}
}

// The source fails or is damaged, wherever: no record, an error that names the source. A chunk that has the right sums and the wrong content counts.
func TestCopyOfDamage(t *testing.T) {
	be := mem.New()
	r := openRepo(t, be)
	b := backup(t, r, plainVolume(randomImage(1, 3*mib)), engine.BackupOptions{Volume: "vol"}).Backup
	for _, kind := range []backendtest.Kind{backendtest.Fail, backendtest.FlipBit} {
		fired := 0
		for n := 1; n < 40; n++ {
			faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.ReadAt, Prefix: "packs/", N: n, Times: -1, Kind: kind, Bit: 999, Optional: true})
			from, err := chunkstore.Open(t.Context(), faulty, chunkstore.Options{Parallel: 1})
			if err != nil {
				t.Fatal(err)
			}
			to := memRepo(t)
			_, err = engine.Copy(t.Context(), from, b, to, engine.CopyOptions{Workers: 1})
			if !faulty.Fired() {
				if err != nil {
					t.Error(err)
				}
				break
			}
			fired++
			var se *engine.SourceError
			if !errors.As(err, &se) || kind == backendtest.FlipBit && !errors.Is(err, chunkstore.ErrCorrupt) {
				t.Errorf("%v at read %d: %v", kind, n, err)
			}
			mustHaveBackups(t, to, 0)
			_ = from.Close()
		}
		if fired < 3 {
			t.Errorf("%v: only %d reads failed", kind, fired)
		}
	}
}

// A copy that dies at whichever write of the destination leaves it sound. The next goes on, without storing more than a pack again.
func TestCopyDiesAtEveryWrite(t *testing.T) {
	from := memRepo(t)
	images := [][]byte{randomImage(1, 2*mib), nil}
	images[1] = slices.Clone(images[0])
	copy(images[1][mib:], randomImage(2, mib/2))
	for _, image := range images {
		backup(t, from, plainVolume(image), engine.BackupOptions{Volume: "vol", Full: true})
		time.Sleep(time.Millisecond)
	}
	whole := storedBy(t, images...)
	for n, lost := 1, false; ; n++ {
		be := mem.New()
		openRepo(t, be)
		dying := backendtest.StopAfter(be, n)
		if lost {
			dying = backendtest.StopAfterLost(be, n)
		}
		cache := t.TempDir()
		sync := func(be backend.Backend) (*engine.SyncReport, *chunkstore.Repository, error) {
			to, err := chunkstore.Open(t.Context(), be, chunkstore.Options{CacheDir: cache})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = to.Close() })
			rep, err := engine.Sync(t.Context(), from, to, engine.SyncOptions{})
			return rep, to, err
		}
		_, _, err := sync(dying)
		died := dying.Dead()
		if !died && err != nil {
			t.Fatalf("not stopped at write %d: %v", n, err)
		}
		rep, to, err := sync(dying.Survivors())
		if err != nil || rep.Copied+rep.Existed != 2 {
			t.Fatalf("after write %d: %+v, %v", n, rep, err)
		}
		for i, b := range mustHaveBackups(t, to, 2) {
			mustHold(t, to, b, images[i])
		}
		if got, limit := packBytes(t, be), whole+mib*9/8; got > limit {
			t.Errorf("packs have %d bytes, without the crash %d: more than a pack is there twice", got, whole)
		}
		if !died && lost {
			return
		}
		if !died {
			n, lost = 0, true
		}
	}
}

// vault is a backend with object locks.
type vault struct {
	backend.Backend
	mu    sync.Mutex // guards until
	until map[string]time.Time
}

func (v *vault) CanRetain(context.Context) error { return nil }

func (v *vault) Retain(_ context.Context, name string, _ backend.LockMode, until time.Time) (longer bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if longer = v.until[name].Before(until); longer {
		v.until[name] = until
	}
	return longer, nil
}

func (v *vault) Retained(_ context.Context, name string) (time.Time, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.until[name], nil
}

// Copies are locked where that is asked for, with all that they need, whatever lock the copied backup has.
func TestCopyLocked(t *testing.T) {
	from := memRepo(t)
	v := &vault{Backend: mem.New(), until: map[string]time.Time{}}
	to := openRepo(t, v)
	image := randomImage(1, 2*mib)
	var all []*chunkstore.Backup
	for n := range 2 {
		image[n*mib] ^= 1
		all = append(all, backup(t, from, plainVolume(image), engine.BackupOptions{Volume: "vol", Full: true}).Backup)
		time.Sleep(time.Millisecond)
	}
	if b := mustCopy(t, from, all[0], to).Backup; b.Lock != nil || len(v.until) > 0 {
		t.Errorf("locked unasked: %+v, %v", b.Lock, v.until)
	}
	o := engine.CopyOptions{LockFor: engine.Period{Days: 30}, LockMode: backend.Compliance}
	rep, err := engine.Sync(t.Context(), from, to, engine.SyncOptions{CopyOptions: o})
	if err != nil || rep.Copied != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	b := mustHaveBackups(t, to, 2)[1]
	if b.Lock == nil || b.Lock.Mode != backend.Compliance || b.Lock.Until.Before(time.Now().Add(29*24*time.Hour)) {
		t.Errorf("lock %+v", b.Lock)
	}
	// The first copy has chunks in all of these packs that the second one needs too.
	for _, name := range append(objects(t, v, "packs/data/"), objects(t, v, "backups/")...) {
		if first := strings.HasSuffix(name, all[0].ID); v.until[name].IsZero() != first {
			t.Errorf("%s is locked until %v", name, v.until[name])
		}
	}
	plain := memRepo(t)
	o.Workers = 1
	if _, err := engine.Copy(t.Context(), to, b, plain, o); !errors.Is(err, chunkstore.ErrNoObjectLock) {
		t.Errorf("to where there are no locks: %v", err)
	}
	if b := mustCopy(t, to, b, plain).Backup; b.Lock != nil {
		t.Errorf("the lock is copied: %+v", b.Lock)
	}
}

// A copy that is cancelled ends at once and leaves no goroutine and no record.
func TestCopyCancelled(t *testing.T) {
	from := memRepo(t)
	b := backup(t, from, plainVolume(randomImage(1, 6*mib)), engine.BackupOptions{Volume: "vol"}).Backup
	be := mem.New()
	openRepo(t, be)
	faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.Put, Prefix: "packs/", Times: -1, Kind: backendtest.Delay, Delay: time.Hour})
	to, err := chunkstore.Open(t.Context(), faulty, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for !faulty.Fired() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	start := time.Now()
	if _, err := engine.Copy(ctx, from, b, to, engine.CopyOptions{}); !errors.Is(err, context.Canceled) || time.Since(start) > 10*time.Second {
		t.Errorf("ended after %v with %v", time.Since(start), err)
	}
	mustHaveBackups(t, to, 0)
}
