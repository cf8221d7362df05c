package fusemount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needFUSE skips where mounting is impossible.
func needFUSE(t testing.TB) {
	t.Helper()
	if err := checkTools(os.Geteuid() == 0); err != nil {
		t.Skip(err)
	}
}

// mountFake mounts r for the length of the test.
func mountFake(t testing.TB, r Repository, opts Options) *Mounted {
	t.Helper()
	needFUSE(t)
	ctx, cancel := context.WithCancel(context.Background())
	opts.SameProcess = true
	m, err := Mount(ctx, t.TempDir(), r, opts)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		mustEnd(t, m)
	})
	return m
}

// mustEnd waits for the end of a mount that was told to go.
func mustEnd(t testing.TB, m *Mounted) {
	t.Helper()
	ended := make(chan struct{})
	go func() { m.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the mount does not end")
	}
	if top, err := topMount(m.Dir()); err != nil || top != nil {
		t.Errorf("still mounted at %s: %+v, %v", m.Dir(), top, err)
	}
}

func smallRepo(t testing.TB) *fakeRepo {
	t.Helper()
	r := newFakeRepo(t)
	rng := rand.New(rand.NewPCG(9, 9))
	r.add("vol", randomImage(rng, 2<<20), rng)
	return r
}

func TestMountinfo(t *testing.T) {
	m := mountFake(t, smallRepo(t), Options{Source: "s3://bucket/a,b c"})
	top, err := topMount(m.Dir())
	if err != nil || top == nil {
		t.Fatal(top, err)
	}
	if top.FSType != "fuse.shale" || top.Source != "s3://bucket/a,b c" || !strings.HasPrefix(top.Options, "ro,") {
		t.Errorf("mountinfo shows type %q, source %q, options %q", top.FSType, top.Source, top.Options)
	}
}

func TestMountRefuses(t *testing.T) {
	needFUSE(t)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	live := mountFake(t, smallRepo(t), Options{Source: "first"})
	inside := filepath.Join(live.Dir(), "vol")
	for _, tc := range []struct {
		name, dir, want string
		opts            Options
	}{
		{"a folder that is not there", filepath.Join(full, "none"), "no such file", Options{}},
		{"a file", filepath.Join(full, "file"), "not a directory", Options{}},
		{"a folder with something in it", full, "not empty", Options{}},
		{"a live mount", live.Dir(), "first is shown there", Options{}},
		{"a folder of a live mount", inside, "not empty", Options{}},
		{"another mount", "/proc", "of type proc", Options{}},
		{"too little memory", full, "CacheBytes", Options{CacheBytes: 1}},
		{"too many workers", full, "Parallel", Options{Parallel: 1000}},
		{"control characters", full, "Source", Options{Source: "a\nb"}},
		{"negative time", full, "negative", Options{Refresh: -1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Mount(t.Context(), tc.dir, smallRepo(t), tc.opts)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want an error with %q", err, tc.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(inside, latestName, imageName)); err != nil {
		t.Errorf("the live mount was hurt: %v", err)
	}
}

// TestStaleMountReplaced: a server that was killed leaves a mount that answers nothing; the next one takes its place.
func TestStaleMountReplaced(t *testing.T) {
	dir := t.TempDir()
	server, _ := startServer(t, dir, nil)
	if _, err := os.Stat(filepath.Join(dir, "vol")); err != nil {
		t.Fatal(err)
	}
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	if _, err := os.ReadDir(dir); !errors.Is(err, syscall.ENOTCONN) {
		t.Fatalf("after kill -9: %v, want ENOTCONN", err)
	}
	var log lockedBuilder
	ctx, cancel := context.WithCancel(context.Background())
	r := smallRepo(t)
	m, err := Mount(ctx, dir, r, Options{SameProcess: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "vol/latest/image.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if err := compareAll(f, r.volumes["vol"][0].image); err != nil {
		t.Error(err)
	}
	f.Close()
	cancel()
	mustEnd(t, m)
	if !strings.Contains(log.String(), "stale mount replaced") {
		t.Errorf("not logged: %q", log.String())
	}
}

func TestSignalUnmounts(t *testing.T) {
	dir := t.TempDir()
	server, said := startServer(t, dir, nil)
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, said)
	}
	if top, err := topMount(dir); err != nil || top != nil {
		t.Errorf("still mounted: %+v, %v", top, err)
	}
}

func TestUnmountByOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m := mountFake(t, smallRepo(t), Options{})
	if err := unix.Unmount(m.Dir(), 0); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, m)
	if err := m.Unmount(t.Context()); err != nil {
		t.Errorf("unmount of what is gone: %v", err)
	}
}

// TestUnmountWhileReading: a mount in use is waited for, then detached; its reader gets an error and nothing hangs.
func TestUnmountWhileReading(t *testing.T) {
	needFUSE(t)
	r := smallRepo(t)
	var log lockedBuilder
	m, err := Mount(context.Background(), t.TempDir(), r, Options{SameProcess: true, DirectIO: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(m.Dir(), "vol/latest/image.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	if _, err := f.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		for {
			if _, err := f.ReadAt(buf, 0); err != nil {
				failed <- err
				return
			}
		}
	}()
	const grace = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), grace)
	defer cancel()
	begin := time.Now()
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < grace {
		t.Errorf("detached after %v, before the grace of %v", took, grace)
	}
	mustEnd(t, m)
	select {
	case err := <-failed:
		t.Logf("the reader's error: %v", err)
	case <-time.After(10 * time.Second):
		t.Error("the reader goes on reading")
	}
	if !strings.Contains(log.String(), "still in use, detached") {
		t.Errorf("not logged: %q", log.String())
	}
}

// TestUnmountWaitsForReader: a file that is closed within the grace does not cost its reader anything.
func TestUnmountWaitsForReader(t *testing.T) {
	needFUSE(t)
	r := smallRepo(t)
	ctx, cancel := context.WithCancel(context.Background())
	m, err := Mount(ctx, t.TempDir(), r, Options{SameProcess: true})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(m.Dir(), "vol/latest/image.raw"))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	time.Sleep(50 * time.Millisecond)
	err = compareAll(f, r.volumes["vol"][0].image)
	f.Close()
	if err != nil {
		t.Errorf("read after the mount was told to go: %v", err)
	}
	mustEnd(t, m)
}

// TestUnmountSparesOthers: what somebody mounted over our mount is not ours to take away.
func TestUnmountSparesOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m := mountFake(t, smallRepo(t), Options{})
	if err := unix.Mount("over", m.Dir(), "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	err := m.Unmount(t.Context())
	if err == nil || !strings.Contains(err.Error(), "mounted over it") {
		t.Errorf("%v, want an error about the other mount", err)
	}
	if err := unix.Unmount(m.Dir(), 0); err != nil {
		t.Errorf("the other mount is gone: %v", err)
	}
}

// TestWithoutRoot mounts, reads and unmounts as an ordinary user, through fusermount3.
func TestWithoutRoot(t *testing.T) {
	const nobody = 65534
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else; the other tests show the same when run without root")
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip(err)
	}
	if os.Getenv(namespaceEnv) == "" {
		inNamespace(t)
		return
	}
	openDevice(t)
	dir, err := os.MkdirTemp("", "fusemount")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	self := publicCopy(t)
	as := &syscall.Credential{Uid: nobody, Gid: nobody}
	server, said := startServerOf(t, self, dir, as)
	top, err := topMount(dir)
	if err != nil || top.FSType != "fuse.shale" || top.Source != "the,repository" {
		t.Fatalf("mountinfo shows %+v, %v", top, err)
	}
	_, image := servedImage()
	cat := exec.Command("cat", filepath.Join(dir, "vol/latest/image.raw"))
	cat.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := cat.Output()
	if err != nil || string(out) != string(image) {
		t.Errorf("cat: %v, %d bytes", err, len(out))
	}
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, said)
	}
	if top, err := topMount(dir); err != nil || top != nil {
		t.Errorf("still mounted: %+v, %v", top, err)
	}
}

const namespaceEnv = "FUSEMOUNT_TEST_NAMESPACE"

// inNamespace runs the test again in a mount namespace of its own.
func inNamespace(t *testing.T) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM):
		t.Skip("no mount namespace to be had:", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	}
}

// openDevice gives the namespace a /dev/fuse that everybody may open, as most systems have it.
func openDevice(t *testing.T) {
	t.Helper()
	node := filepath.Join(t.TempDir(), "fuse")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil {
		t.Skip("cannot make a device node:", err)
	}
	if err := errors.Join(os.Chmod(node, 0o666), unix.Mount(node, "/dev/fuse", "", unix.MS_BIND, "")); err != nil {
		t.Skip("cannot replace /dev/fuse:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/dev/fuse", unix.MNT_DETACH) })
}

// publicCopy is this test binary where every user can run it.
func publicCopy(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "fusemount")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "server")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDetach starts a server that outlives the call, reads from it, and ends it.
func TestDetach(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	t.Setenv(serveEnv, dir)
	pid, err := Detach(t.Context(), nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := startedChild(t, pid)
	t.Cleanup(func() { _ = server.Kill() })
	f, err := os.Open(filepath.Join(dir, "vol/latest/image.raw"))
	if err != nil {
		t.Fatal(err)
	}
	_, image := servedImage()
	err = compareAll(f, image)
	f.Close()
	if err != nil {
		t.Error(err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("the server is in session %d (%v), not its own %d", sid, err, pid)
	}
	if err := server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if state, err := server.Wait(); err != nil || !state.Success() {
		t.Errorf("the server ended with %v (%v)", state, err)
	}
	if top, err := topMount(dir); err != nil || top != nil {
		t.Errorf("still mounted: %+v, %v", top, err)
	}
}

// startedChild is the process pid, which must be a child of this one: a number such as -1 would mean every process there is.
func startedChild(t *testing.T, pid int) *os.Process {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("the server's process ID is %d", pid)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid())) {
		t.Fatalf("process %d is not a child of this one (%v):\n%s", pid, err, status)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDetachFails(t *testing.T) {
	for _, tc := range []struct{ name, env, value, want string }{
		{"with a reason", failEnv, "no repository here", "no repository here"},
		{"without a word", exitEnv, "1", "exit status 7"},
		{"at mounting", serveEnv, "/proc", "of type proc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(tc.env, tc.value)
			_, err := Detach(t.Context(), nil, nil, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want an error with %q", err, tc.want)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		t.Setenv(hangEnv, "1")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := Detach(ctx, nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v, want DeadlineExceeded", err)
		}
	})
}

// TestReadyAlone: a process that nobody detached has nobody to tell.
func TestReadyAlone(t *testing.T) {
	if err := errors.Join(Ready(), Failed(fmt.Errorf("x"))); err != nil {
		t.Error(err)
	}
	t.Setenv(readyEnv, "two")
	if err := Ready(); err == nil {
		t.Error("a descriptor that is no number was accepted")
	}
}
