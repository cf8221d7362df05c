package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// crashRun is one process's work, and what it knows of it when it dies.
type crashRun struct {
	cache string
	keys  Credentials
	imgs  [][]byte          // one backup of each, in their order
	tried map[string][]byte // by backup ID: what the record says is in it
	done  map[string]bool   // PutBackup has returned
}

// work writes all backups, each on the one before, then merges the index and makes it anew.
func (c *crashRun) work(ctx context.Context, be backend.Backend) error {
	r, err := Open(ctx, be, Options{CacheDir: c.cache, Parallel: 1, Credentials: c.keys})
	if err != nil {
		return err
	}
	defer r.Close()
	var base *Blob
	for _, img := range c.imgs {
		b, err := c.backUp(ctx, r, img, base)
		if err != nil {
			return err
		}
		base = r.OpenBlob(b.Blob)
	}
	if err := r.CompactIndex(ctx); err != nil {
		return err
	}
	r2, _, err := Reindex(ctx, be, Options{Parallel: 1, Credentials: c.keys}, nil)
	if err != nil {
		return err
	}
	return r2.Close()
}

func (c *crashRun) backUp(ctx context.Context, r *Repository, img []byte, base *Blob) (*Backup, error) {
	w, err := r.NewWriter(ctx, WriterOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	ref, err := storeImage(ctx, r, w, img, base, nil)
	if err != nil {
		return nil, err
	}
	b := &Backup{Volume: "vol", Blob: ref}
	if b.ID, err = NewBackupID(b.Time); err != nil {
		return nil, err
	}
	c.tried[b.ID] = img
	if err := w.PutBackup(ctx, b); err != nil {
		return nil, err
	}
	c.done[b.ID] = true
	return b, nil
}

// verify opens what survived: nothing is damaged, each backup gives back its bytes, and the next one succeeds.
func (c *crashRun) verify(t *testing.T, be backend.Backend) {
	t.Helper()
	r := openTest(t, be, Options{CacheDir: c.cache, Credentials: c.keys})
	listed := c.verifyListed(t, r)
	for id := range c.done {
		if !listed[id] {
			t.Fatalf("backup %s was finished and is not listed", id)
		}
	}
	for _, img := range c.imgs[len(c.imgs)-2:] {
		if _, err := c.backUp(t.Context(), r, img, nil); err != nil {
			t.Fatalf("next backup: %v", err)
		}
	}
	if err := r.CompactIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.verifyListed(t, r)
}

func (c *crashRun) verifyListed(t *testing.T, r *Repository) map[string]bool {
	t.Helper()
	rep, err := r.Check(t.Context(), CheckOptions{Level: CheckData})
	if err != nil || len(rep.Damage) > 0 {
		t.Fatalf("check: %+v, %v", rep, err)
	}
	all, err := r.ListBackups(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, b := range all {
		listed[b.ID] = true
		img, ok := c.tried[b.ID]
		if !ok {
			t.Fatalf("backup %s is listed and was never made", b.ID)
		}
		mustReadBlob(t, r, b.Blob, img)
	}
	return listed
}

// TestEveryCrashPoint kills a process at each of its writes (without SHALE_TEST_FULL at every third), before it and between it
// and its answer.
func TestEveryCrashPoint(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	img := make([]byte, 1<<20+30_000) // mostly a hole
	copy(img, sparseImage(rnd, 40_000))
	copy(img[1<<20:], sparseImage(rnd, 30_000))
	var imgs [][]byte
	for i := range mergeRuns + 1 {
		copy(img[1<<20+rnd.IntN(20_000):], fmt.Append(nil, "change ", i))
		imgs = append(imgs, bytes.Clone(img))
	}
	for name, stop := range map[string]func(backend.Backend, int) *backendtest.Stopped{
		"before": backendtest.StopAfter, "after": backendtest.StopAfterLost,
	} {
		for _, cached := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/cache=%v", name, cached), func(t *testing.T) {
				t.Parallel()
				crashEverywhere(t, imgs, stop, cached)
			})
		}
	}
}

func crashEverywhere(t *testing.T, imgs [][]byte, stop func(backend.Backend, int) *backendtest.Stopped, cached bool) {
	points, step := 0, 1
	if !fullTest() {
		step = 3
	}
	for n := 1; ; n += step {
		be := mem.New()
		o, keys := half(t, uint64(points), InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20})
		if _, err := Init(t.Context(), be, o); err != nil {
			t.Fatal(err)
		}
		c := &crashRun{imgs: imgs, keys: keys, tried: map[string][]byte{}, done: map[string]bool{}}
		if cached {
			c.cache = t.TempDir()
		}
		stopped := stop(be, n)
		err := c.work(t.Context(), stopped)
		if err != nil && !errors.Is(err, backendtest.ErrStopped) {
			t.Fatalf("write %d: %v", n, err)
		}
		c.verify(t, stopped.Survivors())
		if t.Failed() {
			t.Fatalf("killed at write %d", n)
		}
		if points++; err == nil {
			break
		}
	}
	if points < 5*len(imgs)/step {
		t.Errorf("only %d crash points", points)
	}
	t.Logf("%d crash points", points)
}
