package engine_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend/limit"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
)

// All workers together read the source at the rate, in pieces, and the backup is the same as without it.
func TestReadRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		repo := openRepo(t, mem.New())
		v := plainVolume(bytes.Repeat([]byte("a volume that is read slowly"), 600_000))
		free, err := engine.Backup(t.Context(), repo, v, engine.BackupOptions{Volume: "v", Workers: 4})
		if err != nil {
			t.Fatal(err)
		}
		v.reads = nil
		start := time.Now()
		slow, err := engine.Backup(t.Context(), repo, v, engine.BackupOptions{Volume: "v", Workers: 4, ReadRate: limit.NewBucket(1 << 20)})
		if err != nil {
			t.Fatal(err)
		}
		want := time.Duration(float64(v.Size()) / (1 << 20) * float64(time.Second))
		if took := time.Since(start); took < want*99/100 || took > want*101/100 {
			t.Errorf("%d bytes at 1 MiB/s took %v, want %v", v.Size(), took, want)
		}
		if slow.Backup.Blob != free.Backup.Blob {
			t.Errorf("slow: %+v, free: %+v", slow.Backup.Blob, free.Backup.Blob)
		}
		for _, r := range v.reads {
			if r.Len > 128<<10 || r.Off%4096 != 0 {
				t.Errorf("%d bytes read at once at %d", r.Len, r.Off)
			}
		}
	})
}

func TestReadRateCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		repo := openRepo(t, mem.New())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		v := plainVolume(make([]byte, 1<<20))
		_, err := engine.Backup(ctx, repo, v, engine.BackupOptions{Volume: "v", ReadRate: limit.NewBucket(100)})
		if !errors.Is(err, context.DeadlineExceeded) || v.closed != 1 {
			t.Errorf("got %v, closed %d times, want DeadlineExceeded and once", err, v.closed)
		}
	})
}
