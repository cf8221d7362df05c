package fusemount

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// modes are the ways in which the kernel reads.
var modes = []struct {
	name  string
	opts  Options
	flags int
}{
	{"page cache", Options{}, 0},
	{"O_DIRECT", Options{}, syscall.O_DIRECT},
	{"DirectIO", Options{DirectIO: true}, 0},
}

func TestReadsMatchImage(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	b := r.add("vol", randomImage(rng, 10<<20+1234), rng)
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			mode.opts.CacheBytes = MinCacheBytes
			m := mountFake(t, r, mode.opts)
			f, err := os.OpenFile(filepath.Join(m.Dir(), "vol", b.ID, imageName), os.O_RDONLY|mode.flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			align := int64(1)
			if mode.flags != 0 {
				align = 4096
			}
			size := int64(len(b.image))
			for range 200 {
				off := rng.Int64N(size+8192) / align * align
				buf := alignedBuffer(t, int((1+rng.Int64N(1<<uint(rng.IntN(22))+4096))/align*align))
				n, err := f.ReadAt(buf, off)
				want := b.image[min(off, size):min(off+int64(len(buf)), size)]
				if err != nil && (err != io.EOF || n == len(buf)) {
					t.Fatalf("read %d at %d: %v", len(buf), off, err)
				}
				if !bytes.Equal(buf[:n], want) {
					t.Fatalf("read %d at %d: got %d bytes, not the image's %d", len(buf), off, n, len(want))
				}
			}
			if mode.flags != 0 {
				return
			}
			all, err := io.ReadAll(io.NewSectionReader(f, 0, size*2))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(all, b.image) {
				t.Fatal("the whole file is not the image")
			}
			if got, want := mappedSum(t, f.Name()), fmt.Sprintf("%x", sha256.Sum256(b.image)); got != want {
				t.Fatalf("the mapped file's sum is %s, want %s", got, want)
			}
		})
	}
}

// mappedSum is the SHA-256 of a file as another process sees it in mapped memory. A process must not map what it serves
// itself: Go's collector would wait for the page fault, and the fault for the server.
func mappedSum(t *testing.T, path string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mapEnv+"="+path)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("map %s: %v: %s", path, err, out)
	}
	return string(out)
}

func alignedBuffer(t testing.TB, n int) []byte {
	t.Helper()
	mem := make([]byte, n+4096)
	at := 0
	for ; uintptr(unsafe.Pointer(&mem[at]))%4096 != 0; at++ {
	}
	return mem[at : at+n]
}

// TestSeek compares what lseek says with the image, byte range by byte range.
func TestSeek(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := randomImage(rng, 16<<20)
	clear(image[len(image)-100_000:]) // ends with a hole
	b := r.add("vol", image, rng)
	m := mountFake(t, r, Options{})
	f, err := os.Open(filepath.Join(m.Dir(), "vol", b.ID, imageName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	seen := int64(0)
	for off := int64(0); ; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			if !isZero(image[off:]) {
				t.Fatalf("no data after %d, says SEEK_DATA", off)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !isZero(image[off:data]) {
			t.Fatalf("[%d, %d) is no hole", off, data)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		if hole <= data {
			t.Fatalf("data at %d, then a hole at %d", data, hole)
		}
		if mid, err := unix.Seek(fd, data+1, unix.SEEK_DATA); err != nil || mid != data+1 {
			t.Fatalf("SEEK_DATA from within data, %d: %d, %v", data+1, mid, err)
		}
		seen += hole - data
		off = hole
	}
	if seen != b.data {
		t.Fatalf("lseek finds %d bytes of data, the image has %d", seen, b.data)
	}
	for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
		if _, err := unix.Seek(fd, int64(len(image)), whence); err != unix.ENXIO {
			t.Errorf("seek %d from the end: %v, want ENXIO", whence, err)
		}
	}
	if end, err := unix.Seek(fd, int64(len(image))-1, unix.SEEK_HOLE); err != nil || end != int64(len(image))-1 {
		t.Errorf("SEEK_HOLE from the last byte, in a hole: %d, %v", end, err)
	}
}

// TestDamage: the chunk that cannot be read is an error for its own pages and for nothing else, and is named once in the log.
func TestDamage(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			rng := seeded(t)
			r := newFakeRepo(t)
			image := make([]byte, 6<<20)
			fillText(rng, image)
			b := r.add("vol", image, rng)
			bad := b.damage(t, 3<<20)
			var log lockedBuilder
			mode.opts.Log = slog.New(slog.NewTextHandler(&log, nil))
			m := mountFake(t, r, mode.opts)
			f, err := os.OpenFile(filepath.Join(m.Dir(), "vol/latest", imageName), os.O_RDONLY|mode.flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for pass := range 2 { // the second pass meets what the first left in the caches
				buf := alignedBuffer(t, 4096)
				for off := int64(0); off < int64(len(image)); off += 4096 {
					_, err := f.ReadAt(buf, off)
					if inside := off >= bad.Off && off < bad.Off+int64(bad.Len); inside {
						if !errors.Is(err, syscall.EIO) {
							t.Fatalf("pass %d, damaged page at %d: %v, want EIO", pass, off, err)
						}
						continue
					}
					if err != nil {
						t.Fatalf("pass %d, page at %d, outside of the damage at [%d, +%d): %v", pass, off, bad.Off, bad.Len, err)
					}
					if !bytes.Equal(buf, image[off:off+4096]) {
						t.Fatalf("pass %d: wrong bytes at %d", pass, off)
					}
				}
			}
			said := log.String()
			if n := strings.Count(said, "object=data/fake offset=4711"); n != 1 {
				t.Errorf("the damage is named %d times, want once:\n%s", n, said)
			}
		})
	}
}

// lockedBuilder is a log that many goroutines write.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestManyReaders reads several backups that share chunks from many goroutines, sequentially and at random, through a cache
// far smaller than they are, and watches the cache's bound.
func TestManyReaders(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	var backups []*fakeBackup
	image := randomImage(rng, 10<<20)
	for range 3 {
		image = bytes.Clone(image)
		off := rng.IntN(len(image) - 1<<20)
		fillText(rng, image[off:off+1<<20])
		backups = append(backups, r.add("vol", image, rng))
	}
	m := mountFake(t, r, Options{CacheBytes: MinCacheBytes, DirectIO: true})
	p := m.tree.pool
	var g errgroup.Group
	var reading atomic.Int64
	for i := range 12 {
		b := backups[i%len(backups)]
		seed := rng.Uint64()
		reading.Add(1)
		g.Go(func() error {
			defer reading.Add(-1)
			f, err := os.Open(filepath.Join(m.Dir(), "vol", b.ID, imageName))
			if err != nil {
				return err
			}
			defer f.Close()
			if i < 6 {
				return compareAll(f, b.image)
			}
			return compareRandom(f, b.image, rand.New(rand.NewPCG(seed, 1)), 200)
		})
	}
	for ; reading.Load() > 0; time.Sleep(time.Millisecond) {
		p.cache.mu.Lock()
		pinned, err := p.cache.pinned, p.cache.arena.check()
		p.cache.mu.Unlock()
		if pinned > p.limit {
			t.Errorf("%d bytes pinned, the limit is %d", pinned, p.limit)
		}
		if err != nil {
			t.Error(err)
		}
		if t.Failed() {
			break
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the last read-ahead's end", p.idle)
	p.cache.mu.Lock()
	defer p.cache.mu.Unlock()
	held := 0
	for _, e := range p.cache.entries {
		held += len(e.data)
	}
	if held > MinCacheBytes {
		t.Errorf("the cache holds %d bytes, more than %d", held, MinCacheBytes)
	}
	if s := p.cache.stats; s.hits == 0 || s.overflows > s.misses/20 {
		t.Errorf("%d hits, %d misses, %d of them without room", s.hits, s.misses, s.overflows)
	}
}

func compareAll(f *os.File, image []byte) error {
	got, err := io.ReadAll(f)
	if err == nil && !bytes.Equal(got, image) {
		err = errors.New("the file is not the image")
	}
	return err
}

func compareRandom(f *os.File, image []byte, rng *rand.Rand, reads int) error {
	buf := make([]byte, 256<<10)
	for range reads {
		off := rng.IntN(len(image) - len(buf))
		n := 1 + rng.IntN(len(buf))
		if _, err := f.ReadAt(buf[:n], int64(off)); err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], image[off:off+n]) {
			return fmt.Errorf("wrong bytes in %d at %d", n, off)
		}
	}
	return nil
}

// TestLoopDevice reads image.raw through a loop device, as a mount of its file system does.
func TestLoopDevice(t *testing.T) {
	if _, err := exec.LookPath("losetup"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs losetup and root")
	}
	rng := seeded(t)
	r := newFakeRepo(t)
	b := r.add("vol", randomImage(rng, 8<<20), rng)
	for _, direct := range []bool{false, true} {
		for _, loopDirect := range []string{"off", "on"} {
			t.Run(fmt.Sprintf("DirectIO=%v/loop=%s", direct, loopDirect), func(t *testing.T) {
				m := mountFake(t, r, Options{DirectIO: direct})
				out, err := exec.Command("losetup", "-r", "-f", "--show", "--direct-io="+loopDirect,
					filepath.Join(m.Dir(), "vol", b.ID, imageName)).CombinedOutput()
				if err != nil {
					t.Skipf("no loop device to be had: %v: %s", err, out)
				}
				dev := strings.TrimSpace(string(out))
				defer exec.Command("losetup", "-d", dev).Run()
				f, err := os.Open(dev)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := compareAll(f, b.image); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
