package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// generate makes the repository, with a cache as the host has that made all backups.
func generate(ctx context.Context, o options) (_ *report, err error) {
	be, err := openStore(o)
	if err != nil {
		return nil, err
	}
	if _, err := chunkstore.Init(ctx, be, chunkstore.InitOptions{SpanBytes: spanLen, PackBytes: 1 << 20, Compression: "none"}); err != nil {
		return nil, err
	}
	r, err := chunkstore.Open(ctx, be, chunkstore.Options{CacheDir: o.path("cache")})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var rep report
	if err := rep.measure("first backup", be, func() (string, error) { return "", firstBackup(ctx, r, o) }); err != nil {
		return nil, err
	}
	err = rep.measure("the others", be, func() (string, error) {
		for version := 1; version < o.backups; version++ {
			if _, err := engine.Backup(ctx, r, at(o, version), engine.BackupOptions{Volume: volumeName}); err != nil {
				return "", err
			}
			if version%100 == 0 {
				fmt.Fprintf(os.Stderr, "%d backups\n", version)
			}
		}
		return "", nil
	})
	return &rep, errors.Join(err, be.save(o))
}

// firstBackup stores every chunk. It makes the tree itself: the engine would read the zeros between them.
func firstBackup(ctx context.Context, r *chunkstore.Repository, o options) (err error) {
	w, err := r.NewWriter(ctx, chunkstore.WriterOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	v := at(o, 0)
	b, err := w.NewBlob(ctx, v.Size(), nil)
	if err != nil {
		return err
	}
	perSpan := int(spanLen / o.stride)
	spans := (o.chunks + perSpan - 1) / perSpan
	blocks := sync.Pool{New: func() any { p := make([]byte, blockLen); return &p }}
	const batch = 4096 // spans between two tidyings of the tree
	for from := 0; from < spans; from += batch {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(runtime.GOMAXPROCS(0))
		for span := from; span < min(from+batch, spans); span++ {
			g.Go(func() error {
				p := blocks.Get().(*[]byte)
				defer blocks.Put(p)
				var chunks []chunkstore.Chunk
				for i := span * perSpan; i < min((span+1)*perSpan, o.chunks); i++ {
					chunk(*p, i, 0)
					id, err := w.PutChunk(gctx, *p)
					if err != nil {
						return err
					}
					chunks = append(chunks, chunkstore.Chunk{Off: int64(i) * o.stride, Len: blockLen, ID: id})
				}
				return b.SetSpan(gctx, int64(span), chunks, nil)
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if err := b.Advance(ctx, int64(min(from+batch, spans))); err != nil {
			return err
		}
	}
	ref, err := b.Finish(ctx)
	if err != nil {
		return err
	}
	return w.PutBackup(ctx, &chunkstore.Backup{Volume: volumeName, Blob: ref, Source: v.State()})
}
