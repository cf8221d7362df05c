package s3

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// ReadAt implements backend.Backend: one request, and after a broken connection another for what is missing, if the object is
// still the same.
func (b *Backend) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := backend.Begin(ctx, "read", name); err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("read %s: negative offset %d", name, off)
	}
	if int64(len(p)) > maxObject-min(off, maxObject) || len(p) == 0 {
		return b.readNothing(ctx, name, len(p), off)
	}
	r := reading{b: b, name: name, p: p, off: off}
	if err := b.try(ctx, func() error { return r.once(ctx) }); err != nil {
		return fmt.Errorf("read %s: %d bytes at %d: %w", name, len(p), off, err)
	}
	return nil
}

// maxObject is more than any object of S3 has.
const maxObject = 1 << 50

// readNothing answers for ranges that no request can ask for.
func (b *Backend) readNothing(ctx context.Context, name string, n int, off int64) error {
	info, err := b.head(ctx, name)
	if err == nil && (n > 0 || off > info.Size) {
		err = backend.ErrShort
	}
	if err != nil {
		return fmt.Errorf("read %s: %d bytes at %d: %w", name, n, off, err)
	}
	return nil
}

// reading is one ReadAt.
type reading struct {
	b    *Backend
	name string
	p    []byte
	off  int64
	done int    // bytes of p that have come
	etag string // of the object that they are of
}

// once asks for what is missing.
func (r *reading) once(ctx context.Context) error {
	var o minio.GetObjectOptions
	from, end := r.off+int64(r.done), r.off+int64(len(r.p))
	if end == 1 { // the library takes 0-0 for "all from 0"
		o.Set("Range", "bytes=0-0")
	} else if err := o.SetRange(from, end-1); err != nil {
		return err
	}
	if r.etag != "" {
		o.Set("If-Match", `"`+r.etag+`"`)
	}
	body, info, header, err := r.b.core.GetObject(ctx, r.b.bucket, r.b.key(r.name), o)
	if err != nil {
		return r.failed(ctx, err)
	}
	defer body.Close()
	if err := r.accept(info, header, from, end); err != nil {
		return err
	}
	n, err := r.b.readFull(ctx, body, r.p[r.done:])
	r.done += n
	if err != nil {
		return fmt.Errorf("%w: the answer broke off after %d of %d bytes: %w", ErrConnection, r.done, len(r.p), err)
	}
	return nil
}

// failed looks at a request without content. An object that was replaced between two requests is read anew.
func (r *reading) failed(ctx context.Context, err error) error {
	err = classified(err)
	if r.etag != "" && status(err) == http.StatusPreconditionFailed {
		r.done, r.etag = 0, ""
		return r.once(ctx)
	}
	return err
}

// accept checks that the answer is what was asked for.
func (r *reading) accept(info minio.ObjectInfo, header http.Header, from, end int64) error {
	want := end - from
	if ranged := header.Get("Content-Range"); ranged == "" {
		if from != 0 {
			return fmt.Errorf("%w: it ignores ranges", ErrNotS3)
		}
	} else if !strings.HasPrefix(ranged, fmt.Sprintf("bytes %d-", from)) {
		return fmt.Errorf("%w: asked for bytes from %d on, it answered %q", ErrNotS3, from, clipped(ranged))
	}
	if info.Size >= 0 && info.Size < want {
		return backend.ErrShort
	}
	if r.done == 0 {
		r.etag = info.ETag
	} else if r.etag != info.ETag {
		r.done, r.etag = 0, ""
		return fmt.Errorf("%w: the object was replaced meanwhile", ErrConnection) // so that the read begins anew
	}
	return nil
}
