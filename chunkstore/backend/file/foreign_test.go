package file

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestForeignFilesAreIgnored(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "d/real", []byte("1")))
	outside := t.TempDir() + "/secret"
	must(t, os.WriteFile(outside, []byte("secret"), 0o600))
	must(t, os.Symlink(outside, b.root+"/link"))
	must(t, os.Symlink(b.root+"/d", b.root+"/folderlink"))
	must(t, syscall.Mkfifo(b.root+"/fifo", 0o600))
	for _, name := range []string{"README", ".hidden", "d/.nfs0001", "d/x~", "d/ü", ".tmp-x"} {
		must(t, os.WriteFile(b.root+"/"+name, nil, 0o600))
	}
	must(t, os.MkdirAll(b.root+"/Upper/lower", 0o700))
	must(t, os.WriteFile(b.root+"/Upper/lower/x", nil, 0o600))

	for _, prefix := range []string{"", "d", "d/", "d/r"} {
		if err := b.List(t.Context(), prefix, func(o backend.Object) error {
			if o.Name != "d/real" {
				t.Errorf("list %q: %s", prefix, o.Name)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"link", "fifo"} {
		if _, err := b.Stat(t.Context(), name); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("stat %s: got %v, want ErrNotExist", name, err)
		}
		if err := b.ReadAt(t.Context(), name, make([]byte, 1), 0); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("read %s: got %v, want ErrNotExist", name, err)
		}
		if err := b.PutIfAbsent(t.Context(), name, nil); !errors.Is(err, backend.ErrName) {
			t.Errorf("put %s if absent: got %v, want ErrName", name, err)
		}
	}
	must(t, b.Put(t.Context(), "link", []byte("new")))
	if got, err := os.ReadFile(outside); err != nil || string(got) != "secret" {
		t.Errorf("Put wrote through a link: %q, %v", got, err)
	}
}

func TestNameAndFolderClash(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "a/b", []byte("1")))
	for _, name := range []string{"a", "a/b/c", "a/b/c/d"} {
		if err := b.Put(t.Context(), name, nil); !errors.Is(err, backend.ErrName) {
			t.Errorf("put %s: got %v, want ErrName", name, err)
		}
		if err := b.PutIfAbsent(t.Context(), name, nil); !errors.Is(err, backend.ErrName) {
			t.Errorf("put %s if absent: got %v, want ErrName", name, err)
		}
	}
	mustHold(t, b, "a/b", "1")
	mustHaveNoTemporaries(t, b)
}

func TestRemoveStale(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "d/e/real", []byte("1")))
	old := time.Now().Add(-25 * time.Hour)
	for name, stale := range map[string]bool{
		".tmp-old": true, "d/e/.tmp-old": true, "d/e/.tmp-new": false, ".other-old": true, "d/e/real": true,
	} {
		path := b.root + "/" + name
		if name != "d/e/real" {
			must(t, os.WriteFile(path, []byte("12345"), 0o600))
		}
		if stale {
			must(t, os.Chtimes(path, old, old))
		}
	}
	n, bytes, err := b.RemoveStale(t.Context(), backend.StaleAge)
	if err != nil || n != 2 || bytes != 10 {
		t.Errorf("removed %d of %d bytes, %v, want 2 of 10", n, bytes, err)
	}
	for name, want := range map[string]bool{
		".tmp-old": false, "d/e/.tmp-old": false, "d/e/.tmp-new": true, ".other-old": true, "d/e/real": true,
	} {
		if _, err := os.Lstat(b.root + "/" + name); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %t", name, err, want)
		}
	}
}

// What an NFS client that died kept of deleted files goes too: by when it was renamed, not by when it was written.
func TestRemoveStaleSillyFiles(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "d/real", nil))
	silly := []string{"d/.nfs000000000000123400000056", ".nfsabcdef01"}
	others := []string{"d/.nfs", "d/.nfs0001", "d/.nfs00000000x", "d/.nfsroot-notes"}
	long := time.Now().Add(-1000 * time.Hour)
	for _, name := range append(slices.Clone(silly), others...) {
		must(t, os.WriteFile(b.root+"/"+name, []byte("123"), 0o600))
		must(t, os.Chtimes(b.root+"/"+name, long, long))
	}
	if n, _, err := b.RemoveStale(t.Context(), backend.StaleAge); err != nil || n != 0 {
		t.Errorf("removed %d, %v, want none: they were renamed just now", n, err)
	}
	if n, bytes, err := b.RemoveStale(t.Context(), -time.Hour); err != nil || n != len(silly) || bytes != int64(3*len(silly)) {
		t.Errorf("removed %d of %d bytes, %v, want %d", n, bytes, err, len(silly))
	}
	for _, name := range append(others, "d/real") {
		if _, err := os.Lstat(b.root + "/" + name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range silly {
		if _, err := os.Lstat(b.root + "/" + name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	for _, c := range []struct{ root, folder, file os.FileMode }{
		{0o700, 0o700, 0o600},
		{0o755, 0o750, 0o640},
		{0o770, 0o770, 0o660},
		{0o777, 0o770, 0o660},
		{0o770 | os.ModeSetgid, 0o770 | os.ModeSetgid, 0o660},
	} {
		dir := filepath.Join(t.TempDir(), "repo")
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.Chmod(dir, c.root))
		b, err := Options{NoSync: true}.Create(dir)
		must(t, err)
		must(t, b.Put(t.Context(), "a/b/c", nil))
		must(t, b.PutIfAbsent(t.Context(), "a/d", nil))
		for name, want := range map[string]os.FileMode{"a": c.folder, "a/b": c.folder, "a/b/c": c.file, "a/d": c.file} {
			info, err := os.Stat(b.root + "/" + name)
			must(t, err)
			if got := info.Mode() & (os.ModePerm | os.ModeSetgid); got != want {
				t.Errorf("root %v: %s has %v, want %v", c.root, name, got, want)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	for name, open := range map[string]func() (*Backend, error){
		"missing folder": func() (*Backend, error) { return Open(dir + "/missing") },
		"missing parent": func() (*Backend, error) { return Create(dir + "/missing/child") },
		"file":           func() (*Backend, error) { return Open(dir + "/file") },
		"create on file": func() (*Backend, error) { return Create(dir + "/file") },
		"bad option":     func() (*Backend, error) { return Options{OpenFiles: -1}.Open(dir) },
	} {
		if _, err := open(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCreateKeepsWhatIsThere(t *testing.T) {
	b := create(t, Options{NoSync: true})
	must(t, b.Put(t.Context(), "x", []byte("1")))
	again, err := Create(b.Location())
	must(t, err)
	mustHold(t, again, "x", "1")
}
