package file

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// journal notes the calls that make an object durable and visible, in their order, with paths below the root.
type journal struct {
	root   string
	calls  []string
	failAt string // the call that answers EIO
}

func record(b *Backend) *journal {
	j := &journal{root: b.root}
	b.sys.sync = func(f *os.File) error { return j.note(f.Sync, "sync", f.Name()) }
	b.sys.link = func(from, to string) error {
		return j.note(func() error { return os.Link(from, to) }, "link", from, to)
	}
	b.sys.rename = func(from, to string) error {
		return j.note(func() error { return os.Rename(from, to) }, "rename", from, to)
	}
	return j
}

func (j *journal) note(call func() error, verb string, paths ...string) error {
	for _, path := range paths {
		short := strings.TrimPrefix(strings.TrimPrefix(path, j.root), "/")
		if i := strings.Index(short, tempPrefix); i >= 0 {
			short = short[:i] + "TMP"
		}
		verb += " " + fmt.Sprintf("%q", short)
	}
	j.calls = append(j.calls, verb)
	if verb == j.failAt {
		return syscall.EIO
	}
	return call()
}

// take returns what was noted since the last call of it.
func (j *journal) take() []string {
	calls := j.calls
	j.calls = nil
	return calls
}

func TestOrderOfSyncs(t *testing.T) {
	b := create(t, Options{})
	j := record(b)
	for _, step := range []struct {
		what string
		call func() error
		want []string
	}{
		{
			"Put into new folders", func() error { return b.Put(t.Context(), "a/b/c", []byte("1")) },
			[]string{`sync ""`, `sync "a"`, `sync "a/b/TMP"`, `rename "a/b/TMP" "a/b/c"`, `sync "a/b"`},
		},
		{
			"Put into known folders", func() error { return b.Put(t.Context(), "a/b/d", nil) },
			[]string{`sync "a/b/TMP"`, `rename "a/b/TMP" "a/b/d"`, `sync "a/b"`},
		},
		{
			"PutIfAbsent", func() error { return b.PutIfAbsent(t.Context(), "a/b/e", nil) },
			[]string{`sync "a/b/TMP"`, `link "a/b/TMP" "a/b/e"`, `sync "a/b"`},
		},
		{ // whoever put it may have died before its last step
			"PutIfAbsent of what is there", func() error {
				if err := b.PutIfAbsent(t.Context(), "a/b/e", nil); !errors.Is(err, backend.ErrExist) {
					return fmt.Errorf("got %w, want ErrExist", err)
				}
				return nil
			},
			[]string{`sync "a/b"`},
		},
		{"Put at the root", func() error { return b.Put(t.Context(), "x", nil) }, []string{`sync "TMP"`, `rename "TMP" "x"`, `sync ""`}},
		{"Delete", func() error { return b.Delete(t.Context(), "a/b/c") }, []string{`sync "a/b"`}},
		{"Delete of nothing", func() error { return b.Delete(t.Context(), "a/b/c") }, nil},
	} {
		if err := step.call(); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
		if got := j.take(); !slices.Equal(got, step.want) {
			t.Errorf("%s:\n got %q\nwant %q", step.what, got, step.want)
		}
	}
	// Another process made the folders and died: they may not be durable.
	other, err := Open(b.Location())
	must(t, err)
	j = record(other)
	must(t, other.Put(t.Context(), "a/b/f", nil))
	if got := j.take(); !slices.Equal(got[:2], []string{`sync ""`, `sync "a"`}) {
		t.Errorf("first Put into another's folder: %q", got)
	}
}

// No call that fails on the way to an object may leave it visible, but for the last, after which it is whole.
func TestFailingDisk(t *testing.T) {
	for _, c := range []struct {
		failAt  string
		visible bool
	}{
		{`sync ""`, false},
		{`sync "d/TMP"`, false},
		{`rename "d/TMP" "d/x"`, false},
		{`link "d/TMP" "d/x"`, false},
		{`sync "d"`, true},
	} {
		for _, exclusive := range []bool{false, true} {
			b := create(t, Options{})
			j := record(b)
			j.failAt = c.failAt
			put := b.Put
			if exclusive {
				put = b.PutIfAbsent
			}
			err := put(t.Context(), "d/x", []byte("whole"))
			if !slices.Contains(j.calls, c.failAt) {
				if exclusive == strings.HasPrefix(c.failAt, "link") || err != nil {
					t.Errorf("%s never happened: %v, %q", c.failAt, err, j.calls)
				}
				continue // a rename in PutIfAbsent, a link in Put
			}
			if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "d/x") {
				t.Errorf("%s: got %v, want EIO and the name", c.failAt, err)
			}
			if got := len(listAll(t, b)) == 1; got != c.visible {
				t.Errorf("%s: visible %t, want %t", c.failAt, got, c.visible)
			}
			if c.visible {
				mustHold(t, b, "d/x", "whole")
			}
			mustHaveNoTemporaries(t, b)
		}
	}
}
