package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
)

const (
	mib     = 1 << 20
	block   = 4096
	runLen  = mib // bytes of data that lie together
	halfLen = block / 2
)

// image is a sparse file: in each of equal parts of its length one run of data, at a random place.
type image struct {
	path       string
	size, part int64 // bytes
	runs       int64
	seed       uint64
}

func newImage(path string, o options) *image {
	runs := o.data * mib / runLen
	return &image{path: path, size: o.size * mib, part: o.size * mib / runs / block * block, runs: runs, seed: o.seed}
}

// run fills p, runLen bytes, with run i and returns its offset. Half of every block is random, the other repeats.
func (m *image) run(i int64, p []byte) (off int64) {
	rng := rand.New(rand.NewPCG(m.seed, uint64(i)))
	off = i*m.part + rng.Int64N((m.part-runLen)/block+1)*block
	for at := 0; at < len(p); at += block {
		half := p[at : at+halfLen]
		for j := 0; j < halfLen; j += 8 {
			binary.LittleEndian.PutUint64(half[j:], rng.Uint64())
		}
		for j := range p[at+halfLen : at+block] {
			p[at+halfLen+j] = byte(j/64) | 1
		}
	}
	return off
}

func (m *image) write(ctx context.Context) (err error) {
	f, err := os.Create(m.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(m.size); err != nil {
		return err
	}
	p := make([]byte, runLen)
	for i := range m.runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := m.run(i, p)
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// compare reads all runs from the file at path, in order.
func (m *image) compare(ctx context.Context, path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != m.size {
		return fmt.Errorf("%s has %d bytes, want %d", path, st.Size(), m.size)
	}
	want, got := make([]byte, runLen), make([]byte, runLen)
	for i := range m.runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := m.run(i, want)
		if _, err := f.ReadAt(got, off); err != nil {
			return fmt.Errorf("%s at %d: %w", path, off, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: run %d at %d is not that of the image", path, i, off)
		}
	}
	return nil
}
