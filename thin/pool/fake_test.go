package pool

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeKernel answers dmsetup's command lines as kernel 6.1 with dmsetup 1.02.185 does, for one pool "pool" (253:0) with one
// active thin volume "vol" (253:1, device ID 1). It records what it was told.
type fakeKernel struct {
	mu        sync.Mutex
	log       []string
	suspended bool
	ids       map[uint32]bool
	active    map[string]uint32 // other devices, by name
	heldRoot  uint64
	mode      string
	before    func(k *fakeKernel, line string) error // runs before each command; an error takes the command's place
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{ids: map[uint32]bool{1: true}, active: map[string]uint32{}, mode: "rw"}
}

func (k *fakeKernel) run(ctx context.Context, c command) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	line := c.String()
	k.log = append(k.log, line)
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if k.before != nil {
		if err := k.before(k, line); err != nil {
			return "", err
		}
	}
	out, errno := k.do(line)
	if errno != 0 {
		text := errno.Error()
		text = "device-mapper: ioctl on x  failed: " + strings.ToUpper(text[:1]) + text[1:] + "\nCommand failed.\n"
		return "", newCommandError(line, text, fmt.Errorf("exit status 1"))
	}
	return out, nil
}

func (k *fakeKernel) do(line string) (string, syscall.Errno) {
	rest, dmsetup := strings.CutPrefix(line, "dmsetup ")
	if !dmsetup {
		return "", syscall.ENOSYS
	}
	verb, args, _ := strings.Cut(rest, " ")
	name := args[strings.LastIndex(args, " ")+1:]
	switch verb {
	case "info":
		return k.info(args, name)
	case "table", "status":
		return k.show(verb, name)
	case "suspend":
		k.suspended = true
		return "", 0
	case "resume":
		k.suspended = false
		return "", 0
	case "message":
		return "", k.message(strings.Fields(args[strings.Index(args, " 0 ")+3:]))
	case "create":
		f := strings.Fields(args)
		id, _ := strconv.Atoi(f[6]) // --readonly --table 0 N thin 253:0 ID -- name
		if !k.ids[uint32(id)] {
			return "", syscall.ENODATA
		}
		k.active[name] = uint32(id)
		return "", 0
	case "remove":
		if _, ok := k.active[name]; !ok {
			return "", syscall.ENXIO
		}
		delete(k.active, name)
		return "", 0
	}
	return "", syscall.ENOSYS
}

func (k *fakeKernel) info(args, name string) (string, syscall.Errno) {
	state := "L--w"
	if k.suspended {
		state = "L-sw"
	}
	switch {
	case strings.HasSuffix(args, "-j 253 -m 0"), name == "pool":
		return "|253|0|L--w|2|pool\n", 0
	case strings.HasSuffix(args, "-j 253 -m 1"), name == "vol":
		return "|253|1|" + state + "|1|vol\n", 0
	}
	if _, ok := k.active[name]; ok {
		return "|253|2|L--r|0|" + name + "\n", 0
	}
	return "", syscall.ENXIO
}

func (k *fakeKernel) show(verb, name string) (string, syscall.Errno) {
	switch verb + " " + name {
	case "table pool":
		return "0 614400 thin-pool 7:0 7:1 128 0 0 \n", 0
	case "table vol":
		return "0 131072 thin 253:0 1\n", 0
	case "status pool":
		held := "-"
		if k.heldRoot != 0 {
			held = fmt.Sprint(k.heldRoot)
		}
		return "0 614400 thin-pool 0 214/2048 0/4800 " + held + " " + k.mode + " discard_passdown queue_if_no_space - 512 \n", 0
	}
	return "", syscall.ENXIO
}

func (k *fakeKernel) message(words []string) syscall.Errno {
	num := func(i int) uint32 { n, _ := strconv.Atoi(words[i]); return uint32(n) }
	switch words[0] {
	case "create_snap":
		if k.ids[num(1)] {
			return syscall.EEXIST
		}
		k.ids[num(1)] = true
	case "delete":
		if !k.ids[num(1)] {
			return syscall.ENODATA
		}
		delete(k.ids, num(1))
	case "reserve_metadata_snap":
		if k.heldRoot != 0 {
			return syscall.EBUSY
		}
		k.heldRoot = 77
	case "release_metadata_snap":
		if k.heldRoot == 0 {
			return syscall.EINVAL
		}
		k.heldRoot = 0
	default:
		return syscall.EINVAL
	}
	return 0
}

// snapshots are the device IDs other than the volume's.
func (k *fakeKernel) snapshots() (ids []uint32) {
	for id := range k.ids {
		if id != 1 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// fakeGuard stands for the watchdog: it resumes when abandoned.
type fakeGuard struct {
	k         *fakeKernel
	completed bool
}

func (g *fakeGuard) inherited() *os.File { return nil }
func (g *fakeGuard) done() error         { g.completed = true; return nil }
func (g *fakeGuard) abandon()            { g.k.suspended = false }

// newFakeHost is a Host over a fake kernel, with a state folder of its own.
func newFakeHost(t *testing.T) (*Host, *fakeKernel) {
	t.Helper()
	k := newFakeKernel()
	h := New(Config{StateDir: t.TempDir(), HeldWait: -1})
	h.cmd = k
	h.node = func(d DevNo) (string, error) { return "/dev/fake-" + d.String(), nil }
	h.guard = func(context.Context, string, time.Duration) (guard, error) { return &fakeGuard{k: k}, nil }
	return h, k
}

// claimsLeft are the names of the claim files.
func claimsLeft(t *testing.T, h *Host) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(h.conf.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
