package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testKeys are private keys that guard nothing, testRecipients their public halves.
var (
	testKeys = []string{
		"AGE-SECRET-KEY-1ZZUDFJ72HGKECWAU92JPF2UYANHTM7MZYY4X6RA57EH9AHDJ3LHSV0QT44",
		"AGE-SECRET-KEY-127WYHTP6USKEPMTX0FF4KHRKZJX52EAJ20SYMKHR3UUCEP7T0MWSE0ADDQ",
	}
	testRecipients = []string{
		"age156lqqsc4vm0d3xvxuh0k4r5dsthe2kscxhvx4vr0km5962yf3scqvfnumh",
		"age16etl5gjumth6azk9cxnjjjsmy6awnzv50vq0y7zdlxdz45254ghs3tas08",
	}
)

// writeIdentity writes the file of a private key.
func writeIdentity(t *testing.T, i int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(file, []byte("# for tests\n"+testKeys[i]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestEncryptedRepository(t *testing.T) {
	s := newSession(t)
	repo, mine, other := s.path("repo"), writeIdentity(t, 0), writeIdentity(t, 1)
	content := append(noise(1, 300<<10), bytes.Repeat([]byte("SECRET CONTENT "), 9000)...)
	image := s.image("image", content)
	with := func(key string, args ...string) []string { return append(args, "--identity-file", key) }

	s.run(0, "repo", "init", repo, "--recipient", testRecipients[0])
	url := strings.TrimSpace(lastLine(s.run(0, with(mine, "backup", "create", image, "--dest", repo, "--volume", "secretname")...).out))
	s.run(0, with(mine, "backup", "restore", url, s.path("out"))...)
	if got, err := os.ReadFile(s.path("out")); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("restored something else: %v", err)
	}
	says(t, s.run(0, with(mine, "repo", "stats", repo)...).out, "encrypted")
	s.run(0, with(mine, "repo", "check", repo, "--data")...)
	s.run(0, with(mine, "repo", "reindex", repo)...)
	s.run(0, with(mine, "repo", "prune", repo, "--grace", "0")...)

	says(t, s.run(1, "backup", "list", repo).talk, "is encrypted", "--password-file")
	says(t, s.run(1, with(other, "backup", "list", repo)...).talk, "wrong password, or no private key")

	id := strings.TrimSpace(s.run(0, with(mine, "repo", "key", "add", repo, "--recipient", testRecipients[1], "--label", "deputy")...).out)
	says(t, s.run(0, with(other, "repo", "key", "list", repo)...).out, "fingerprint ", "deputy", "* ", testRecipients[0])
	says(t, s.run(1, with(mine, "repo", "key", "remove", repo, "zz")...).talk, "not found")
	s.run(0, with(mine, "repo", "key", "remove", repo, id[:6])...)
	says(t, s.run(0, with(mine, "repo", "key", "rotate", repo)...).out, "age")
	s.run(1, with(other, "backup", "list", repo)...)
	all := s.run(0, with(mine, "repo", "key", "list", repo)...).out
	only := strings.Fields(lastLine(all))[1]
	says(t, s.run(1, with(mine, "repo", "key", "remove", repo, only)...).talk, "last key", "repo key add")

	err := filepath.Walk(repo, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, leak := range []string{"SECRET CONTENT", "secretname", "AGE-SECRET", "deputy"} {
			if bytes.Contains(b, []byte(leak)) || strings.Contains(path, leak) {
				t.Errorf("%q is in %s", leak, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestReplacedRepository: a host that has used an encrypted repository notices when another takes its place.
func TestReplacedRepository(t *testing.T) {
	s := newSession(t)
	repo, mine, image := s.path("repo"), writeIdentity(t, 0), s.image("image", noise(2, 10000))
	s.run(0, "repo", "init", repo, "--recipient", testRecipients[0])
	s.run(0, "backup", "create", image, "--dest", repo, "--volume", "v", "--identity-file", mine)
	if err := os.RemoveAll(repo); err != nil {
		t.Fatal(err)
	}
	elsewhere := &session{t, t.TempDir()} // another host's cache
	elsewhere.run(0, "repo", "init", repo)
	says(t, s.run(1, "backup", "create", image, "--dest", repo, "--volume", "v").talk, "not the encrypted repository", "it is one that is not encrypted", "known")
	says(t, s.run(1, "backup", "list", repo, "--identity-file", mine).talk, "not the encrypted repository")
	says(t, elsewhere.run(1, "backup", "list", repo, "--identity-file", mine).talk, "the repository is not encrypted", "--allow-plain")
	elsewhere.run(0, "backup", "list", repo, "--identity-file", mine, "--allow-plain")
	if err := os.RemoveAll(repo); err != nil {
		t.Fatal(err)
	}
	elsewhere.run(0, "repo", "init", repo, "--recipient", testRecipients[0])
	says(t, s.run(1, "backup", "list", repo, "--identity-file", mine).talk, "it is repository")
	if err := os.RemoveAll(repo); err != nil {
		t.Fatal(err)
	}
	s.run(0, "repo", "init", repo) // the user's own doing
	s.run(0, "backup", "list", repo)
}

// TestPasswordSources: where passwords come from, and what is refused of them.
func TestPasswordSources(t *testing.T) {
	s := newSession(t)
	repo := s.path("repo")
	right, wrong := s.image("right", []byte("pass phrase\n")), s.image("wrong", []byte("other"))
	for _, c := range []struct {
		content string
		says    string
	}{{"", "empty"}, {"\n", "empty"}, {"a\nb\n", "one line"}, {strings.Repeat("x", 5000), "4096"}} {
		bad := s.image("bad", []byte(c.content))
		says(t, s.run(1, "repo", "init", repo, "--encrypt", "--password-file", bad).talk, c.says)
	}
	says(t, s.run(2, "repo", "init", repo, "--encrypt").talk, "no terminal")
	says(t, s.run(2, "repo", "init", repo, "--password-file", right).talk, "not --encrypt")
	says(t, s.run(2, "repo", "init", repo, "--encrypt", "--password-file", right, "--password-file", wrong).talk, "several passwords")
	says(t, s.run(2, "repo", "init", repo, "--recipient", testKeys[0]).talk, "private key")
	says(t, s.run(1, "repo", "init", repo, "--encrypt", "--password-command", "echo half; exit 3").talk, "exit status 3")
	if _, err := os.Stat(filepath.Join(repo, "config")); err == nil {
		t.Fatal("a repository was made")
	}
	s.run(0, "repo", "init", repo, "--encrypt", "--password-file", right)
	got := s.run(0, "backup", "list", repo, "--password-command", "cat '"+right+"'")
	s.run(0, "repo", "stats", repo, "--password-file", wrong, "--password-file", right)
	refused := s.run(1, "repo", "stats", repo, "--password-file", wrong)
	says(t, refused.talk, "wrong password")
	if strings.Contains(got.out+got.talk+refused.talk, "pass phrase") {
		t.Error("the password is printed")
	}
	says(t, s.run(2, "repo", "key", "add", repo, "--recipient", testRecipients[0], "--new-password-file", right).talk, "exclude")
}

// TestPasswordPrompt: on a terminal shale asks, shows nothing of what is typed, and asks again when it was wrong.
func TestPasswordPrompt(t *testing.T) {
	s := newSession(t)
	repo := s.path("repo")
	typed := func(code int, lines []string, args ...string) string {
		t.Helper()
		tty, screen := typist(t, lines)
		a := &app{stdin: tty, stdout: &bytes.Buffer{}, stderr: tty, progressEvery: time.Hour, secrets: secrets{work: 4}}
		if got := a.run(t.Context(), append([]string{"--cache-dir", s.path("cache")}, args...)); got != code {
			t.Fatalf("shale %s: exit code %d, want %d", strings.Join(args, " "), got, code)
		}
		return screen()
	}
	says(t, typed(1, []string{"one", "two"}, "repo", "init", repo, "--encrypt"), "New password: ", "The same again: ", "differ")
	seen := typed(0, []string{"hidden words", "hidden words"}, "repo", "init", repo, "--encrypt")
	seen += typed(0, []string{"wrong words", "hidden words"}, "repo", "stats", repo)
	says(t, seen, "Password of vfs://"+repo, "Wrong password.")
	if strings.Contains(seen, "words") {
		t.Errorf("what was typed is shown: %q", seen)
	}
}

// TestInterruptedPrompt: an interrupt ends a command that waits for a password, and the terminal shows again what is typed.
func TestInterruptedPrompt(t *testing.T) {
	s := newSession(t)
	tty, master := openTerminal(t)
	defer master.Close()
	defer tty.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		buf := make([]byte, 1024)
		for all := ""; !strings.HasSuffix(all, ": "); {
			n, err := master.Read(buf)
			if err != nil {
				break
			}
			all += string(buf[:n])
		}
		cancel()
	}()
	a := &app{stdin: tty, stdout: &bytes.Buffer{}, stderr: tty, progressEvery: time.Hour}
	if got := a.run(ctx, []string{"--cache-dir", s.path("cache"), "repo", "init", s.path("repo"), "--encrypt"}); got != 130 {
		t.Errorf("exit code %d, want 130", got)
	}
	if mode, err := unix.IoctlGetTermios(int(master.Fd()), unix.TCGETS); err != nil || mode.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal stays silent: %+v, %v", mode, err)
	}
	if _, err := master.WriteString("\n"); err != nil { // lets the reader end that was left behind
		t.Error(err)
	}
}

// typist opens a pseudo-terminal at which somebody types the next line when one is asked for and nothing is shown of it. screen
// closes it and returns what was to be seen.
func typist(t *testing.T, lines []string) (tty *os.File, screen func() string) {
	t.Helper()
	tty, master := openTerminal(t)
	fd := int(master.Fd()) // it knows the mode of both ends
	seen := make(chan string)
	go func() {
		var all []byte
		buf := make([]byte, 1024)
		for {
			n, err := master.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil { // EIO when the terminal is closed
				seen <- string(all)
				return
			}
			if len(lines) == 0 || !bytes.HasSuffix(all, []byte(": ")) {
				continue
			}
			for range 10000 {
				if mode, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil || mode.Lflag&unix.ECHO == 0 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			_, _ = master.WriteString(lines[0] + "\n")
			lines = lines[1:]
		}
	}()
	return tty, func() string {
		_ = tty.Close()
		defer master.Close()
		return <-seen
	}
}

// TestMountEncrypted: the process that serves a mount is handed what opened the repository, though the password can be read only once;
// it is not in that process's arguments or environment.
func TestMountEncrypted(t *testing.T) {
	s := newMountSession(t, 62)
	s.repo = s.path("sealed")
	password := s.image("password", []byte("read only once\n"))
	s.run(0, "repo", "init", s.repo, "--encrypt", "--password-file", password)
	s.run(0, "backup", "create", s.path("img"), "--dest", s.repo, "--volume", "db", "--password-file", password)
	pid := s.background("--password-command", "cat '"+password+"' && rm '"+password+"'")
	s.looks()
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
		if err != nil || bytes.Contains(b, []byte("only once")) {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	}
	if err := s.umount(); err != nil {
		t.Fatal(err)
	}
}
