package chunkstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"lukechampine.com/blake3"
)

// TestIDGolden fixes the derivation of keys: a change of any byte here makes every repository unreadable.
func TestIDGolden(t *testing.T) {
	s := secret(seq(0, 32))
	var all []byte
	for _, context := range []string{contextChunk, contextNode, contextName, contextCut} {
		h := newHasher(s.derive(context))
		for _, p := range []string{"", "abc", strings.Repeat("x", 5000)} {
			var id ID
			h.id(&id, []byte(p))
			all = append(all, id[:]...)
		}
	}
	golden(t, "id", all)
}

func TestHasherFromManyGoroutines(t *testing.T) {
	h := newHasher(secret{1}.derive(contextChunk))
	var want ID
	h.id(&want, []byte("same"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				var got ID
				if h.id(&got, []byte("same")); got != want {
					t.Errorf("got %v, want %v", got, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestIDText(t *testing.T) {
	id := seqID(0xf0)
	b, err := json.Marshal(id)
	if err != nil || string(b) != `"`+id.String()+`"` {
		t.Fatalf("got %s, %v", b, err)
	}
	var got ID
	if err := json.Unmarshal(b, &got); err != nil || got != id || got.IsZero() || !(ID{}).IsZero() {
		t.Fatalf("got %v, %v", got, err)
	}
	s := id.String()
	for _, bad := range []string{"", s[:62], s[:63], s + "0", s + "00", s[:63] + "g", strings.Repeat("zz", 32)} {
		if err := got.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestErrors(t *testing.T) {
	ce := &CorruptError{Object: "packs/data/ab/abc", Off: 17, Err: io.ErrUnexpectedEOF}
	if !errors.Is(ce, ErrCorrupt) || !errors.Is(ce, io.ErrUnexpectedEOF) || ce.Error() != "packs/data/ab/abc at byte 17: unexpected EOF" {
		t.Errorf("%v", ce)
	}
	ne := &NotFoundError{What: "chunk", Name: "abc"}
	if !errors.Is(ne, ErrNotFound) || ne.Error() != "chunk abc: not found in the repository" {
		t.Errorf("%v", ne)
	}
	re := &ReadError{Chunk: Chunk{Off: 5}, Err: ce}
	if !errors.Is(re, ErrCorrupt) || !strings.HasPrefix(re.Error(), "chunk at 5: packs/") {
		t.Errorf("%v", re)
	}
}

// TestKeyedBlake3 compares the walk over BLAKE3's tree with the library's own, at every length around the borders of its blocks,
// chunks and groups, and at random ones.
func TestKeyedBlake3(t *testing.T) {
	key := secret{7}.derive(contextNode)
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	lengths := []int{0, len(data)}
	for _, border := range []int{64, 1 << 10, 2 << 10, 8 << 10, hashGroup, 2 * hashGroup, 3 * hashGroup, 7 * hashGroup, 8 * hashGroup, 256 << 10} {
		lengths = append(lengths, border-1, border, border+1)
	}
	for range 200 {
		lengths = append(lengths, random.IntN(200<<10))
	}
	h := newKeyedBlake3(key)
	for _, n := range lengths {
		want := blake3.New(32, key[:])
		_, _ = want.Write(data[:n])
		var got ID
		if h.sum((*[32]byte)(&got), data[:n]); !bytes.Equal(got[:], want.Sum(nil)) {
			t.Errorf("%d bytes: got %v, want %x", n, got, want.Sum(nil))
		}
	}
}
