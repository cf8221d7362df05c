package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend/file"
)

// running is a shale that was started and not yet waited for.
type running struct {
	*exec.Cmd
	out bytes.Buffer
}

// startCreate starts a backup, at so many bytes a second that the test can do something meanwhile.
func (r *repository) startCreate(image, rate string, args ...string) *running {
	r.t.Helper()
	c := &running{Cmd: shaleCommand(r.t, append([]string{"backup", "create", image, "--dest", r.URL, "--volume", "vol", "--limit-upload", rate}, args...)...)}
	c.Stdout, c.Stderr = &c.out, &c.out
	if err := c.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = c.Process.Kill() // it has ended already, unless the test failed
		_ = c.Wait()
		if r.t.Failed() {
			r.t.Logf("what was said by %v: %s", c.Args, c.out.String())
		}
	})
	return c
}

// midway returns when a few of the packs are stored.
func (r *repository) midway() {
	r.t.Helper()
	eventually(r.t, "2 packs are stored", func() bool {
		n, _ := packsIn(r.t, r.URL)
		return n >= 2
	})
}

// mustTakeOver backs up again and fails the test unless that takes over what an interrupted backup had stored.
func (r *repository) mustTakeOver(image string) *created {
	r.t.Helper()
	c := r.mustCreate(image)
	if c.Writer.Adopted == 0 {
		r.t.Errorf("nothing of the interrupted backup was taken over: %+v", c.Writer)
	}
	r.mustGiveBack(c, image)
	return c
}

// mustSay fails the test unless text has every one of the words.
func mustSay(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in %q", w, text)
		}
	}
}

// testNFSKilled: the remains of a backup that was killed are no objects, do no harm, and are removed in time.
func testNFSKilled(t *testing.T, dir string) {
	r, image := nfsRepository(t, dir, 4)
	c := r.startCreate(image, "1M")
	r.midway()
	eventually(t, "a pack is being written", func() bool {
		_, others := packsIn(t, r.URL)
		return others > 0
	})
	crash(t, c.Cmd)
	if _, others := packsIn(t, r.URL); others == 0 {
		t.Fatal("killed too late to test anything: no temporary is left")
	}
	mustShale(t, "repo", "check", r.URL, "--data")
	r.mustTakeOver(image)

	// A file that is deleted while it is open stays, under a name that the client makes.
	be, err := file.Open(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(r.URL, "packs", "silly")
	write(t, open, 64, 1)
	f, err := os.Open(open)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(open); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(r.URL, "packs", ".nfs0000000000000abc00000001") // its client died
	write(t, dead, 64, 1)
	if _, others := packsIn(t, r.URL); others < 3 {
		t.Errorf("%d remains, want a temporary and two .nfs files", others)
	}
	mustShale(t, "repo", "check", r.URL)
	mustShale(t, "repo", "prune", r.URL)
	if _, others := packsIn(t, r.URL); others < 3 {
		t.Errorf("prune removed what is younger than a day: %d remains", others)
	}
	removed, _, err := be.RemoveStale(t.Context(), 0)
	if err != nil || removed < 2 {
		t.Errorf("%d stale files removed, %v", removed, err)
	}
	if _, others := packsIn(t, r.URL); others != 1 {
		t.Errorf("%d remains, want the one that is open here", others)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, others := packsIn(t, r.URL); others != 0 {
		t.Errorf("%d remains after the last close", others)
	}
}

// testNFSCache: the cache may be on NFS, as users' homes are. It is said that it had better not be.
func testNFSCache(t *testing.T, dir string) {
	r, image := nfsRepository(t, t.TempDir(), 4)
	cache := filepath.Join(dir, "cache")
	c := r.startCreate(image, "1M", "--cache-dir", cache)
	r.midway()
	crash(t, c.Cmd)
	out, notes, err := shale(t, "backup", "create", image, "--dest", r.URL, "--volume", "vol", "--cache-dir", cache)
	if err != nil {
		t.Fatal(err)
	}
	mustSay(t, notes, "took over", "cache folder "+cache+" is on NFS", "--cache-dir")
	r.mustGiveBack(&created{URL: strings.TrimSpace(out)}, image)
}

// testNFSRestart: behind hard mounts a backup waits for its server, and succeeds.
func testNFSRestart(t *testing.T, s *NFS, mounts map[string]string) {
	backups := map[*repository]*running{}
	images := map[*repository]string{}
	for _, dir := range mounts {
		r, image := nfsRepository(t, dir, 4)
		images[r], backups[r] = image, r.startCreate(image, "1M")
	}
	for r := range backups {
		r.midway()
	}
	s.Down()
	time.Sleep(time.Second)
	for r, c := range backups {
		if c.ProcessState != nil {
			t.Fatalf("%s ended before the server was down: too early to test anything", r.URL)
		}
	}
	s.Up()
	for r, c := range backups {
		if err := c.Wait(); err != nil {
			t.Errorf("%s: %v: %s", r.URL, err, c.out.String())
			continue
		}
		out := strings.TrimSpace(c.out.String())
		r.mustGiveBack(&created{URL: out[strings.LastIndexByte(out, '\n')+1:]}, images[r])
	}
}

// testNFSSoft: behind a soft mount it fails when the server is away too long, says so, and leaves nothing half-written.
func testNFSSoft(t *testing.T, s *NFS) {
	r, image := nfsRepository(t, s.Client("plain", "3", "soft,timeo=5,retrans=1"), 4)
	c := r.startCreate(image, "1M")
	r.midway()
	s.Down()
	err := c.Wait()
	s.Up()
	if err == nil {
		t.Fatal("the backup ended before the server was down: too late to test anything")
	}
	mustSay(t, c.out.String(), r.URL, "soft", "hard")
	mustShale(t, "repo", "check", r.URL, "--data")
	r.mustTakeOver(image)
}

// testNFSStale: another file system comes to lie where the export was. Handles of the old one are stale until the client mounts anew.
func testNFSStale(t *testing.T, s *NFS) {
	exported := s.Export("swapped", 32, "no_root_squash,fsid=2", "")
	served := filepath.Join(exported, "served")
	s.must(os.Mkdir(served, 0o700))
	mount := s.Client("swapped/served", "3", "")
	r, image := nfsRepository(t, mount, 2)
	c := r.mustCreate(image)
	be, err := file.Open(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer be.Close()
	if err := be.ReadAt(t.Context(), "config", make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}

	old := strings.Fields(Run(t, "findmnt", "-no", "SOURCE", exported))[0]
	s.Down()
	Run(t, "umount", exported)
	s.Swap("swapped", Disk(t, 16), "")
	s.must(os.Mkdir(served, 0o700))
	s.Up()
	_, _, err = shale(t, "repo", "stats", r.URL)
	mustSay(t, fmt.Sprint(err), "stale", "umount", "mount it again", r.URL)
	if err := be.ReadAt(t.Context(), "config", make([]byte, 1), 0); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a read through an open file: %v, want ESTALE", err)
	}
	if err := be.Put(t.Context(), "x/y", nil); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a put: %v, want ESTALE", err)
	}

	s.Down()
	Run(t, "umount", exported)
	Run(t, "mount", "-o", "noatime", old, exported)
	s.Up()
	Run(t, "umount", "-l", mount) // a process may have files open there
	s.mountAt(mount, "swapped/served", "3", "")
	if err := be.ReadAt(t.Context(), "config", make([]byte, 1), 0); err != nil {
		t.Errorf("the same process, after the mount: %v", err)
	}
	r.mustGiveBack(c, image)

	// A folder that goes away on the server, below an open backend, is made again.
	if err := be.Put(t.Context(), "a/b/c", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(served, filepath.Base(r.URL), "a")); err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), "a/b/c", []byte("again")); err != nil {
		t.Errorf("put into a folder that was removed on the server: %v", err)
	}
	if err := be.ReadAt(t.Context(), "a/b/c", make([]byte, 5), 0); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(served, filepath.Base(r.URL))); err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), "a/b/c", nil); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESTALE) {
		t.Errorf("put into a repository that was removed on the server: %v", err)
	}
}

// noRoom has a backup fail for want of room, makes room, and has the next one succeed with what arrived.
func noRoom(t *testing.T, r *repository, image string, makeRoom func(), words ...string) {
	t.Helper()
	_, _, err := shale(t, "backup", "create", image, "--dest", r.URL, "--volume", "vol")
	if err == nil {
		t.Fatal("there was room enough: nothing to test")
	}
	mustSay(t, err.Error(), append(words, "Make room in "+r.URL, "what was stored is kept")...)
	eventually(t, "no temporary is left that takes room", func() bool { // the client may be at removing it
		_, others := packsIn(t, r.URL)
		return others == 0
	})
	mustShale(t, "repo", "check", r.URL, "--data") // nothing half-written
	makeRoom()
	r.mustTakeOver(image)
}

func testNFSNoSpace(t *testing.T, s *NFS) {
	exported := s.Export("small", 20, "no_root_squash,fsid=3", "")
	filler := filepath.Join(exported, "filler")
	r, image := nfsRepository(t, s.Client("small", "4.2", ""), 6)
	var st syscall.Statfs_t
	s.must(syscall.Statfs(exported, &st))
	write(t, filler, int(st.Bfree)*int(st.Bsize)>>10-4<<10, 1) // which leaves 4 MiB
	noRoom(t, r, image, func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		Run(t, "sync", "-f", exported)
	}, "no space left on device")
}

// testNFSQuota: the server maps everybody to nobody, who has a quota. A client learns of it at fsync or close.
func testNFSQuota(t *testing.T, s *NFS) {
	exported := s.Export("quota", 32, "all_squash,fsid=4", "usrquota")
	if err := os.Chown(exported, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	limit := func(mib int) {
		Run(t, "xfs_quota", "-x", "-f", "-c", fmt.Sprintf("limit -u bhard=%dm 65534", mib), exported)
	}
	limit(4)
	r, image := nfsRepository(t, s.Client("quota", "3", ""), 6)
	noRoom(t, r, image, func() { limit(20) }, "quota")
}

// testNFSSquashed: root is nobody on the server, which may write where nobody may.
func testNFSSquashed(t *testing.T, s *NFS) {
	exported := s.Export("squashed", 16, "root_squash,fsid=5", "")
	mount := s.Client("squashed", "4.2", "")
	_, _, err := shale(t, "repo", "init", filepath.Join(mount, "repo"))
	mustSay(t, fmt.Sprint(err), "permission denied", "root_squash")
	dir := filepath.Join(exported, "shared")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534), os.Chmod(dir, 0o2770)); err != nil {
		t.Fatal(err)
	}
	r, image := nfsRepository(t, filepath.Join(mount, "shared"), 2)
	r.mustGiveBack(r.mustCreate(image), image)
}
