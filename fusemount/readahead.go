package fusemount

import (
	"context"
	"sync"
	"sync/atomic"
)

const (
	// minWindow and maxPiece bound how far ahead of a sequential reader chunks are loaded; the window doubles as the reader
	// goes on.
	minWindow = 1 << 20
	maxPiece  = 2 << 20
	maxWindow = 32 << 20
	// minRun is how many bytes must have been read in sequence before anything is loaded ahead.
	minRun = 256 << 10
	// aheadPieces is into how many jobs a window is cut at least, and so how many run at once for one reader; as many as there are
	// workers, which are more where the store answers slowly. minPiece is the least.
	aheadPieces = 4
	minPiece    = 256 << 10
	// maxJobs bounds the jobs that wait for a worker; what does not fit is not loaded ahead.
	maxJobs = 64
	// listPiece is of how much of the image the chunk list is read at once, ahead of the chunks, where the store answers slowly.
	listPiece = 16 << 20
)

// readAhead loads chunks before they are asked for, with a fixed number of workers for the whole mount.
type readAhead struct {
	pool    *pool
	jobs    chan aheadJob
	workers int
	streams atomic.Int64 // readers that are sequential now: they share the memory
	wg      sync.WaitGroup
}

// aheadJob is a range to load; ctx ends when its reader went elsewhere.
type aheadJob struct {
	ctx      context.Context
	image    *image
	off, end int64
	list     bool // only the chunk list, for the store to have it at hand
}

// newReadAhead starts the workers, which end with ctx; wait returns when they did.
func newReadAhead(ctx context.Context, p *pool, workers int) *readAhead {
	r := &readAhead{pool: p, jobs: make(chan aheadJob, maxJobs), workers: workers}
	for range workers {
		r.wg.Go(func() {
			for {
				select {
				case j := <-r.jobs:
					r.run(j)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return r
}

func (r *readAhead) wait() { r.wg.Wait() }

// run loads what is missing of a job's range. Errors are not its business: whoever reads the range meets them himself.
func (r *readAhead) run(j aheadJob) {
	var chunks []Chunk
	need := int64(0)
	for ch, err := range j.image.chunks(j.ctx, j.off, j.end) {
		if err != nil {
			return
		}
		if j.list {
			continue
		}
		chunks = append(chunks, ch)
		need += int64(ch.Len)
	}
	if need == 0 || j.ctx.Err() != nil || !r.pool.room.TryAcquire(need) {
		return
	}
	defer r.pool.room.Release(need)

	var entries []*entry
	var missing []int
	defer func() {
		for _, e := range entries {
			r.pool.cache.release(e)
		}
	}()
	for i, ch := range chunks {
		e, load, err := r.pool.cache.acquire(ch, true)
		if err != nil {
			chunks = chunks[:i]
			break
		}
		entries = append(entries, e)
		if load {
			missing = append(missing, i)
		}
	}
	if len(missing) == 0 {
		return
	}
	for _, i := range r.pool.loadMany(j.ctx, chunks, entries, missing) {
		r.pool.cache.finish(entries[i], errAbandoned)
	}
}

// stream watches how one open file is read, and has the chunks that come next loaded once that is plainly in sequence.
// Requests of the kernel's own read-ahead overtake each other, so "in sequence" allows for a few requests' length of gap.
type stream struct {
	ahead *readAhead
	image *image

	mu     sync.Mutex // guards what follows
	high   int64      // end of what was read
	run    int64      // bytes read in sequence
	loaded int64      // end of what is loaded or being loaded ahead
	listed int64      // end of what was listed ahead
	window int64      // 0 while reads are not sequential
	ctx    context.Context
	cancel context.CancelFunc
}

// maxSkew is the gap between requests, in lengths of the request, that still counts as in sequence.
const maxSkew = 8

// read notes a read of [off, off+n). ctx is the mount's.
func (s *stream) read(ctx context.Context, off, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if gap := off - s.high; gap > maxSkew*n || gap < -maxSkew*n-n {
		s.stop()
		s.high = off + n
		s.run = n
		return
	}
	s.run += n
	s.high = max(s.high, off+n)
	if s.run < minRun || s.run == n {
		return
	}
	if s.window == 0 {
		s.start(ctx)
	}
	s.issue()
}

func (s *stream) start(ctx context.Context) {
	s.ahead.streams.Add(1)
	s.window = minWindow
	s.loaded, s.listed = s.high, s.high
	s.ctx, s.cancel = context.WithCancel(ctx)
}

// issue queues jobs until the window is full, in pieces of a fixed share of it, and then lets the window grow.
func (s *stream) issue() {
	s.loaded = max(s.loaded, s.high)
	pieces := int64(max(s.ahead.workers, aheadPieces))
	piece := max(s.window/pieces, minPiece)
	before := s.loaded
	if s.ahead.workers > aheadPieces && s.listed < s.image.size && s.listed < s.loaded+s.window {
		end := min(s.listed+listPiece, s.image.size)
		select {
		case s.ahead.jobs <- aheadJob{ctx: s.ctx, image: s.image, off: s.listed, end: end, list: true}:
			s.listed = end
		default:
		}
	}
	for s.loaded < s.image.size && s.loaded+piece <= s.high+s.window {
		end := min(s.loaded+piece, s.image.size)
		select {
		case s.ahead.jobs <- aheadJob{ctx: s.ctx, image: s.image, off: s.loaded, end: end}:
		default:
			return
		}
		s.loaded = end
	}
	if s.loaded > before {
		share := s.ahead.pool.limit / 2 / max(1, s.ahead.streams.Load())
		s.window = min(2*s.window, max(share, minWindow), min(pieces*maxPiece, maxWindow))
	}
}

// stop ends the read-ahead of a reader that went elsewhere; the lock is held.
func (s *stream) stop() {
	if s.window == 0 {
		return
	}
	s.cancel()
	s.window = 0
	s.ahead.streams.Add(-1)
}

// close ends the stream with its file handle.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
}
