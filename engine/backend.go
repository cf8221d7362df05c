package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/file"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
)

// Wrapper puts a backend before a repository's own: one that counts, or keeps to limits. It is called before the first use.
type Wrapper func(backend.Backend) backend.Backend

// BackendOptions say how the places of repositories are reached. The zero value is right for directories, and for buckets of AWS.
type BackendOptions struct {
	S3   s3.Options // but for Bucket, Region and Prefix, which are the Location's
	Wrap Wrapper    // nil: none
}

// OpenBackend opens the place that l names, which must exist if it is a directory; of a bucket nothing is asked yet.
func OpenBackend(l Location, o BackendOptions) (backend.Backend, error) {
	be, err := o.open(l, file.Open)
	if errors.Is(err, os.ErrNotExist) && l.Bucket == "" {
		return nil, fmt.Errorf("%s: %w", l.Path, chunkstore.ErrNoRepository)
	}
	return be, err
}

func (o BackendOptions) open(l Location, folder func(string) (*file.Backend, error)) (be backend.Backend, err error) {
	if l.Bucket != "" {
		b := o.S3
		b.Bucket, b.Region, b.Prefix = l.Bucket, l.Region, l.Path
		be, err = s3.Open(b)
	} else {
		be, err = folder(l.Path)
	}
	if err != nil {
		return nil, err
	}
	if o.Wrap != nil {
		be = o.Wrap(be)
	}
	return be, nil
}

// InitRepository makes a repository at l. Its folder is made if need be; a bucket must be there.
func InitRepository(ctx context.Context, l Location, b BackendOptions, o chunkstore.InitOptions) (chunkstore.Config, error) {
	be, err := b.open(l, file.Create)
	if err != nil {
		return chunkstore.Config{}, err
	}
	return chunkstore.Init(ctx, be, o)
}

// OpenRepository opens the repository at l.
func OpenRepository(ctx context.Context, l Location, b BackendOptions, o chunkstore.Options) (*chunkstore.Repository, error) {
	be, err := OpenBackend(l, b)
	if err != nil {
		return nil, err
	}
	return chunkstore.Open(ctx, be, o)
}

// ReindexRepository makes the index of the repository at l anew and opens it.
func ReindexRepository(ctx context.Context, l Location, b BackendOptions, o chunkstore.Options, progress func(done, total int)) (*chunkstore.Repository, *chunkstore.ReindexReport, error) {
	be, err := OpenBackend(l, b)
	if err != nil {
		return nil, nil, err
	}
	return chunkstore.Reindex(ctx, be, o, progress)
}
