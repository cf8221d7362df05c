package guest

import (
	"strings"
	"testing"
)

// TestLiveLVM: an LVM thin volume from the first backup to the restore into a new one; LVM agrees with the pool all the time.
func TestLiveLVM(t *testing.T) {
	const size = 48 * mib
	NewVG(t, "vgl", 240, "160M")
	Run(t, "lvcreate", "-q", "-y", "-V", "48M", "-T", "vgl/tp", "-n", "home")
	mnt := Ext4(t, "/dev/vgl/home")
	h := newHost(t)
	v := mustResolve(t, h, "vgl/home")
	r := newRepository(t)

	write(t, mnt+"/a", 4<<10, 1)
	first := r.mustCreate("vgl/home")
	write(t, mnt+"/b", 1<<10, 2)
	second := r.mustCreate("/dev/vgl/home")
	if second.Backup.Parent != first.Backup.ID || second.Backup.Counts.Read > 3*mib {
		t.Errorf("parent %q (%s), counts %+v", second.Backup.Parent, second.Reason, second.Backup.Counts)
	}
	ref := second.snapshot(t)
	if got := strings.Fields(Run(t, "lvs", "--noheadings", "-o", "lv_name", "@shale")); len(got) != 1 || got[0] != ref.LV {
		t.Errorf("LVM has the snapshots %q, the record %q", got, ref.LV)
	}
	atRest(t, h, v, 2)
	if got, kernel := r.restored(second), kernelSum(t, v.Pool.Name, ref.DeviceID, size); got != kernel {
		t.Errorf("restored: sha256 %s, the kernel read %s", got, kernel)
	}

	// A snapshot of the user's own, inactive, is read as it is, against the kept one, and takes its place as the base.
	write(t, mnt+"/b", 1<<10, 3)
	Run(t, "lvcreate", "-q", "-y", "-s", "-n", "monday", "vgl/home")
	third := r.mustCreate("vgl/monday", "--no-snapshot")
	if third.Backup.Parent != second.Backup.ID || third.Backup.Counts.Read > 3*mib {
		t.Errorf("parent %q (%s), counts %+v", third.Backup.Parent, third.Reason, third.Backup.Counts)
	}
	write(t, mnt+"/c", 1<<10, 4)
	fourth := r.mustCreate("vgl/home")
	if fourth.Backup.Parent != third.Backup.ID || fourth.Backup.Counts.Read > 3*mib {
		t.Errorf("parent %q (%s), counts %+v", fourth.Backup.Parent, fourth.Reason, fourth.Backup.Counts)
	}
	atRest(t, h, v, 3)
	if out := Run(t, "lvs", "--noheadings", "-o", "lv_name", "vgl"); !strings.Contains(out, "monday") {
		t.Errorf("the user's snapshot is gone: %s", out)
	}

	Run(t, "lvcreate", "-q", "-y", "-V", "48M", "-T", "vgl/tp", "-n", "new")
	mustShale(t, "backup", "restore", third.URL, "/dev/vgl/new", "--overwrite", "--blank")
	monday := mustResolve(t, h, "vgl/monday")
	if got, kernel := sum(t, "/dev/vgl/new"), kernelSum(t, v.Pool.Name, monday.DeviceID, size); got != kernel {
		t.Errorf("restored to a new volume: sha256 %s, the kernel read %s", got, kernel)
	}
}
