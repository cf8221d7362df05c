package chunkstore

import (
	"context"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// BenchmarkSeal seals and opens the record of an average chunk, and expands the keys of an object.
func BenchmarkSeal(b *testing.B) {
	s := testSealer()
	salt := [saltLen]byte{0, 1}
	bx, err := s.box(kindData, salt)
	if err != nil {
		b.Fatal(err)
	}
	payload, id := benchData(benchChunk), ID{1, 2, 3}
	rec := appendRecord(nil, bx, &id, payload, CodecRaw, benchChunk)
	dst := make([]byte, 0, 2*len(rec))
	b.Run("seal", func(b *testing.B) {
		b.SetBytes(benchChunk)
		b.ReportAllocs()
		for b.Loop() {
			appendRecord(dst, bx, &id, payload, CodecRaw, benchChunk)
		}
	})
	b.Run("open", func(b *testing.B) {
		b.SetBytes(benchChunk)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := openUnsummed(dst, rec, bx, &id, CodecRaw, benchChunk, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("key", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := newAESBox(&s.master[0], kindData, salt); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSealedBackup stores an image, and reads it, in a plain and in a sealed repository in memory; user and system time.
func BenchmarkSealedBackup(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	img := make([]byte, 32<<20)
	for i := 0; i < len(img); i += benchChunk {
		copy(img[i:], benchData(benchChunk))
		for range 200 {
			img[i+rnd.IntN(benchChunk)] = byte(rnd.Uint32())
		}
	}
	for name, sealed := range map[string]uint64{"plain": 0, "sealed": 1} {
		b.Run(name, func(b *testing.B) {
			var write, read time.Duration
			n := 0
			b.SetBytes(int64(len(img)))
			for b.Loop() {
				o, c := half(b, sealed, InitOptions{})
				w, r := storeAndRead(b, mem.New(), o, c, img)
				write, read, n = write+w, read+r, n+1
			}
			b.ReportMetric(float64(write.Microseconds())/1e3/float64(n), "ms-cpu-write/op")
			b.ReportMetric(float64(read.Microseconds())/1e3/float64(n), "ms-cpu-read/op")
		})
	}
}

func storeAndRead(b *testing.B, be backend.Backend, o InitOptions, c Credentials, img []byte) (write, read time.Duration) {
	b.Helper()
	ctx := context.Background()
	if _, err := Init(ctx, be, o); err != nil {
		b.Fatal(err)
	}
	r, err := Open(ctx, be, Options{Credentials: c, Parallel: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	w, err := r.NewWriter(ctx, WriterOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	begun := cpuTime(b)
	ref, err := storeImage(ctx, r, w, img, nil, nil)
	if err == nil {
		err = w.PutBackup(ctx, &Backup{Volume: "v", Blob: ref})
	}
	if err != nil {
		b.Fatal(err)
	}
	written := cpuTime(b)
	if _, err := r.OpenBlob(ref).ReadAt(ctx, make([]byte, len(img)), 0); err != nil {
		b.Fatal(err)
	}
	return written - begun, cpuTime(b) - written
}

// cpuTime is what this process has used, which other processes make no longer.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPassphrase is what a guess, and each opening, costs.
func BenchmarkPassphrase(b *testing.B) {
	to, err := PassphraseRecipient("benchmark", 0)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := newKey(to, "", "", []secret{{1}}); err != nil {
			b.Fatal(err)
		}
	}
}
