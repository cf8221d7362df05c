package engine_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
)

// sparseImage is 6 MiB with data at the beginning, in the middle and at an end off all borders.
func sparseImage() []byte {
	img := make([]byte, 6*mib+700)
	copy(img, randomImage(1, mib))
	copy(img[3*mib+8192:], randomImage(2, mib/2))
	copy(img[6*mib:], randomImage(3, 700))
	return img
}

// progress counts, and calls on at each Add.
type progress struct {
	total, done atomic.Int64
	on          func(done int64)
}

func (p *progress) Total(n int64) { p.total.Add(n) }

func (p *progress) Add(n int64) {
	done := p.done.Add(n)
	if p.on != nil {
		p.on(done)
	}
}

// restored is a restore that must succeed and give the image.
func restored(t *testing.T, r *chunkstore.Repository, b *chunkstore.Backup, image []byte, target string, o engine.RestoreOptions) *engine.RestoreResult {
	t.Helper()
	res, err := engine.Restore(t.Context(), r, b, target, o)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, image) {
		t.Fatalf("%d bytes, differing at %d from the %d of the image", len(got), firstDifference(got, image), len(image))
	}
	return res
}

// mustBeAlone fails when a folder holds anything but the names.
func mustBeAlone(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("the folder holds %q, want %q", got, names)
	}
}

func TestRestoreNewFile(t *testing.T) {
	image := sparseImage()
	r := memRepo(t)
	b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	dir := t.TempDir()
	p := &progress{}
	res := restored(t, r, b, image, filepath.Join(dir, "new"), engine.RestoreOptions{Verify: true, Progress: p})
	want := engine.RestoreResult{
		Target: filepath.Join(dir, "new"), Size: int64(len(image)), Data: b.Blob.Data, Fetched: b.Blob.Data, Written: b.Blob.Data,
	}
	if *res != want {
		t.Errorf("got %+v, want %+v", *res, want)
	}
	if p.done.Load() != b.Blob.Data || p.total.Load() != b.Blob.Data {
		t.Errorf("progress says %d of %d, want %d", p.done.Load(), p.total.Load(), b.Blob.Data)
	}
	mustBeSparse(t, res.Target, b)
	mustBeAlone(t, dir, "new")

	empty := backup(t, r, plainVolume(nil), engine.BackupOptions{Volume: "empty"}).Backup
	restored(t, r, empty, nil, filepath.Join(dir, "empty"), engine.RestoreOptions{Verify: true})
	holes := backup(t, r, plainVolume(make([]byte, 3*mib+1)), engine.BackupOptions{Volume: "holes"}).Backup
	restored(t, r, holes, make([]byte, 3*mib+1), filepath.Join(dir, "holes"), engine.RestoreOptions{Verify: true})
	mustBeSparse(t, filepath.Join(dir, "holes"), holes)
}

// Whatever a file holds, a restore onto it gives the backup, with holes where the backup has them; what was right is not fetched.
func TestRestoreOverFile(t *testing.T) {
	image := sparseImage()
	r := memRepo(t)
	b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	tests := []struct {
		name string
		had  []byte
		kept func(int64) bool
	}{
		{"empty", nil, func(n int64) bool { return n == 0 }},
		{"junk", randomImage(9, len(image)), func(n int64) bool { return n == 0 }},
		{"shorter junk", randomImage(9, 2*mib+5), func(n int64) bool { return n == 0 }},
		{"longer junk", randomImage(9, 9*mib), func(n int64) bool { return n == 0 }},
		{"the backup", image, func(n int64) bool { return n == b.Blob.Data }},
		{"the backup cut short", image[:mib], func(n int64) bool { return n == mib }},
		{"the backup with a scratch", scratched(image, mib/2, 10), func(n int64) bool { return n < b.Blob.Data && n >= b.Blob.Data-256<<10 }},
		{"the backup with data in a hole", scratched(image, 2*mib+77, 100), func(n int64) bool { return n == b.Blob.Data }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "target")
			if err := os.WriteFile(target, tt.had, 0o600); err != nil {
				t.Fatal(err)
			}
			p := &progress{}
			res := restored(t, r, b, image, target, engine.RestoreOptions{Overwrite: true, Verify: true, Progress: p})
			if !tt.kept(res.Kept) || res.Kept+res.Fetched != b.Blob.Data || res.Written != res.Fetched || p.done.Load() != b.Blob.Data {
				t.Errorf("got %+v and progress %d of %d bytes of data", *res, p.done.Load(), b.Blob.Data)
			}
			mustBeSparseIfPunched(t, target, b, tt.had)
			mustBeAlone(t, filepath.Dir(target), "target")
		})
	}
}

func scratched(image []byte, off, n int) []byte {
	img := bytes.Clone(image)
	copy(img[off:], randomImage(11, n))
	return img
}

// A target that is known to hold a backup gets only the difference.
func TestRestoreHolds(t *testing.T) {
	r := memRepo(t)
	images := [][]byte{sparseImage(), nil, nil, nil}
	images[1] = scratched(images[0], 2*mib, 5000) // data in a hole
	images[2] = bytes.Clone(images[1])
	clear(images[2][:mib/2])                                // a hole in data
	images[3] = append(images[2][:5*mib:5*mib], 1, 2, 3, 4) // shorter, then data
	var backups []*chunkstore.Backup
	for _, img := range images {
		backups = append(backups, backup(t, r, plainVolume(img), engine.BackupOptions{Volume: "vol"}).Backup)
	}
	for from := range images {
		for to := range images {
			target := filepath.Join(t.TempDir(), "target")
			if err := os.WriteFile(target, images[from], 0o600); err != nil {
				t.Fatal(err)
			}
			res := restored(t, r, backups[to], images[to], target, engine.RestoreOptions{Overwrite: true, Holds: backups[from], Verify: true})
			limit := map[bool]int64{true: 0, false: mib}[from == to]
			if res.Fetched > limit || res.Kept != 0 {
				t.Errorf("from %d to %d: fetched %d, at most %d; kept %d", from, to, res.Fetched, limit, res.Kept)
			}
		}
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := engine.Restore(t.Context(), r, backups[0], missing, engine.RestoreOptions{Overwrite: true, Holds: backups[1]}); err == nil {
		t.Error("a target that does not exist is believed to hold a backup")
	}
	mustBeAlone(t, filepath.Dir(missing))
}

func TestRestoreRefuses(t *testing.T) {
	r := memRepo(t)
	b := backup(t, r, plainVolume(sparseImage()), engine.BackupOptions{Volume: "vol"}).Backup
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []engine.RestoreOptions{{}, {Holds: b}, {Blank: true}} {
		if _, err := engine.Restore(t.Context(), r, b, target, o); !errors.Is(err, engine.ErrTargetExists) {
			t.Errorf("%+v: got %v, want ErrTargetExists", o, err)
		}
	}
	for _, path := range []string{dir, "/dev/null"} {
		if _, err := engine.Restore(t.Context(), r, b, path, engine.RestoreOptions{Overwrite: true}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("restore to %s: %v", path, err)
		}
	}
	if _, err := engine.Restore(t.Context(), r, b, filepath.Join(dir, "no", "folder"), engine.RestoreOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("restore into a folder that does not exist: %v", err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "precious" {
		t.Errorf("the target holds %q, %v", got, err)
	}
	mustBeAlone(t, dir, "target")
}

// What appears under the target's name during a restore is not replaced, and what was restored is not lost.
func TestRestoreTargetAppears(t *testing.T) {
	r := memRepo(t)
	b := backup(t, r, plainVolume(sparseImage()), engine.BackupOptions{Volume: "vol"}).Backup
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	p := &progress{on: func(int64) {
		if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
			t.Error(err)
		}
	}}
	_, err := engine.Restore(t.Context(), r, b, target, engine.RestoreOptions{Progress: p})
	if !errors.Is(err, engine.ErrTargetExists) {
		t.Errorf("got %v, want ErrTargetExists", err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "precious" {
		t.Errorf("the target holds %q, %v", got, err)
	}
	mustBeAlone(t, dir, ".target."+b.ID+".shale-restore", "target")
}

// An interrupted restore goes on: what it wrote is kept, the rest is fetched.
func TestRestoreResumes(t *testing.T) {
	image := sparseImage()
	for name, target := range map[string]string{"new": "", "over junk": "junk"} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				be := mem.New()
				whole := openRepo(t, be)
				b := backup(t, whole, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
				faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.ReadAt, Prefix: "packs/data/", N: n, Times: -1, Optional: true})
				r, err := chunkstore.Open(t.Context(), faulty, chunkstore.Options{Parallel: 1})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				path := filepath.Join(t.TempDir(), "target")
				o := engine.RestoreOptions{Workers: 1}
				if target != "" {
					o.Overwrite = true
					if err := os.WriteFile(path, []byte(target), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				first := &progress{}
				o.Progress = first
				_, err = engine.Restore(t.Context(), r, b, path, o)
				if err == nil {
					if n < 3 {
						t.Errorf("only %d reads failed", n-1)
					}
					return
				}
				if !errors.Is(err, backendtest.ErrInjected) {
					t.Fatalf("got %v, want the backend's error", err)
				}
				if _, err := os.Stat(path); target == "" && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the target is there before it is complete: %v", err)
				}
				o.Progress = nil
				res := restored(t, whole, b, image, path, o)
				if res.Kept != first.done.Load() || res.Kept+res.Fetched != b.Blob.Data {
					t.Errorf("read %d failed: %d bytes were written, then kept %d and fetched %d of %d", n, first.done.Load(), res.Kept, res.Fetched, b.Blob.Data)
				}
				mustBeAlone(t, filepath.Dir(path), "target")
			}
		})
	}
}

func TestRestoreCancelled(t *testing.T) {
	image := randomImage(1, 20*mib) // several batches
	r := memRepo(t)
	b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	target := filepath.Join(t.TempDir(), "target")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := engine.Restore(ctx, r, b, target, engine.RestoreOptions{Workers: 1, Progress: &progress{on: func(int64) { cancel() }}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target is there: %v", err)
	}
	if _, err := engine.Restore(ctx, r, b, target, engine.RestoreOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before it began: %v", err)
	}
	if res := restored(t, r, b, image, target, engine.RestoreOptions{}); res.Kept == 0 {
		t.Errorf("nothing was kept: %+v", *res)
	}
}

func TestRestoreTwiceAtOnce(t *testing.T) {
	image := sparseImage()
	r := memRepo(t)
	b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	target := filepath.Join(t.TempDir(), "target")
	var second error
	var once sync.Once
	p := &progress{on: func(int64) {
		once.Do(func() { _, second = engine.Restore(t.Context(), r, b, target, engine.RestoreOptions{}) })
	}}
	restored(t, r, b, image, target, engine.RestoreOptions{Progress: p, Workers: 1})
	if second == nil || !strings.Contains(second.Error(), "another restore") {
		t.Errorf("a second restore at once: %v", second)
	}
}

// With Verify, a target that does not hold what was written to it is an error.
func TestRestoreVerifies(t *testing.T) {
	r := memRepo(t)
	image := sparseImage()
	b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
	for _, tt := range []struct {
		name string
		off  int64
	}{{"data", 100}, {"hole", 2 * mib}, {"last hole", 5 * mib}, {"end", 6*mib + 699}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			target := filepath.Join(dir, "target")
			p := &progress{on: func(done int64) {
				if done == b.Blob.Data {
					scratch(t, filepath.Join(dir, ".target."+b.ID+".shale-restore"), tt.off)
				}
			}}
			_, err := engine.Restore(t.Context(), r, b, target, engine.RestoreOptions{Verify: true, Progress: p})
			if err == nil || !strings.Contains(err.Error(), "verify") {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the target is there: %v", err)
			}
			if res := restored(t, r, b, image, target, engine.RestoreOptions{Verify: true}); res.Fetched > 256<<10 {
				t.Errorf("to mend a byte, %d were fetched", res.Fetched)
			}
		})
	}
}

// scratch changes a byte of a file.
func scratch(t *testing.T, path string, off int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	var p [1]byte
	if _, err := f.ReadAt(p[:], off); err != nil {
		t.Error(err)
	}
	p[0]++
	if _, err := f.WriteAt(p[:], off); err != nil {
		t.Error(err)
	}
}

// A chunk that is damaged in the repository is an error that says where, and no target.
func TestRestoreCorruptChunk(t *testing.T) {
	be := mem.New()
	sound := openRepo(t, be)
	b := backup(t, sound, plainVolume(sparseImage()), engine.BackupOptions{Volume: "vol"}).Backup
	for _, kind := range []backendtest.Kind{backendtest.FlipBit, backendtest.Truncate} {
		faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.ReadAt, Prefix: "packs/data/", N: 2, Times: -1, Kind: kind, Bit: 4001})
		r, err := chunkstore.Open(t.Context(), faulty, chunkstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		target := filepath.Join(t.TempDir(), "target")
		_, err = engine.Restore(t.Context(), r, b, target, engine.RestoreOptions{})
		var corrupt *chunkstore.CorruptError
		if !errors.As(err, &corrupt) || !strings.HasPrefix(corrupt.Object, "packs/data/") || corrupt.Off <= 0 || !strings.Contains(err.Error(), corrupt.Object) {
			t.Errorf("fault %d: got %v, want a CorruptError with pack and offset", kind, err)
		}
		if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the target is there: %v", err)
		}
	}
}
