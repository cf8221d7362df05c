package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/engine"
)

func TestInterruptedBeforeTheStart(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(40, 1<<20))
	url := s.create(repo, img, "db")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{
		{"repo", "stats", repo}, {"repo", "check", repo}, {"repo", "reindex", repo}, {"backup", "list", repo},
		{"backup", "create", img, "--dest", repo, "--volume", "db"}, {"backup", "verify", url}, {"backup", "inspect", url},
		{"backup", "restore", url, s.path("out")}, {"backup", "delete", url}, {"backup", "mount", repo, s.dir},
	} {
		got := s.runCtx(ctx, 130, append(args, "--json")...)
		says(t, got.talk, "shale: interrupted")
		says(t, got.out, `"error": "interrupted`)
		if strings.Contains(got.talk, "context canceled") {
			t.Errorf("%v says %q", args, got.talk)
		}
	}
	s.run(0, "backup", "verify", url)
	s.run(2, "backup", "nosuch") // a bad command line stays one
	if got := s.runCtx(ctx, 2, "backup", "nosuch"); strings.Contains(got.talk, "interrupted") {
		t.Errorf("a usage error says %q", got.talk)
	}
}

// interruptWhen runs the command and interrupts it when cond holds; it must not be done by then.
func (s *session) interruptWhen(cond func() bool, args ...string) answer {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for !cond() && ctx.Err() == nil {
			time.Sleep(100 * time.Microsecond)
		}
		cancel()
	}()
	got := s.runCtx(ctx, 130, args...)
	<-watched
	return got
}

// packsNoted says whether a backup under way has stored a pack, and noted it for a later one.
func (s *session) packsNoted() bool {
	notes, _ := filepath.Glob(filepath.Join(s.path("cache"), "*", "journal", "packs-*"))
	for _, name := range notes {
		if st, err := os.Stat(name); err == nil && st.Size() > 0 {
			return true
		}
	}
	return false
}

func TestInterruptedCreate(t *testing.T) {
	s := newSession(t)
	repo := s.init("--pack-size", "1")
	content := noise(41, 48<<20)
	img := s.image("img", content)
	args := []string{"backup", "create", img, "--dest", repo, "--volume", "db"}
	got := s.interruptWhen(s.packsNoted, args...)
	says(t, got.talk, "shale: interrupted: there is no new backup; what was stored is kept, and not stored again next time\n")
	if got.out != "" {
		t.Errorf("an interrupted create prints %q", got.out)
	}
	if out := s.run(0, "backup", "list", repo, "--json").out; out != "[]\n" {
		t.Errorf("an interrupted create left the backup %s", out)
	}
	s.run(0, "repo", "check", repo)

	again := s.run(0, args...)
	says(t, again.talk, "took over ", " pack(s) that an interrupted backup had stored")
	s.run(0, "repo", "check", repo, "--data")
}

func TestInterruptedRestore(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	content := noise(42, 96<<20)
	url := s.create(repo, s.image("img", content), "db")
	l, err := engine.ParseLocation(url)
	if err != nil {
		t.Fatal(err)
	}
	partial := s.path(".out." + l.Backup + ".shale-restore")
	got := s.interruptWhen(func() bool {
		st, err := os.Stat(partial)
		return err == nil && st.Sys().(*syscall.Stat_t).Blocks > 8<<20/512
	}, "backup", "restore", url, s.path("out"))
	says(t, got.talk, "shale: interrupted: what was restored is kept, and the same command goes on from there\n")
	if _, err := os.Stat(s.path("out")); err == nil {
		t.Error("an interrupted restore is there under its name")
	}
	var res engine.RestoreResult
	s.json(0, &res, "backup", "restore", url, s.path("out"))
	if res.Kept == 0 || res.Fetched == 0 || !bytes.Equal(s.read(s.path("out")), content) {
		t.Errorf("the second run gave %+v", res)
	}
	if _, err := os.Stat(partial); err == nil {
		t.Error("the partial file is still there")
	}
}

// A signal interrupts; the exit code is that of an interrupted command.
func TestSignal(t *testing.T) {
	s := newSession(t)
	repo := s.init("--pack-size", "1")
	img := s.image("img", noise(43, 48<<20))
	var talk bytes.Buffer
	cmd := command(t, "backup", "create", img, "--dest", repo, "--volume", "db", "--cache-dir", s.path("cache"))
	cmd.Stderr = &talk
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for !s.packsNoted() {
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its exit code is looked at
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130: %s", code, &talk)
	}
	says(t, talk.String(), "shale: interrupted: there is no new backup")
	s.run(0, "repo", "check", repo)
}
