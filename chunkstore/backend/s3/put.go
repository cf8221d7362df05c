package s3

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

const (
	// markKey names the metadata that has the mark of a put, by which its maker knows it again.
	markKey = "Shale-Put"
	// partsAtOnce is how many parts of one upload are under way.
	partsAtOnce = 4
)

// Put implements backend.Backend.
func (b *Backend) Put(ctx context.Context, name string, data []byte) error {
	if err := backend.Begin(ctx, "put", name); err != nil {
		return err
	}
	if len(data) > b.partBytes+b.partBytes/2 {
		return failure("put", name, b.putParts(ctx, name, data))
	}
	sums := b.sumsOf(data)
	err := b.try(ctx, func() error { return b.putOnce(ctx, name, data, sums, minio.PutObjectOptions{}) })
	return failure("put", name, b.locked(ctx, name, err))
}

// PutIfAbsent implements backend.Backend.
func (b *Backend) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	if err := backend.Begin(ctx, "put", name); err != nil {
		return err
	}
	mark := rand.Text()
	o := minio.PutObjectOptions{UserMetadata: map[string]string{markKey: mark}}
	o.SetMatchETagExcept("*")
	sums := b.sumsOf(data)
	lost := false // a try may have been successful whose answer did not come
	err := b.try(ctx, func() error {
		err := classified(b.putOnce(ctx, name, data, sums, o))
		if s := status(err); s == http.StatusNotImplemented {
			return fmt.Errorf("%w: %w", backend.ErrNoPutIfAbsent, err)
		} else if s != http.StatusPreconditionFailed {
			lost = lost || err != nil && (s < 400 || s >= 500)
			return err
		}
		if lost && b.isMarked(ctx, name, mark) {
			return nil
		}
		return err
	})
	return failure("put", name, err)
}

// isMarked reports whether the object is there and has the mark. An object that cannot be looked at counts as another's: its maker is told
// that the put failed, and may look itself.
func (b *Backend) isMarked(ctx context.Context, name, mark string) bool {
	info, err := b.head(ctx, name)
	return err == nil && info.Metadata.Get("X-Amz-Meta-"+markKey) == mark
}

// sums of a body, as requests carry them.
type sums struct{ md5, sha256 string }

func (b *Backend) sumsOf(data []byte) (s sums) {
	m := md5.Sum(data)
	s.md5 = base64.StdEncoding.EncodeToString(m[:])
	if b.plain {
		h := sha256.Sum256(data)
		s.sha256 = hex.EncodeToString(h[:])
	}
	return s
}

func (b *Backend) putOnce(ctx context.Context, name string, data []byte, s sums, o minio.PutObjectOptions) error {
	o.DisableContentSha256 = true // of the body in pieces: the sum of the whole is in the header
	_, err := b.core.PutObject(ctx, b.bucket, b.key(name), b.body(ctx, data), int64(len(data)), s.md5, s.sha256, o)
	return err
}

// putParts uploads in parts. What fails is put again part by part.
func (b *Backend) putParts(ctx context.Context, name string, data []byte) error {
	mark := rand.Text()
	var upload string
	err := b.try(ctx, func() (err error) {
		upload, err = b.core.NewMultipartUpload(ctx, b.bucket, b.key(name), minio.PutObjectOptions{UserMetadata: map[string]string{markKey: mark}})
		return err
	})
	if err != nil {
		return fmt.Errorf("begin an upload: %w", err)
	}
	parts, err := b.uploadParts(ctx, name, upload, data)
	if err == nil {
		err = b.complete(ctx, name, upload, mark, parts)
	}
	if err != nil {
		b.abort(ctx, name, upload)
	}
	return err
}

func (b *Backend) uploadParts(ctx context.Context, name, upload string, data []byte) ([]minio.CompletePart, error) {
	length := b.partBytes
	n := (len(data) + length - 1) / length
	parts := make([]minio.CompletePart, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAtOnce)
	for i := range n {
		g.Go(func() error {
			p := data[i*length : min((i+1)*length, len(data))]
			s := b.sumsOf(p)
			err := b.try(ctx, func() error {
				part, err := b.core.PutObjectPart(ctx, b.bucket, b.key(name), upload, i+1, b.body(ctx, p), int64(len(p)),
					minio.PutObjectPartOptions{Md5Base64: s.md5, Sha256Hex: s.sha256, DisableContentSha256: true})
				parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: part.ETag}
				return err
			})
			if err != nil {
				return fmt.Errorf("part %d of %d: %w", i+1, n, err)
			}
			return nil
		})
	}
	return parts, g.Wait()
}

// complete makes the parts an object. An upload that is gone after an answer was lost is complete if its mark is on the object.
func (b *Backend) complete(ctx context.Context, name, upload, mark string, parts []minio.CompletePart) error {
	lost := false
	err := b.try(ctx, func() error {
		_, err := b.core.CompleteMultipartUpload(ctx, b.bucket, b.key(name), upload, parts, minio.PutObjectOptions{})
		err = classified(err)
		if lost && status(err) == http.StatusNotFound && b.isMarked(ctx, name, mark) {
			return nil
		}
		s := status(err)
		lost = lost || err != nil && (s < 400 || s >= 500)
		return err
	})
	if err != nil {
		return fmt.Errorf("complete the upload of %d parts: %w", len(parts), b.locked(ctx, name, err))
	}
	return nil
}

// What bounds the tidying up after a failed upload; what it leaves RemoveStale finds. A part that the server is still busy with may
// outlive an abort, so it is repeated until the server knows of no such upload.
const (
	abortTimeout = 5 * time.Second
	abortTries   = 4
)

func (b *Backend) abort(ctx context.Context, name, upload string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	for range abortTries {
		err := b.core.AbortMultipartUpload(ctx, b.bucket, b.key(name), upload)
		if status(classified(err)) == http.StatusNotFound || ctx.Err() != nil {
			return
		}
	}
}
