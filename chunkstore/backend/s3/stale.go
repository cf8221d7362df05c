package s3

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// RemoveStale implements backend.StaleRemover: it removes uploads in parts that were begun longer than age ago and neither completed
// nor given up. Their parts take space, and are paid for, but are in no listing of objects.
func (b *Backend) RemoveStale(ctx context.Context, age time.Duration) (removed int, bytes int64, err error) {
	before := time.Now().Add(-age)
	var page minio.ListMultipartUploadsResult
	for {
		key, id := page.NextKeyMarker, page.NextUploadIDMarker
		err := b.try(ctx, func() (err error) {
			page, err = b.core.ListMultipartUploads(ctx, b.bucket, b.prefix, key, id, "", 1000)
			return err
		})
		if status(err) == 501 {
			return removed, bytes, nil // a server without uploads in parts has no remains of them
		}
		if err != nil {
			return removed, bytes, fmt.Errorf("look for unfinished uploads: %w", err)
		}
		for _, u := range page.Uploads {
			name, ours := strings.CutPrefix(u.Key, b.prefix)
			if !ours || !backend.ValidName(name) || !u.Initiated.Before(before) {
				continue
			}
			n, err := b.removeUpload(ctx, u)
			if err != nil {
				return removed, bytes, fmt.Errorf("remove an unfinished upload of %s: %w", name, err)
			}
			removed++
			bytes += n
		}
		if !page.IsTruncated || page.NextKeyMarker == key && page.NextUploadIDMarker == id {
			return removed, bytes, nil
		}
	}
}

// removeUpload removes an upload and returns the size of its parts. One that is gone was another's to remove.
func (b *Backend) removeUpload(ctx context.Context, u minio.ObjectMultipartInfo) (bytes int64, err error) {
	for marker, more := 0, true; more; {
		var parts minio.ListObjectPartsResult
		err := b.try(ctx, func() (err error) {
			parts, err = b.core.ListObjectParts(ctx, b.bucket, u.Key, u.UploadID, marker, 1000)
			return err
		})
		if status(err) == 404 {
			return 0, nil
		}
		if err != nil {
			return bytes, err
		}
		for _, p := range parts.ObjectParts {
			bytes += p.Size
		}
		more = parts.IsTruncated && parts.NextPartNumberMarker > marker
		marker = parts.NextPartNumberMarker
	}
	err = b.try(ctx, func() error { return b.core.AbortMultipartUpload(ctx, b.bucket, u.Key, u.UploadID) })
	if status(err) == 404 || errors.Is(err, backend.ErrNotExist) {
		err = nil
	}
	return bytes, err
}
