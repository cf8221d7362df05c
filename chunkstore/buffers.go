package chunkstore

import (
	"math/bits"
	"sync"
)

// buffers lends memory for stored and plain bytes, in classes of powers of two: with one class for all, every buffer would in the end
// be as large as the largest read of a batch, also those that single chunks are read to.
type buffers struct {
	classes [maxBufferBits - minBufferBits + 1]sync.Pool
}

const (
	minBufferBits = 14 // smaller ones are not worth a class of their own
	maxBufferBits = 23 // larger ones are not kept
)

// get lends a buffer of n bytes; put takes it back.
func (p *buffers) get(n int) *[]byte {
	class := bufferClass(n)
	if class >= len(p.classes) {
		b := make([]byte, n)
		return &b
	}
	b, ok := p.classes[class].Get().(*[]byte)
	if !ok {
		b = new([]byte)
		*b = make([]byte, 1<<(minBufferBits+class))
	}
	*b = (*b)[:n]
	return b
}

// put takes a buffer back, which its user may have let grow.
func (p *buffers) put(b *[]byte) {
	class := bufferClass(cap(*b))
	if cap(*b) < 1<<(minBufferBits+class) {
		class-- // what lies there must be as long as the class promises
	}
	if class >= 0 && class < len(p.classes) {
		p.classes[class].Put(b)
	}
}

// bufferClass is the smallest class whose buffers have n bytes.
func bufferClass(n int) int { return max(0, bits.Len(uint(max(n, 1)-1))-minBufferBits) }
