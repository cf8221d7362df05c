package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shalebackup/shale/thin/pool"
)

const mib = 1 << 20

// keepWriting overwrites a file of 2 MiB, in place, until stop is called, which returns how often it did.
func keepWriting(t *testing.T, path string) (stop func() int) {
	t.Helper()
	write(t, path, 2<<10, 0)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wrote := make(chan int)
	go func() {
		n := 0
		defer func() { wrote <- n }()
		defer f.Close()
		for b := make([]byte, 2*mib); ctx.Err() == nil; n++ {
			for i := 0; i < len(b); i += 4096 {
				b[i] = byte(n)
			}
			_, err := f.WriteAt(b, 0)
			if err := errors.Join(err, f.Sync()); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() int { cancel(); return <-wrote }
}

// TestLiveBackup is the life of a volume: backed up in use, again and again, restored and mounted.
func TestLiveBackup(t *testing.T) {
	const size = 32 * mib
	p := NewPool(t, 128)
	mnt := Ext4(t, p.Volume("live", 1, 32))
	h := newHost(t)
	v := mustResolve(t, h, "live")
	r := newRepository(t)
	write(t, mnt+"/a", 4<<10, 1)

	var backups []*created
	var sums []string // as the kernel reads the snapshot of each
	keep := func(c *created) {
		backups = append(backups, c)
		sums = append(sums, kernelSum(t, p.Name, c.snapshot(t).DeviceID, size))
		atRest(t, h, v, 2)
	}
	first := r.mustCreate("live")
	if first.Reason == "" || first.Backup.Counts.Read < 4*mib || first.Backup.Blob.Size != size {
		t.Errorf("first: %+v", first.Backup)
	}
	keep(first)

	write(t, mnt+"/b", 1<<10, 2)
	second := r.mustCreate("/dev/mapper/live")
	if c := second.Backup.Counts; second.Backup.Parent != first.Backup.ID || c.Read < mib || c.Read > 3*mib || c.MetadataBlocks > 60 {
		t.Errorf("1 MiB was written since: parent %q, counts %+v", second.Backup.Parent, c)
	}
	keep(second)

	stop := keepWriting(t, mnt+"/busy")
	third := r.mustCreate("live")
	n := stop()
	if n < 2 {
		t.Errorf("only %d writes during the backup", n)
	}
	if third.Backup.Counts.Read > 8*mib {
		t.Errorf("read %d bytes, 2 MiB were written since", third.Backup.Counts.Read)
	}
	keep(third)
	write(t, mnt+"/b", 512, 3)
	if err := os.Remove(mnt + "/a"); err != nil {
		t.Fatal(err)
	}
	Run(t, "sync", "-f", mnt) // what the journal may still need is not trimmed
	Run(t, "fstrim", mnt)
	fourth := r.mustCreate("live")
	if d := third.Backup.Blob.Data - fourth.Backup.Blob.Data; d < 3*mib {
		t.Errorf("4 MiB were trimmed, the backup has only %d bytes less", d)
	}
	keep(fourth)

	t.Run("restore", func(t *testing.T) {
		for i, c := range backups {
			if got := r.restored(c); got != sums[i] {
				t.Errorf("backup %d restored: sha256 %s, the kernel read %s", i, got, sums[i])
			}
		}
	})
	t.Run("restore to a thin volume", func(t *testing.T) {
		dev := p.Volume("restored", 2, 32)
		mustShale(t, "backup", "restore", third.URL, dev, "--overwrite", "--blank")
		if got := sum(t, dev); got != sums[2] {
			t.Errorf("sha256 %s, the kernel read %s", got, sums[2])
		}
		ts, err := h.ThinStatus(t.Context(), mustResolve(t, h, "restored"))
		if err != nil || ts.MappedBytes > third.Backup.Blob.Data+64*64<<10 {
			t.Errorf("%d bytes are mapped for %d of data (%v)", ts.MappedBytes, third.Backup.Blob.Data, err)
		}
		if sb := Run(t, "dumpe2fs", "-h", dev); strings.Contains(sb, "needs_recovery") {
			t.Error("the file system needs recovery: it was not frozen for the snapshot")
		}
		Run(t, "e2fsck", "-fn", dev)
	})
	t.Run("mount", func(t *testing.T) { mountAll(t, r, backups, sums) })
}

// mountAll reads every backup through the FUSE mount.
func mountAll(t *testing.T, r *repository, backups []*created, sums []string) {
	dir := t.TempDir()
	mustShale(t, "backup", "mount", r.URL, dir)
	t.Cleanup(func() { Run(t, "umount", dir) })
	for i, c := range backups {
		if got := sum(t, filepath.Join(dir, "vol", c.Backup.ID, "image.raw")); got != sums[i] {
			t.Errorf("backup %d in the mount: sha256 %s, the kernel read %s", i, got, sums[i])
		}
	}
	m := Mount(t, filepath.Join(dir, "vol", "latest", "image.raw"), "ro,loop")
	if st, err := os.Stat(m + "/b"); err != nil || st.Size() != 512<<10 {
		t.Errorf("file in the newest backup: %v", err)
	}
}

// TestLiveBaseGone: without the base everything is read, and it is said why; what the repository has is not stored again.
func TestLiveBaseGone(t *testing.T) {
	p := NewPool(t, 64)
	dev := p.Volume("gone", 1, 32)
	write(t, dev, 4<<10, 1)
	h := newHost(t)
	v := mustResolve(t, h, "gone")
	r := newRepository(t)
	first := r.mustCreate("gone")
	if err := h.Delete(t.Context(), v.Pool, first.snapshot(t)); err != nil {
		t.Fatal(err)
	}
	second := r.mustCreate("gone")
	if !strings.Contains(second.Reason, "is gone") || second.Backup.Counts.Read != 4*mib || second.Writer.NewBytes != 0 {
		t.Errorf("reason %q, counts %+v", second.Reason, second.Backup.Counts)
	}
	if first.Backup.Blob != second.Backup.Blob {
		t.Error("the same volume gives another tree")
	}
	// A snapshot that somebody wrote to is no base, and is not deleted, either.
	id := second.snapshot(t).DeviceID
	Run(t, "dmsetup", "create", "tamper", "--table", fmt.Sprintf("0 65536 thin /dev/mapper/%s %d", p.Name, id))
	write(t, "/dev/mapper/tamper", 64, 9)
	Run(t, "dmsetup", "remove", "--retry", "tamper")
	third := r.mustCreate("gone")
	if !strings.Contains(third.Reason, "was written to") || third.Backup.Blob != first.Backup.Blob {
		t.Errorf("reason %q", third.Reason)
	}
	atRest(t, h, v, 3)
}

// TestLiveTogether: volumes of one pool are backed up at the same time.
func TestLiveTogether(t *testing.T) {
	p := NewPool(t, 96)
	h := newHost(t)
	r := newRepository(t)
	for i := range 2 {
		write(t, p.Volume(fmt.Sprintf("vol%d", i), i+1, 32), 6<<10, uint64(i))
	}
	v := mustResolve(t, h, "vol0")
	for range 2 {
		var all sync.WaitGroup
		for i := range 2 {
			all.Go(func() {
				name := fmt.Sprintf("vol%d", i)
				if _, _, err := shale(t, "backup", "create", name, "--dest", r.URL, "--volume", name); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	atRest(t, h, v, 4)
}

// TestLiveExternalOrigin: a volume that shows another device where it has no data of its own.
func TestLiveExternalOrigin(t *testing.T) {
	p := NewPool(t, 64)
	origin := Disk(t, 8)
	write(t, origin, 5<<10, 1)
	p.Message("create_thin", "1")
	Run(t, "dmsetup", "create", "overlaid", "--table", fmt.Sprintf("0 32768 thin /dev/mapper/%s 1 %s", p.Name, origin))
	t.Cleanup(func() { Run(t, "dmsetup", "remove", "--retry", "overlaid") })
	write(t, "/dev/mapper/overlaid", 1<<10, 2)
	h := newHost(t)
	v := mustResolve(t, h, "overlaid")
	r := newRepository(t)
	c := r.mustCreate("overlaid")
	if got, kernel := r.restored(c), sum(t, "/dev/mapper/overlaid"); got != kernel || !strings.Contains(c.Reason, "no data of its own") {
		t.Errorf("restored: sha256 %s, the kernel reads %s; reason %q", got, kernel, c.Reason)
	}
	atRest(t, h, v, 1)
}

// TestLiveReadOnlyPool: no snapshot can be taken, but what stands still can be backed up, also against the base.
func TestLiveReadOnlyPool(t *testing.T) {
	p := NewPool(t, 64)
	dev := p.Volume("rolive", 1, 32)
	write(t, dev, 4<<10, 1)
	newHost(t)
	r := newRepository(t)
	first := r.mustCreate("rolive")
	write(t, dev, 512, 2)
	reload(t, p.Name, p.Table("read_only"))
	troubled(t, r, "rolive", "pool is read-only", first)
	reload(t, p.Name, p.Table())
}

// TestLivePoolOutOfSpace is the same for a pool out of data space.
func TestLivePoolOutOfSpace(t *testing.T) {
	p := NewPool(t, 16, "error_if_no_space")
	dev := p.Volume("fulllive", 1, 64)
	write(t, dev, 4<<10, 1)
	h := newHost(t)
	r := newRepository(t)
	first := r.mustCreate("fulllive")
	write(t, dev, 512, 2)
	if err := fill(t, p.Volume("filler", 2, 32), 24); err == nil {
		t.Fatal("the pool takes more than it has")
	}
	if st := mustStatus(t, h, mustResolve(t, h, "fulllive").Pool); st.Mode != pool.ModeOutOfDataSpace {
		t.Fatalf("status: %+v", st)
	}
	troubled(t, r, "fulllive", "pool is out of data space", first)
}

// troubled backs up a volume of which first is a backup, and of which 512 KiB were written since, in a pool that takes no snapshot.
func troubled(t *testing.T, r *repository, name, want string, first *created) {
	t.Helper()
	_, err := r.create(name)
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--no-snapshot") {
		t.Errorf("got %v, want %q and what to do", err, want)
	}
	if _, err := r.create(name, "--no-snapshot"); err == nil || !strings.Contains(err.Error(), "can be written to") {
		t.Errorf("a volume in use, as it is: %v", err)
	}
	Run(t, "blockdev", "--setro", "/dev/mapper/"+name)
	c := r.mustCreate(name, "--no-snapshot")
	if c.Backup.Parent != first.Backup.ID || c.Backup.Counts.Read > 2*mib {
		t.Errorf("as it is: parent %q (%s), counts %+v", c.Backup.Parent, c.Reason, c.Backup.Counts)
	}
	if got, kernel := r.restored(c), sum(t, "/dev/mapper/"+name); got != kernel {
		t.Errorf("restored: sha256 %s, the kernel reads %s", got, kernel)
	}
}
