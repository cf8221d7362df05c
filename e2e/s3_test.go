package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
	"github.com/shalebackup/shale/e2e/faultproxy"
)

const (
	s3ImageBytes  = 8 << 20
	s3ChangeBytes = 512 << 10
	s3Rounds      = 50
)

// remote is a repository in a bucket, with a faulty network before it.
type remote struct {
	shale, cache string
	server       *s3test.Server
	proxy        *faultproxy.Proxy
	url          string // of the repository
	bucket       string
	rng          *rand.Rand
	images       map[string][]byte // by backup ID: what it must hold
}

// newRemote makes a repository, in peace.
func newRemote(t *testing.T) *remote {
	t.Helper()
	seed := envInt(t, "SHALE_S3_SEED", int(time.Now().UnixNano()))
	t.Logf("SHALE_S3_SEED=%d", seed)
	srv := s3test.Start(t, s3test.Config{})
	r := &remote{
		shale: buildShale(t), cache: t.TempDir(), server: srv, proxy: faultproxy.Start(t, srv.Addr),
		bucket: s3test.BucketName(t), rng: rand.New(rand.NewPCG(uint64(seed), 5)), images: map[string][]byte{},
	}
	srv.NewBucket(t, r.bucket)
	r.url = "s3://" + r.bucket + "@" + s3test.Region + "/repo"
	r.must(t, "repo", "init", r.url, "--pack-size", "1", "--compression", "none")
	return r
}

// run runs shale through the proxy.
func (r *remote) run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.shale, append(args, "--quiet", "--s3-endpoint", "http://"+r.proxy.Addr(), "--s3-retry-for", "6s")...)
	cmd.Env = append(s3test.Environ(), "SHALE_CACHE_DIR="+r.cache, "PATH="+os.Getenv("PATH"))
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("shale %s hangs: %s", strings.Join(args, " "), talk.String())
	}
	return out.String(), talk.String(), cmd.ProcessState.ExitCode()
}

func (r *remote) must(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := r.run(t, args...)
	if code != 0 {
		t.Fatalf("shale %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// backup makes a backup of the image, which may fail, but in words, and reports whether it did not.
func (r *remote) backup(t *testing.T, image []byte) bool {
	t.Helper()
	file := filepath.Join(r.cache, "image.raw")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := r.run(t, "backup", "create", file, "--dest", r.url, "--volume", "vol", "--json")
	if code != 0 {
		if code != 1 && code != 3 || !strings.HasPrefix(stderr, "shale: ") || strings.Contains(stderr, "panic") || strings.Contains(stderr, s3test.SecretKey) {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		t.Logf("exit code %d: %s", code, stderr)
		return false
	}
	var answer struct{ Backup struct{ ID string } }
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	r.images[answer.Backup.ID] = bytes.Clone(image)
	return true
}

// change writes something new in a few places of the image.
func (r *remote) change(image []byte) {
	for range 4 {
		off := r.rng.IntN(len(image) - s3ChangeBytes/4)
		for i := range s3ChangeBytes / 4 {
			image[off+i] = byte(r.rng.Uint32())
		}
	}
}

// check looks, in peace, at all that is there.
func (r *remote) check(t *testing.T) {
	t.Helper()
	r.proxy.SetFaults(nil)
	r.must(t, "repo", "check", r.url, "--data")
	repo, err := chunkstore.Open(t.Context(), r.open(t), chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	list, err := repo.ListBackups(t.Context(), "vol")
	if err != nil || len(list) < len(r.images) {
		t.Errorf("%d backups are listed, %v; %d were made", len(list), err, len(r.images))
	}
	for id, image := range r.images {
		b, err := repo.Backup(t.Context(), "vol", id)
		if err != nil {
			t.Error(err)
			continue
		}
		got := make([]byte, len(image))
		if _, err := repo.OpenBlob(b.Blob).ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, image) {
			t.Errorf("%s: other bytes, %v", id, err)
		}
	}
}

// open opens the bucket past the proxy.
func (r *remote) open(t *testing.T) backend.Backend {
	t.Helper()
	o := r.server.Options(r.bucket)
	o.Prefix = "repo"
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return be
}

// stored is the bytes of all objects.
func (r *remote) stored(t *testing.T) (bytes int64, objects int) {
	t.Helper()
	err := r.open(t).List(t.Context(), "", func(o backend.Object) error {
		bytes += o.Size
		objects++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes, objects
}

// Fifty backups through a network that cuts connections wherever it likes: each is made or fails in words, none that was made loses anything,
// and nothing is uploaded twice but the request that was under way.
func TestS3Cuts(t *testing.T) {
	r := newRemote(t)
	image := make([]byte, s3ImageBytes)
	for i := range image {
		image[i] = byte(r.rng.Uint32())
	}
	r.proxy.SetFaults(func(int) faultproxy.Fault {
		if r.rng.IntN(10) == 0 {
			return faultproxy.Fault{Refuse: true}
		}
		return faultproxy.Fault{CutUp: 1 + r.rng.Int64N(3<<20), CutDown: 1 + r.rng.Int64N(512<<10)}
	})
	made := 0
	for range s3Rounds {
		if r.backup(t, image) {
			made++
		}
		r.change(image)
	}
	s := r.proxy.Stats()
	stored, objects := r.stored(t)
	t.Logf("%d of %d backups made; %+v; stored %d bytes in %d objects", made, s3Rounds, s, stored, objects)
	if made < s3Rounds/2 || s.Cut < s3Rounds/3 {
		t.Errorf("%d backups made, %d connections cut: too few to show anything", made, s.Cut)
	}
	// Beside the objects that are there: heads of requests, and small objects that were replaced or merged into others.
	if inVain := s.Up - s.Lost - stored; inVain > stored/20+2<<20 {
		t.Errorf("%d bytes came up, %d of them in vain on broken connections, %d are stored: %d were sent twice", s.Up, s.Lost, stored, inVain)
	}
	r.check(t)
}

// Reading through such a network gives the right bytes, or fails in words.
func TestS3CutReads(t *testing.T) {
	r := newRemote(t)
	image := make([]byte, s3ImageBytes)
	for i := range image {
		image[i] = byte(r.rng.Uint32())
	}
	if !r.backup(t, image) {
		t.Fatal("no backup")
	}
	url := r.url + "?volume=vol&backup="
	for id := range r.images {
		url += id
	}
	r.proxy.SetFaults(func(int) faultproxy.Fault { return faultproxy.Fault{CutDown: 1 + r.rng.Int64N(4<<20)} })
	right := 0
	for range 5 {
		target := filepath.Join(r.cache, "restored")
		_, stderr, code := r.run(t, "backup", "restore", url, target, "--overwrite")
		if code != 0 {
			t.Logf("exit code %d: %s", code, stderr)
			continue
		}
		if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, image) {
			t.Errorf("other bytes, %v", err)
		}
		right++
		if err := os.Remove(target); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.proxy.Stats(); right < 3 || s.Cut < 5 {
		t.Errorf("%d of 5 restores done, %+v", right, s)
	}
}

// Bytes that change on the way, in either direction, never get into what is stored or restored.
func TestS3Flips(t *testing.T) {
	r := newRemote(t)
	image := make([]byte, s3ImageBytes/4)
	for i := range image {
		image[i] = byte(r.rng.Uint32())
	}
	r.proxy.SetFaults(func(int) faultproxy.Fault {
		switch r.rng.IntN(3) {
		case 0:
			return faultproxy.Fault{FlipUp: 1 + r.rng.Int64N(1<<20)}
		case 1:
			return faultproxy.Fault{FlipDown: 1 + r.rng.Int64N(8<<10)}
		}
		return faultproxy.Fault{}
	})
	made := 0
	for range 15 {
		if r.backup(t, image) {
			made++
		}
		r.change(image)
	}
	s := r.proxy.Stats()
	t.Logf("%d of 15 backups made; %+v", made, s)
	if s.Flipped < 5 || made < 5 {
		t.Error("too few to show anything")
	}
	r.check(t)
}

// A server that is busy now and then is waited for; one that is busy for good is an error that says so.
func TestS3Busy(t *testing.T) {
	r := newRemote(t)
	image := make([]byte, s3ImageBytes/4)
	r.change(image)
	r.proxy.SetFaults(func(int) faultproxy.Fault { return faultproxy.Fault{Busy: r.rng.IntN(3) == 0, CutUp: 2 << 20} })
	for range 5 {
		if !r.backup(t, image) {
			t.Error("a backup failed that could wait")
		}
		r.change(image)
	}
	if s := r.proxy.Stats(); s.Busy < 3 {
		t.Errorf("too few to show anything: %+v", s)
	}
	r.proxy.SetFaults(func(int) faultproxy.Fault { return faultproxy.Fault{Busy: true} })
	_, stderr, code := r.run(t, "backup", "list", r.url)
	if code != 1 || !strings.Contains(stderr, "too busy") || !strings.Contains(stderr, "given up after") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	r.check(t)
}
