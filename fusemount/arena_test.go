package fusemount

import (
	"testing"
	"unsafe"
)

// TestArena allocates, pins, marks and frees at random, and checks that blocks tile the memory, that no two chunks overlap and
// that what is pinned stays.
func TestArena(t *testing.T) {
	rng := seeded(t)
	const size = 1 << 20
	live := map[*entry]byte{} // those that still have their memory, and what was written there
	a := newArena(make([]byte, size), func(e *entry) {
		if e.refs > 0 {
			t.Fatal("a pinned chunk was evicted")
		}
		delete(live, e)
	})
	var pinned []*entry
	refused := 0
	for step := range 20_000 {
		n := 1 + rng.IntN(64<<10)
		if b := a.alloc(n); b == nil {
			refused++
		} else {
			e := &entry{refs: rng.IntN(2), used: rng.IntN(3) == 0, block: b}
			b.entry = e
			e.data = a.bytes(b)[:n]
			mark := byte(step)
			e.data[0], e.data[n-1] = mark, mark
			live[e] = mark
			if e.refs > 0 {
				pinned = append(pinned, e)
			}
		}
		for len(pinned) > 20 || len(pinned) > 0 && rng.IntN(3) == 0 {
			i := rng.IntN(len(pinned))
			pinned[i].refs = 0
			pinned[i] = pinned[len(pinned)-1]
			pinned = pinned[:len(pinned)-1]
		}
		if err := a.check(); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if step%100 == 0 {
			held := 0
			for e, mark := range live {
				if held += len(e.data); e.data[0] != mark || e.data[len(e.data)-1] != mark {
					t.Fatalf("step %d: a chunk was overwritten", step)
				}
			}
			if held > size {
				t.Fatalf("step %d: %d bytes in %d", step, held, size)
			}
		}
	}
	if refused > 200 {
		t.Errorf("%d of 20000 found no room, although a third of the memory was pinned at most", refused)
	}
}

func TestArenaFull(t *testing.T) {
	const size = 1 << 20
	a := newArena(make([]byte, size), func(*entry) {})
	if b := a.alloc(size + 1); b != nil {
		t.Error("more than there is was given")
	}
	whole := a.alloc(size - blockSlack)
	if whole == nil || whole.next != whole {
		t.Fatalf("the whole arena: %+v", whole)
	}
	whole.entry = &entry{refs: 1}
	if b := a.alloc(1); b != nil {
		t.Error("a pinned arena gave memory")
	}
	whole.entry.refs = 0
	b := a.alloc(1)
	if b == nil {
		t.Fatal("nothing to be had of an arena that nobody holds")
	}
	if at := uintptr(unsafe.Pointer(&a.bytes(b)[0])) - uintptr(unsafe.Pointer(&a.mem[0])); at != 0 {
		t.Errorf("the block lies at %d", at)
	}
	if err := a.check(); err != nil {
		t.Error(err)
	}
}

// TestArenaSparesUsed: of two chunks, the one that was asked for again survives the other.
func TestArenaSparesUsed(t *testing.T) {
	evicted := map[*entry]bool{}
	a := newArena(make([]byte, 4096), func(e *entry) { evicted[e] = true })
	put := func() *entry {
		b := a.alloc(2048 - blockSlack)
		b.entry = &entry{block: b}
		return b.entry
	}
	first, second := put(), put()
	first.used = true
	put()
	if evicted[first] || !evicted[second] {
		t.Errorf("evicted the used one %v, the other %v", evicted[first], evicted[second])
	}
}
