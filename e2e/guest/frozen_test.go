package guest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/thin/pool"
)

// slowDmsetup puts a dmsetup on a PATH of its own that waits before it creates a snapshot, while the volume is frozen.
func slowDmsetup(t *testing.T, seconds int) (path string) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\ncase \"$*\" in *create_snap*) sleep " + strconv.Itoa(seconds) + ";; esac\nexec /usr/sbin/dmsetup \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "dmsetup"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir + ":" + os.Getenv("PATH")
}

// watchdogOf finds the process that watches over a volume.
func watchdogOf(t *testing.T, device string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		if args := bytes.Split(b, []byte{0}); len(args) > 2 && string(args[1]) == pool.WatchdogCommand && string(args[2]) == device {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no watchdog")
	return 0
}

// TestKilledWhileFrozen: SIGKILL between suspend and resume does not leave the volume frozen for longer than the snapshot's
// creation takes. Here that goes on for 5 s after the kill.
func TestKilledWhileFrozen(t *testing.T) {
	p := NewPool(t, 64)
	mnt := Ext4(t, p.Volume("frozen", 1, 48))
	h := newHost(t)
	c := start(t, "snapshot", "frozen", "PATH="+slowDmsetup(t, 5))
	eventually(t, "volume is frozen", func() bool { return suspended(t, "frozen") })
	killed := time.Now()
	crash(t, c)
	eventually(t, "volume is resumed", func() bool { return !suspended(t, "frozen") })
	t.Logf("resumed %v after the kill", time.Since(killed))
	if err := os.WriteFile(mnt+"/after", []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	rec, err := h.Recover(t.Context())
	if err != nil || len(rec.Unsure) != 1 || len(rec.Deleted) > 0 {
		t.Errorf("recover: %+v, %v", rec, err)
	}
}

// TestAllKilledWhileFrozen: when the watchdog is killed as well, the next Recover resumes.
func TestAllKilledWhileFrozen(t *testing.T) {
	p := NewPool(t, 64)
	mnt := Ext4(t, p.Volume("frozen2", 1, 48))
	h := newHost(t)
	c := start(t, "snapshot", "frozen2", "PATH="+slowDmsetup(t, 5))
	eventually(t, "volume is frozen", func() bool { return suspended(t, "frozen2") })
	if err := syscall.Kill(watchdogOf(t, "frozen2"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	crash(t, c)
	time.Sleep(time.Second)
	if !suspended(t, "frozen2") {
		t.Fatal("somebody resumed: the test tests nothing")
	}
	rec, err := h.Recover(t.Context())
	if err != nil || len(rec.Resumed) != 1 {
		t.Errorf("recover: %+v, %v", rec, err)
	}
	if suspended(t, "frozen2") {
		t.Error("still frozen after Recover")
	}
	if err := os.WriteFile(mnt+"/after", []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
}

// TestFreezeExpires: the watchdog ends a freeze that takes too long, and the snapshot, not being consistent, is deleted.
func TestFreezeExpires(t *testing.T) {
	p := NewPool(t, 64)
	Ext4(t, p.Volume("slow", 1, 48))
	newHost(t) // its check at the end shows that the snapshot was deleted: its claim is gone
	h := pool.New(pool.Config{MaxFreeze: time.Second})
	v := mustResolve(t, h, "slow")
	t.Setenv("PATH", slowDmsetup(t, 3))
	begin := time.Now()
	ended := make(chan error, 1)
	go func() { _, err := h.Snapshot(t.Context(), v); ended <- err }()
	eventually(t, "volume is frozen", func() bool { return suspended(t, "slow") })
	eventually(t, "volume is resumed", func() bool { return !suspended(t, "slow") })
	thawed := time.Since(begin)
	if err := <-ended; !errors.Is(err, pool.ErrFreezeExpired) {
		t.Errorf("got %v, want ErrFreezeExpired", err)
	}
	if all := time.Since(begin); thawed > all-time.Second {
		t.Errorf("thawed after %v, but the command took %v in all: the watchdog was not the one", thawed, all)
	}
}
