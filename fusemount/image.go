package fusemount

import (
	"context"
	"fmt"
	"io"
)

// maxChunkLen bounds what a chunk list may say of one chunk, so that a hostile list cannot ask for any memory it likes.
const maxChunkLen = 16 << 20

// image reads one blob at any offset, through the pool's cache. It knows nothing of FUSE, and may be used from many
// goroutines.
type image struct {
	pool *pool
	blob Blob
	size int64  // bytes
	name string // volume/backup, for errors
}

// ReadAt reads len(p) bytes at off, as io.ReaderAt does, but for its context.
func (m *image) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset %d", m.name, off)
	}
	n := 0
	for n < len(p) && off < m.size {
		v, err := m.view(ctx, off, min(len(p)-n, maxView))
		if err != nil {
			return n, err
		}
		for _, s := range v.slices {
			n += copy(p[n:], s)
		}
		off += int64(v.size)
		v.Release()
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// SeekData returns the first offset at or after off that is not in a hole, or io.EOF when there is none.
func (m *image) SeekData(ctx context.Context, off int64) (int64, error) {
	if off >= m.size {
		return 0, io.EOF
	}
	for ch, err := range m.chunks(ctx, off, m.size) {
		if err != nil {
			return 0, err
		}
		return max(off, ch.Off), nil
	}
	return 0, io.EOF
}

// SeekHole returns the first offset at or after off that is in a hole; the end of the image counts as one. It returns io.EOF
// when off is not before the end. Its cost is that of the chunk list from off to there.
func (m *image) SeekHole(ctx context.Context, off int64) (int64, error) {
	if off >= m.size {
		return 0, io.EOF
	}
	for ch, err := range m.chunks(ctx, off, m.size) {
		if err != nil {
			return 0, err
		}
		if ch.Off > off {
			break
		}
		off = ch.Off + int64(ch.Len)
	}
	return min(off, m.size), nil
}

// chunks is the blob's list for [off, end), checked: ascending, not overlapping, of sane lengths, each within the range.
func (m *image) chunks(ctx context.Context, off, end int64) func(yield func(Chunk, error) bool) {
	return func(yield func(Chunk, error) bool) {
		last := int64(0) // end of the chunk before
		for ch, err := range m.blob.Chunks(ctx, off, end) {
			if err != nil {
				yield(Chunk{}, fmt.Errorf("chunk list of %s at byte %d: %w", m.name, max(off, last), err))
				return
			}
			if ch.Len <= 0 || ch.Len > maxChunkLen || ch.Off < last || ch.Off >= end || ch.Off+int64(ch.Len) <= off {
				yield(Chunk{}, fmt.Errorf("chunk list of %s has %d bytes at %d, out of place after byte %d: %w",
					m.name, ch.Len, ch.Off, last, errBadList))
				return
			}
			last = ch.Off + int64(ch.Len)
			if !yield(ch, nil) {
				return
			}
		}
	}
}
