package source_test

import (
	"bytes"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/engine/source"
)

// result is what a backup of an image saw.
type result struct {
	base       source.Base
	asked      int // candidates
	extents    []source.Extent
	data, hole int64 // bytes in extents
	patches    [][]byte
	size       int64
	stats      source.Stats
}

// open opens the image at path for the length of the test.
func open(t testing.TB, path string, opts source.ImageOptions, parents ...source.Parent) (source.Source, source.Base) {
	t.Helper()
	src, base, err := source.Image(path, opts).Open(t.Context(), listing(parents, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(t.Context(), true); err != nil {
			t.Errorf("close %s: %v", path, err)
		}
	})
	return src, base
}

// listing counts in asked, unless it is nil, how many parents were asked for.
func listing(parents []source.Parent, asked *int) iter.Seq2[source.Parent, error] {
	return func(yield func(source.Parent, error) bool) {
		for _, p := range parents {
			if asked != nil {
				*asked++
			}
			if !yield(p, nil) {
				return
			}
		}
	}
}

// backUp reads all that a backup of path reads, and checks the rules of extents.
func backUp(t *testing.T, path string, opts source.ImageOptions, parents ...source.Parent) result {
	t.Helper()
	var r result
	src, base, err := source.Image(path, opts).Open(t.Context(), listing(parents, &r.asked))
	if err != nil {
		t.Fatal(err)
	}
	if (base.Parent == nil) == (base.Reason == "") {
		t.Fatalf("base %+v has both or neither of parent and reason", base)
	}
	r.base, r.size = base, src.Size()
	pos := int64(0)
	for e, err := range src.Extents(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Off < pos || e.Len <= 0 || e.End() > src.Size() || e.Off%4096 != 0 || (e.Len%4096 != 0 && e.End() != src.Size()) {
			t.Fatalf("extent %+v behind %d in %d bytes breaks the rules", e, pos, src.Size())
		}
		pos = e.End()
		r.extents = append(r.extents, e)
		p := make([]byte, e.Len)
		if e.Hole {
			r.hole += e.Len
		} else {
			r.data += e.Len
			if err := src.ReadAt(t.Context(), p, e.Off); err != nil {
				t.Fatal(err)
			}
		}
		r.patches = append(r.patches, p)
	}
	r.stats = src.Stats()
	if r.stats.BytesRead != r.data {
		t.Errorf("stats say %d bytes read, want %d", r.stats.BytesRead, r.data)
	}
	if err := src.Close(t.Context(), true); err != nil {
		t.Error(err)
	}
	return r
}

// parentOf is what a later backup finds of one of the image at path, made now.
func parentOf(t testing.TB, path string) source.Parent {
	t.Helper()
	src, _ := open(t, path, source.ImageOptions{})
	return source.Parent{ID: "backup-of-" + filepath.Base(path), Size: src.Size(), State: src.State()}
}

func (r result) wantBase(t *testing.T, want source.Parent) {
	t.Helper()
	if r.base.Parent == nil {
		t.Fatalf("no base: %s", r.base.Reason)
	}
	if r.base.Parent.ID != want.ID {
		t.Fatalf("base %s, want %s", r.base.Parent.ID, want.ID)
	}
}

// wantContent checks that what was read, laid over the file old (nothing when empty), is the file new.
func (r result) wantContent(t *testing.T, old, new string) {
	t.Helper()
	if old == "" {
		old = os.DevNull
	}
	files := [2]*os.File{}
	for i, path := range []string{old, new} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	if size, err := files[1].Seek(0, io.SeekEnd); err != nil || size != r.size {
		t.Fatalf("%d bytes, want %d, %v", r.size, size, err)
	}
	const step = 256 << 10
	bufs := [2][]byte{make([]byte, step), make([]byte, step)}
	for off := int64(0); off < r.size; off += step {
		n := min(step, r.size-off)
		for i, f := range files {
			clear(bufs[i])
			if _, err := f.ReadAt(bufs[i][:n], off); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		for i, e := range r.extents {
			if from, to := max(e.Off, off), min(e.End(), off+n); from < to {
				copy(bufs[0][from-off:to-off], r.patches[i][from-e.Off:])
			}
		}
		if !bytes.Equal(bufs[0], bufs[1]) {
			t.Fatalf("wrong bytes in the %d at %d; extents %v", n, off, r.extents)
		}
	}
}

// noise returns n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), 1
	if _, err := io.ReadFull(rand.NewChaCha8(key), b); err != nil {
		panic(err) // never ends
	}
	return b
}

// makeImage makes the image that the edits expect. A compressible one has one byte repeated in every other 4 KiB, and a hole for the space
// that is reserved, since btrfs compresses no file that ever reserved any.
func makeImage(t *testing.T, path string, compressible bool) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b := noise(1234, 8*mib)
	for off := 0; compressible && off < len(b); off += 8192 {
		copy(b[off:off+4096], bytes.Repeat(b[off:off+1], 4096))
	}
	write(t, f, 0, b[:2*mib])
	if !compressible {
		fallocate(t, f, 0, 3*mib, mib)
	}
	write(t, f, 4*mib, b[4*mib:])
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// edit opens the file at path for do.
func edit(t *testing.T, path string, do func(t *testing.T, f *os.File)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	do(t, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// reflink returns the path of a copy of old that shares its extents, for the length of the test.
func reflink(t testing.TB, old string) string {
	t.Helper()
	src, err := os.Open(old)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := os.CreateTemp(filepath.Dir(old), "new-*.raw")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{src, dst} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(dst.Name()) })
	return dst.Name()
}

func write(t testing.TB, f *os.File, off int64, b []byte) {
	t.Helper()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, f *os.File, size int64) {
	t.Helper()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

func fallocate(t *testing.T, f *os.File, mode uint32, off, n int64) {
	t.Helper()
	if err := unix.Fallocate(int(f.Fd()), mode, off, n); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
