package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/engine"
)

// restore counts a restore to a file, and one onto what the first backup held.
func (q *quick) restore(ctx context.Context, r *countedRepository, first, second *chunkstore.Backup) error {
	target := filepath.Join(q.dir, "restored")
	for _, c := range []struct {
		name string
		of   *chunkstore.Backup
		opts engine.RestoreOptions
		want []byte
	}{
		{"restore", first, engine.RestoreOptions{}, q.v1},
		{"restore onto the older state", second, engine.RestoreOptions{Overwrite: true, Holds: first}, q.v2},
	} {
		c.opts.Workers = 1
		r.requests()
		q.begin()
		res, err := engine.Restore(ctx, r.Repository, c.of, target, c.opts)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		q.end(c.name)
		reads, _, _, readBytes, _ := r.requests()
		got, err := os.ReadFile(target)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, c.want) {
			return fmt.Errorf("%s: the file is not what was backed up", c.name)
		}
		q.add(c.name, "plain bytes fetched", res.Fetched, exact)
		q.add(c.name, "bytes written", res.Written, exact)
		q.add(c.name, "requests that read", reads, exact)
		q.add(c.name, "bytes read of the repository", readBytes, within(0.002, 512))
	}
	return nil
}

// verify counts what verifying a backup and checking the repository read.
func (q *quick) verify(ctx context.Context, r *countedRepository, b *chunkstore.Backup) error {
	r.requests()
	q.begin()
	rep, err := engine.Verify(ctx, r.Repository, b, nil)
	if err != nil {
		return err
	}
	q.end("verify")
	reads, _, _, readBytes, _ := r.requests()
	if len(rep.Damage) > 0 {
		return fmt.Errorf("verify: %+v", rep.Damage)
	}
	q.add("verify", "requests that read", reads, within(0.02, 2)) // two goroutines share the work
	q.add("verify", "bytes read of the repository", readBytes, within(0.01, 512))
	check, err := r.Check(ctx, chunkstore.CheckOptions{})
	if err != nil {
		return err
	}
	if len(check.Damage) > 0 {
		return fmt.Errorf("check: %+v", check.Damage)
	}
	reads, _, lists, readBytes, _ := r.requests()
	q.add("check of the structure", "requests that read", reads, within(0.02, 2))
	q.add("check of the structure", "requests that list", lists, exact)
	q.add("check of the structure", "bytes read of the repository", readBytes, within(0.01, 512))
	q.add("check of the structure", "unused chunks", check.Unused, exact)
	return nil
}

// reads counts random and sequential reads of a blob, as the mount makes them.
func (q *quick) reads(ctx context.Context, r *countedRepository, b *chunkstore.Backup) error {
	again, err := chunkstore.Open(ctx, r.be, chunkstore.Options{Parallel: 1})
	if err != nil {
		return err
	}
	defer again.Close()
	reads, _, lists, readBytes, _ := r.requests()
	q.add("open", "requests that read", reads, exact)
	q.add("open", "requests that list", lists, exact)
	q.add("open", "bytes read of the repository", readBytes, within(0.01, 512))
	blob := again.OpenBlob(b.Blob)
	d := newDice(quickSeed, 4)
	p := make([]byte, 4096)
	const random = 1000
	read := func(p []byte, off int64) error {
		if _, err := blob.ReadAt(ctx, p, off); err != nil {
			return err
		}
		if !bytes.Equal(p, q.v2[off:][:len(p)]) {
			return fmt.Errorf("read of %d bytes at %d: not what was backed up", len(p), off)
		}
		return nil
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range random {
		if err := read(p, int64(d.n(quickSize/4096))*4096); err != nil {
			return err
		}
	}
	runtime.ReadMemStats(&after)
	reads, _, _, readBytes, _ = r.requests()
	q.add("1000 random reads of 4 KiB", "allocations", int64(after.Mallocs-before.Mallocs), within(0.10, 200))
	q.add("1000 random reads of 4 KiB", "requests that read", reads, exact)
	q.add("1000 random reads of 4 KiB", "bytes read of the repository", readBytes, within(0.002, 512))
	p = make([]byte, 1<<20)
	runtime.ReadMemStats(&before)
	for off := int64(0); off < quickSize; off += int64(len(p)) {
		if err := read(p, off); err != nil {
			return err
		}
	}
	runtime.ReadMemStats(&after)
	reads, _, _, readBytes, _ = r.requests()
	q.add("sequential read", "requests that read", reads, exact)
	q.add("sequential read", "bytes read of the repository", readBytes, within(0.002, 512))
	q.add("sequential read", "allocations", int64(after.Mallocs-before.Mallocs), within(0.10, 200))
	return nil
}

// many counts what it takes to find the first byte of the newest of many backups.
func (q *quick) many(ctx context.Context) error {
	r, err := newCountedRepository(ctx, chunkstore.InitOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	const backups = 200
	img := bytes.Clone(q.v1[:4<<20])
	for i := range backups {
		img[i*4096] ^= 0xff
		if _, err := engine.Backup(ctx, r.Repository, &memorySource{img: img}, engine.BackupOptions{Volume: "volume", Workers: 1}); err != nil {
			return err
		}
	}
	r.requests()
	again, err := chunkstore.Open(ctx, r.be, chunkstore.Options{Parallel: 1})
	if err != nil {
		return err
	}
	defer again.Close()
	ids, err := again.Backups(ctx, "volume")
	if err != nil || len(ids) != backups {
		return fmt.Errorf("%d backups are listed, not %d: %w", len(ids), backups, err)
	}
	b, err := again.Backup(ctx, "volume", ids[backups-1])
	if err != nil {
		return err
	}
	p := make([]byte, 4096)
	if _, err := again.OpenBlob(b.Blob).ReadAt(ctx, p, 0); err != nil {
		return err
	}
	const name = "first byte with 200 backups"
	listed := r.be.Listed()
	reads, _, lists, readBytes, _ := r.requests()
	q.add(name, "requests that read", reads, exact)
	q.add(name, "requests that list", lists, exact)
	q.add(name, "objects listed", listed, exact)
	q.add(name, "bytes read of the repository", readBytes, within(0.02, 4096))
	stats, err := again.Stats(ctx)
	if err != nil {
		return err
	}
	q.add(name, "index segments", int64(stats.Index.Objects), exact)
	return nil
}

// putChunk counts the allocations of the hot loop.
func (q *quick) putChunk(ctx context.Context) error {
	r, err := newCountedRepository(ctx, chunkstore.InitOptions{PackBytes: 1 << 20})
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := r.NewWriter(ctx, chunkstore.WriterOptions{})
	if err != nil {
		return err
	}
	defer w.Close()
	const size, runs = 32 << 10, 1000
	img, i := q.v2, 0
	put := func() {
		if _, e := w.PutChunk(ctx, img[i*size:][:size]); e != nil {
			err = e
		}
		i++
	}
	fresh := testing.AllocsPerRun(runs, put)
	i = 0
	known := testing.AllocsPerRun(runs, put)
	if err != nil {
		return err
	}
	if stored := r.be.Calls(backendtest.Put); stored == 0 {
		return fmt.Errorf("no pack was stored by %d chunks", runs)
	}
	q.add("chunk", "allocations to store it", int64(fresh), exact)
	q.add("chunk", "allocations when it is known", int64(known), exact)
	return nil
}
