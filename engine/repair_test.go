package engine_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
)

// TestRepairContent: a file's data and holes, and what is no file.
func TestRepairContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("data"), 4096)
	_, err = f.WriteAt(want, 8<<20)
	if err = errors.Join(err, f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	c, err := engine.RepairContent(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size() != 16<<20 {
		t.Errorf("size %d", c.Size())
	}
	data := 0
	for off := int64(0); off < c.Size(); {
		from, end, err := c.NextData(t.Context(), off)
		if err != nil || from < off || end > c.Size() || (from < c.Size() && end <= from) {
			t.Fatalf("data at or behind %d: %d to %d, %v", off, from, end, err)
		}
		if from == c.Size() {
			break
		}
		data += int(end - from)
		off = end
	}
	if data < len(want) || data > 16<<20 {
		t.Errorf("%d bytes of data", data)
	}
	got := make([]byte, len(want))
	if err := c.ReadAt(t.Context(), got, 8<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v", err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadAt(t.Context(), got, 8<<20); !errors.Is(err, chunkstore.ErrCorrupt) { // is not there, and no failure
		t.Errorf("a file that shrank: %v", err)
	}
	for _, bad := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none"), "/dev/null"} {
		if c, err := engine.RepairContent(bad); err == nil {
			_ = c.Close()
			t.Errorf("%s is taken", bad)
		}
	}
}

// TestLostBaseIsRefused: after a repair, a backup that has lost data cannot be named as the base.
func TestLostBaseIsRefused(t *testing.T) {
	be := mem.New()
	r := openRepo(t, be)
	img := bytes.Repeat([]byte("content "), 100_000)
	first := backup(t, r, plainVolume(img), engine.BackupOptions{Volume: "v"})
	var packs []string
	err := be.List(t.Context(), "packs/data", func(o backend.Object) error { packs = append(packs, o.Name); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range packs {
		if err := be.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	if rep, err := chunkstore.Repair(t.Context(), be, chunkstore.Options{}, chunkstore.RepairOptions{}); err != nil || len(rep.Lost) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	based := &volume{image: img, base: true}
	if _, err := engine.Backup(t.Context(), r, based, engine.BackupOptions{Volume: "v", Base: first.Backup.ID}); !errors.Is(err, chunkstore.ErrNotFound) {
		t.Errorf("a base that has lost data: %v", err)
	}
	backup(t, r, plainVolume(img), engine.BackupOptions{Volume: "v"}) // the test's end checks that all is whole
	backup(t, r, based, engine.BackupOptions{Volume: "v", Base: first.Backup.ID})
}
