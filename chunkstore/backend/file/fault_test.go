package file

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
)

func mustHaveNoTemporaries(t *testing.T, b *Backend) {
	t.Helper()
	err := filepath.WalkDir(b.root, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(path), tempPrefix) {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func mustHold(t *testing.T, b *Backend, name, want string) {
	t.Helper()
	if got, err := backend.ReadAll(t.Context(), b, name); err != nil || string(got) != want {
		t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
	}
}

func noLink(string, string) error { return &os.LinkError{Op: "link", Err: syscall.EPERM} }

func TestContractWithoutLinks(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b := create(t, Options{NoSync: true})
		b.sys.link = noLink
		return b
	})
}

func TestNeitherLinksNorExclusiveRenames(t *testing.T) {
	b := create(t, Options{NoSync: true})
	b.sys.link = noLink
	b.sys.renameNew = func(string, string) error { return syscall.EINVAL }
	err := b.PutIfAbsent(t.Context(), "lock", nil)
	if !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "hard links") {
		t.Errorf("got %v, want an error that speaks of hard links", err)
	}
	if objs := listAll(t, b); len(objs) != 0 {
		t.Errorf("listed %+v, want nothing", objs)
	}
	mustHaveNoTemporaries(t, b)
}

// A server did what it was asked, its answer was lost, and the repeated request fails because it was done already.
func TestLostAnswers(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EEXIST, syscall.ENOENT, syscall.EIO, syscall.ESTALE} {
		after := func(do func(from, to string) error) func(from, to string) error {
			return func(from, to string) error {
				if err := do(from, to); err != nil {
					return err
				}
				return &os.LinkError{Op: "link", Old: from, New: to, Err: errno}
			}
		}
		b := create(t, Options{NoSync: true})
		b.sys.link, b.sys.rename = after(os.Link), after(os.Rename)
		if err := b.PutIfAbsent(t.Context(), "d/once", []byte("one")); err != nil {
			t.Errorf("%v: PutIfAbsent: %v", errno, err)
		}
		if err := b.PutIfAbsent(t.Context(), "d/once", []byte("two")); !errors.Is(err, backend.ErrExist) {
			t.Errorf("%v: second PutIfAbsent: got %v, want ErrExist", errno, err)
		}
		if err := b.Put(t.Context(), "d/put", []byte("one")); err != nil {
			t.Errorf("%v: Put: %v", errno, err)
		}
		mustHold(t, b, "d/once", "one")
		mustHold(t, b, "d/put", "one")
		mustHaveNoTemporaries(t, b)
	}
}

// failing answers err to the first n calls and counts all.
func failing(n int64, err error, calls *atomic.Int64) func(string, int, os.FileMode) (*os.File, error) {
	return func(path string, flag int, mode os.FileMode) (*os.File, error) {
		if calls.Add(1) <= n {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.OpenFile(path, flag, mode)
	}
}

func TestStaleHandlesAreOpenedAgain(t *testing.T) {
	b := create(t, Options{NoSync: true})
	for _, step := range []struct {
		name string
		call func() error
	}{
		{"put", func() error { return b.Put(t.Context(), "a/b/c", []byte("1")) }},
		{"put if absent", func() error { return b.PutIfAbsent(t.Context(), "a/b/d", []byte("2")) }},
		{"read", func() error { return b.ReadAt(t.Context(), "a/b/c", make([]byte, 1), 0) }},
	} {
		var calls atomic.Int64
		b.sys.open = failing(2, syscall.ESTALE, &calls)
		if err := step.call(); err != nil || calls.Load() != 3 {
			t.Errorf("%s: got %v after %d calls, want success at the third", step.name, err, calls.Load())
		}
		b.sys.open = failing(1e9, syscall.ESTALE, &calls)
		b.open.drop("a/b/c")
		b.open.drop("a/b/d")
		if step.name == "put if absent" {
			continue // the object is there: no need to open anything
		}
		if err := step.call(); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("%s: got %v, want ESTALE in the end", step.name, err)
		}
	}
	b.sys.open = os.OpenFile
	mustHold(t, b, "a/b/c", "1")
	mustHold(t, b, "a/b/d", "2")
}

// A name that the client remembers as absent is looked for again.
func TestRememberedAbsence(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "a/b", []byte("1")))
	b.open.drop("a/b")
	var calls atomic.Int64
	b.sys.open = failing(1, syscall.ENOENT, &calls)
	if err := b.ReadAt(t.Context(), "a/b", make([]byte, 1), 0); err != nil || calls.Load() != 2 {
		t.Errorf("got %v after %d calls, want success at the second", err, calls.Load())
	}
	b.open.drop("a/b")
	b.sys.open = failing(1e9, syscall.ENOENT, &calls)
	if err := b.ReadAt(t.Context(), "a/b", make([]byte, 1), 0); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

// A quota, or a server without room, tells as late as at the fsync.
func TestNoRoomAtSync(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EDQUOT, syscall.ENOSPC} {
		b := create(t, Options{})
		must(t, b.Put(t.Context(), "d/old", []byte("old")))
		b.sys.sync = func(f *os.File) error {
			if strings.Contains(f.Name(), tempPrefix) {
				return &os.PathError{Op: "sync", Path: f.Name(), Err: errno}
			}
			return f.Sync()
		}
		for name, put := range map[string]func(context.Context, string, []byte) error{"d/new": b.Put, "d/once": b.PutIfAbsent, "d/old": b.Put} {
			err := put(t.Context(), name, []byte("more"))
			if !errors.Is(err, errno) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: got %v, want %v and the name", name, err, errno)
			}
		}
		if objs := listAll(t, b); len(objs) != 1 {
			t.Errorf("listed %+v, want d/old alone", objs)
		}
		mustHold(t, b, "d/old", "old")
		mustHaveNoTemporaries(t, b)
	}
}

func TestFolderRemovedBehindOurBack(t *testing.T) {
	b := create(t, Options{NoSync: true})
	for range 2 {
		if err := b.Put(t.Context(), "a/b/c", []byte("1")); err != nil {
			t.Fatal(err)
		}
		mustHold(t, b, "a/b/c", "1")
		if err := os.RemoveAll(b.root + "/a"); err != nil {
			t.Fatal(err)
		}
	}
}

// A repository that is not mounted must not be written below its mount point's parent.
func TestRootIsNeverMade(t *testing.T) {
	b := create(t, Options{NoSync: true})
	if err := os.RemoveAll(b.root); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x", "a/x"} {
		if err := b.Put(t.Context(), name, nil); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("put %s: got %v, want a missing folder", name, err)
		}
	}
	if err := b.List(t.Context(), "", func(backend.Object) error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("list: got %v, want a missing folder", err)
	}
	if _, err := os.Stat(b.root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the root is back: %v", err)
	}
}

// countdown is a context that is cancelled at its n-th look.
type countdown struct {
	context.Context
	left atomic.Int64
}

func (c *countdown) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

func TestCancelledInTheMiddle(t *testing.T) {
	b := create(t, Options{NoSync: true})
	large := backendtest.Content("large", 3*ioPiece+5)
	looks := 0
	for ; ; looks++ {
		ctx := &countdown{Context: t.Context()}
		ctx.left.Store(int64(looks))
		err := b.Put(ctx, "large", large)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled at look %d: got %v", looks, err)
		}
		if objs := listAll(t, b); len(objs) != 0 {
			t.Fatalf("cancelled at look %d: listed %+v", looks, objs)
		}
		mustHaveNoTemporaries(t, b)
	}
	if looks < 4 {
		t.Errorf("Put of four pieces looked at its context %d times", looks)
	}
	mustHold(t, b, "large", string(large))
	ctx := &countdown{Context: t.Context()}
	ctx.left.Store(2)
	if err := b.ReadAt(ctx, "large", make([]byte, len(large)), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read: got %v, want context.Canceled", err)
	}
}
