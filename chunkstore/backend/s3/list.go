package s3

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// List implements backend.Backend, a page of the server's at a time. What fails is asked for again behind the last name.
func (b *Backend) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !beginsName(prefix) {
		return nil
	}
	l := listing{b: b, fn: fn, prefix: b.prefix + prefix}
	err := b.try(ctx, func() error { return l.run(ctx) })
	if err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	return l.stopped
}

// listing is one List.
type listing struct {
	b      *Backend
	fn     func(backend.Object) error
	prefix string // of keys
	last   string // key

	stopped error // what fn returned
}

func (l *listing) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx) // which ends the iterator
	defer cancel()
	for info := range l.b.core.ListObjectsIter(ctx, l.b.bucket, minio.ListObjectsOptions{
		Prefix: l.prefix, Recursive: true, StartAfter: l.last, FetchOwner: new(bool),
	}) {
		switch {
		case info.Err != nil:
			return info.Err
		case ctx.Err() != nil:
			return ctx.Err()
		case !strings.HasPrefix(info.Key, l.prefix), info.Key <= l.last:
			return fmt.Errorf("%w: it lists %q after %q for the prefix %q", ErrNotS3, clipped(info.Key), clipped(l.last), l.prefix)
		}
		l.last = info.Key
		name := info.Key[len(l.b.prefix):]
		if !backend.ValidName(name) {
			continue
		}
		if l.stopped = l.fn(backend.Object{Name: name, Size: info.Size, ModTime: info.LastModified.Truncate(time.Second)}); l.stopped != nil {
			return nil
		}
	}
	return ctx.Err()
}

// beginsName reports whether any valid name begins with s.
func beginsName(s string) bool {
	return s == "" || backend.ValidName(s) || backend.ValidName(s+"x")
}
