package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/shalebackup/shale/thin/thintest"
)

// thinPool is the offline image of a thin pool: a device with the first image's content, a snapshot of it, then what changed until the
// second image, and a snapshot of that. The snapshots share blocks and B-tree nodes as a kernel's would.
type thinPool struct {
	meta, data   string // paths
	size         int64  // bytes of the device
	before, then uint32 // IDs of the snapshots
	changed      int    // pool blocks mapped anew or removed
}

const (
	thinOrigin, thinBefore, thinThen = 1, 2, 3
	poolBlock                        = 64 << 10 // bytes
)

// makeThinPool writes the pool's metadata and data. Runs of blocks lie where the seed puts them, as in a pool that several devices have
// filled at once. Blocks of zeros are not mapped, as after fstrim.
func makeThinPool(meta, data string, seed uint64, v1, v2 io.ReaderAt, size int64) (_ *thinPool, err error) {
	m, err := os.Create(meta)
	if err != nil {
		return nil, err
	}
	defer func() { err = closing(err, m) }()
	d, err := os.Create(data)
	if err != nil {
		return nil, err
	}
	defer func() { err = closing(err, d) }()
	w := poolWriter{pool: nil, data: d, size: size}
	blocks := (size + poolBlock - 1) / poolBlock
	places := scatterRuns(seed, uint64(blocks))
	w.pool = thintest.New(m, thintest.Config{DataBlocks: 2 * uint64(blocks), BlockSectors: poolBlock / 512})
	if err := w.pool.AddDevice(thinOrigin, func(yield func(thintest.Mapping) bool) {
		for b := range uint64(blocks) {
			if used, e := w.copyBlock(v1, b, places[b]); e != nil || used && !yield(thintest.Mapping{Thin: b, Data: places[b]}) {
				w.err = e
				return
			}
		}
	}); err != nil || w.err != nil {
		return nil, fmt.Errorf("fill the pool: %w", firstOf(w.err, err))
	}
	if err := w.pool.Snapshot(thinBefore, thinOrigin); err != nil {
		return nil, err
	}
	changed, err := w.change(v1, v2, uint64(blocks))
	if err != nil {
		return nil, fmt.Errorf("change the pool: %w", err)
	}
	if err := w.pool.Snapshot(thinThen, thinOrigin); err != nil {
		return nil, err
	}
	if err := w.pool.Commit(); err != nil {
		return nil, err
	}
	if err := d.Truncate(2 * blocks * poolBlock); err != nil {
		return nil, err
	}
	return &thinPool{meta, data, size, thinBefore, thinThen, changed}, nil
}

// poolWriter puts content into a pool.
type poolWriter struct {
	pool     *thintest.Pool
	data     io.WriterAt
	size     int64
	a, b     [poolBlock]byte
	err      error
	nextFree uint64
}

// read fills p with block b of an image, padded with zeros, and reports whether it holds anything.
func (w *poolWriter) read(img io.ReaderAt, b uint64, p []byte) (bool, error) {
	n := min(poolBlock, w.size-int64(b)*poolBlock)
	clear(p[n:])
	if _, err := img.ReadAt(p[:n], int64(b)*poolBlock); err != nil && err != io.EOF {
		return false, err
	}
	return len(bytes.TrimLeft(p, "\x00")) > 0, nil
}

func (w *poolWriter) copyBlock(img io.ReaderAt, b, place uint64) (used bool, err error) {
	if used, err = w.read(img, b, w.a[:]); err != nil || !used {
		return false, err
	}
	_, err = w.data.WriteAt(w.a[:], int64(place)*poolBlock)
	return true, err
}

// change makes the origin hold v2: blocks that differ are written elsewhere, those that became zeros are discarded.
func (w *poolWriter) change(v1, v2 io.ReaderAt, blocks uint64) (changed int, err error) {
	w.nextFree = blocks
	for b := range blocks {
		if _, err := w.read(v1, b, w.b[:]); err != nil {
			return 0, err
		}
		used, err := w.read(v2, b, w.a[:])
		if err != nil {
			return 0, err
		}
		switch {
		case w.a == w.b:
			continue
		case !used:
			err = w.pool.Unmap(thinOrigin, b)
		default:
			if _, err = w.data.WriteAt(w.a[:], int64(w.nextFree)*poolBlock); err == nil {
				err = w.pool.Map(thinOrigin, b, w.nextFree)
			}
			w.nextFree++
		}
		if err != nil {
			return 0, err
		}
		changed++
	}
	return changed, nil
}

// scatterRuns gives each of n thin blocks a data block: runs of 1 to 128 blocks in random order.
func scatterRuns(seed, n uint64) []uint64 {
	rng := rand.New(rand.NewPCG(seed, 3))
	var starts []uint64
	for b := uint64(0); b < n; b += 1 + rng.Uint64()%128 {
		starts = append(starts, b)
	}
	order := make([]int, len(starts))
	for i := range order {
		order[i] = i
	}
	for i := len(order) - 1; i > 0; i-- {
		j := int(rng.Uint64() % uint64(i+1))
		order[i], order[j] = order[j], order[i]
	}
	places := make([]uint64, n)
	next := uint64(0)
	for _, i := range order {
		end := n
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		for b := starts[i]; b < end; b++ {
			places[b] = next
			next++
		}
	}
	return places
}

// closing closes c and returns the first error.
func closing(err error, c io.Closer) error { return firstOf(err, c.Close()) }

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
