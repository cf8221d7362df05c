package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestImage(t *testing.T) {
	o := options{size: 64, data: 5, seed: 7}
	img := newImage(filepath.Join(t.TempDir(), "image"), o)
	if err := img.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(img.path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 64*mib || st.Blocks*512 < 5*mib || st.Blocks*512 > 6*mib {
		t.Errorf("%d bytes, %d of them on the disk", st.Size, st.Blocks*512)
	}
	if err := img.compare(t.Context(), img.path); err != nil {
		t.Error(err)
	}
	f, err := os.OpenFile(img.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	off := img.run(4, make([]byte, runLen))
	if _, err := f.WriteAt([]byte{1, 2, 3}, off+runLen-3); err != nil {
		t.Fatal(err)
	}
	if err := img.compare(t.Context(), img.path); err == nil {
		t.Error("a changed run is not noticed")
	}
	if err := newImage(img.path, options{size: 65, data: 5, seed: 7}).compare(t.Context(), img.path); err == nil {
		t.Error("another length is not noticed")
	}
}

func TestParse(t *testing.T) {
	for _, args := range [][]string{{"-size", "100", "-data", "60"}, {"-data", "0"}, {"-size", "1", "-data", "2"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
	o, err := parse(nil)
	if err != nil || o.size != 64<<10 || o.data != 4<<10 || o.limit != 256 || !o.mount {
		t.Errorf("defaults %+v, %v", o, err)
	}
}
