package guest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/shalebackup/shale/thin/pool"
)

// The test binary is also the programs that tests start and kill. All print "ready" when they hold what they are to hold.
var programs = map[string]func(ctx context.Context, h *pool.Host, v pool.Volume) error{
	"snapshot": func(ctx context.Context, h *pool.Host, v pool.Volume) error {
		_, err := h.Snapshot(ctx, v)
		return err
	},
	"reserve": func(ctx context.Context, h *pool.Host, v pool.Volume) error {
		_, err := h.Reserve(ctx, v.Pool)
		return err
	},
	"activate": func(ctx context.Context, h *pool.Host, v pool.Volume) error {
		_, err := h.Activate(ctx, v.Pool, v.DeviceID, v.SizeBytes, "")
		return err
	},
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == pool.WatchdogCommand {
		if err := pool.RunWatchdog(os.Args[2:], os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if !Inside() {
		fmt.Println("these tests run in the lab guest: see package e2e")
		os.Exit(0)
	}
	if p := programs[os.Getenv("GUEST_PROGRAM")]; p != nil {
		h := pool.New(pool.Config{})
		v, err := h.Resolve(context.Background(), os.Args[1])
		if err == nil {
			err = p(context.Background(), h, v)
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

// start starts one of the programs. Its output is in the returned command's Stdout, a file.
func start(t *testing.T, program, volume string, env ...string) *exec.Cmd {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, volume)
	cmd.Env = append(append(os.Environ(), "GUEST_PROGRAM="+program), env...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it is dead already, unless the test failed
		_ = cmd.Wait()
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	})
	return cmd
}

// output is what a program that start started has printed so far.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	b, err := os.ReadFile(cmd.Stdout.(*os.File).Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// crash ends a program by SIGKILL, and returns when it is gone.
func crash(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the program ended well before it was killed")
	}
}

// eventually waits up to a minute for a condition: an NFS client that is told to come later does so after up to 15 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
