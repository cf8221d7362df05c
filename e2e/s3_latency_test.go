package e2e

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/meter"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
	"github.com/shalebackup/shale/e2e/faultproxy"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
	"github.com/shalebackup/shale/fusemount"
)

// Far away: each request to the server takes 30 ms longer than it would.
const s3Delay = 30 * time.Millisecond

// far is a repository with one backup of an image, behind a slow proxy.
type far struct {
	repo   *chunkstore.Repository
	backup *chunkstore.Backup
	image  []byte
	meter  *meter.Backend
}

func newFar(t *testing.T, mib int) *far {
	t.Helper()
	srv := s3test.Start(t, s3test.Config{})
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	proxy := faultproxy.Start(t, srv.Addr)
	f := &far{image: make([]byte, mib<<20)}
	rnd := rand.NewChaCha8([32]byte{1})
	for off := 0; off < len(f.image); off += 16 << 10 { // as compressible as data often is
		_, _ = rnd.Read(f.image[off : off+8<<10])
		copy(f.image[off+8<<10:], bytes.Repeat(f.image[off:off+64], 128))
	}
	file := filepath.Join(t.TempDir(), "image.raw")
	if err := os.WriteFile(file, f.image, 0o600); err != nil {
		t.Fatal(err)
	}
	o := srv.Options(bucket)
	o.Endpoint = "http://" + proxy.Addr()
	b := engine.BackendOptions{S3: o, Wrap: func(be backend.Backend) backend.Backend {
		f.meter = meter.New(be)
		return f.meter
	}}
	l := engine.Location{Bucket: bucket}
	if _, err := engine.InitRepository(t.Context(), l, b, chunkstore.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	open := func() {
		var err error
		if f.repo, err = engine.OpenRepository(t.Context(), l, b, chunkstore.Options{CacheDir: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
	}
	open()
	res, err := engine.Backup(t.Context(), f.repo, source.Image(file, source.ImageOptions{}), engine.BackupOptions{Volume: "v"})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.repo.Close(); err != nil {
		t.Fatal(err)
	}
	f.backup = res.Backup
	proxy.SetDelay(s3Delay)
	open() // anew, with nothing in memory
	t.Cleanup(func() {
		if err := f.repo.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// report logs how fast it went, and fails when it was as slow as one small request after the other.
func (f *far) report(t *testing.T, what string, start time.Time, bytes int, most time.Duration) {
	t.Helper()
	took := time.Since(start)
	t.Logf("%s: %d MiB in %v, %.0f MiB/s; %d reads, %d lists, %d stats", what, bytes>>20, took.Round(time.Millisecond),
		float64(bytes)/(1<<20)/took.Seconds(), f.meter.Calls(meter.ReadAt), f.meter.Calls(meter.List), f.meter.Calls(meter.Stat))
	if took > most {
		t.Errorf("%s took %v, more than %v", what, took, most)
	}
}

func TestS3FarRestore(t *testing.T) {
	f := newFar(t, 256)
	target := filepath.Join(t.TempDir(), "restored")
	f.meter.Reset()
	start := time.Now()
	if _, err := engine.Restore(t.Context(), f.repo, f.backup, target, engine.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	f.report(t, "restore", start, len(f.image), 30*time.Second)
	if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, f.image) {
		t.Errorf("other bytes, %v", err)
	}
}

func TestS3FarMount(t *testing.T) {
	f := newFar(t, 128)
	dir := t.TempDir()
	m, err := fusemount.Mount(t.Context(), dir, fusemount.Store(f.repo), fusemount.Options{SameProcess: true, Parallel: f.repo.Parallel()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(t.Context()); err != nil {
			t.Error(err)
		}
	})
	image, err := os.Open(filepath.Join(dir, "v", f.backup.ID, "image.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	f.meter.Reset()
	start := time.Now()
	got, err := io.ReadAll(image)
	if err != nil {
		t.Fatal(err)
	}
	f.report(t, "mounted image, read in sequence", start, len(f.image), 30*time.Second)
	if !bytes.Equal(got, f.image) {
		t.Error("other bytes")
	}
}
