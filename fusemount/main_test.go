package fusemount

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/file"
)

// A test binary that finds one of these in its environment is a mount's server, or fails to be one, and runs no tests.
const (
	serveEnv = "FUSEMOUNT_TEST_SERVE" // the mount point
	failEnv  = "FUSEMOUNT_TEST_FAIL"  // what to report to Detach
	exitEnv  = "FUSEMOUNT_TEST_EXIT"  // end without a word
	hangEnv  = "FUSEMOUNT_TEST_HANG"  // say nothing until a signal comes

	mapEnv = "FUSEMOUNT_TEST_MAP" // print the sum of this file's mapped memory

	storeEnv  = "FUSEMOUNT_TEST_STORE"  // with serveEnv: the folder of the repository to show
	directEnv = "FUSEMOUNT_TEST_DIRECT" // with serveEnv: use DirectIO
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(exitEnv) != "":
		os.Exit(7)
	case os.Getenv(hangEnv) != "":
		time.Sleep(time.Minute)
		os.Exit(9)
	case os.Getenv(mapEnv) != "":
		os.Exit(sumMapped(os.Getenv(mapEnv)))
	case os.Getenv(failEnv) != "":
		if err := Failed(fmt.Errorf("%s", os.Getenv(failEnv))); err != nil {
			os.Exit(8)
		}
		os.Exit(1)
	case os.Getenv(serveEnv) != "":
		os.Exit(serve(os.Getenv(serveEnv)))
	}
	os.Exit(m.Run())
}

func sumMapped(path string) int {
	f, err := os.Open(path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	st, err := f.Stat()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("%x", sha256.Sum256(mapped))
	return 0
}

// servedImage is the one that serve shows as the only backup of "vol".
func servedImage() (*rand.Rand, []byte) {
	rng := rand.New(rand.NewPCG(5, 6))
	return rng, randomImage(rng, 4<<20)
}

func serve(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	m, err := mountServed(ctx, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		_ = Failed(err)
		return 1
	}
	if err := Ready(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	m.Wait()
	return 0
}

func mountServed(ctx context.Context, dir string) (*Mounted, error) {
	opts := Options{
		Source: "the,repository", DirectIO: os.Getenv(directEnv) != "", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if at := os.Getenv(storeEnv); at != "" {
		be, err := file.Open(at)
		if err != nil {
			return nil, err
		}
		r, err := chunkstore.Open(ctx, be, chunkstore.Options{})
		if err != nil {
			return nil, err
		}
		return Mount(ctx, dir, Store(r), opts)
	}
	r := newFakeRepo(&testing.B{})
	rng, image := servedImage()
	r.add("vol", image, rng)
	return Mount(ctx, dir, r, opts)
}

// startServer runs a server for dir in a process of its own, and returns when something is mounted there. Its stderr goes to
// the returned builder, which may be read after Wait.
func startServer(t testing.TB, dir string, as *syscall.Credential) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startServerOf(t, self, dir, as)
}

// startServerOf is startServer with the copy of this binary at self.
func startServerOf(t testing.TB, self, dir string, as *syscall.Credential) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	needFUSE(t)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveEnv+"="+dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	said := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		if t.Failed() {
			t.Logf("the server said: %s", said)
		}
	})
	waitFor(t, "the server's mount", func() bool {
		top, err := topMount(dir)
		return err == nil && top != nil
	})
	return cmd, said
}

// waitFor polls until ok.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
	}
}
