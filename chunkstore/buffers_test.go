package chunkstore

import (
	"math/rand/v2"
	"testing"
)

// TestBuffers: a buffer is as long as asked for whatever was given back, and a small request gets no large buffer.
func TestBuffers(t *testing.T) {
	var p buffers
	random := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		n := random.IntN(1 << (1 + random.IntN(maxBufferBits+1)))
		b := p.get(n)
		if len(*b) != n || n <= 1<<minBufferBits && cap(*b) >= 2<<minBufferBits {
			t.Fatalf("%d bytes asked for: got %d of %d", n, len(*b), cap(*b))
		}
		if n <= 1<<maxBufferBits && cap(*b) >= 4*max(n, 1<<minBufferBits) { // a class is twice its smallest, and grown ones are less than twice that
			t.Fatalf("%d bytes asked for: got %d", n, cap(*b))
		}
		switch random.IntN(4) {
		case 0:
			*b = append(*b, make([]byte, random.IntN(100_000))...) // grown by its user
		case 1:
			*b = make([]byte, random.IntN(100_000)) // replaced
		case 2:
			*b = nil
		}
		p.put(b)
	}
}
