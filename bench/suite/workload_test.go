package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

// syntheticPair is a small pair of images in memory.
func syntheticPair(t *testing.T, seed uint64, size int64) (v1, v2 []byte) {
	t.Helper()
	pieces := planImage(seed, size)
	v1 = make([]byte, size)
	if err := writePieces(imageBytes(v1), pieces); err != nil {
		t.Fatal(err)
	}
	v2 = bytes.Clone(v1)
	if err := writePieces(imageBytes(v2), planChange(seed, size, pieces)); err != nil {
		t.Fatal(err)
	}
	return v1, v2
}

// TestSyntheticIsTheSameEverywhere: the counts of -quick mean nothing if the data is another.
func TestSyntheticIsTheSameEverywhere(t *testing.T) {
	v1, v2 := syntheticPair(t, 1, 8<<20)
	for _, c := range []struct {
		name, want string
		img        []byte
	}{
		{"first", "40194ddf35200335", v1},
		{"second", "340e535b4a695844", v2},
	} {
		if sum := sha256.Sum256(c.img); hex.EncodeToString(sum[:8]) != c.want {
			t.Errorf("%s image: %x, want %s", c.name, sum[:8], c.want)
		}
	}
	if other, _ := syntheticPair(t, 2, 8<<20); bytes.Equal(other, v1) {
		t.Error("another seed gives the same image")
	}
}

// TestSyntheticMix: holes, change and compressibility are what the rows are meant for.
func TestSyntheticMix(t *testing.T) {
	const size = 32 << 20
	v1, v2 := syntheticPair(t, 3, size)
	holes, changed := 0, 0
	var data []byte
	for off := 0; off < size; off += pieceBlock {
		b := v1[off:][:pieceBlock]
		if len(bytes.TrimLeft(b, "\x00")) == 0 {
			holes++
		} else {
			data = append(data, b...)
		}
		if !bytes.Equal(b, v2[off:][:pieceBlock]) {
			changed++
		}
	}
	blocks := size / pieceBlock
	if holes < blocks*20/100 || holes > blocks*45/100 {
		t.Errorf("%d of %d blocks are holes, not about 30 %%", holes, blocks)
	}
	if changed < blocks/200 || changed > blocks/40 {
		t.Errorf("%d of %d blocks changed, not about 1 %%", changed, blocks)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(enc.EncodeAll(data, nil)); n > len(data)*3/4 || n < len(data)/5 {
		t.Errorf("%d bytes compress to %d", len(data), n)
	}
}

func TestImageFiles(t *testing.T) {
	dir := t.TempDir()
	w, err := makeWorkload(t.Context(), options{workload: "synthetic", size: 8 << 20, seed: 1}, dir)
	if err != nil {
		t.Fatal(err)
	}
	v1, v2 := syntheticPair(t, 1, 8<<20)
	for path, want := range map[string][]byte{w.v1: v1, w.v2: v2} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the image: %v", path, err)
		}
	}
	for _, img := range []string{w.v1, w.v2} {
		if err := w.show(img); err != nil {
			t.Fatal(err)
		}
		if err := sameContent(w.source, img); err != nil {
			t.Error(err)
		}
	}
	if err := sameContent(w.source, w.v1); err == nil {
		t.Error("different images are the same")
	}
	if s := w.stats; s.data <= s.unique || s.changed64 <= s.changed4K || s.changed4K == 0 || s.sum1 == s.sum2 {
		t.Errorf("%+v", s)
	}
	if err := patch(w.v1, w.v1, w.v2); err != nil {
		t.Fatal(err)
	}
	if err := sameContent(w.v1, w.v2); err != nil {
		t.Errorf("patched: %v", err)
	}
}

// TestThinPoolHoldsTheImages: what shale reads through the pool's snapshots are the images.
func TestThinPoolHoldsTheImages(t *testing.T) {
	const size = 4<<20 + 4096
	v1, v2 := syntheticPair(t, 5, size)
	dir := t.TempDir()
	pool, err := makeThinPool(filepath.Join(dir, "meta"), filepath.Join(dir, "data"), 5, bytes.NewReader(v1), bytes.NewReader(v2), size)
	if err != nil {
		t.Fatal(err)
	}
	if pool.changed == 0 || pool.changed > size/poolBlock/2 {
		t.Errorf("%d pool blocks changed", pool.changed)
	}
	r, err := newCountedRepository(t.Context(), chunkstore.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for device, want := range map[uint32][]byte{pool.before: v1, pool.then: v2} {
		from := source.ThinPool(source.ThinPoolOptions{Metadata: pool.meta, Data: pool.data, Device: device, Size: size})
		res, err := engine.Backup(t.Context(), r.Repository, from, engine.BackupOptions{Volume: "v", Full: true})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if _, err := r.OpenBlob(res.Backup.Blob).ReadAt(t.Context(), got, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("device %d does not hold its image", device)
		}
	}
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	count := func() (files int, sum [32]byte) {
		h := sha256.New()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files++
			b, err := os.ReadFile(path)
			h.Write([]byte(path[len(dir):]))
			h.Write(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files, [32]byte(h.Sum(nil))
	}
	if err := makeTree(dir, 1, 500); err != nil {
		t.Fatal(err)
	}
	files, before := count()
	if files != 500 {
		t.Errorf("%d files, not 500", files)
	}
	if err := changeTree(dir, 1, 500); err != nil {
		t.Fatal(err)
	}
	if n, after := count(); after == before || n < 490 || n > 510 {
		t.Errorf("%d files after the change, or nothing changed", n)
	}
}

// TestExt4Images: the images are file systems, the second is the first with about 1 % changed.
func TestExt4Images(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	w, err := makeWorkload(t.Context(), options{workload: "ext4", size: 64 << 20, seed: 1}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if s := w.stats; s.data < 30<<20 || s.data > 58<<20 || s.changed4K < 64<<20/400 || s.changed4K > 64<<20/5 {
		t.Errorf("%+v", s)
	}
	for _, img := range []string{w.v1, w.v2} {
		if _, err := output(t.Context(), command{argv: []string{"e2fsck", "-fn", img}}); err != nil {
			t.Error(err)
		}
	}
}
