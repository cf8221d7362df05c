package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountSession is a session with a repository of one backup and an empty folder to mount it at. What is left mounted there in
// the end is taken away.
type mountSession struct {
	*session
	repo, url, mnt string
	content        []byte
}

func newMountSession(t *testing.T, seed uint64) *mountSession {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	f.Close()
	s := &mountSession{session: newSession(t), content: noise(seed, 3<<20)}
	s.repo = s.init()
	s.url = s.create(s.repo, s.image("img", s.content), "db")
	s.mnt = s.path("mnt")
	if err := os.Mkdir(s.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for s.mounted() {
			if err := s.umount("-l"); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return s
}

// mounted asks the kernel's table, which answers also for a mount whose server is gone.
func (s *mountSession) mounted() bool {
	s.t.Helper()
	yes, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(s.mnt))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(yes) > 0
}

// until waits for a state of the mount.
func (s *mountSession) until(mounted bool) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); s.mounted() != mounted; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("mounted is %t after 20 s", !mounted)
		}
	}
}

func (s *mountSession) umount(flags ...string) error {
	tool := append([]string{"umount"}, flags...)
	if os.Geteuid() != 0 {
		tool = []string{"fusermount3", "-u", "-z"}
	}
	out, err := exec.Command(tool[0], append(tool[1:], s.mnt)...).CombinedOutput()
	if err != nil {
		return errors.New(strings.TrimSpace(string(out)) + ": " + err.Error())
	}
	return nil
}

// process runs a command line in a process of its own, which must end with the exit code.
func (s *mountSession) process(code int, args ...string) answer {
	s.t.Helper()
	var out, talk bytes.Buffer
	cmd := command(s.t, append([]string{"--cache-dir", s.path("cache")}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &talk
	_ = cmd.Run() // its exit code is looked at
	if got := cmd.ProcessState.ExitCode(); got != code {
		s.t.Fatalf("shale %s: %v, want exit code %d: %s%s", strings.Join(args, " "), cmd.ProcessState, code, &out, &talk)
	}
	return answer{out.String(), talk.String()}
}

// background mounts and returns the server's process ID.
func (s *mountSession) background(flags ...string) int {
	s.t.Helper()
	got := s.process(0, append([]string{"backup", "mount", s.repo, s.mnt, "--json"}, flags...)...)
	var m struct {
		Dir string
		PID int
	}
	if err := json.Unmarshal([]byte(got.out), &m); err != nil || m.Dir != s.mnt || m.PID < 2 {
		s.t.Fatalf("mount prints %q: %v", got.out, err)
	}
	return m.PID
}

// foreground starts a server and waits until it is mounted.
func (s *mountSession) foreground() *exec.Cmd {
	s.t.Helper()
	cmd := command(s.t, "backup", "mount", s.repo, s.mnt, "--foreground", "--cache-dir", s.path("cache"))
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.until(true)
	return cmd
}

// looks checks that the backup is shown as it is.
func (s *mountSession) looks() {
	s.t.Helper()
	if got := s.read(filepath.Join(s.mnt, "db", "latest", "image.raw")); !bytes.Equal(got, s.content) {
		s.t.Error("image.raw has other bytes")
	}
}

func TestMountInBackground(t *testing.T) {
	s := newMountSession(t, 60)
	pid := s.background("--cache-size", "8", "--parallel", "2")
	s.looks()
	says(t, string(s.read(filepath.Join(s.mnt, "db", "latest", "backup.json"))), `"volume":`)
	says(t, s.process(1, "backup", "mount", s.repo, s.mnt).talk, "already mounted", "umount")
	says(t, s.process(1, "backup", "mount", s.repo, s.mnt, "--foreground").talk, "already mounted", "umount")
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.until(false)
	if out := s.process(0, "backup", "mount", s.repo, s.mnt).out; out != s.mnt+"\n" {
		t.Errorf("mount prints %q", out)
	}
	s.looks()
	if err := s.umount(); err != nil {
		t.Fatal(err)
	}
}

func TestMountOfKilledServer(t *testing.T) {
	s := newMountSession(t, 61)
	pid := s.background()
	s.looks()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stale := func() bool {
		var st unix.Statfs_t
		return errors.Is(unix.Statfs(s.mnt, &st), unix.ENOTCONN)
	}
	for deadline := time.Now().Add(20 * time.Second); !stale(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the killed server's mount still answers after 20 s")
		}
	}
	s.background()
	s.looks()
}

func TestMountInForeground(t *testing.T) {
	s := newMountSession(t, 62)
	ends := map[string]func(cmd *exec.Cmd) error{
		"unmounted": func(*exec.Cmd) error { return s.umount() },
		"SIGTERM":   func(cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGTERM) },
	}
	for name, end := range ends {
		cmd := s.foreground()
		s.looks()
		if err := end(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || s.mounted() {
			t.Errorf("%s: %v, mounted is %t", name, err, s.mounted())
		}
	}
}

// A busy mount is waited for; a second signal ends the wait.
func TestSecondSignal(t *testing.T) {
	s := newMountSession(t, 63)
	cmd := s.foreground()
	f, err := os.Open(filepath.Join(s.mnt, "db", "latest", "image.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for range 40 { // the first two that come one by one count
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if st := cmd.ProcessState.Sys().(syscall.WaitStatus); !st.Signaled() || st.Signal() != syscall.SIGTERM {
				t.Errorf("ended with %v", err)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Error("still there after many signals")
	_ = cmd.Process.Kill()
	<-ended
}

func TestMountRefused(t *testing.T) {
	s := newMountSession(t, 64)
	for _, c := range []struct {
		says string
		args []string
	}{
		{"the folder is not empty", []string{s.repo, s.dir}},
		{"no such file", []string{s.repo, s.path("nosuch")}},
		{"not a directory", []string{s.repo, s.path("img")}},
		{"--log: ", []string{s.repo, s.mnt, "--log", s.path("nosuch/log")}},
		{"no repository here", []string{s.path("nosuch"), s.mnt}},
	} {
		for _, where := range [][]string{nil, {"--foreground"}} {
			got := s.process(1, append(append([]string{"backup", "mount"}, c.args...), where...)...)
			says(t, got.talk, c.says)
			if got.out != "" {
				t.Errorf("%v prints %q", c.args, got.out)
			}
		}
	}
	if s.mounted() {
		t.Error("a refused mount is there")
	}
	s.flip(filepath.Join(s.repo, "config"), 30)
	for _, where := range [][]string{nil, {"--foreground"}} {
		says(t, s.process(3, append([]string{"backup", "mount", s.repo, s.mnt}, where...)...).talk, "config")
	}
}

// Damage is an I/O error to the reader and a line in the log.
func TestMountLog(t *testing.T) {
	s := newMountSession(t, 65)
	s.flip(s.objects(s.repo, "packs/data/*/*")[0], 5000)
	s.background("--log", s.path("log"))
	if _, err := os.ReadFile(filepath.Join(s.mnt, "db", "latest", "image.raw")); !errors.Is(err, syscall.EIO) {
		t.Errorf("a damaged image reads with %v", err)
	}
	says(t, string(s.read(s.path("log"))), "damaged object", "packs/data/")
}

// The server in this process: others read what it shows, since it must not wait for itself.
func TestServeMount(t *testing.T) {
	s := newMountSession(t, 66)
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	var talk bytes.Buffer
	go func() {
		args := []string{"backup", "mount", s.repo, s.mnt, "--foreground", "--cache-dir", s.path("cache")}
		code <- run(ctx, args, strings.NewReader(""), io.Discard, &talk)
	}()
	s.until(true)
	cat := exec.Command("cat", filepath.Join(s.mnt, "db", "latest", "image.raw"))
	if got, err := cat.Output(); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("cat gives %d bytes, %v", len(got), err)
	}
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("exit code %d: %s", got, &talk)
	}
	says(t, talk.String(), "vfs://"+s.repo+" is mounted at "+s.mnt)
}

// Somebody who may not read the repository is told so.
func TestUnreadableRepository(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	if err := os.Chmod(repo, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Chmod(repo, 0o700) }()
	cmd := command(t, "repo", "stats", repo)
	if os.Geteuid() == 0 { // who may read everything
		cmd = unprivileged(t, cmd)
	}
	cmd.Args = append(cmd.Args, "--cache-dir", filepath.Join(filepath.Dir(cmd.Path), "cache"))
	if os.Geteuid() != 0 {
		cmd.Args[len(cmd.Args)-1] = s.path("cache")
	}
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code is %v", err)
	}
	says(t, string(out), "permission denied", "run shale as the owner, or as root")
}

// unprivileged makes cmd run as nobody, from a copy of the program that nobody may run, in a folder that is nobody's.
func unprivileged(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	const nobody = 65534
	dir, err := os.MkdirTemp("", "shale-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := os.ReadFile(cmd.Path)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "shale"), program, 0o755)
	}
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, nobody, nobody))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(dir, "shale")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}
