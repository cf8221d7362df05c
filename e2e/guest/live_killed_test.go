package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// killPath puts a tool on a PATH of its own that kills the shale that runs it: before or after it does what a pattern matches.
func killPath(t *testing.T, tool, pattern, signal string, after bool) string {
	t.Helper()
	real, err := exec.LookPath(tool)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kill := fmt.Sprintf("kill -%s $PPID; exit 1", signal)
	if after {
		kill = fmt.Sprintf("%s \"$@\"; rc=$?; kill -%s $PPID; exit $rc", real, signal)
	}
	// The watchdog runs dmsetup, too, and is to live.
	script := fmt.Sprintf("#!/bin/sh\nif grep -q internal-resume /proc/$PPID/cmdline; then exec %[1]s \"$@\"; fi\n"+
		"case \"$*\" in *%[2]s*) %[3]s;; esac\nexec %[1]s \"$@\"\n", real, pattern, kill)
	if err := os.WriteFile(filepath.Join(dir, tool), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir + ":" + os.Getenv("PATH")
}

// TestLiveKilledAtCommands: shale is killed at commands that change something, before or after they took effect. The next backup
// is right, and nothing stays behind.
func TestLiveKilledAtCommands(t *testing.T) {
	p := NewPool(t, 64)
	mnt := Ext4(t, p.Volume("killed", 1, 16))
	h := newHost(t)
	v := mustResolve(t, h, "killed")
	r := newRepository(t)
	last := r.mustCreate("killed")
	for i, row := range []struct {
		pattern string
		after   bool
		unsure  bool // it cannot be known whose the snapshot is: nothing can be written down while the volume is frozen
	}{
		{"suspend", true, false},
		{"create_snap", true, true},
		{"reserve_metadata_snap", true, false},
		{"release_metadata_snap", false, false},
		{"'delete '", false, false},
	} {
		name := fmt.Sprintf("%s, after it: %v", row.pattern, row.after)
		cmd := shaleCommand(t, "backup", "create", "killed", "--dest", r.URL, "--volume", "vol")
		cmd.Env = append(os.Environ(), "PATH="+killPath(t, "dmsetup", row.pattern, "KILL", row.after))
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: not killed: %v: %s", name, err, out)
		}
		eventually(t, name+": the volume is resumed", func() bool { return !suspended(t, "killed") })
		write(t, mnt+"/file", 256, uint64(i))
		last = r.mustCreate("killed")
		if last.Backup.Parent == "" || last.Backup.Counts.Read > 3*mib {
			t.Errorf("%s: the base was lost: %s, counts %+v", name, last.Reason, last.Backup.Counts)
		}
		if said := strings.Contains(last.Notes, "left alone"); said != row.unsure {
			t.Errorf("%s: of a snapshot that may be left is said: %q", name, last.Notes)
		}
		if row.unsure {
			dropOthers(t, p, v.Pool.Metadata, 1, last.snapshot(t).DeviceID)
		}
		atRest(t, h, v, 2)
	}
	if got, kernel := r.restored(last), kernelSum(t, p.Name, last.snapshot(t).DeviceID, v.SizeBytes); got != kernel {
		t.Errorf("restored: sha256 %s, the kernel read %s", got, kernel)
	}
}

// dropOthers deletes all devices but two.
func dropOthers(t *testing.T, p *Pool, meta string, a, b uint32) {
	t.Helper()
	p.Message("reserve_metadata_snap")
	out := mustShale(t, "thin", "devices", meta, "--metadata-snap")
	p.Message("release_metadata_snap")
	for line := range strings.Lines(out) {
		var id uint32
		if _, err := fmt.Sscan(line, &id); err == nil && id != a && id != b {
			p.Message("delete", fmt.Sprint(id))
		}
	}
}

// TestLiveKilledWhileStoring: what had arrived is not stored again.
func TestLiveKilledWhileStoring(t *testing.T) {
	p := NewPool(t, 64)
	dev := p.Volume("midway", 1, 32)
	write(t, dev, 24<<10, 1)
	h := newHost(t)
	v := mustResolve(t, h, "midway")
	r := newRepository(t)
	cmd := shaleCommand(t, "backup", "create", "midway", "--dest", r.URL, "--volume", "vol", "--parallel", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	packs := func() (n int) {
		err := filepath.WalkDir(r.URL, func(_ string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				n++
			}
			if errors.Is(err, os.ErrNotExist) {
				err = nil // renamed meanwhile
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	empty := packs()
	eventually(t, "8 packs are stored", func() bool { return packs() >= empty+8 })
	crash(t, cmd)
	if n := packs(); n > empty+20 {
		t.Fatalf("%d objects: too late to test anything", n)
	}
	c := r.mustCreate("midway")
	if c.Writer.Adopted < 5 || c.Writer.Stored > 20*mib || !strings.Contains(c.Notes, "snapshots left, deleted") {
		t.Errorf("writer %+v, notes %q", c.Writer, c.Notes)
	}
	atRest(t, h, v, 2)
	if got, kernel := r.restored(c), kernelSum(t, p.Name, c.snapshot(t).DeviceID, v.SizeBytes); got != kernel {
		t.Errorf("restored: sha256 %s, the kernel read %s", got, kernel)
	}
}

// TestLiveInterrupted: at SIGTERM shale tidies up by itself.
func TestLiveInterrupted(t *testing.T) {
	p := NewPool(t, 64)
	write(t, p.Volume("term", 1, 32), 4<<10, 1)
	h := newHost(t)
	v := mustResolve(t, h, "term")
	r := newRepository(t)
	cmd := shaleCommand(t, "backup", "create", "term", "--dest", r.URL, "--volume", "vol")
	cmd.Env = append(os.Environ(), "PATH="+killPath(t, "dmsetup", "reserve_metadata_snap", "TERM", true))
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit %d: %s", code, out)
	}
	atRest(t, h, v, 1)
}

// TestLiveKilledAtLVM: LVM's commands are waited for and taken back, too.
func TestLiveKilledAtLVM(t *testing.T) {
	NewVG(t, "vgk", 120, "64M")
	Run(t, "lvcreate", "-q", "-y", "-V", "32M", "-T", "vgk/tp", "-n", "vol")
	write(t, "/dev/vgk/vol", 2<<10, 1)
	h := newHost(t)
	v := mustResolve(t, h, "vgk/vol")
	r := newRepository(t)
	cmd := shaleCommand(t, "backup", "create", "vgk/vol", "--dest", r.URL, "--volume", "vol")
	cmd.Env = append(os.Environ(), "PATH="+killPath(t, "lvcreate", "snapshot", "KILL", true))
	if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("not killed: %v: %s", err, out)
	}
	r.mustCreate("vgk/vol")
	atRest(t, h, v, 2)
	if out := strings.Fields(Run(t, "lvs", "--noheadings", "-o", "lv_name", "@shale")); len(out) != 1 {
		t.Errorf("snapshots: %q", out)
	}
}
