package chunkstore

import (
	"bytes"

	"github.com/cespare/xxhash/v2"
)

// CutBlock is the grain of chunks and holes, in bytes: file systems place data on these borders.
const CutBlock = 4096

// Cutter finds where chunks end. Inside a span, a block of zeros is a hole; any other chunk ends after the block whose hash
// says so, before a hole, at the longest length allowed, or at the span's end. The next cut depends only on what follows the
// last one, so that cutting can begin at any border. Safe for many goroutines.
type Cutter struct {
	seed uint64 // of the hash; zero where chunk lengths are no secret
	mask uint64 // the block ends a chunk when hash&mask is zero
	max  int    // longest chunk, bytes, a multiple of CutBlock
}

// MaxChunk is the longest chunk in bytes.
func (c *Cutter) MaxChunk() int { return c.max }

// Next returns the end of the piece that begins at pos in span, a border, and whether it is a hole. A hole ends after one
// block. Before span[:n] is looked at, load(n) must have made it valid; load may be nil when all of it is. n is a border or
// len(span).
func (c *Cutter) Next(span []byte, pos int, load func(n int) error) (end int, hole bool, err error) {
	for at := pos; at < len(span); {
		next := min(at+CutBlock, len(span))
		if load != nil {
			if err := load(next); err != nil {
				return 0, false, err
			}
		}
		block := span[at:next]
		if isZero(block) {
			if at == pos {
				return next, true, nil
			}
			return at, false, nil
		}
		at = next
		if at-pos >= c.max || c.ends(block) {
			return at, false, nil
		}
	}
	return len(span), false, nil
}

func (c *Cutter) ends(block []byte) bool {
	if c.seed == 0 {
		return xxhash.Sum64(block)&c.mask == 0
	}
	var d xxhash.Digest
	d.ResetWithSeed(c.seed)
	_, _ = d.Write(block)
	return d.Sum64()&c.mask == 0
}

var zeroBlock [CutBlock]byte

// isZero reports whether b, at most CutBlock long, is all zeros.
func isZero(b []byte) bool {
	return (len(b) == 0 || b[0] == 0) && bytes.Equal(b, zeroBlock[:len(b)])
}
