package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
)

// asCommand in its environment makes the test binary the command itself: for what takes a process of its own.
const asCommand = "SHALE_TEST_AS_COMMAND"

// It must come before the init of a detached mount's process in tests of other files, which heeds no signals.
func init() {
	if os.Getenv(asCommand) != "" {
		main()
	}
}

// command is the test binary as shale, in a process of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	return cmd
}

// session runs commands beside one folder, in which their cache is.
type session struct {
	t   *testing.T
	dir string
}

func newSession(t *testing.T) *session {
	t.Parallel()
	return &session{t, t.TempDir()}
}

// path is in the session's folder.
func (s *session) path(name string) string { return filepath.Join(s.dir, name) }

// answer is what a command line gave.
type answer struct{ out, talk string }

// run runs a command line that must end with the exit code.
func (s *session) run(code int, args ...string) answer {
	s.t.Helper()
	return s.runCtx(s.t.Context(), code, args...)
}

func (s *session) runCtx(ctx context.Context, code int, args ...string) answer {
	s.t.Helper()
	var out, talk bytes.Buffer
	all := append([]string{"--cache-dir", s.path("cache")}, args...)
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &talk, progressEvery: 10 * time.Second, secrets: secrets{work: 4}}
	if got := a.run(ctx, all); got != code {
		s.t.Fatalf("shale %s: exit code %d, want %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), got, code, &out, &talk)
	}
	return answer{out.String(), talk.String()}
}

// json runs a command line with --json and decodes its first value into v. It returns the failure that follows, if any.
func (s *session) json(code int, v any, args ...string) failure {
	s.t.Helper()
	got := s.run(code, append(args, "--json")...)
	dec := json.NewDecoder(strings.NewReader(got.out))
	if err := dec.Decode(v); err != nil {
		s.t.Fatalf("shale %s: %v in %s", strings.Join(args, " "), err, got.out)
	}
	var f failure
	if err := dec.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		s.t.Fatalf("shale %s: %v after the answer in %s", strings.Join(args, " "), err, got.out)
	}
	return f
}

// says fails the test unless text has every one of the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in %q", w, text)
		}
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return lines[len(lines)-1]
}

// noise is content that no codec makes smaller; equal seeds give equal bytes.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// image writes a file of that content.
func (s *session) image(name string, content []byte) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

func (s *session) read(path string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// init makes a repository.
func (s *session) init(flags ...string) string {
	s.t.Helper()
	repo := s.path("repo")
	s.run(0, append([]string{"repo", "init", repo}, flags...)...)
	return repo
}

// create backs an image up and returns the backup's URL.
func (s *session) create(repo, image, volume string, flags ...string) string {
	s.t.Helper()
	return lastLine(s.run(0, append([]string{"backup", "create", image, "--dest", repo, "--volume", volume}, flags...)...).out)
}

// inspect reads a backup record.
func (s *session) inspect(url string) (b chunkstore.Backup) {
	s.t.Helper()
	s.json(0, &b, "backup", "inspect", url)
	return b
}

// objects lists the repository's files that match a pattern, each * a path element.
func (s *session) objects(repo, pattern string) []string {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(repo, pattern))
	if err != nil || len(names) == 0 {
		s.t.Fatalf("no %s in %s: %v", pattern, repo, err)
	}
	return names
}

// flip changes one byte of a file; a negative offset counts from its end.
func (s *session) flip(path string, off int) {
	s.t.Helper()
	b := s.read(path)
	if off < 0 {
		off += len(b)
	}
	b[off] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
}
