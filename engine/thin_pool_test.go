package engine_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
	"github.com/shalebackup/shale/thin/thintest"
)

// madePool is a pool that a test writes: block n of its data is all byte n.
type madePool struct {
	*thintest.Pool
	meta  thintest.Memory
	uuid  string // 16 bytes; empty: none
	dir   string
	block int64 // bytes
}

func newMadePool(t *testing.T, blockBytes int64) *madePool {
	t.Helper()
	p := &madePool{dir: t.TempDir(), block: blockBytes, uuid: "0123456789abcdef"}
	const blocks = 64
	p.Pool = thintest.New(&p.meta, thintest.Config{DataBlocks: blocks, BlockSectors: uint32(blockBytes / 512)})
	f, err := os.Create(p.options(1).Data)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(blocks * blockBytes); err != nil {
		t.Fatal(err)
	}
	page := make([]byte, block)
	for n := range int64(blocks) {
		for i := range page {
			page[i] = byte(n)
		}
		if _, err := f.WriteAt(page, n*blockBytes+blockBytes/2); err != nil { // the rest of the block is zeros
			t.Fatal(err)
		}
	}
	if err := p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		_ = yield(thintest.Mapping{Thin: 0, Data: 1}) && yield(thintest.Mapping{Thin: 1, Data: 2}) && yield(thintest.Mapping{Thin: 3, Data: 3})
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *madePool) options(device uint32) source.ThinPoolOptions {
	return source.ThinPoolOptions{Metadata: filepath.Join(p.dir, "meta"), Data: filepath.Join(p.dir, "data"), Device: device}
}

// write commits what changed.
func (p *madePool) write(t *testing.T) {
	t.Helper()
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	thintest.Patch(p.meta, 0, func(b []byte) {
		clear(b[16:32])
		copy(b[16:32], p.uuid)
	})
	if err := os.WriteFile(p.options(1).Metadata, p.meta, 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A backup is compared with the device of an earlier one where that is provably as it was, and says why where not. Either way
// it has the tree of a full scan.
func TestThinPoolBase(t *testing.T) {
	one := uint32(1)
	tests := []struct {
		name   string
		change func(t *testing.T, p *madePool) // after the backup of snapshot 2, and before that of snapshot 3
		o      func(o *source.ThinPoolOptions)
		reason string // part of it; empty: compared
	}{
		{"as it was", nil, nil, ""},
		{"written to", func(t *testing.T, p *madePool) { must(t, p.Map(2, 5, 9)) }, nil, "thin device 2 was written to since"},
		{"discarded in", func(t *testing.T, p *madePool) { must(t, p.Unmap(2, 1)) }, nil, "thin device 2 was written to since"},
		{"gone", func(_ *testing.T, p *madePool) { p.Delete(2) }, nil, "thin device 2 is gone"},
		{"made anew", func(t *testing.T, p *madePool) {
			p.Delete(2)
			must(t, p.Snapshot(2, 1))
		}, nil, "thin device 2 was made anew since"},
		{"snapshotted", func(t *testing.T, p *madePool) { must(t, p.Snapshot(7, 2)) }, nil, "thin device 2 was snapshotted since"},
		{"another pool", func(_ *testing.T, p *madePool) { p.uuid = "fedcba9876543210" }, nil, "it was made in pool 3031"},
		{"a pool that lost its UUID", func(_ *testing.T, p *madePool) { p.uuid = "" }, nil, "no UUID"},
		{"another device is asked for", nil, func(o *source.ThinPoolOptions) { o.Base = &one }, "it was made from thin device 2, not 1"},
		{"the same device", nil, func(o *source.ThinPoolOptions) { o.Device = 2 }, "it was made from thin device 2 too"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newMadePool(t, 64<<10)
			must(t, p.Snapshot(2, 1))
			p.write(t)
			r := memRepo(t)
			first := backup(t, r, source.ThinPool(p.options(2)), engine.BackupOptions{Volume: "vol"})
			must(t, p.Map(1, 1, 4))
			must(t, p.Unmap(1, 0))
			must(t, p.Map(1, 2, 5))
			if tt.change != nil {
				tt.change(t, p)
			}
			must(t, p.Snapshot(3, 1))
			p.write(t)
			o := p.options(3)
			if tt.o != nil {
				tt.o(&o)
			}
			o.Size = first.Backup.Blob.Size
			incr := backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "vol"})
			if tt.reason == "" && (incr.Parent != first.Backup.ID || incr.Reason != "") {
				t.Errorf("not compared: %s", incr.Reason)
			}
			if tt.reason != "" && (incr.Parent != "" || !strings.Contains(incr.Reason, tt.reason)) {
				t.Errorf("parent %q, reason %q, want none and %q", incr.Parent, incr.Reason, tt.reason)
			}
			full := backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "scan", Full: true})
			if incr.Backup.Blob != full.Backup.Blob {
				t.Errorf("got %+v, a full scan %+v", incr.Backup.Blob, full.Backup.Blob)
			}
		})
	}
}

// A volume that grows, when its pool's blocks are larger than spans and its old end lay inside one: what the block held counts as
// changed, also when it is unmapped now.
func TestThinPoolGrows(t *testing.T) {
	const large = 16 * mib
	for _, before := range []int64{large, 3 * large / 2, 3*large/2 + 4096, 3*large/2 + 512, 7 * large / 4} {
		for _, unmap := range []bool{false, true} {
			t.Run(fmt.Sprintf("from %d, unmapped %v", before, unmap), func(t *testing.T) {
				p := newMadePool(t, large)
				must(t, p.Snapshot(2, 1))
				p.write(t)
				r := memRepo(t)
				o := p.options(2)
				o.Size = before
				backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "vol"})
				if unmap {
					must(t, p.Unmap(1, 1))
				}
				must(t, p.Snapshot(3, 1))
				p.write(t)
				o = p.options(3)
				o.Size = 5 * large
				incr := backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "vol"})
				full := backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "scan", Full: true})
				if incr.Parent == "" || incr.Backup.Blob != full.Backup.Blob {
					t.Errorf("parent %q: %+v, full scan %+v", incr.Parent, incr.Backup.Blob, full.Backup.Blob)
				}
			})
		}
	}
}

// Damaged metadata is refused, and leaves no record.
func TestThinPoolDamaged(t *testing.T) {
	p := openPool(t, "basic-ext4")
	damaged := filepath.Join("..", "thin", "testdata", "damaged")
	images, err := filepath.Glob(filepath.Join(damaged, "*.img.zst"))
	if err != nil || len(images) < 10 {
		t.Fatalf("%d images in %s, %v", len(images), damaged, err)
	}
	r := memRepo(t)
	for _, image := range images {
		name := strings.TrimSuffix(filepath.Base(image), ".img.zst")
		o := p.options(p.device(t, 3))
		o.Metadata = unpack(t, image, t.TempDir())
		_, err := engine.Backup(t.Context(), r, source.ThinPool(o), engine.BackupOptions{Volume: "vol"})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		mustHaveBackups(t, r, 0)
		if name != "needs-check" {
			continue
		}
		o.AllowNeedsCheck = true
		whole := backup(t, memRepo(t), source.ThinPool(o), engine.BackupOptions{Volume: "vol"})
		if whole.Backup.Blob.Size != o.Size {
			t.Errorf("allowed: %+v", whole.Backup.Blob)
		}
	}
}

func TestThinPoolDataMissing(t *testing.T) {
	r := memRepo(t)
	p := newMadePool(t, 64<<10)
	p.write(t)
	try := func(o source.ThinPoolOptions) error {
		_, err := engine.Backup(t.Context(), r, source.ThinPool(o), engine.BackupOptions{Volume: "vol"})
		mustHaveBackups(t, r, 0)
		return err
	}
	o := p.options(1)
	must(t, os.Truncate(o.Data, 3*o.Size+100<<10))
	if err := try(o); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), o.Data) {
		t.Errorf("data cut short: %v", err)
	}
	must(t, os.Remove(o.Data))
	if err := try(o); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), o.Data) {
		t.Errorf("no data: %v", err)
	}
	o.Data = p.dir
	if err := try(o); err == nil || !strings.Contains(err.Error(), p.dir) {
		t.Errorf("data is a folder: %v", err)
	}
	o.Device = 99
	if err := try(o); err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("no such device: %v", err)
	}
	o = p.options(1)
	o.Metadata = filepath.Join(p.dir, "none")
	if err := try(o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no metadata: %v", err)
	}
	for _, size := range []int64{-512, 100} {
		p := newMadePool(t, 64<<10)
		p.write(t)
		o := p.options(1)
		o.Size = size
		if err := try(o); err == nil {
			t.Errorf("size %d is taken", size)
		}
	}
}

// Metadata that is written while it is read leaves no record.
func TestThinPoolChanges(t *testing.T) {
	r := memRepo(t)
	p := newMadePool(t, 64<<10)
	p.write(t)
	progress := &progress{on: func(int64) {
		must(t, p.Map(1, 9, 9))
		p.write(t)
	}}
	_, err := engine.Backup(t.Context(), r, source.ThinPool(p.options(1)), engine.BackupOptions{Volume: "vol", Progress: progress})
	if err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("got %v", err)
	}
	mustHaveBackups(t, r, 0)
}

// Data on a block device, which is read around the page cache, reads as from an image; also where the device's end is off all borders.
func TestThinPoolDataDevice(t *testing.T) {
	p := openPool(t, "odd-block-size")
	d := p.Devices[0]
	st, err := os.Stat(p.data)
	must(t, err)
	dev := loopDevice(t, int(st.Size()+511)/512*512)
	image, err := os.ReadFile(p.data)
	must(t, err)
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Write(image)
	must(t, errors.Join(err, f.Sync(), f.Close()))
	r := memRepo(t)
	o := p.options(d)
	want := backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "image"}).Backup
	o.Data = dev
	got := backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "device"}).Backup
	if got.Blob != want.Blob || got.Counts.Read != want.Counts.Read {
		t.Errorf("from the device %+v, from the image %+v", got.Blob, want.Blob)
	}
}
