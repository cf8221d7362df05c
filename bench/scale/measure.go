package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// open opens the repository, through a cache of that name.
func open(ctx context.Context, o options, cache string) (*chunkstore.Repository, *counting, error) {
	be, err := openStore(o)
	if err != nil {
		return nil, nil, err
	}
	r, err := chunkstore.Open(ctx, be, chunkstore.Options{CacheDir: o.path(cache)})
	return r, be, err
}

// incremental backs up some more versions, on the host that made the others, each as a process does that begins anew.
func incremental(ctx context.Context, o options) (*report, error) {
	var rep report
	for n := range 9 {
		be, err := openStore(o)
		if err != nil {
			return nil, err
		}
		err = rep.measure(fmt.Sprintf("incremental backup %d", n+1), be, func() (note string, err error) {
			r, err := chunkstore.Open(ctx, be, chunkstore.Options{CacheDir: o.path("cache")})
			if err != nil {
				return "", err
			}
			defer func() { err = errors.Join(err, r.Close()) }()
			res, err := engine.Backup(ctx, r, at(o, o.backups+n), engine.BackupOptions{Volume: volumeName})
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d new chunks, %d new nodes", res.Writer.NewChunks, res.Writer.NewNodes), nil
		})
		if err = errors.Join(err, be.save(o)); err != nil {
			return nil, err
		}
	}
	return &rep, nil
}

const firstRead = "first byte of a file"

// fresh reads from the newest backup on a host without a cache.
func fresh(ctx context.Context, o options) (_ *report, err error) {
	be, err := openStore(o)
	if err != nil {
		return nil, err
	}
	var rep report
	var r *chunkstore.Repository
	if err := rep.measure("open", be, func() (_ string, err error) {
		r, err = chunkstore.Open(ctx, be, chunkstore.Options{CacheDir: o.path("fresh")})
		return "", err
	}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var blob *chunkstore.Blob
	if err := rep.measure("find the newest backup", be, func() (string, error) {
		ids, err := r.Backups(ctx, volumeName)
		if err != nil {
			return "", err
		}
		b, err := r.Backup(ctx, volumeName, ids[len(ids)-1])
		if err == nil {
			blob = r.OpenBlob(b.Blob)
		}
		return fmt.Sprintf("of %d", len(ids)), err
	}); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		name    string
		from, n int
	}{{firstRead, o.chunks / 3, 1}, {"the next 1,000 chunks", o.chunks/3 + 1, min(1000, o.chunks/2)}} {
		if err := rep.measure(s.name, be, func() (string, error) { return "", readChunks(ctx, o, blob, s.from, s.n) }); err != nil {
			return nil, err
		}
	}
	err = rep.measure("100 chunks anywhere", be, func() (string, error) {
		for _, i := range at(o, 1<<30).changed {
			if err := readChunks(ctx, o, blob, i, 1); err != nil {
				return "", err
			}
		}
		return "", nil
	})
	return &rep, err
}

// readChunks reads and compares n chunks, of which later versions may have changed some.
func readChunks(ctx context.Context, o options, blob *chunkstore.Blob, from, n int) error {
	p, want := make([]byte, blockLen), make([]byte, blockLen)
	for i := from; i < min(from+n, o.chunks); i++ {
		if _, err := blob.ReadAt(ctx, p, int64(i)*o.stride); err != nil {
			return err
		}
		chunk(want, i, 0)
		if !bytes.Equal(p[:8], want[:8]) || !bytes.Equal(p[16:], want[16:]) {
			return fmt.Errorf("chunk %d is not what was stored", i)
		}
	}
	return nil
}

// prune removes every other backup and what only they need.
func prune(ctx context.Context, o options) (_ *report, err error) {
	r, be, err := open(ctx, o, "cache")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var rep report
	ids, err := r.Backups(ctx, volumeName)
	if err != nil {
		return nil, err
	}
	if err := rep.measure("delete every other backup", be, func() (string, error) {
		for i := 0; i < len(ids); i += 2 {
			if err := r.DeleteBackup(ctx, volumeName, ids[i]); err != nil {
				return "", err
			}
		}
		return "", nil
	}); err != nil {
		return nil, err
	}
	for _, unused := range []float64{chunkstore.DefaultMaxUnused, 0.001} {
		err := rep.measure(fmt.Sprintf("prune, %.1f %% may stay unused", unused*100), be, func() (string, error) {
			p, err := r.Prune(ctx, chunkstore.PruneOptions{MaxUnused: unused})
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d of %d packs freed, %d MiB copied, %d MiB unused stay", p.Freed.Objects, p.Packs.Objects, p.Copied>>20, p.Unused>>20), nil
		})
		if err != nil {
			return nil, err
		}
	}
	return &rep, be.save(o)
}
