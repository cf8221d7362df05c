package guest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/file"
)

// TestNFS: repositories on the kernel's NFS server, in good times and in bad ones.
func TestNFS(t *testing.T) {
	s := StartNFS(t)
	s.Export("plain", 96, "no_root_squash,fsid=1", "")
	v4, v3 := s.Client("plain", "4.2", ""), s.Client("plain", "3", "")
	mounts := map[string]string{"v4.2": v4, "v3": v3}
	t.Run("contract", func(t *testing.T) { testNFSContract(t, v4) })
	t.Run("a repository's life", func(t *testing.T) { testNFSLife(t, v4) })
	t.Run("two clients", func(t *testing.T) { testNFSClients(t, []string{v4, s.Client("plain", "4.2", ""), v3}) })
	t.Run("killed", func(t *testing.T) { testNFSKilled(t, v4) })
	t.Run("cache", func(t *testing.T) { testNFSCache(t, v4) })
	t.Run("server restarts", func(t *testing.T) { testNFSRestart(t, s, mounts) })
	t.Run("soft mount", func(t *testing.T) { testNFSSoft(t, s) })
	t.Run("stale", func(t *testing.T) { testNFSStale(t, s) })
	t.Run("no space", func(t *testing.T) { testNFSNoSpace(t, s) })
	t.Run("no quota", func(t *testing.T) { testNFSQuota(t, s) })
	t.Run("root squashed", func(t *testing.T) { testNFSSquashed(t, s) })
}

// nfsFolder is a backend in a new folder below dir. A fast one leaves out what makes objects survive a crash.
func nfsFolder(t *testing.T, dir string, fast bool) *file.Backend {
	t.Helper()
	be, err := file.Options{NoSync: fast}.Create(filepath.Join(dir, fmt.Sprintf("be%x", rand.Uint64())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := be.Close(); err != nil {
			t.Error(err)
		}
	})
	return be
}

func testNFSContract(t *testing.T, dir string) {
	backendtest.Suite{Slow: true}.Run(t, func(t *testing.T) backend.Backend { return nfsFolder(t, dir, true) })
}

// testNFSClients: what several clients do to one folder at once, each with caches of its own.
func testNFSClients(t *testing.T, dirs []string) {
	be := make([]backend.Backend, len(dirs))
	first := nfsFolder(t, dirs[0], false)
	be[0] = first
	for i, dir := range dirs[1:] {
		b, err := file.Open(filepath.Join(dir, filepath.Base(first.Location())))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		be[i+1] = b
	}
	for round := range 8 {
		oneWins(t, be, fmt.Sprintf("race/%02d", round))
	}
	for i, writer := range be {
		reader := be[(i+1)%len(be)]
		name, body := fmt.Sprintf("seen/%d", i), []byte("a pack, or a record")
		for range 2 { // asked for before it is there: that it was absent is remembered
			if _, err := reader.Stat(t.Context(), name); !errors.Is(err, backend.ErrNotExist) {
				t.Fatalf("%s: %v", name, err)
			}
			if err := reader.ReadAt(t.Context(), name, nil, 0); !errors.Is(err, backend.ErrNotExist) {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if err := writer.Put(t.Context(), name, body); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Stat(t.Context(), name); err != nil {
			t.Errorf("client %d does not see what another has put: %v", (i+1)%len(be), err)
		}
		if got, err := backend.ReadAll(t.Context(), reader, name); err != nil || !bytes.Equal(got, body) {
			t.Errorf("client %d reads %q, %v", (i+1)%len(be), got, err)
		}
		if names := listed(t, reader, "seen/"); len(names) != i+1 {
			t.Errorf("client %d lists %q after %d puts", (i+1)%len(be), names, i+1)
		}
		gone := name + "-gone"
		if _, err := reader.Stat(t.Context(), gone); !errors.Is(err, backend.ErrNotExist) {
			t.Fatal(err)
		}
		if err := errors.Join(writer.Put(t.Context(), gone, body), reader.Delete(t.Context(), gone)); err != nil {
			t.Fatal(err)
		}
		if names := listed(t, writer, gone); len(names) != 0 {
			t.Errorf("client %d said that it deleted %q", (i+1)%len(be), names)
		}
	}
}

// oneWins has all clients put one name if it is absent, twice each, at once.
func oneWins(t *testing.T, be []backend.Backend, name string) {
	t.Helper()
	results := make([]error, 2*len(be))
	body := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 1000) }
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range results {
		wg.Go(func() {
			<-start
			results[i] = be[i%len(be)].PutIfAbsent(t.Context(), name, body(i))
		})
	}
	close(start)
	wg.Wait()
	var won []int
	for i, err := range results {
		if err == nil {
			won = append(won, i)
		} else if !errors.Is(err, backend.ErrExist) {
			t.Errorf("%s: %v, want ErrExist", name, err)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%s: %d callers won, want one", name, len(won))
	}
	for i, b := range be {
		if got, err := backend.ReadAll(t.Context(), b, name); err != nil || !bytes.Equal(got, body(won[0])) {
			t.Errorf("%s: client %d reads %.10q, %v; %d won", name, i, got, err, won[0])
		}
	}
}

func listed(t *testing.T, be backend.Backend, prefix string) (names []string) {
	t.Helper()
	if err := be.List(t.Context(), prefix, func(o backend.Object) error {
		names = append(names, o.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// nfsRepository makes a repository below dir with packs of 1 MiB, a cache of its own, and an image of so many MiB of noise.
func nfsRepository(t *testing.T, dir string, imageMiB int) (r *repository, image string) {
	t.Helper()
	r = &repository{t, filepath.Join(dir, fmt.Sprintf("repo%x", rand.Uint64()))}
	mustShale(t, "repo", "init", r.URL, "--pack-size", "1", "--compression", "none")
	image = filepath.Join(t.TempDir(), "image")
	write(t, image, imageMiB<<10, rand.Uint64())
	return r, image
}

// mustGiveBack fails the test unless a backup restores to the image.
func (r *repository) mustGiveBack(c *created, image string) {
	r.t.Helper()
	if got, want := r.restored(c), sum(r.t, image); got != want {
		r.t.Errorf("restored: %s, want %s", got, want)
	}
}

func testNFSLife(t *testing.T, dir string) {
	r, image := nfsRepository(t, dir, 4)
	first := r.mustCreate(image)
	change(t, image, 3<<20, 100<<10)
	second := r.mustCreate(image)
	if second.Writer.NewBytes > 1<<20 {
		t.Errorf("the second backup stores %d bytes", second.Writer.NewBytes)
	}
	mustShale(t, "backup", "delete", first.URL)
	mustShale(t, "repo", "prune", r.URL, "--grace", "0", "--max-unused", "0")
	mustShale(t, "repo", "reindex", r.URL)
	mustShale(t, "repo", "check", r.URL, "--data")
	r.mustGiveBack(second, image)
}

// change overwrites a part of a file.
func change(t *testing.T, path string, off int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte("changed "), n/8), off)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// packsIn counts a repository's packs, and what is in their folders besides.
func packsIn(t *testing.T, repo string) (packs, others int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(repo, "packs"), func(path string, d os.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist): // renamed meanwhile, or none yet
			return nil
		case err != nil || d.IsDir():
		case strings.HasPrefix(d.Name(), "."):
			others++
		default:
			packs++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return packs, others
}
