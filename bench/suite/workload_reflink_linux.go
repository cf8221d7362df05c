package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// reflinkSlack is what the XFS is larger than the image by: its own tables, the changed blocks and mkfs.xfs' least size.
const reflinkSlack = 512 << 20

// onReflinks runs fn while an XFS is mounted that holds the first image and a reflinked copy of it, changed to the second.
func onReflinks(ctx context.Context, w *workload, fn func(v1, v2 string) error) error {
	if os.Geteuid() != 0 {
		return errors.New("mounting an XFS needs root")
	}
	img, dir := filepath.Join(w.dir, "xfs.img"), filepath.Join(w.dir, "xfs")
	defer os.Remove(img)
	if err := makeSparse(img, w.size+reflinkSlack); err != nil {
		return err
	}
	if _, err := output(ctx, command{argv: []string{"mkfs.xfs", "-q", "-f", "-m", "reflink=1", img}}); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return mounted(ctx, img, dir, func() error {
		v1, v2 := filepath.Join(dir, "v1.img"), filepath.Join(dir, "v2.img")
		if err := copySparse(ctx, w.v1, v1); err != nil {
			return err
		}
		if _, err := output(ctx, command{argv: []string{"cp", "--reflink=always", v1, v2}}); err != nil {
			return err
		}
		if err := patch(v2, w.v1, w.v2); err != nil {
			return fmt.Errorf("change the reflinked copy: %w", err)
		}
		return fn(v1, v2)
	})
}

// patch writes the blocks of 4 KiB in which after differs from before into the file at path, and makes holes where they are zeros.
func patch(path, before, after string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = closing(err, f) }()
	a, err := os.Open(before)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(after)
	if err != nil {
		return err
	}
	defer b.Close()
	x, y, zero := make([]byte, pieceBlock), make([]byte, pieceBlock), make([]byte, pieceBlock)
	for off := int64(0); ; off += pieceBlock {
		n, readErr := io.ReadFull(b, y)
		if n == 0 {
			if !errors.Is(readErr, io.EOF) {
				return readErr
			}
			return f.Sync()
		}
		if _, err := io.ReadFull(a, x[:n]); err != nil {
			return err
		}
		switch {
		case bytes.Equal(x[:n], y[:n]):
		case bytes.Equal(y[:n], zero[:n]):
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n))
		default:
			_, err = f.WriteAt(y[:n], off)
		}
		if err != nil {
			return err
		}
	}
}
