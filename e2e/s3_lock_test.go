package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
	"github.com/shalebackup/shale/e2e/faultproxy"
)

// lockedRemote is a repository in a bucket with object lock.
func lockedRemote(t *testing.T, versions bool) *remote {
	t.Helper()
	srv := s3test.Start(t, s3test.Config{Versions: versions})
	r := &remote{
		shale: buildShale(t), cache: t.TempDir(), server: srv, proxy: faultproxy.Start(t, srv.Addr), bucket: s3test.BucketName(t),
	}
	srv.NewLockedBucket(t, r.bucket)
	r.url = "s3://" + r.bucket + "/repo"
	r.must(t, "repo", "init", r.url, "--pack-size", "1", "--compression", "none")
	return r
}

// lockedBackup makes a backup of an image with that byte in its second half, locked for a day.
func (r *remote) lockedBackup(t *testing.T, fill byte) (url string, lock chunkstore.LockReport) {
	t.Helper()
	image := make([]byte, 4<<20)
	for i := range image {
		image[i] = byte(i * i >> 7)
		if i >= len(image)/2 {
			image[i] ^= fill
		}
	}
	file := filepath.Join(r.cache, "image.raw")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	var answer struct {
		URL  string
		Lock chunkstore.LockReport
	}
	stdout := r.must(t, "backup", "create", file, "--dest", r.url, "--volume", "vol", "--lock-for", "1d", "--json")
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(answer.Lock.Until); left < 24*time.Hour-time.Minute || left > 28*time.Hour {
		t.Errorf("locked for %v", left)
	}
	return answer.URL, answer.Lock
}

// With --lock-for nothing that a backup needs can be deleted: not by delete and prune, which say so, and not by anybody who has the keys.
func TestS3ObjectLock(t *testing.T) {
	for _, versions := range []bool{false, true} {
		r := lockedRemote(t, versions)
		first, lock := r.lockedBackup(t, 1)
		if lock.Objects != lock.Extended || lock.Objects < 5 {
			t.Errorf("first: %+v", lock)
		}
		second, lock := r.lockedBackup(t, 2)
		if lock.Extended == 0 {
			t.Errorf("second: %+v", lock)
		}
		for _, url := range []string{first, second} {
			if _, stderr, code := r.run(t, "backup", "delete", url); code != 1 || !strings.Contains(stderr, "locked until") {
				t.Errorf("delete: exit code %d: %s", code, stderr)
			}
		}
		if out := r.must(t, "backup", "forget", r.url, "--keep-last", "1"); !strings.Contains(out, "2 kept, 0 forgotten") || !strings.Contains(out, "  locked") {
			t.Errorf("forget: %s", out)
		}
		for o := range r.server.Client().ListObjects(t.Context(), r.bucket, minio.ListObjectsOptions{Prefix: "repo/", Recursive: true, WithVersions: versions}) {
			name := strings.TrimPrefix(o.Key, "repo/")
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			if strings.HasPrefix(name, "index/") || strings.HasPrefix(name, "prune/") || o.IsDeleteMarker {
				continue // packs make the index anew
			}
			err := r.server.Client().RemoveObject(t.Context(), r.bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID})
			if err == nil {
				t.Errorf("versions %t: %s could be deleted", versions, name)
			}
		}
		r.must(t, "backup", "restore", first, filepath.Join(r.cache, "restored"))
		r.must(t, "repo", "check", r.url, "--data")
		if versions {
			continue // after a delete marker this server takes the name for taken, and so lets no second prune in
		}
		var rep chunkstore.PruneReport
		if err := json.Unmarshal([]byte(r.must(t, "repo", "prune", r.url, "--grace", "0", "--json")), &rep); err != nil {
			t.Fatal(err)
		}
		if rep.Freed.Objects != 0 {
			t.Errorf("prune: %+v", rep)
		}
		r.must(t, "repo", "check", r.url, "--data")
	}
}

// A bucket without object lock is refused before anything is read.
func TestS3NoObjectLock(t *testing.T) {
	r := newRemote(t)
	file := filepath.Join(r.cache, "image.raw")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := r.run(t, "backup", "create", file, "--dest", r.url, "--volume", "vol", "--lock-for", "30d")
	if code != 1 || !strings.Contains(stderr, "no object lock") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
