package s3_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
)

func lockedBucket(t *testing.T, versions bool) (*s3test.Server, string, *s3.Backend) {
	t.Helper()
	srv := s3test.Start(t, s3test.Config{Versions: versions})
	bucket := s3test.BucketName(t)
	srv.NewLockedBucket(t, bucket)
	be, err := s3.Open(srv.Options(bucket))
	if err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), "packs/a", []byte("content")); err != nil {
		t.Fatal(err)
	}
	return srv, bucket, be
}

// Locks are made and extended, never shortened or weakened.
func TestRetain(t *testing.T) {
	t.Parallel()
	_, _, be := lockedBucket(t, true)
	if err := be.CanRetain(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	for i, c := range []struct {
		mode    backend.LockMode
		after   time.Duration
		longer  bool
		want    time.Duration // of the lock that there is then
		failure string
	}{
		{backend.Governance, time.Hour, true, time.Hour, ""},
		{backend.Governance, time.Hour, false, time.Hour, ""},
		{backend.Governance, time.Minute, false, time.Hour, ""},
		{backend.Governance, 2 * time.Hour, true, 2 * time.Hour, ""},
		{"forever", 3 * time.Hour, false, 2 * time.Hour, "mode"},
		{backend.Compliance, 3 * time.Hour, true, 3 * time.Hour, ""}, // these keys may
		{backend.Compliance, 4 * time.Hour, true, 4 * time.Hour, ""},
		{backend.Governance, 5 * time.Hour, true, 5 * time.Hour, ""}, // stays in compliance
		{backend.Governance, time.Hour, false, 5 * time.Hour, ""},
	} {
		longer, err := be.Retain(t.Context(), "packs/a", c.mode, now.Add(c.after))
		if longer != c.longer || (err != nil) != (c.failure != "") || err != nil && !strings.Contains(err.Error(), c.failure) {
			t.Errorf("%d: lock %v for %v: %t, %v", i, c.mode, c.after, longer, err)
		}
		if until, err := be.Retained(t.Context(), "packs/a"); err != nil || !until.Equal(now.Add(c.want)) {
			t.Errorf("%d: locked until %v, %v, want %v", i, until, err, now.Add(c.want))
		}
	}
	if _, err := be.Retain(t.Context(), "packs/missing", backend.Governance, now.Add(time.Hour)); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("a missing object: %v", err)
	}
}

// In a bucket with versions a delete hides an object; what is locked is still there, and cannot be removed.
func TestDeleteHidesLockedVersion(t *testing.T) {
	t.Parallel()
	srv, bucket, be := lockedBucket(t, true)
	if _, err := be.Retain(t.Context(), "packs/a", backend.Compliance, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	locked, err := srv.Client().StatObject(t.Context(), bucket, "packs/a", minio.StatObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), "packs/a", []byte("an attacker's")); err != nil {
		t.Fatal(err)
	}
	if err := be.Delete(t.Context(), "packs/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := be.Stat(t.Context(), "packs/a"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("after the delete: %v", err)
	}
	version := minio.RemoveObjectOptions{VersionID: locked.VersionID, GovernanceBypass: true}
	if err := srv.Client().RemoveObject(t.Context(), bucket, "packs/a", version); err == nil {
		t.Error("the locked version was removed")
	}
	info, err := srv.Client().StatObject(t.Context(), bucket, "packs/a", minio.StatObjectOptions{VersionID: locked.VersionID})
	if err != nil || info.Size != int64(len("content")) {
		t.Errorf("the locked version: %+v, %v", info, err)
	}
}

// A server that locks without versions refuses to delete and to replace, and the error says until when.
func TestDeleteOfLocked(t *testing.T) {
	t.Parallel()
	_, _, be := lockedBucket(t, false)
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	if _, err := be.Retain(t.Context(), "packs/a", backend.Governance, until); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"delete": be.Delete(t.Context(), "packs/a"), "replace": be.Put(t.Context(), "packs/a", []byte("x")),
	} {
		var retained *backend.RetainedError
		if !errors.Is(err, backend.ErrRetained) || !errors.As(err, &retained) || !retained.Until.Equal(until) {
			t.Errorf("%s: got %v, want a lock until %v", what, err, until)
		}
	}
	mustHold(t, be, "packs/a", []byte("content"))
	if err := be.PutIfAbsent(t.Context(), "packs/a", nil); err == nil {
		t.Error("replaced by PutIfAbsent")
	}
}

// A key that may not soften governance says so, and the lock stays.
func TestRetainDenied(t *testing.T) {
	t.Parallel()
	srv, bucket, direct := lockedBucket(t, true)
	if _, err := direct.Retain(t.Context(), "packs/a", backend.Governance, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	g := newGate(t, srv)
	g.next(rule{method: "PUT", query: "retention", answer: answers(403, "AccessDenied")})
	if _, err := g.open(t, bucket).Retain(t.Context(), "packs/a", backend.Compliance, time.Now().Add(2*time.Hour)); !errors.Is(err, s3.ErrDenied) {
		t.Errorf("got %v", err)
	}
}
