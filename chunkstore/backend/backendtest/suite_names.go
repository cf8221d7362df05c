package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
)

func testReadRange(t *testing.T, be backend.Backend) {
	want := Content("range", 10000)
	mustPut(t, be, "r/range", want)
	for _, c := range []struct{ off, n int }{{0, 0}, {0, 1}, {0, 10000}, {1, 4095}, {4096, 4096}, {9999, 1}, {10000, 0}, {5000, 0}} {
		p := make([]byte, c.n)
		if err := be.ReadAt(t.Context(), "r/range", p, int64(c.off)); err != nil || !bytes.Equal(p, want[c.off:c.off+c.n]) {
			t.Fatalf("%d bytes at %d: %v, or other bytes", c.n, c.off, err)
		}
	}
}

func testReadShort(t *testing.T, be backend.Backend) {
	mustPut(t, be, "r/short", Content("short", 100))
	for _, c := range []struct {
		off int64
		n   int
	}{{0, 101}, {99, 2}, {100, 1}, {101, 0}, {1000, 5}, {math.MaxInt64, 1}, {math.MaxInt64 - 1, 5}} {
		if err := be.ReadAt(t.Context(), "r/short", make([]byte, c.n), c.off); !errors.Is(err, backend.ErrShort) {
			t.Fatalf("%d bytes at %d of 100: got %v, want ErrShort", c.n, c.off, err)
		}
	}
	for _, off := range []int64{-1, math.MinInt64} {
		if err := be.ReadAt(t.Context(), "r/short", make([]byte, 1), off); err == nil {
			t.Fatalf("read at %d: no error", off)
		}
	}
}

func testNames(t *testing.T, be backend.Backend) {
	mustPut(t, be, "ok", []byte("x"))
	for _, name := range []string{
		"", "/", "/ok", "ok/", "a//b", ".", "..", "../ok", "a/../ok", "./ok", ".hidden", "a/.tmp-b", "A", "ä", "a b", "a\x00b", "a\\b", "a\n",
		strings.Repeat("a", 201), strings.Repeat("ab/", 171),
	} {
		_, statErr := be.Stat(t.Context(), name)
		for verb, err := range map[string]error{
			"put":           be.Put(t.Context(), name, []byte("y")),
			"put if absent": be.PutIfAbsent(t.Context(), name, []byte("y")),
			"read":          be.ReadAt(t.Context(), name, make([]byte, 1), 0),
			"delete":        be.Delete(t.Context(), name),
			"stat":          statErr,
		} {
			if !errors.Is(err, backend.ErrName) {
				t.Errorf("%s %q: got %v, want ErrName", verb, name, err)
			}
		}
	}
	mustList(t, be, "", []string{"ok"})
}

func testLongNames(t *testing.T, be backend.Backend) {
	segment := strings.Repeat("s", 200)
	names := []string{segment, "f/" + segment + "/" + segment + "/" + strings.Repeat("t", 108)}
	if n := len(names[1]); n != 512 {
		t.Fatalf("the long name has %d bytes", n)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := be.PutIfAbsent(t.Context(), name, []byte(name)); err != nil {
			t.Fatalf("put a name of %d bytes: %v", len(name), err)
		}
		mustHold(t, be, name, []byte(name))
	}
	mustList(t, be, "", names)
	mustList(t, be, names[0][:300], names[:1])
}

// orderNames are chosen for '-' < '.' < '/' < '0': a folder sorts by what is in it, not by its own name.
var orderNames = []string{
	"a", "a-", "a-b", "a.b", "b-/c", "b.c/d", "b/a", "b/a-", "b/a.", "b/b/c", "b/b0", "b0", "b0/x", "bb/0/1", "c/1", "c/10", "c/2", "c_", "d/d/d/d/d",
}

// putOrderNames stores them in another order, leaving out those that clash with a folder, and returns them sorted.
func putOrderNames(t *testing.T, be backend.Backend) []string {
	t.Helper()
	var names []string
	for _, name := range orderNames {
		if !slices.ContainsFunc(orderNames, func(o string) bool { return strings.HasPrefix(o, name+"/") }) {
			names = append(names, name)
		}
	}
	for i := range names {
		name := names[(i*7+3)%len(names)]
		mustPut(t, be, name, []byte(name))
	}
	slices.Sort(names)
	return names
}

func testListOrder(t *testing.T, be backend.Backend) {
	names := putOrderNames(t, be)
	mustList(t, be, "", names)
	for _, o := range list(t, be, "") {
		if o.Size != int64(len(o.Name)) || o.ModTime.IsZero() {
			t.Errorf("%+v: want %d bytes and a time", o, len(o.Name))
		}
	}
}

func testListPrefix(t *testing.T, be backend.Backend) {
	names := putOrderNames(t, be)
	prefixes := []string{"/", "//", ".", "..", "../", "./", "a/../", "A", "\x00", "\xff", strings.Repeat("a", 600), "b//", "b/b//"}
	for _, name := range names {
		for n := range len(name) + 1 {
			prefixes = append(prefixes, name[:n])
		}
		prefixes = append(prefixes, name+"/", name+"x")
	}
	for _, prefix := range prefixes {
		var want []string
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		mustList(t, be, prefix, want)
	}
}

// testListMany goes past the 1000 names that an S3 server gives at a time.
func (s Suite) testListMany(t *testing.T, be backend.Backend) {
	var want []string
	n := s.times(1234)
	for i := range n {
		name := fmt.Sprintf("many/%04d", i*7919%n)
		mustPut(t, be, name, nil)
		want = append(want, name)
	}
	slices.Sort(want)
	mustList(t, be, "many/", want)
	mustList(t, be, "many/001", want[10:20])
}

func testListErrorEnds(t *testing.T, be backend.Backend) {
	putOrderNames(t, be)
	stop := errors.New("enough")
	calls := 0
	err := be.List(t.Context(), "b", func(backend.Object) error {
		if calls++; calls == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || calls != 3 {
		t.Fatalf("got %v after %d calls, want the callback's error after 3", err, calls)
	}
}

func testListCallsBackend(t *testing.T, be backend.Backend) {
	names := putOrderNames(t, be)
	var got []string
	err := be.List(t.Context(), "", func(o backend.Object) error {
		got = append(got, o.Name)
		p := make([]byte, o.Size)
		if err := be.ReadAt(t.Context(), o.Name, p, 0); err != nil || string(p) != o.Name {
			return fmt.Errorf("read %s inside List: got %q, %w", o.Name, p, err)
		}
		return be.Delete(t.Context(), o.Name)
	})
	if err != nil || !slices.Equal(got, names) {
		t.Fatalf("got %q, %v, want %q", got, err, names)
	}
	mustList(t, be, "", nil)
}

func testCancelled(t *testing.T, be backend.Backend) {
	mustPut(t, be, "c/there", []byte("old"))
	ctx := cancelled(t)
	_, statErr := be.Stat(ctx, "c/there")
	for verb, err := range map[string]error{
		"put":           be.Put(ctx, "c/there", []byte("new")),
		"put if absent": be.PutIfAbsent(ctx, "c/new", []byte("new")),
		"read":          be.ReadAt(ctx, "c/there", make([]byte, 1), 0),
		"list":          be.List(ctx, "", func(o backend.Object) error { return fmt.Errorf("called for %s", o.Name) }),
		"delete":        be.Delete(ctx, "c/there"),
		"stat":          statErr,
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want context.Canceled", verb, err)
		}
	}
	mustHold(t, be, "c/there", []byte("old"))
	mustList(t, be, "", []string{"c/there"})
}

func testCancelledList(t *testing.T, be backend.Backend) {
	putOrderNames(t, be)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	err := be.List(ctx, "", func(backend.Object) error {
		if calls++; calls == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || calls != 2 {
		t.Fatalf("got %v after %d calls, want context.Canceled after 2", err, calls)
	}
}

func mustList(t *testing.T, be backend.Backend, prefix string, want []string) {
	t.Helper()
	var got []string
	for _, o := range list(t, be, prefix) {
		got = append(got, o.Name)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("list %q:\n got %q\nwant %q", prefix, got, want)
	}
}
