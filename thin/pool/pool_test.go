package pool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func mustResolve(t *testing.T, h *Host) Volume {
	t.Helper()
	v, err := h.Resolve(t.Context(), "vol")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestResolve(t *testing.T) {
	h, _ := newFakeHost(t)
	p := Pool{Name: "pool", Dev: DevNo{253, 0}, SizeBytes: 614400 * 512, BlockSize: 65536, Metadata: "/dev/fake-7:0", Data: "/dev/fake-7:1"}
	want := Volume{Name: "vol", Device: "vol", DeviceID: 1, SizeBytes: 131072 * 512, Pool: p}
	if got := mustResolve(t, h); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if _, err := h.Resolve(t.Context(), "pool"); !errors.Is(err, ErrNotThin) {
		t.Errorf("the pool itself: %v", err)
	}
	if _, err := h.Resolve(t.Context(), "other"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such device: %v", err)
	}
	if _, err := h.Open(t.Context(), "vol"); !errors.Is(err, ErrNotThin) {
		t.Errorf("a volume as a pool: %v", err)
	}
}

// TestSnapshotOrder: suspend, create, look, resume; nothing else happens while the volume is frozen.
func TestSnapshotOrder(t *testing.T) {
	h, k := newFakeHost(t)
	v := mustResolve(t, h)
	k.log = nil
	s, err := h.Snapshot(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for _, line := range k.log[slices.Index(k.log, "dmsetup suspend -- vol"):] {
		verbs = append(verbs, strings.Fields(line)[1])
	}
	if want := []string{"suspend", "message", "info", "resume"}; !slices.Equal(verbs, want) {
		t.Errorf("got %q, want %q", verbs, want)
	}
	if got := k.snapshots(); !slices.Equal(got, []uint32{s.DeviceID}) || s.DeviceID <= maxDeviceID/2 || s.Pool != "pool" {
		t.Errorf("snapshot %+v, in the pool %v", s.Ref, got)
	}
	if len(claimsLeft(t, h)) != 1 {
		t.Errorf("claims before Keep: %q", claimsLeft(t, h))
	}
	if err := s.Keep(); err != nil || len(claimsLeft(t, h)) != 0 || len(k.snapshots()) != 1 {
		t.Errorf("after Keep: %v, claims %q, snapshots %v", err, claimsLeft(t, h), k.snapshots())
	}
}

// TestSnapshotFaults: whichever command fails, is cancelled or hangs, the volume ends up running, and after Recover nothing is
// left of the snapshot.
func TestSnapshotFaults(t *testing.T) {
	faults := map[string]func(k *fakeKernel, cancel func()) error{
		"errno": func(*fakeKernel, func()) error {
			return newCommandError("x", "x failed: Input/output error", errors.New("exit status 1"))
		},
		"cancel": func(_ *fakeKernel, cancel func()) error { cancel(); return context.Canceled },
		"stuck":  func(*fakeKernel, func()) error { return &CommandError{Command: "x", Err: errStuck} },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			failed := 0
			for n := 0; ; n++ {
				h, k := newFakeHost(t)
				v := mustResolve(t, h)
				ctx, cancel := context.WithCancel(t.Context())
				count := 0
				k.before = func(k *fakeKernel, _ string) error {
					if count++; count == n+1 {
						return fault(k, cancel)
					}
					return nil
				}
				s, err := h.Snapshot(ctx, v)
				cancel()
				fired := count > n
				k.before = nil
				if k.suspended {
					t.Fatalf("command %d fails: the volume is left frozen (%q)", n, k.log)
				}
				if err == nil {
					err = s.Delete(t.Context())
				} else {
					failed++
				}
				if _, rerr := h.Recover(t.Context()); rerr != nil {
					t.Fatalf("command %d fails: recover: %v", n, rerr)
				}
				if left := k.snapshots(); len(left) > 0 {
					t.Fatalf("command %d fails: snapshots %v are left, err %v", n, left, err)
				}
				if left := claimsLeft(t, h); len(left) > 0 {
					t.Fatalf("command %d fails: claims %q are left", n, left)
				}
				if !fired {
					break
				}
			}
			if failed < 4 {
				t.Errorf("only %d of the faults failed the snapshot", failed)
			}
		})
	}
}

func TestSnapshotRefusals(t *testing.T) {
	h, k := newFakeHost(t)
	v := mustResolve(t, h)
	for mode, want := range map[string]error{"ro": ErrReadOnly, "out_of_data_space": ErrOutOfSpace} {
		k.mode = mode
		if _, err := h.Snapshot(t.Context(), v); !errors.Is(err, want) {
			t.Errorf("%s: %v", mode, err)
		}
	}
	k.mode = "rw"
	k.suspended = true
	if _, err := h.Snapshot(t.Context(), v); !errors.Is(err, ErrBusy) {
		t.Errorf("suspended by another: %v", err)
	}
	if !k.suspended {
		t.Error("another's suspended volume was resumed")
	}
	k.suspended = false
	k.before = func(k *fakeKernel, line string) error { // the watchdog resumes too early
		if strings.Contains(line, "create_snap") {
			k.suspended = false
		}
		return nil
	}
	if _, err := h.Snapshot(t.Context(), v); !errors.Is(err, ErrFreezeExpired) {
		t.Errorf("thawed half way: %v", err)
	}
	if len(k.snapshots()) > 0 || len(claimsLeft(t, h)) > 0 {
		t.Errorf("left: %v %q", k.snapshots(), claimsLeft(t, h))
	}
}

// TestSnapshotTakenID: an ID that exists is not deleted, another is drawn.
func TestSnapshotTakenID(t *testing.T) {
	h, k := newFakeHost(t)
	v := mustResolve(t, h)
	var taken uint32
	k.before = func(k *fakeKernel, line string) error {
		if f := strings.Fields(line); taken == 0 && strings.Contains(line, "create_snap") {
			id, err := parseDeviceID(f[len(f)-2])
			if err != nil {
				t.Error(err)
			}
			taken, k.ids[id] = id, true
		}
		return nil
	}
	s, err := h.Snapshot(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if s.DeviceID == taken || !k.ids[taken] || !k.ids[s.DeviceID] {
		t.Errorf("taken %d, made %d, in the pool %v", taken, s.DeviceID, k.snapshots())
	}
	if err := s.Keep(); err != nil || len(claimsLeft(t, h)) > 0 {
		t.Errorf("keep: %v, claims %q", err, claimsLeft(t, h))
	}
}

// die makes a claim look as if its owner had been killed.
func die(t *testing.T, c *claim) {
	t.Helper()
	if err := c.abandon(); err != nil {
		t.Fatal(err)
	}
}

func TestReserve(t *testing.T) {
	h, k := newFakeHost(t)
	p := mustResolve(t, h).Pool
	r, err := h.Reserve(t.Context(), p)
	if err != nil || r.Root != 77 || k.heldRoot != 77 {
		t.Fatalf("reserve: %+v, %v", r, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Reserve(ctx, p); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errClaimed) {
		t.Errorf("while another shale holds it: %v", err)
	}
	if err := r.Release(ctx); err != nil || k.heldRoot != 0 { // ctx is over: it must not matter
		t.Errorf("release: %v, held %d", err, k.heldRoot)
	}
	k.heldRoot = 5
	if _, err := h.Reserve(t.Context(), p); !errors.Is(err, ErrHeld) || k.heldRoot != 5 {
		t.Errorf("another program's: %v, held %d", err, k.heldRoot)
	}
	k.heldRoot = 0
	if r, err = h.Reserve(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	k.heldRoot = 6
	if err := r.Release(t.Context()); !errors.Is(err, ErrLost) || k.heldRoot != 6 {
		t.Errorf("replaced by another program: %v, held %d", err, k.heldRoot)
	}
	if left := claimsLeft(t, h); len(left) > 0 {
		t.Errorf("claims %q are left", left)
	}
}

// TestReserveAfterDeath: the owner dies before, in the middle of, and after reserving; meanwhile another program may reserve.
func TestReserveAfterDeath(t *testing.T) {
	rows := []struct {
		name     string
		recorded uint64 // held root in the claim; 1: claim never written
		held     uint64
		want     error
	}{
		{"claim not written, nothing held", 1, 0, nil},
		{"claim not written, held by another", 1, 9, ErrHeld},
		{"before the message", 0, 0, nil},
		{"before the root was recorded", 0, 9, nil},
		{"while holding", 9, 9, nil},
		{"while holding, released by hand", 9, 0, nil},
		{"while holding, then held by another", 9, 12, ErrHeld},
	}
	for _, r := range rows {
		for _, recoverFirst := range []bool{false, true} {
			t.Run(r.name, func(t *testing.T) {
				h, k := newFakeHost(t)
				p := mustResolve(t, h).Pool
				c, err := h.takeClaim(t.Context(), claimReserve, p.ID(), false)
				if err != nil {
					t.Fatal(err)
				}
				if r.recorded != 1 {
					if err := c.write(record{Pool: p, Root: r.recorded}); err != nil {
						t.Fatal(err)
					}
				}
				die(t, c)
				k.heldRoot = r.held
				if recoverFirst {
					if _, err := h.Recover(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				res, err := h.Reserve(t.Context(), p)
				if !errors.Is(err, r.want) {
					t.Fatalf("got %v, want %v", err, r.want)
				}
				if err != nil {
					if k.heldRoot != r.held {
						t.Errorf("another program's was released")
					}
					return
				}
				if err := res.Release(t.Context()); err != nil || k.heldRoot != 0 || len(claimsLeft(t, h)) > 0 {
					t.Errorf("release: %v, held %d, claims %q", err, k.heldRoot, claimsLeft(t, h))
				}
			})
		}
	}
}

// TestReserveRefused: a message that the kernel refuses leaves no claim, which would make another's reservation look like ours.
func TestReserveRefused(t *testing.T) {
	h, k := newFakeHost(t)
	p := mustResolve(t, h).Pool
	for _, errno := range []string{"Input/output error", "Device or resource busy"} {
		k.before = func(_ *fakeKernel, line string) error {
			if strings.HasSuffix(line, "reserve_metadata_snap") {
				return newCommandError(line, "x failed: "+errno, errors.New("exit status 1"))
			}
			return nil
		}
		if _, err := h.Reserve(t.Context(), p); err == nil {
			t.Fatal("reserved")
		}
		k.before, k.heldRoot = nil, 9
		if rec, err := h.Recover(t.Context()); err != nil || len(rec.Released) > 0 || k.heldRoot != 9 {
			t.Errorf("%s: recovered %+v, %v", errno, rec, err)
		}
		k.heldRoot = 0
	}
}

func TestActivate(t *testing.T) {
	h, k := newFakeHost(t)
	v := mustResolve(t, h)
	d, err := h.Activate(t.Context(), v.Pool, 1, v.SizeBytes, "7:9")
	if err != nil || !strings.HasPrefix(d.Name, "shale-1-") || d.Path != "/dev/fake-253:2" || len(k.active) != 1 {
		t.Fatalf("%+v, %v, active %v", d, err, k.active)
	}
	if !slices.Contains(k.log, "dmsetup create --readonly --table 0 131072 thin 253:0 1 7:9 -- "+d.Name) {
		t.Errorf("commands: %q", k.log)
	}
	if err := d.Close(t.Context()); err != nil || len(k.active) > 0 || len(claimsLeft(t, h)) > 0 {
		t.Errorf("close: %v, active %v, claims %q", err, k.active, claimsLeft(t, h))
	}
	if _, err := h.Activate(t.Context(), v.Pool, 99, v.SizeBytes, ""); !errors.Is(err, ErrNotFound) || len(claimsLeft(t, h)) > 0 {
		t.Errorf("no such device ID: %v, claims %q", err, claimsLeft(t, h))
	}
	if _, err := h.Activate(t.Context(), v.Pool, 1, 100, ""); err == nil {
		t.Error("a size of 100 bytes is accepted")
	}
}

func TestRecover(t *testing.T) {
	h, k := newFakeHost(t)
	v := mustResolve(t, h)
	leave := func(kind, key string, r record) {
		t.Helper()
		c, err := h.takeClaim(t.Context(), kind, key, false)
		if err == nil {
			err = c.write(r)
		}
		if err != nil {
			t.Fatal(err)
		}
		die(t, c)
	}
	gone := Pool{Name: "inactive"}
	leave(claimFreeze, "vol", record{Pool: v.Pool, Device: "vol"})
	leave(claimActive, "shale-1-aa", record{Pool: v.Pool, Device: "shale-1-aa"})
	leave(claimSnapshot, "a", record{Pool: v.Pool, DeviceID: 9000001, Made: true})
	leave(claimSnapshot, "b", record{Pool: v.Pool, DeviceID: 9000002})             // died before it knew
	leave(claimSnapshot, "b0", record{Pool: v.Pool, DeviceID: 9000005})            // died before it made it
	leave(claimSnapshot, "c", record{Pool: v.Pool, DeviceID: 9000003, Made: true}) // deleted already
	leave(claimSnapshot, "later", record{Pool: gone, DeviceID: 9000004, Made: true})
	leave(claimReserve, "later", record{Pool: gone, Root: 3})
	if err := os.WriteFile(filepath.Join(h.conf.StateDir, "notes.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	k.suspended, k.active["shale-1-aa"] = true, 1
	k.ids[9000001], k.ids[9000002] = true, true
	living, err := h.Activate(t.Context(), v.Pool, 1, v.SizeBytes, "")
	if err != nil {
		t.Fatal(err)
	}

	got, err := h.Recover(t.Context())
	want := Recovered{Resumed: []string{"vol"}, Deactivated: []string{"shale-1-aa"}, Deleted: []string{"pool device 9000001"}, Unsure: []string{"pool device 9000002"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	if k.suspended || len(k.active) != 1 || !slices.Equal(k.snapshots(), []uint32{9000002}) {
		t.Errorf("suspended %v, active %v, snapshots %v", k.suspended, k.active, k.snapshots())
	}
	if got, want := claimsLeft(t, h), []string{"active-" + living.Name, "notes.txt", "reserve-later", "snapshot-later"}; !slices.Equal(got, want) {
		t.Errorf("claims left: %q, want %q", got, want)
	}
	if err := living.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWatchdog: what it does at the word, at the pipe's end, and at the limit.
func TestWatchdog(t *testing.T) {
	rows := []struct {
		name    string
		limit   string
		say     func(w *io.PipeWriter)
		resumes int
	}{
		{"done", "1m", func(w *io.PipeWriter) { _, _ = io.WriteString(w, "done\n") }, 0},
		{"killed", "1m", func(w *io.PipeWriter) { _ = w.Close() }, 1},
		{"killed in the middle of the word", "1m", func(w *io.PipeWriter) { _, _ = io.WriteString(w, "don"); _ = w.Close() }, 1},
		{"limit", "10ms", func(w *io.PipeWriter) { time.Sleep(200 * time.Millisecond); _, _ = io.WriteString(w, "done\n") }, 1},
		{"limit, then killed", "10ms", func(w *io.PipeWriter) { time.Sleep(200 * time.Millisecond); _ = w.Close() }, 2},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			h, k := newFakeHost(t)
			k.suspended = r.resumes > 0
			in, w := io.Pipe()
			go r.say(w)
			var out bytes.Buffer
			if err := h.watch([]string{"vol", r.limit}, in, &out); err != nil || out.String() != "ready\n" {
				t.Errorf("%v, said %q", err, out.String())
			}
			n := 0
			for _, line := range k.log {
				if line == "dmsetup resume -- vol" {
					n++
				}
			}
			if n != r.resumes || k.suspended {
				t.Errorf("%d times resumed, want %d; suspended: %v", n, r.resumes, k.suspended)
			}
		})
	}
	h, _ := newFakeHost(t)
	for _, bad := range [][]string{nil, {"vol"}, {"vol", "soon"}, {"nosuch", "1s"}} {
		var out bytes.Buffer
		if err := h.watch(bad, strings.NewReader(""), &out); err == nil || out.Len() > 0 {
			t.Errorf("%q: %v, said %q", bad, err, out.String())
		}
	}
}

// TestExecRunner: the real runner's ends.
func TestExecRunner(t *testing.T) {
	sh := func(script string) command { return command{name: "sh", args: []string{"-c", script}} }
	if out, err := (execRunner{}).run(t.Context(), sh("echo $LC_ALL")); err != nil || out != "C\n" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err := (execRunner{}).run(t.Context(), sh("echo 'message ioctl failed: File exists' >&2; exit 1"))
	if !errors.Is(err, ErrExists) || !errors.Is(err, syscall.EEXIST) {
		t.Errorf("got %v", err)
	}
	if _, err := (execRunner{}).run(t.Context(), command{name: "no-such-command-here"}); !errors.Is(err, ErrNoTool) {
		t.Errorf("got %v", err)
	}
	begin := time.Now()
	_, err = (execRunner{}).run(t.Context(), sh("exec sleep 60").withTimeout(50*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errStuck) || time.Since(begin) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}

// TestStartWatchdog: the process is started, awaited, told, and its failures to start are errors.
func TestStartWatchdog(t *testing.T) {
	start := func(script string) (guard, error) {
		h := New(Config{Watchdog: []string{"sh", "-c", script, "sh"}})
		return h.startWatchdog(t.Context(), "vol", time.Minute)
	}
	said := filepath.Join(t.TempDir(), "said")
	g, err := start("echo ready; echo \"$1 $2\" >" + said + "; cat >>" + said)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.done(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(said); err != nil || string(b) != "vol 1m0s\ndone\n" {
		t.Errorf("watchdog got %q, %v", b, err)
	}
	if g, err = start("echo ready"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if err := g.done(); err != nil {
		t.Errorf("a watchdog that has ended: %v", err)
	}
	for _, bad := range []string{"exit 1", "echo what"} {
		if _, err := start(bad); err == nil {
			t.Errorf("%q passes for a watchdog", bad)
		}
	}
	if _, err := New(Config{Watchdog: []string{"no-such-command-here"}}).startWatchdog(t.Context(), "vol", time.Minute); err == nil {
		t.Error("a missing program passes for a watchdog")
	}
}
