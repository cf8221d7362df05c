package file

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// descriptors counts this process's open files below the repository.
func descriptors(t *testing.T, b *Backend) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	n := 0
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(target, b.root+"/") {
			n++
		}
	}
	return n
}

func TestOpenFilesAreBounded(t *testing.T) {
	b := create(t, Options{NoSync: true, OpenFiles: 3})
	for i := range 10 {
		must(t, b.Put(t.Context(), fmt.Sprint(i), []byte{byte(i)}))
	}
	p := make([]byte, 1)
	for round := range 3 {
		for i := range 10 {
			must(t, b.ReadAt(t.Context(), fmt.Sprint(i), p, 0))
			if p[0] != byte(i) {
				t.Fatalf("object %d: read %d", i, p[0])
			}
			if got, want := descriptors(t, b), min(3, i+1); round == 0 && got != want || got > 3 {
				t.Fatalf("%d files open after object %d of round %d", got, i, round)
			}
		}
	}
	must(t, b.Delete(t.Context(), "9"))
	if got := descriptors(t, b); got != 2 {
		t.Errorf("%d files open after a Delete, want 2", got)
	}
	must(t, b.Put(t.Context(), "8", []byte{1}))
	if got := descriptors(t, b); got != 1 {
		t.Errorf("%d files open after a Put, want 1", got)
	}
	must(t, b.Close())
	if got := descriptors(t, b); got != 0 {
		t.Errorf("%d files open after Close", got)
	}
	must(t, b.ReadAt(t.Context(), "8", p, 0)) // still usable
}

// The file used last stays when another has to go.
func TestLeastRecentlyUsedGoes(t *testing.T) {
	b := create(t, Options{NoSync: true, OpenFiles: 2})
	for _, name := range []string{"a", "b", "c"} {
		must(t, b.Put(t.Context(), name, nil))
	}
	for _, name := range []string{"a", "b", "a", "c"} {
		must(t, b.ReadAt(t.Context(), name, nil, 0))
	}
	for name, want := range map[string]bool{"a": true, "b": false, "c": true} {
		o := b.open.take(name)
		if (o != nil) != want {
			t.Errorf("%s kept open: %t, want %t", name, o != nil, want)
		}
		if o != nil {
			b.open.release(o)
		}
	}
}

// While an object is being replaced no reader keeps its old file: another may have seen the new one.
func TestNoFileIsKeptWhileReplaced(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "x", []byte("old")))
	mustHold(t, b, "x", "old")
	b.sys.rename = func(from, to string) error {
		mustHold(t, b, "x", "old")
		err := os.Rename(from, to)
		mustHold(t, b, "x", "new")
		return err
	}
	must(t, b.Put(t.Context(), "x", []byte("new")))
	mustHold(t, b, "x", "new")
	if o := b.open.take("x"); o == nil {
		t.Error("the new file is not kept")
	} else {
		b.open.release(o)
	}
}

// A file that was opened before a Put ended, and comes to be kept only after it, may be the old one.
func TestOpenedBeforeAReplacement(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "x", []byte("old")))
	b.sys.open = func(path string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(path, flag, mode)
		b.sys.open = os.OpenFile
		if err := b.Put(t.Context(), "x", []byte("new")); err != nil {
			t.Error(err)
		}
		return f, err
	}
	p := make([]byte, 3)
	must(t, b.ReadAt(t.Context(), "x", p, 0)) // old or new, as it ran beside the Put
	must(t, b.ReadAt(t.Context(), "x", p, 0))
	if string(p) != "new" {
		t.Errorf("read %q after the Put, want new", p)
	}
	if got := descriptors(t, b); got != 1 {
		t.Errorf("%d files open, want 1", got)
	}
}

// What another process replaced or deleted is noticed by Stat, and so by ReadAll.
func TestReplacedByAnother(t *testing.T) {
	b := create(t, Options{NoSync: true})
	other, err := Open(b.Location())
	must(t, err)
	for _, want := range []string{"first", "second and longer", "3", "4"} {
		must(t, other.Put(t.Context(), "x", []byte(want)))
		for range 2 {
			mustHold(t, b, "x", want)
		}
	}
	must(t, other.Delete(t.Context(), "x"))
	if _, err := backend.ReadAll(t.Context(), b, "x"); err == nil {
		t.Error("ReadAll of what another deleted: no error")
	}
	if got := descriptors(t, b); got != 0 {
		t.Errorf("%d files open after another's Delete was noticed", got)
	}
}

func TestReadAtAllocatesNothing(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "packs/x", make([]byte, 100)))
	p := make([]byte, 10)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		if err := b.ReadAt(ctx, "packs/x", p, 50); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a read, want none", n)
	}
}
