package fusemount

import "fmt"

// arena carves chunks of many sizes out of one fixed piece of memory, and takes them back by the clock algorithm.
//
// The blocks form a ring in the order of their addresses. A hand walks the ring: a block that was used since the hand last
// came by is spared once, a pinned one always, and as soon as neighbours that may go add up to what is asked for, they become
// one block. So there is no fragmentation to speak of, nothing is zeroed or faulted in twice, and the order of eviction is
// about that of insertion, which suits readers that stream. The caller holds a lock over all calls.
type arena struct {
	mem  []byte
	hand *block
	// evict is told of a chunk that loses its memory.
	evict func(*entry)
}

// block is a piece of the arena, free when it has no entry.
type block struct {
	off, size  int
	prev, next *block
	entry      *entry
}

const (
	// blockAlign keeps chunks from sharing cache lines.
	blockAlign = 64
	// blockSlack is room past the end of a chunk: the zstd decoder takes a faster path when it may write a little too far.
	blockSlack = 32
)

func newArena(mem []byte, evict func(*entry)) *arena {
	b := &block{size: len(mem)}
	b.prev, b.next = b, b
	return &arena{mem: mem, hand: b, evict: evict}
}

// alloc returns a block of at least n bytes, or nil when too much is pinned.
func (a *arena) alloc(n int) *block {
	n = (n + blockSlack + blockAlign - 1) &^ (blockAlign - 1)
	if n > len(a.mem) {
		return nil
	}
	var first *block // start of the run of blocks that may go
	got := 0
	// Three rounds: the first may begin in the middle of a run and only clear marks, the second sees all of them cleared,
	// the third completes a run that the hand started in.
	for walked := 0; walked <= 3*len(a.mem); {
		b := a.hand
		if b.off == 0 {
			first, got = nil, 0 // a run does not go round the end
		}
		a.hand = b.next
		walked += b.size
		if !spare(b) {
			first, got = nil, 0
			continue
		}
		if first == nil {
			first = b
		}
		if got += b.size; got >= n {
			return a.take(first, n, got)
		}
	}
	return nil
}

// spare reports whether b may be reused now, and clears its mark.
func spare(b *block) bool {
	e := b.entry
	if e == nil {
		return true
	}
	if e.refs > 0 {
		return false
	}
	used := e.used
	e.used = false
	return !used
}

// take merges the got bytes of blocks from first on into one of n bytes, and leaves the rest free behind it.
func (a *arena) take(first *block, n, got int) *block {
	end := first
	for size := 0; size < got; end = end.next {
		size += end.size
		if end.entry != nil {
			a.evict(end.entry)
			end.entry = nil
		}
	}
	// end is the block after the run; in a ring of one run it is first itself.
	first.size = n
	if rest := got - n; rest > 0 {
		r := &block{off: first.off + n, size: rest, prev: first}
		if end == first {
			r.next, first.prev = first, r
		} else {
			r.next, end.prev = end, r
		}
		first.next = r
		a.hand = r
		return first
	}
	if end == first {
		first.prev, first.next = first, first
	} else {
		first.next, end.prev = end, first
	}
	a.hand = first.next
	return first
}

// bytes is the memory of b.
func (a *arena) bytes(b *block) []byte { return a.mem[b.off : b.off+b.size : b.off+b.size] }

// check walks the ring and reports what is wrong with it; for tests.
func (a *arena) check() error {
	start := a.hand
	for start.off != 0 {
		if start = start.next; start == a.hand {
			return fmt.Errorf("no block begins the arena")
		}
	}
	off := 0
	for b := start; ; {
		if b.off != off {
			return fmt.Errorf("block at %d, want %d", b.off, off)
		}
		if b.next.prev != b {
			return fmt.Errorf("block at %d is not linked back", b.off)
		}
		off += b.size
		if b = b.next; b == start {
			break
		}
	}
	if off != len(a.mem) {
		return fmt.Errorf("blocks add up to %d of %d bytes", off, len(a.mem))
	}
	return nil
}
