package engine

import (
	"context"

	"github.com/shalebackup/shale/chunkstore/backend/limit"
	"github.com/shalebackup/shale/engine/source"
)

// pacedPiece is how much of a paced source is read at once: on block borders wherever the whole range is.
const pacedPiece = 128 << 10

// pacedSource reads data no faster than its bucket gives.
type pacedSource struct {
	source.Source
	rate *limit.Bucket
}

// paced returns src, kept to that rate unless it is nil.
func paced(src source.Source, rate *limit.Bucket) source.Source {
	if rate == nil {
		return src
	}
	return pacedSource{src, rate}
}

func (s pacedSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), pacedPiece)
		if err := s.rate.Wait(ctx, n); err != nil {
			return err
		}
		if err := s.Source.ReadAt(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
