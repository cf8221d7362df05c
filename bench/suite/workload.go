package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// workload is two states of one disk image, and the path under which tools see the one or the other: tools that look for a file's
// earlier backup by its path find it.
type workload struct {
	dir    string
	v1, v2 string // paths of the images
	source string // what tools back up
	size   int64  // bytes
	kind   string
	stats  workloadStats
}

// workloadStats describe the images, in bytes.
type workloadStats struct {
	data      int64 // of v1 in blocks of 4 KiB that are not zero
	unique    int64 // of these, different ones
	changed4K int64 // blocks of v2 that are not v1's
	changed64 int64 // the same in blocks of 64 KiB
	sum1      string
	sum2      string
}

// makeWorkload generates the images in dir.
func makeWorkload(ctx context.Context, o options, dir string) (*workload, error) {
	w := &workload{dir: dir, v1: filepath.Join(dir, "v1.img"), v2: filepath.Join(dir, "v2.img"), source: filepath.Join(dir, "source", "disk.img"), size: o.size, kind: o.workload}
	if err := os.Mkdir(filepath.Dir(w.source), 0o755); err != nil {
		return nil, err
	}
	var err error
	if o.workload == "ext4" {
		err = makeExt4Images(ctx, w, o.seed)
	} else {
		err = makeSyntheticImages(w, o.seed)
	}
	if err != nil {
		return nil, fmt.Errorf("make the %s workload: %w", o.workload, err)
	}
	if w.stats, err = describe(w); err != nil {
		return nil, err
	}
	return w, nil
}

// show lets the source be one of the images.
func (w *workload) show(image string) error {
	if err := os.Remove(w.source); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Link(image, w.source)
}

// makeSyntheticImages writes the images of planImage and planChange.
func makeSyntheticImages(w *workload, seed uint64) error {
	pieces := planImage(seed, w.size)
	change := planChange(seed, w.size, pieces)
	for path, plan := range map[string][][]piece{w.v1: {pieces}, w.v2: {pieces, change}} {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		err = f.Truncate(w.size)
		for _, p := range plan {
			if err == nil {
				err = writePieces(f, p)
			}
		}
		if err = closing(err, f); err != nil {
			return err
		}
	}
	return nil
}

// describe reads both images.
func describe(w *workload) (s workloadStats, err error) {
	a, err := os.Open(w.v1)
	if err != nil {
		return s, err
	}
	defer a.Close()
	b, err := os.Open(w.v2)
	if err != nil {
		return s, err
	}
	defer b.Close()
	sum1, sum2 := sha256.New(), sha256.New()
	seen := map[[16]byte]struct{}{}
	x, y := make([]byte, poolBlock), make([]byte, poolBlock)
	zero := make([]byte, pieceBlock)
	for off := int64(0); off < w.size; off += poolBlock {
		n := min(poolBlock, w.size-off)
		for _, r := range []struct {
			from io.Reader
			to   []byte
		}{{a, x[:n]}, {b, y[:n]}} {
			if _, err := io.ReadFull(r.from, r.to); err != nil {
				return s, err
			}
		}
		sum1.Write(x[:n])
		sum2.Write(y[:n])
		if !bytes.Equal(x[:n], y[:n]) {
			s.changed64 += n
		}
		for i := int64(0); i < n; i += pieceBlock {
			p, q := x[i:min(i+pieceBlock, n)], y[i:min(i+pieceBlock, n)]
			if !bytes.Equal(p, zero[:len(p)]) {
				s.data += int64(len(p))
				h := sha256.Sum256(p)
				if _, ok := seen[[16]byte(h[:16])]; !ok {
					seen[[16]byte(h[:16])] = struct{}{}
					s.unique += int64(len(p))
				}
			}
			if !bytes.Equal(p, q) {
				s.changed4K += int64(len(p))
			}
		}
	}
	s.sum1, s.sum2 = hex.EncodeToString(sum1.Sum(nil)[:8]), hex.EncodeToString(sum2.Sum(nil)[:8])
	return s, nil
}

// sameContent compares two files.
func sameContent(path, want string) error {
	a, err := os.Open(path)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(want)
	if err != nil {
		return err
	}
	defer b.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(x)) {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return fmt.Errorf("%s is not what was backed up: it differs in the MiB at %d", path, off)
		}
		if errA != nil || errB != nil {
			if errors.Is(errA, io.EOF) || errors.Is(errA, io.ErrUnexpectedEOF) {
				return nil
			}
			return firstOf(errA, errB)
		}
	}
}

// copySparse copies a file; blocks of zeros become holes.
func copySparse(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	_, err := output(ctx, command{argv: []string{"cp", "--sparse=always", from, to}})
	return err
}

// allocated is how many bytes a file takes on its file system.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}
