package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shalebackup/shale/e2e/faultproxy"
)

// A local repository is synced to a bucket over a network that cuts every connection after some bytes, with locks, and from there
// to another folder: every copy is whole, and what is locked stays.
func TestS3Sync(t *testing.T) {
	r := lockedRemote(t, false)
	local, home, target := filepath.Join(r.cache, "local"), filepath.Join(r.cache, "home"), filepath.Join(r.cache, "restored")
	r.must(t, "repo", "init", local)
	r.must(t, "repo", "init", home, "--compression", "s2")
	image := make([]byte, 6<<20)
	if _, err := rand.Read(image); err != nil {
		t.Fatal(err)
	}
	images := map[string][]byte{} // by what follows the ? in a backup's URL
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		image[n<<20] ^= 1
		file := filepath.Join(r.cache, "image.raw")
		if err := os.WriteFile(file, image, 0o600); err != nil {
			t.Fatal(err)
		}
		url := r.must(t, "backup", "create", file, "--dest", local, "--volume", "vol")
		_, id, _ := strings.Cut(strings.TrimSpace(url), "?")
		images[id] = bytes.Clone(image)
	}

	r.proxy.SetFaults(func(n int) faultproxy.Fault { return faultproxy.Fault{CutUp: 1500 << 10, Busy: n%7 == 3} })
	for try := 0; ; try++ {
		_, stderr, code := r.run(t, "repo", "sync", local, r.url, "--lock-for", "1d")
		if code == 0 {
			break
		}
		if code != 1 || try == 20 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
	}
	if s := r.proxy.Stats(); s.Busy == 0 {
		t.Errorf("too few faults to show anything: %+v", s)
	}
	r.proxy.SetFaults(nil)
	r.must(t, "repo", "check", r.url, "--data")
	var answer struct{ Existed int }
	if err := json.Unmarshal([]byte(r.must(t, "repo", "sync", local, r.url, "--json")), &answer); err != nil || answer.Existed != 3 {
		t.Errorf("synced again: %+v, %v", answer, err)
	}
	r.must(t, "repo", "sync", r.url, home)
	for id, image := range images {
		for _, repo := range []string{r.url, home} {
			r.must(t, "backup", "restore", repo+"?"+id, target, "--overwrite")
			if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, image) {
				t.Errorf("%s?%s holds other bytes, %v", repo, id, err)
			}
		}
		if _, stderr, code := r.run(t, "backup", "delete", r.url+"?"+id); code != 1 || !strings.Contains(stderr, "locked until") {
			t.Errorf("delete: exit code %d: %s", code, stderr)
		}
		r.must(t, "backup", "delete", home+"?"+id)
	}
}
