package source_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/e2e/fstest"
	"github.com/shalebackup/shale/engine/source"
)

// image makes a file of the given size in dir, with data at each of the places.
func image(t *testing.T, dir string, size int64, data map[int64]int) string {
	t.Helper()
	path := filepath.Join(dir, "image.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	truncate(t, f, size)
	for off, n := range data {
		write(t, f, off, noise(uint64(off), n))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImageHoles(t *testing.T) {
	places := map[string]func(t *testing.T) string{
		"this": func(t *testing.T) string { return t.TempDir() },
		"tmpfs": func(t *testing.T) string {
			var st unix.Statfs_t
			if err := unix.Statfs("/dev/shm", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
				t.Skipf("/dev/shm is no tmpfs: %v", err)
			}
			dir, err := os.MkdirTemp("/dev/shm", "shale-test-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			return dir
		},
		"ext4":               func(t *testing.T) string { return fstest.Mount(t, "ext4", 64) },
		"ext4 blocks of 1 k": func(t *testing.T) string { return fstest.MountWith(t, "ext4", 64, []string{"-b", "1024"}) },
		"xfs":                func(t *testing.T) string { return fstest.Mount(t, "xfs", 300) },
		"btrfs":              func(t *testing.T) string { return fstest.Mount(t, "btrfs", 300) },
	}
	images := []struct {
		name string
		size int64
		data map[int64]int
		want []source.Extent
	}{
		{name: "empty"},
		{name: "one byte", size: 1, data: map[int64]int{0: 1}, want: []source.Extent{{Len: 1}}},
		{name: "all hole", size: 10 * mib},
		{name: "all hole to an odd end", size: 10*mib + 77},
		{name: "all data to an odd end", size: mib + 77, data: map[int64]int{0: mib + 77}, want: []source.Extent{{Len: mib + 77}}},
		{name: "a byte in the middle", size: 10 * mib, data: map[int64]int{5*mib + 5000: 1}, want: []source.Extent{{Off: 5*mib + 4096, Len: 4096}}},
		{name: "both ends", size: 10*mib + 1, data: map[int64]int{0: 4096, 10 * mib: 1},
			want: []source.Extent{{Len: 4096}, {Off: 10 * mib, Len: 1}}},
		{name: "neighbours", size: mib, data: map[int64]int{4096: 4096, 8192: 10, 65536 + 1000: 2000},
			want: []source.Extent{{Off: 4096, Len: 8192}, {Off: 65536, Len: 4096}}},
		{name: "behind 4 GiB", size: 5<<30 + 512, data: map[int64]int{5 << 30: 512}, want: []source.Extent{{Off: 5 << 30, Len: 512}}},
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := place(t)
			for _, img := range images {
				t.Run(img.name, func(t *testing.T) {
					path := image(t, dir, img.size, img.data)
					got := backUp(t, path, source.ImageOptions{})
					if img.size < 1<<30 {
						got.wantContent(t, "", path)
					}
					if got.size != img.size {
						t.Errorf("size %d, want %d", got.size, img.size)
					}
					if name != "this" && !slices.Equal(got.extents, img.want) {
						t.Errorf("extents %v, want %v", got.extents, img.want)
					}
				})
			}
		})
	}
}

func TestImageDevice(t *testing.T) {
	path := image(t, t.TempDir(), mib+512, map[int64]int{4096: 10_000, mib: 512})
	dev := fstest.Loop(t, path)
	got := backUp(t, dev, source.ImageOptions{})
	got.wantContent(t, "", path)
	if want := []source.Extent{{Len: mib + 512}}; !slices.Equal(got.extents, want) {
		t.Errorf("extents %v, want all of it", got.extents)
	}
	parent := parentOf(t, dev)
	got = backUp(t, dev, source.ImageOptions{}, parent)
	if got.base.Parent != nil || !strings.Contains(got.base.Reason, "is a block device, which does not tell what changed") {
		t.Errorf("base %+v, want none for a device", got.base)
	}
	// A device's backup is no base for an image either.
	xfs := filepath.Join(fstest.Mount(t, "xfs", 300), "a.raw")
	makeImage(t, xfs, false)
	got = backUp(t, xfs, source.ImageOptions{}, parent)
	if got.base.Parent != nil || !strings.Contains(got.base.Reason, "was made from the block device "+dev) {
		t.Errorf("base %+v, want none from a device", got.base)
	}
}

func TestImageOpenErrors(t *testing.T) {
	dir := t.TempDir()
	pipe, dangling, loop := filepath.Join(dir, "pipe"), filepath.Join(dir, "dangling"), filepath.Join(dir, "loop")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.Symlink("nowhere", dangling), os.Symlink("loop", loop)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		dir:                          "neither a regular file nor a block device",
		pipe:                         "neither a regular file nor a block device",
		"/dev/zero":                  "neither a regular file nor a block device",
		dangling:                     "no such file",
		loop:                         "too many links",
		filepath.Join(dir, "no.raw"): "no such file",
	} {
		src, _, err := source.Image(name, source.ImageOptions{}).Open(t.Context(), nil)
		if src != nil || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("open %s: got %v, want %q and the name", name, err, want)
		}
	}

	img := image(t, dir, mib, nil)
	boom := errors.New("boom")
	failing := iter.Seq2[source.Parent, error](func(yield func(source.Parent, error) bool) { yield(source.Parent{}, boom) })
	if _, _, err := source.Image(img, source.ImageOptions{}).Open(t.Context(), failing); !errors.Is(err, boom) {
		t.Errorf("candidates fail: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := source.Image(img, source.ImageOptions{}).Open(ctx, listing([]source.Parent{{}}, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// Records that are of no use, whatever is in them, lead to a full read that says why.
func TestImageUselessRecords(t *testing.T) {
	img := filepath.Join(fstest.Mount(t, "btrfs", 300), "a.raw")
	makeImage(t, img, false)
	good := parentOf(t, img)
	edited := func(key string, value any) json.RawMessage {
		var m map[string]any
		if err := json.Unmarshal(good.State, &m); err != nil {
			t.Fatal(err)
		}
		m[key] = value
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tt := range map[string]struct {
		state  json.RawMessage
		size   int64
		reason string
	}{
		"missing":             {nil, good.Size, "cannot be read"},
		"not JSON":            {json.RawMessage("{"), good.Size, "cannot be read"},
		"another type":        {json.RawMessage(`"image"`), good.Size, "cannot be read"},
		"empty":               {json.RawMessage(`{}`), good.Size, `source of kind ""`},
		"thin":                {json.RawMessage(`{"kind":"thin","pool":"x"}`), good.Size, `source of kind "thin"`},
		"size":                {good.State, good.Size + 1, "its image was of 8388608"},
		"relative path":       {edited("path", "a.raw"), good.Size, `relative path "a.raw"`},
		"another file system": {edited("fsId", "00"), good.Size, "on another file system now"},
		"another subvolume":   {edited("subvol", 12345), good.Size, "is another file now"},
		"made another day":    {edited("birthNs", 1), good.Size, "is another file now"},
		"no file":             {edited("path", "/dev/null"), good.Size, "/dev/null is not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			got := backUp(t, img, source.ImageOptions{}, source.Parent{ID: "b1", Size: tt.size, State: tt.state})
			if got.base.Parent != nil || !strings.Contains(got.base.Reason, tt.reason) || !strings.Contains(got.base.Reason, "backup b1") {
				t.Errorf("base %+v, want none with a reason that says %q", got.base, tt.reason)
			}
		})
	}
}

func TestImageReasons(t *testing.T) {
	img := image(t, fstest.Mount(t, "ext4", 64), mib, map[int64]int{0: 100})
	got := backUp(t, img, source.ImageOptions{})
	if want := "there is no earlier backup of this volume"; got.base.Reason != want {
		t.Errorf("no candidates: reason %q, want %q", got.base.Reason, want)
	}
	got = backUp(t, img, source.ImageOptions{}, parentOf(t, img))
	if want := img + " lies on a file system without shared extents (ext4; XFS and btrfs have them)"; got.base.Reason != want {
		t.Errorf("ext4: reason %q, want %q", got.base.Reason, want)
	}
}

// The state's fields are part of backup records: old ones are read by new versions.
func TestImageState(t *testing.T) {
	dir := t.TempDir()
	img := image(t, dir, mib, nil)
	link := filepath.Join(dir, "link")
	if err := os.Symlink("image.raw", link); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(img)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(img, &st); err != nil {
		t.Fatal(err)
	}
	src, _ := open(t, link, source.ImageOptions{})
	var got map[string]any
	dec := json.NewDecoder(bytes.NewReader(src.State()))
	dec.UseNumber()
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	number := func(n int64) json.Number { return json.Number(jsonOf(t, n)) }
	for key, want := range map[string]any{
		"kind": "image", "path": real, "size": number(mib), "inode": number(int64(st.Ino)),
		"mtimeNs": number(st.Mtim.Nano()), "ctimeNs": number(st.Ctim.Nano()),
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestImageChanges(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, f *os.File){
		"written": func(t *testing.T, f *os.File) { write(t, f, 0, []byte("x")) },
		"shrunk":  func(t *testing.T, f *os.File) { truncate(t, f, 4096) },
		"grown":   func(t *testing.T, f *os.File) { truncate(t, f, 9*mib) },
		"punched": func(t *testing.T, f *os.File) {
			fallocate(t, f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, mib)
		},
		"by a map": edits[len(edits)-1].do,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			img := filepath.Join(dir, "image.raw")
			makeImage(t, img, false)
			src, _ := open(t, img, source.ImageOptions{})
			p := make([]byte, mib)
			if err := src.ReadAt(t.Context(), p, 5*mib); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			edit(t, img, change)
			if err := src.ReadAt(t.Context(), p, 5*mib); !errors.Is(err, source.ErrChanged) || !strings.Contains(err.Error(), img) {
				t.Errorf("read: got %v, want ErrChanged and the name", err)
			}
			var err error
			for _, err = range src.Extents(t.Context()) {
				if err != nil {
					break
				}
			}
			if !errors.Is(err, source.ErrChanged) {
				t.Errorf("extents end with %v, want ErrChanged", err)
			}
		})
	}
}

// A file that is written without pause is refused at once, rather than after half of it was read.
func TestImageNeverStill(t *testing.T) {
	img := image(t, t.TempDir(), mib, nil)
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
				if _, err := f.WriteAt([]byte{byte(i)}, i%mib); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for begin := time.Now(); time.Since(begin) < 30*time.Second; { // on a busy machine the writer may pause for so long that the file is still
		var src source.Source
		src, _, err = source.Image(img, source.ImageOptions{}).Open(t.Context(), nil)
		if err != nil {
			break
		}
		if err := src.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	writer.Wait()
	if !errors.Is(err, source.ErrChanged) {
		t.Errorf("open: got %v, want ErrChanged", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestImageRead(t *testing.T) {
	img := image(t, t.TempDir(), mib+100, map[int64]int{0: 5000, mib: 100})
	want, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	src, _ := open(t, img, source.ImageOptions{})

	t.Run("from many goroutines", func(t *testing.T) {
		var readers sync.WaitGroup
		for i := range 8 {
			readers.Go(func() {
				for off := int64(i * 1000); off < src.Size(); off += 70_000 {
					p := make([]byte, min(70_000, src.Size()-off))
					if err := src.ReadAt(t.Context(), p, off); err != nil {
						t.Error(err)
					} else if !bytes.Equal(p, want[off:off+int64(len(p))]) {
						t.Errorf("wrong bytes at %d", off)
					}
				}
			})
		}
		readers.Wait()
	})
	t.Run("out of range", func(t *testing.T) {
		for _, r := range []struct{ off, n int64 }{{-1, 1}, {0, mib + 101}, {mib + 100, 1}, {1 << 62, 1}} {
			if err := src.ReadAt(t.Context(), make([]byte, r.n), r.off); err == nil || !strings.Contains(err.Error(), "not within") {
				t.Errorf("%d bytes at %d: got %v", r.n, r.off, err)
			}
		}
		if err := src.ReadAt(t.Context(), nil, mib+100); err != nil {
			t.Errorf("nothing at the end: %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := src.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("read: got %v", err)
		}
		for _, err := range src.Extents(ctx) {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("extents: got %v", err)
			}
		}
	})
	t.Run("broken off", func(t *testing.T) {
		n := 0
		for range src.Extents(t.Context()) {
			n++
			break
		}
		if n != 1 {
			t.Errorf("%d extents after one was enough", n)
		}
	})
	t.Run("closed", func(t *testing.T) {
		src, _, err := source.Image(img, source.ImageOptions{}).Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := src.Close(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if err := src.ReadAt(t.Context(), make([]byte, 1), 0); err == nil {
			t.Error("a closed source can be read")
		}
		if _, err := os.Stat(img); err != nil {
			t.Errorf("the image is gone with its source: %v", err)
		}
	})
}

// A device that lost its end is an error, never zeros.
func TestImageDeviceShrinks(t *testing.T) {
	path := image(t, t.TempDir(), mib, map[int64]int{0: mib})
	dev := fstest.Loop(t, path)
	src, _ := open(t, dev, source.ImageOptions{})
	if err := os.Truncate(path, mib/2); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	err = src.ReadAt(t.Context(), make([]byte, 4096), mib/2-2048)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), dev) {
		t.Errorf("read across the new end: got %v, want %v and the name", err, io.ErrUnexpectedEOF)
	}
}
