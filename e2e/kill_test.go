package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/file"
)

const (
	killImageBytes = 6 << 20
	killRepoRounds = 20 // rounds with one repository: what is checked after each must not grow without end
	killTimeout    = time.Minute
)

// A shale that is killed at whatever moment of a backup, a restore or a check leaves a repository in which every listed backup is whole,
// and the next command does its work.
//
//	SHALE_KILL_ROUNDS=1000 go test ./e2e -run TestKill -timeout 1h -v
//	SHALE_KILL_SEED=42     the same images, commands and delays again
func TestKill(t *testing.T) {
	rounds, seed := envInt(t, "SHALE_KILL_ROUNDS", 60), envInt(t, "SHALE_KILL_SEED", int(time.Now().UnixNano()))
	if testing.Short() {
		rounds = min(rounds, 10)
	}
	t.Logf("SHALE_KILL_ROUNDS=%d SHALE_KILL_SEED=%d", rounds, seed)
	k := &killer{
		rng: rand.New(rand.NewPCG(uint64(seed), 3)), shale: buildShale(t), landed: map[string]int{},
		took: map[string]time.Duration{"create": 100 * time.Millisecond, "restore": 100 * time.Millisecond, "check": 50 * time.Millisecond},
	}
	for i := range rounds {
		if i%killRepoRounds == 0 {
			k.begin(t)
		}
		k.round(t)
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
	for _, what := range slices.Sorted(keys(k.landed)) {
		t.Logf("%5d %s", k.landed[what], what)
	}
	t.Logf("%d packs of killed backups were taken over", k.adopted)
	if rounds >= 1000 { // in fewer, chance may pass a phase by
		for _, phase := range killPhases {
			if k.landed["create: "+phase] == 0 {
				t.Errorf("no kill landed where a backup had %s", phase)
			}
		}
		if k.adopted == 0 {
			t.Error("no backup took over packs of a killed one")
		}
	}
}

func keys(m map[string]int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func envInt(t *testing.T, name string, or int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return or
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func buildShale(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SHALE_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "shale")
	if out, err := exec.Command("go", "build", "-o", path, "../cmd/shale").CombinedOutput(); err != nil {
		t.Fatalf("build shale: %v\n%s", err, out)
	}
	return path
}

// killer runs commands against a repository, kills some, and knows what the repository must hold.
type killer struct {
	rng     *rand.Rand
	shale   string
	took    map[string]time.Duration // of an undisturbed command, about
	landed  map[string]int           // kills by what had been written
	adopted int

	// of the repository in use
	dir     string
	be      backend.Backend
	image   string
	content [sha256.Size]byte        // of image
	backups map[string]*killedBackup // by ID
}

// killedBackup is a listed backup: what it must be.
type killedBackup struct {
	url     string
	blob    chunkstore.BlobRef
	content [sha256.Size]byte
}

// How far a killed backup came.
var killPhases = []string{"written nothing", "written packs", "written the index", "written its record"}

func (k *killer) path(name string) string { return filepath.Join(k.dir, name) }

// begin makes a repository and an image.
func (k *killer) begin(t *testing.T) {
	t.Helper()
	if k.dir != "" {
		if err := os.RemoveAll(k.dir); err != nil { // a thousand rounds need the room
			t.Fatal(err)
		}
	}
	k.dir = t.TempDir()
	k.image = k.path("image")
	k.backups = map[string]*killedBackup{}
	k.mustRun(t, "repo", "init", k.path("repo"), "--pack-size", "1", "--compression", "s2")
	be, err := file.Open(k.path("repo"))
	if err != nil {
		t.Fatal(err)
	}
	k.be = be
	if err := os.WriteFile(k.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(k.image, killImageBytes); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		k.write(t)
	}
	k.backup(t)
}

// write changes the image in a few places: random bytes, and holes.
func (k *killer) write(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(k.image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 3 {
		p := make([]byte, k.rng.IntN(1<<20)+1)
		if k.rng.IntN(4) > 0 {
			for i := range p {
				p[i] = byte(k.rng.Uint32())
			}
		}
		off := k.rng.Int64N(killImageBytes - int64(len(p)))
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	k.content = sumFile(t, k.image)
}

func sumFile(t *testing.T, path string) (sum [sha256.Size]byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

func (k *killer) command(args ...string) *exec.Cmd {
	cmd := exec.Command(k.shale, append(args, "--quiet", "--cache-dir", k.path("cache"))...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// mustRun runs a command undisturbed.
func (k *killer) mustRun(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := k.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("shale %v: %v\n%s%s", args, err, out, &stderr)
	}
	if args[0] == "backup" || args[1] == "check" { // follow slowly: one slow run does not spoil the delays
		k.took[args[1]] += (time.Since(start) - k.took[args[1]]) / 4
	}
	return out
}

// backup backs the image up, undisturbed, and checks what came out.
func (k *killer) backup(t *testing.T) {
	t.Helper()
	var res struct {
		URL    string
		Backup chunkstore.Backup
		Writer chunkstore.WriterStats
	}
	out := k.mustRun(t, "backup", "create", k.image, "--dest", k.path("repo"), "--volume", "vol", "--json")
	if err := json.Unmarshal(out, &res); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	k.adopted += int(res.Writer.Adopted)
	k.verify(t, res.Backup.ID)
}

// round changes the image, kills a command, looks at what is left, and does the same undisturbed.
func (k *killer) round(t *testing.T) {
	switch n := k.rng.IntN(10); {
	case n < 7:
		k.write(t)
		k.kill(t, "backup", "create", k.image, "--dest", k.path("repo"), "--volume", "vol")
		k.verify(t, "")
		k.backup(t)
	case n < 9:
		k.restore(t)
		k.verify(t, "")
	default:
		k.kill(t, "repo", "check", k.path("repo"), "--data")
		k.verify(t, "")
		k.mustRun(t, "repo", "check", k.path("repo"), "--data")
	}
}

// restore kills a restore to a file that may exist, and repeats it.
func (k *killer) restore(t *testing.T) {
	t.Helper()
	ids := slices.Sorted(func(yield func(string) bool) {
		for id := range k.backups {
			if !yield(id) {
				return
			}
		}
	})
	b := k.backups[ids[k.rng.IntN(len(ids))]]
	target := k.path("target")
	args := []string{"backup", "restore", b.url, target}
	if k.rng.IntN(2) == 0 {
		args = append(args, "--overwrite")
	} else if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	_, err := os.Stat(target)
	existed := err == nil
	k.kill(t, args...)
	if _, err := os.Stat(target); err == nil && !existed {
		if sumFile(t, target) != b.content {
			t.Fatal("a killed restore left a target that is not complete")
		}
		args = append(args, "--overwrite")
	}
	k.mustRun(t, args...)
	if sumFile(t, target) != b.content {
		t.Fatal("the restore after a killed one is not the backup")
	}
	left, err := filepath.Glob(k.path(".*.shale-restore"))
	if err != nil || len(left) > 0 {
		t.Fatalf("left by restores: %v, %v", left, err)
	}
}

// kill starts a command and kills it: after a random time, or when it has written an object of a random kind.
func (k *killer) kill(t *testing.T, args ...string) {
	t.Helper()
	what := args[1]
	before := k.objects(t)
	cmd := k.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	if prefix := []string{"", "", "packs/", "index/", "backups/"}[k.rng.IntN(5)]; prefix != "" && what == "create" {
		k.waitFor(t, prefix, before, done)
	} else {
		time.Sleep(time.Duration(k.rng.Int64N(int64(k.took[what]))))
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	err := <-done
	var exit *exec.ExitError
	switch {
	case err == nil:
		k.landed[what+": ended before"]++
		return
	case !errors.As(err, &exit) || exit.Exited():
		t.Fatalf("shale %v: %v\n%s", args, err, &stderr)
	case what != "create":
		k.landed[what+": at work"]++
		return
	}
	phase := 0
	for _, name := range k.objects(t) {
		if _, ok := slices.BinarySearch(before, name); !ok {
			for i, prefix := range []string{"packs/", "index/", "backups/"} {
				if len(name) > len(prefix) && name[:len(prefix)] == prefix {
					phase = max(phase, i+1)
				}
			}
		}
	}
	k.landed[what+": "+killPhases[phase]]++
}

// waitFor returns soon after the command has written an object with that prefix, or has ended.
func (k *killer) waitFor(t *testing.T, prefix string, before []string, done chan error) {
	t.Helper()
	for start := time.Now(); time.Since(start) < killTimeout; {
		found := false
		err := k.be.List(t.Context(), prefix, func(o backend.Object) error {
			if _, ok := slices.BinarySearch(before, o.Name); !ok {
				found = true
				return io.EOF
			}
			return nil
		})
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			done <- err
			return
		default:
		}
		if found {
			time.Sleep(time.Duration(k.rng.Int64N(int64(3 * time.Millisecond))))
			return
		}
	}
	t.Fatalf("no object %s... after %v", prefix, killTimeout)
}

// objects lists the repository, sorted.
func (k *killer) objects(t *testing.T) (names []string) {
	t.Helper()
	err := k.be.List(t.Context(), "", func(o backend.Object) error {
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// verify checks the whole repository down to the data. Every backup that was listed is listed, with the tree it had; one that is new
// has the bytes of the image. want, where given, must be listed.
func (k *killer) verify(t *testing.T, want string) {
	t.Helper()
	ctx := context.Background()
	r, err := chunkstore.Open(ctx, k.be, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rep, err := r.Check(ctx, chunkstore.CheckOptions{Level: chunkstore.CheckData})
	if err != nil || len(rep.Damage) > 0 {
		t.Fatalf("check: %v, %+v", err, rep)
	}
	list, err := r.ListBackups(ctx, "vol")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, b := range list {
		seen[b.ID] = true
		if known := k.backups[b.ID]; known != nil {
			if b.Blob != known.blob {
				t.Errorf("backup %s was %+v and is %+v", b.ID, known.blob, b.Blob)
			}
			continue
		}
		p := make([]byte, b.Blob.Size)
		if _, err := r.OpenBlob(b.Blob).ReadAt(ctx, p, 0); err != nil {
			t.Errorf("backup %s: %v", b.ID, err)
		} else if sha256.Sum256(p) != k.content {
			t.Errorf("backup %s is not the image", b.ID)
		}
		k.backups[b.ID] = &killedBackup{fmt.Sprintf("%s?backup=%s&volume=vol", k.path("repo"), b.ID), b.Blob, k.content}
	}
	for id := range k.backups {
		if !seen[id] {
			t.Errorf("backup %s is not listed any more", id)
		}
	}
	if want != "" && !seen[want] {
		t.Errorf("backup %s was made and is not listed", want)
	}
}
