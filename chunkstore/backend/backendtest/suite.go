package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Run states the contract of package backend as subtests. open returns an empty backend, and a new one at each call; it
// cleans up by t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) { Suite{}.Run(t, open) }

// Suite is Run with options.
type Suite struct {
	// Slow is for places where each call takes milliseconds: what is repeated is repeated a twentieth as often.
	Slow bool
}

// times is how often to do what is best done n times.
func (s Suite) times(n int) int {
	if s.Slow {
		return max(1, n/20)
	}
	return n
}

// Run is the function Run.
func (s Suite) Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, backend.Backend)
	}{
		{"PutGet", testPutGet},
		{"PutReplaces", testPutReplaces},
		{"PutKeepsNoData", testPutKeepsNoData},
		{"PutIfAbsent", testPutIfAbsent},
		{"Empty", testEmpty},
		{"Large", testLarge},
		{"ReadRange", testReadRange},
		{"ReadShort", testReadShort},
		{"Missing", testMissing},
		{"Stat", testStat},
		{"Delete", testDelete},
		{"DeleteThenPut", testDeleteThenPut},
		{"Names", testNames},
		{"LongNames", testLongNames},
		{"ListOrder", testListOrder},
		{"ListPrefix", testListPrefix},
		{"ListMany", s.testListMany},
		{"ListErrorEnds", testListErrorEnds},
		{"ListCallsBackend", testListCallsBackend},
		{"Cancelled", testCancelled},
		{"CancelledList", testCancelledList},
		{"Location", testLocation},
		{"ReplaceUnderReaders", s.testReplaceUnderReaders},
		{"PutIfAbsentRace", s.testPutIfAbsentRace},
		{"ListUnderWrites", testListUnderWrites},
		{"ConcurrentMix", s.testConcurrentMix},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Content returns n bytes that are a pure function of the name, so that a test can tell whose bytes it reads.
func Content(name string, n int) []byte {
	seed := [32]byte{}
	for i := range len(name) {
		seed[i%len(seed)] = seed[i%len(seed)]*31 + name[i]
	}
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
	return p
}

func testPutGet(t *testing.T, be backend.Backend) {
	for _, name := range []string{"config", "packs/data/ab/abcdef", "a-b_c.d/0", "z"} {
		mustPut(t, be, name, Content(name, 1000))
	}
	for _, name := range []string{"config", "packs/data/ab/abcdef", "a-b_c.d/0", "z"} {
		mustHold(t, be, name, Content(name, 1000))
	}
}

func testPutReplaces(t *testing.T, be backend.Backend) {
	for _, n := range []int{100, 5000, 0, 7, 70000} {
		want := Content(fmt.Sprint(n), n)
		mustPut(t, be, "d/replaced", want)
		mustHold(t, be, "d/replaced", want)
	}
	mustList(t, be, "", []string{"d/replaced"})
}

func testPutKeepsNoData(t *testing.T, be backend.Backend) {
	data := Content("kept", 100)
	mustPut(t, be, "put", data)
	if err := be.PutIfAbsent(t.Context(), "absent", data); err != nil {
		t.Fatal(err)
	}
	clear(data)
	mustHold(t, be, "put", Content("kept", 100))
	mustHold(t, be, "absent", Content("kept", 100))
	got, err := backend.ReadAll(t.Context(), be, "put")
	if err != nil {
		t.Fatal(err)
	}
	clear(got)
	mustHold(t, be, "put", Content("kept", 100))
}

func testPutIfAbsent(t *testing.T, be backend.Backend) {
	first, second := Content("first", 300), Content("second", 200)
	if err := be.PutIfAbsent(t.Context(), "locks/prune", first); err != nil {
		t.Fatal(err)
	}
	if err := be.PutIfAbsent(t.Context(), "locks/prune", second); !errors.Is(err, backend.ErrExist) {
		t.Fatalf("second PutIfAbsent: got %v, want ErrExist", err)
	}
	mustHold(t, be, "locks/prune", first)
	mustPut(t, be, "locks/prune", second)
	if err := be.PutIfAbsent(t.Context(), "locks/prune", first); !errors.Is(err, backend.ErrExist) {
		t.Fatalf("PutIfAbsent after Put: got %v, want ErrExist", err)
	}
	mustHold(t, be, "locks/prune", second)
	mustDelete(t, be, "locks/prune")
	if err := be.PutIfAbsent(t.Context(), "locks/prune", first); err != nil {
		t.Fatalf("PutIfAbsent after Delete: %v", err)
	}
	mustHold(t, be, "locks/prune", first)
	mustList(t, be, "", []string{"locks/prune"})
}

func testEmpty(t *testing.T, be backend.Backend) {
	mustPut(t, be, "empty/put", nil)
	if err := be.PutIfAbsent(t.Context(), "empty/absent", []byte{}); err != nil {
		t.Fatal(err)
	}
	mustHold(t, be, "empty/put", nil)
	mustHold(t, be, "empty/absent", nil)
	mustList(t, be, "empty/", []string{"empty/absent", "empty/put"})
	if err := be.ReadAt(t.Context(), "empty/put", make([]byte, 1), 0); !errors.Is(err, backend.ErrShort) {
		t.Fatalf("one byte of an empty object: got %v, want ErrShort", err)
	}
}

// testLarge goes past the sizes at which backends cut objects into parts.
func testLarge(t *testing.T, be backend.Backend) {
	want := Content("large", 20<<20+1)
	mustPut(t, be, "large", want)
	mustHold(t, be, "large", want)
	p := make([]byte, 3)
	if err := be.ReadAt(t.Context(), "large", p, 20<<20-2); err != nil || !bytes.Equal(p, want[20<<20-2:]) {
		t.Fatalf("last bytes: got %x, %v, want %x", p, err, want[20<<20-2:])
	}
}

func testStat(t *testing.T, be backend.Backend) {
	mustPut(t, be, "s/one", make([]byte, 123))
	obj, err := be.Stat(t.Context(), "s/one")
	if err != nil || obj.Name != "s/one" || obj.Size != 123 || obj.ModTime.IsZero() {
		t.Fatalf("got %+v, %v, want s/one of 123 bytes with a time", obj, err)
	}
	listed := list(t, be, "s/")
	if len(listed) != 1 || listed[0].Size != 123 || !listed[0].ModTime.Equal(obj.ModTime) {
		t.Fatalf("List and Stat disagree: %+v, %+v", listed, obj)
	}
	mustPut(t, be, "s/one", make([]byte, 7))
	if obj, err = be.Stat(t.Context(), "s/one"); err != nil || obj.Size != 7 {
		t.Fatalf("after replacing: got %+v, %v, want 7 bytes", obj, err)
	}
}

func testDelete(t *testing.T, be backend.Backend) {
	mustPut(t, be, "d/gone", []byte("x"))
	mustPut(t, be, "d/stays", []byte("y"))
	mustHold(t, be, "d/gone", []byte("x")) // so that a backend may have it at hand
	for range 2 {
		mustDelete(t, be, "d/gone")
		mustMiss(t, be, "d/gone")
	}
	mustHold(t, be, "d/stays", []byte("y"))
	mustList(t, be, "", []string{"d/stays"})
	mustDelete(t, be, "never/was/there")
	mustDelete(t, be, "d") // a folder is no object
	mustDelete(t, be, "d/stays/below")
	mustHold(t, be, "d/stays", []byte("y"))
}

func testDeleteThenPut(t *testing.T, be backend.Backend) {
	for i := range 5 {
		want := Content(fmt.Sprint(i), 50+i)
		mustPut(t, be, "again/and", want)
		mustHold(t, be, "again/and", want)
		mustDelete(t, be, "again/and")
		mustMiss(t, be, "again/and")
	}
}

func testMissing(t *testing.T, be backend.Backend) {
	mustMiss(t, be, "missing")
	mustMiss(t, be, "no/such/folder")
	mustList(t, be, "", nil)
	mustList(t, be, "no/such/", nil)
	mustPut(t, be, "is/there", []byte("x"))
	mustMiss(t, be, "is")             // a folder is no object
	mustMiss(t, be, "is/there/below") // an object is no folder
	mustList(t, be, "is/there/", nil)
}

func testLocation(t *testing.T, be backend.Backend) {
	if be.Location() == "" {
		t.Fatal("Location is empty")
	}
}

// mustMiss fails unless the object is absent to Stat, ReadAt and ReadAll alike.
func mustMiss(t *testing.T, be backend.Backend, name string) {
	t.Helper()
	if _, err := be.Stat(t.Context(), name); !errors.Is(err, backend.ErrNotExist) {
		t.Fatalf("stat %s: got %v, want ErrNotExist", name, err)
	}
	for _, n := range []int{0, 1} {
		if err := be.ReadAt(t.Context(), name, make([]byte, n), 0); !errors.Is(err, backend.ErrNotExist) {
			t.Fatalf("read %d bytes of %s: got %v, want ErrNotExist", n, name, err)
		}
	}
	if _, err := backend.ReadAll(t.Context(), be, name); !errors.Is(err, backend.ErrNotExist) {
		t.Fatalf("read all of %s: got %v, want ErrNotExist", name, err)
	}
}

func mustPut(t *testing.T, be backend.Backend, name string, data []byte) {
	t.Helper()
	if err := be.Put(t.Context(), name, data); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func mustDelete(t *testing.T, be backend.Backend, name string) {
	t.Helper()
	if err := be.Delete(t.Context(), name); err != nil {
		t.Fatalf("delete %s: %v", name, err)
	}
}

func mustHold(t *testing.T, be backend.Backend, name string, want []byte) {
	t.Helper()
	got, err := backend.ReadAll(t.Context(), be, name)
	if err != nil {
		t.Fatalf("read all of %s: %v", name, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s holds %d bytes %.16x, want %d bytes %.16x", name, len(got), got, len(want), want)
	}
}

func list(t *testing.T, be backend.Backend, prefix string) []backend.Object {
	t.Helper()
	var objs []backend.Object
	err := be.List(t.Context(), prefix, func(o backend.Object) error {
		objs = append(objs, o)
		return nil
	})
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	return objs
}

// cancelled returns a context that is cancelled already.
func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
