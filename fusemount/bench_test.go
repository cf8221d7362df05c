package fusemount

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/chunkstore/backend/file"
)

// The benchmarks read a real repository on tmpfs through a server in a process of its own, as users do. A quarter of the
// image is holes; the rest compresses about 2 to 1.
const benchSize = 1 << 30

// benchStore makes the repository, once a run of a benchmark.
func benchStore(b *testing.B) string {
	b.Helper()
	at, err := os.MkdirTemp("/dev/shm", "fusemount")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(at) })
	be, err := file.Create(filepath.Join(at, "repo"))
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	fill := func(span []byte) { copy(span, randomImage(rng, len(span))) }
	if _, err := backUp(context.Background(), newStore(b, be), "vol", benchSize, fill); err != nil {
		b.Fatal(err)
	}
	return filepath.Join(at, "repo")
}

// benchServer is a fresh server over a store.
type benchServer struct {
	pid int
	dir string
}

func startBench(b *testing.B, store string, direct bool) benchServer {
	b.Helper()
	b.Setenv(storeEnv, store)
	if direct {
		b.Setenv(directEnv, "1")
	}
	dir := b.TempDir()
	cmd, _ := startServer(b, dir, nil)
	return benchServer{cmd.Process.Pid, dir}
}

func (s benchServer) image() string { return filepath.Join(s.dir, "vol/latest", imageName) }

// cpu is what the server has used so far.
func (s benchServer) cpu(b *testing.B) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	user, _ := strconv.Atoi(string(fields[11]))
	system, _ := strconv.Atoi(string(fields[12]))
	return time.Duration(user+system) * time.Second / 100 // USER_HZ
}

// peakMiB is the server's largest resident memory so far.
func (s benchServer) peakMiB(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kib) / 1024
}

func dropPages(b *testing.B, f *os.File) {
	b.Helper()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSequential reads the whole image in pieces of 4 KiB, of 128 KiB as cp does, and of 1 MiB.
func BenchmarkSequential(b *testing.B) {
	store := benchStore(b)
	for _, mode := range modes {
		for _, size := range []int{4 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/read=%dK", strings.ReplaceAll(mode.name, " ", "-"), size>>10), func(b *testing.B) {
				s := startBench(b, store, mode.opts.DirectIO)
				f, err := os.OpenFile(s.image(), os.O_RDONLY|mode.flags, 0)
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				buf := alignedBuffer(b, size)
				b.SetBytes(benchSize)
				before := s.cpu(b)
				for b.Loop() {
					dropPages(b, f)
					readAll(b, f, buf)
				}
				b.ReportMetric((s.cpu(b)-before).Seconds()/float64(b.N), "server-cpu-s/op")
				b.ReportMetric(s.peakMiB(b), "peak-MiB")
			})
		}
	}
}

func readAll(b *testing.B, f *os.File, buf []byte) {
	b.Helper()
	fd := int(f.Fd())
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		b.Fatal(err)
	}
	n := 0
	for {
		k, err := syscall.Read(fd, buf)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			b.Fatal(err)
		}
		if k == 0 {
			break
		}
		n += k
	}
	if n != benchSize {
		b.Fatalf("read %d of %d bytes", n, benchSize)
	}
}

// BenchmarkRandom4K reads 4 KiB at random places, one at a time, through cold caches.
func BenchmarkRandom4K(b *testing.B) {
	store := benchStore(b)
	for _, direct := range []bool{false, true} {
		b.Run(fmt.Sprintf("DirectIO=%v", direct), func(b *testing.B) {
			s := startBench(b, store, direct)
			f, err := os.Open(s.image())
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 4096)
			rng := rand.New(rand.NewPCG(3, 4))
			dropPages(b, f)
			fd := int(f.Fd())
			before := s.cpu(b)
			for b.Loop() {
				if _, err := syscall.Pread(fd, buf, rng.Int64N(benchSize/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "IOPS")
			b.ReportMetric((s.cpu(b)-before).Seconds()/float64(b.N)*1e6, "server-cpu-µs/op")
			b.ReportMetric(s.peakMiB(b), "peak-MiB")
		})
	}
}

// BenchmarkFirstByte starts a server and reads one byte of the newest backup.
func BenchmarkFirstByte(b *testing.B) {
	store := benchStore(b)
	b.Run("mount", func(b *testing.B) {
		for b.Loop() {
			s := startBench(b, store, false)
			f, err := os.Open(s.image())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := f.ReadAt(make([]byte, 1), benchSize/2); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	})
}
