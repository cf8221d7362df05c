package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

const mib = 1 << 20

// randomImage is n bytes that do not compress.
func randomImage(seed uint64, n int) []byte {
	p := make([]byte, n)
	fill(rand.New(rand.NewPCG(seed, 2)), p)
	return p
}

// inPieces is a full volume whose extents, and so its reads, are of n bytes.
func inPieces(image []byte, n int64) *volume {
	v := &volume{image: image}
	for off := int64(0); off < v.Size(); off += n {
		v.full = append(v.full, source.Extent{Off: off, Len: min(n, v.Size()-off)})
	}
	return v
}

func mustHaveBackups(t *testing.T, r *chunkstore.Repository, want int) []*chunkstore.Backup {
	t.Helper()
	list, err := r.ListBackups(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != want {
		t.Fatalf("%d backups are listed, want %d", len(list), want)
	}
	return list
}

func mustHold(t *testing.T, r *chunkstore.Repository, b *chunkstore.Backup, image []byte) {
	t.Helper()
	got := make([]byte, b.Blob.Size)
	if _, err := r.OpenBlob(b.Blob).ReadAt(context.Background(), got, 0); err != nil {
		t.Fatalf("backup %s: %v", b.ID, err)
	}
	if !bytes.Equal(got, image) {
		t.Errorf("backup %s differs from its image at %d", b.ID, firstDifference(got, image))
	}
}

// A source that fails, at whichever extent or read, gives its error and no record.
func TestSourceFails(t *testing.T) {
	image := randomImage(1, 2*mib)
	r := memRepo(t)
	try := func(t *testing.T, v *volume) (failed bool) {
		_, err := engine.Backup(t.Context(), r, v, engine.BackupOptions{Volume: "vol"})
		if v.closed != 1 || v.kept != (err == nil) {
			t.Errorf("source closed %d times, kept %v after %v", v.closed, v.kept, err)
		}
		if err == nil {
			return false
		}
		if !errors.Is(err, errSource) {
			t.Errorf("got %v, want the source's error", err)
		}
		mustHaveBackups(t, r, 0)
		return true
	}
	for n := 1; n <= 8; n++ {
		v := inPieces(image, 256<<10)
		v.failExtent = n
		if !try(t, v) {
			t.Errorf("extent %d failed and nobody noticed", n)
		}
	}
	n := 1
	for ; ; n++ {
		v := inPieces(image, 256<<10)
		v.failRead = n
		if !try(t, v) {
			break
		}
	}
	if n != 9 { // the first that is not reached
		t.Errorf("%d reads failed, want 8", n-1)
	}
	mustHold(t, r, mustHaveBackups(t, r, 1)[0], image)
}

func TestSourceDoesNotOpen(t *testing.T) {
	r := memRepo(t)
	_, err := engine.Backup(t.Context(), r, opener(func() error { return errSource }), engine.BackupOptions{Volume: "vol"})
	if !errors.Is(err, errSource) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"", "../vol", "a b", "-x"} {
		_, err := engine.Backup(t.Context(), r, plainVolume(nil), engine.BackupOptions{Volume: name})
		if err == nil {
			t.Errorf("volume name %q is taken", name)
		}
	}
	_, err = engine.Backup(t.Context(), r, &volume{base: true}, engine.BackupOptions{Volume: "vol", Base: "backup-0123456789abcdef"})
	if !errors.Is(err, chunkstore.ErrNotFound) {
		t.Errorf("a base that is not there: got %v", err)
	}
	_, err = engine.Backup(t.Context(), r, plainVolume([]byte{1}), engine.BackupOptions{Volume: "vol", Compression: "rot13"})
	if err == nil {
		t.Error("an unknown compression is taken")
	}
	mustHaveBackups(t, r, 0)
}

// A source that finds at the end that what it said does not hold any more leaves no record.
func TestSourceRechecked(t *testing.T) {
	r := memRepo(t)
	v := &recheckedVolume{volume: plainVolume(randomImage(1, mib))}
	_, err := engine.Backup(t.Context(), r, v, engine.BackupOptions{Volume: "vol"})
	if !errors.Is(err, errSource) || v.kept {
		t.Errorf("got %v, snapshot kept: %v", err, v.kept)
	}
	mustHaveBackups(t, r, 0)
}

// A cancelled backup ends at once and leaves no goroutine, whatever it waits for.
func TestBackupCancelled(t *testing.T) {
	image := randomImage(1, 6*mib)
	tests := []struct {
		name  string
		fault *backendtest.Fault
		read  int // cancel at this read
	}{
		{"while reading", nil, 3},
		{"while writing a pack", &backendtest.Fault{Method: backendtest.Put, Prefix: "packs/", Times: -1, Kind: backendtest.Delay, Delay: time.Hour}, 0},
		{"while writing the index", &backendtest.Fault{Method: backendtest.Put, Prefix: "index/", Times: -1, Kind: backendtest.Delay, Delay: time.Hour}, 0},
		{"while writing the record", &backendtest.Fault{Method: backendtest.PutIfAbsent, Prefix: "backups/", Times: -1, Kind: backendtest.Delay, Delay: time.Hour}, 0},
		{"while looking for the base", &backendtest.Fault{Method: backendtest.List, Prefix: "backups/", Kind: backendtest.Delay, Delay: time.Hour}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var be backend.Backend = mem.New()
			r := openRepo(t, be) // its clean-up sees the backend as it is
			var faulty *backendtest.Faulty
			if tt.fault != nil {
				faulty = backendtest.NewFaulty(t, be, *tt.fault)
				be = faulty
			}
			slow, err := chunkstore.Open(t.Context(), be, chunkstore.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer slow.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			v := inPieces(image, 64<<10)
			v.base = tt.fault != nil && tt.fault.Method == backendtest.List
			before, start := runtime.NumGoroutine(), time.Now()
			if tt.read > 0 {
				v.onRead = func(n int) {
					if n == tt.read {
						cancel()
					}
				}
			} else {
				go func() {
					for !faulty.Fired() && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
					cancel()
				}()
			}
			_, err = engine.Backup(ctx, slow, v, engine.BackupOptions{Volume: "vol"})
			if took := time.Since(start); !errors.Is(err, context.Canceled) || took > 10*time.Second {
				t.Errorf("ended after %v with %v", took, err)
			}
			mustNotLeak(t, before)
			mustHaveBackups(t, r, 0)
		})
	}
}

// mustNotLeak waits until there are no more goroutines than before.
func mustNotLeak(t *testing.T, before int) {
	t.Helper()
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
}

// A backup that dies after whichever write leaves a sound repository. The next one goes on: together they store little more than one
// that was not disturbed, at most one data pack twice.
func TestBackupDiesAtEveryWrite(t *testing.T) {
	first, second := randomImage(1, 3*mib), randomImage(2, 3*mib)
	o := engine.BackupOptions{Volume: "vol"}
	whole := storedBy(t, first, second)
	for _, lost := range []bool{false, true} {
		done := false
		for n := 1; !done; n++ {
			t.Run(fmt.Sprintf("%d, answer lost %v", n, lost), func(t *testing.T) {
				be := mem.New()
				backup(t, openRepo(t, be), plainVolume(first), o)
				dying := backendtest.StopAfter(be, n)
				if lost {
					dying = backendtest.StopAfterLost(be, n)
				}
				cache := t.TempDir()
				died, err := chunkstore.Open(t.Context(), dying, chunkstore.Options{CacheDir: cache})
				if err != nil {
					t.Fatal(err)
				}
				defer died.Close()
				_, err = engine.Backup(t.Context(), died, plainVolume(second), o)
				done = !dying.Dead()
				counting := backendtest.NewCounting(dying.Survivors())
				r, openErr := chunkstore.Open(t.Context(), counting, chunkstore.Options{CacheDir: cache})
				if openErr != nil {
					t.Fatal(openErr)
				}
				defer r.Close()
				list, listErr := r.ListBackups(t.Context(), "vol")
				if listErr != nil {
					t.Fatal(listErr)
				}
				if len(list) < 1 || len(list) > 2 || err == nil && len(list) != 2 {
					t.Fatalf("%d backups are listed after %v", len(list), err)
				}
				mustHold(t, r, list[0], first)
				if len(list) == 2 {
					mustHold(t, r, list[1], second)
				}
				if !done && err == nil && !dying.Dead() {
					t.Error("the process lived on")
				}
				again := backup(t, r, plainVolume(second), o)
				mustHold(t, r, again.Backup, second)
				if got, limit := packBytes(t, be), whole+mib*9/8; got > limit {
					t.Errorf("packs have %d bytes, without the crash %d: more than a pack is there twice", got, whole)
				}
			})
		}
	}
}

// storedBy is how many bytes of packs a repository has after undisturbed backups of the images.
func storedBy(t *testing.T, images ...[]byte) int64 {
	be := mem.New()
	r := openRepo(t, be)
	for _, image := range images {
		backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"})
	}
	return packBytes(t, be)
}

func packBytes(t *testing.T, be backend.Backend) (n int64) {
	t.Helper()
	err := be.List(t.Context(), "packs/", func(o backend.Object) error {
		n += o.Size
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
