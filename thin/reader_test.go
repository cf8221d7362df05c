package thin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/thintest"
)

func TestOpenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta")
	if err := os.WriteFile(path, smallPool(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, direct := range []bool{false, true} {
		r, err := thin.Open(path, thin.Options{Direct: direct})
		if direct && errors.Is(err, syscall.EINVAL) {
			t.Skip("the file system of the temporary folder has no O_DIRECT")
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := mustCollect(t, r.Devices(t.Context())); len(got) != 2 {
			t.Errorf("direct %v: %d devices, want 2", direct, len(got))
		}
		if got := mustCollect(t, r.Diff(t.Context(), 2, 1, thin.DiffOptions{})); len(got) != 3 {
			t.Errorf("direct %v: %d changes, want 3", direct, len(got))
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := thin.Open(filepath.Join(t.TempDir(), "none"), thin.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	if _, err := thin.Open(t.TempDir(), thin.Options{}); !errors.Is(err, thin.ErrNotMetadata) {
		t.Errorf("a folder: %v", err)
	}
	if _, err := thin.Open("/dev/null", thin.Options{}); !errors.Is(err, thin.ErrNotMetadata) {
		t.Errorf("a character device: %v", err)
	}
}

// TestReadError: what the device says is passed on and the block is named.
func TestReadError(t *testing.T) {
	img := smallPool(t)
	r, err := thin.NewReader(failAfter{bytes.NewReader(img), 3 * thin.BlockSize}, int64(len(img)), thin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = collect(r.Runs(t.Context(), 1))
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "read metadata block ") {
		t.Errorf("got %v", err)
	}
}

type failAfter struct {
	io.ReaderAt
	limit int64
}

func (f failAfter) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.limit {
		return 0, syscall.EIO
	}
	return f.ReaderAt.ReadAt(p, off)
}

// TestTornSuperblock: a superblock that is being written is read again.
func TestTornSuperblock(t *testing.T) {
	img := smallPool(t)
	src := &torn{ReaderAt: bytes.NewReader(img), left: 2}
	r, err := thin.NewReader(src, int64(len(img)), thin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if src.left != 0 {
		t.Fatalf("%d torn reads were not asked for", src.left)
	}
	if got := mustCollect(t, r.Devices(t.Context())); len(got) != 2 {
		t.Errorf("%d devices", len(got))
	}
	src.left = 100
	if _, err := thin.NewReader(src, int64(len(img)), thin.Options{}); !errors.Is(err, thin.ErrDamaged) || src.left < 90 {
		t.Errorf("torn again and again: %v, %d reads left", err, src.left)
	}
}

// torn gives the superblock with one byte wrong, another each time.
type torn struct {
	io.ReaderAt
	left int
}

func (s *torn) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.ReaderAt.ReadAt(p, off)
	if off == 0 && s.left > 0 {
		s.left--
		p[100] ^= byte(s.left + 1)
	}
	return n, err
}

func TestRecheck(t *testing.T) {
	change := func(img []byte, nr uint64) {
		thintest.Patch(img, nr, func(b []byte) { b[48]++ }) // the transaction ID
	}
	for _, held := range []bool{false, true} {
		img := smallPool(t)
		r := newReader(t, img, thin.Options{MetadataSnapshot: held})
		root := r.Superblock().HeldRoot
		if err := r.Recheck(); err != nil {
			t.Fatalf("held %v: unchanged: %v", held, err)
		}
		change(img, 0) // an active pool commits: nothing to a reader at the held root
		if err := r.Recheck(); errors.Is(err, thin.ErrChanged) == held {
			t.Errorf("held %v: after a commit: %v", held, err)
		}
		if !held {
			continue
		}
		change(img, root)
		if err := r.Recheck(); !errors.Is(err, thin.ErrChanged) {
			t.Errorf("renewed in place: %v", err)
		}
		change(img, 0)
		thintest.Patch(img, 0, func(b []byte) { le.PutUint64(b[56:], 0) })
		if err := r.Recheck(); !errors.Is(err, thin.ErrChanged) {
			t.Errorf("released: %v", err)
		}
	}
}

func TestCancelAndStop(t *testing.T) {
	r := newReader(t, smallPool(t), thin.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	var err error
	for _, err = range r.Runs(ctx, 1) {
		if seen++; seen == 2 {
			cancel()
		}
	}
	if !errors.Is(err, context.Canceled) || seen > 10 {
		t.Errorf("cancelled after 2 runs: %v after %d", err, seen)
	}
	if _, err := collect(r.Diff(ctx, 1, 2, thin.DiffOptions{})); !errors.Is(err, context.Canceled) {
		t.Errorf("difference, cancelled before: %v", err)
	}
	if _, err := r.Device(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("device, cancelled before: %v", err)
	}
	before := r.Stats().BlocksRead
	for range r.Runs(t.Context(), 1) {
		break
	}
	for range r.Diff(t.Context(), 1, 2, thin.DiffOptions{Unchanged: true}) {
		break
	}
	for range r.Devices(t.Context()) {
		break
	}
	if read := r.Stats().BlocksRead - before; read > 20 {
		t.Errorf("%d blocks read for three answers that were not wanted", read)
	}
}

// TestManyAtOnce runs iterators side by side, some of which stop early.
func TestManyAtOnce(t *testing.T) {
	r := openPool(t, "basic-ext4")
	want := mustCollect(t, r.Diff(t.Context(), 1, 2, thin.DiffOptions{Unchanged: true}))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				got, err := collect(r.Diff(t.Context(), 1, 2, thin.DiffOptions{Unchanged: true}))
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("another answer beside others: %v", err)
				}
				for range r.Runs(t.Context(), uint32(1+i%4)) {
					break
				}
			}
		})
	}
	wg.Wait()
}

// TestWalkAllocates guards the promise of memory: a walk keeps its path and nothing for each node or run.
func TestWalkAllocates(t *testing.T) {
	var img thintest.Memory
	p := thintest.New(&img, thintest.Config{DataBlocks: 1 << 20})
	err := p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		for b := uint64(0); b < 200_000 && yield(thintest.Mapping{Thin: b, Data: b * 2}); b++ {
		}
	})
	if err := errors.Join(err, p.Snapshot(2, 1), p.Map(1, 7, 1), p.Map(1, 170_000, 1), p.Commit()); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, img, thin.Options{})
	for name, walk := range map[string]func(){
		"runs": func() {
			for range r.Runs(t.Context(), 1) {
			}
		},
		"difference": func() {
			for range r.Diff(t.Context(), 1, 2, thin.DiffOptions{Unchanged: true}) {
			}
		},
	} {
		walk() // fills the pool of buffers
		if n := testing.AllocsPerRun(3, walk); n > 60 {
			t.Errorf("%s: %.0f allocations for 807 leaves", name, n)
		}
	}
}
