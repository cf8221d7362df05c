package limit

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/shalebackup/shale/chunkstore/backend"
)

const (
	// burstPart of a second's bytes may go at once: enough to make up for timers that fire late.
	burstPart = 20
	// maxBurst bounds a bucket whatever its rate, so that it fits an int everywhere.
	maxBurst = 1 << 30
)

// Bucket is a rate in bytes per second, shared by many goroutines. A nil Bucket limits nothing.
type Bucket struct {
	tokens *rate.Limiter
	piece  int // bytes asked for at once
}

// NewBucket returns a bucket of that rate; nil, which limits nothing, when it is 0 or less.
func NewBucket(bytesPerSecond int64) *Bucket {
	if bytesPerSecond <= 0 {
		return nil
	}
	burst := int(min(max(bytesPerSecond/burstPart, 1), maxBurst))
	return &Bucket{tokens: rate.NewLimiter(rate.Limit(bytesPerSecond), burst), piece: min(burst, backend.PaceBytes)}
}

// Wait returns when n more bytes may be moved, or the context's error. It is a backend.Pace.
func (b *Bucket) Wait(ctx context.Context, n int) error {
	if b == nil {
		return nil
	}
	for n > 0 {
		piece := min(n, b.piece)
		if err := b.wait(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

func (b *Bucket) wait(ctx context.Context, n int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := b.tokens.ReserveN(time.Now(), n)
	delay := r.Delay()
	if delay == 0 {
		return nil
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		r.Cancel() // gives back what nobody moves
		return ctx.Err()
	}
}
