package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"crypto/sha256"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"lukechampine.com/blake3"
)

const (
	limitBlock  = 64 << 10
	limitSample = 256 << 20 // bytes of the image's data that primitives work on, at most
)

// limits measures what the machine can do: the parts of which every tool is made, on one core, and the ways to read the image.
func (s *suite) limits(ctx context.Context) error {
	blocks, err := dataBlocks(s.w.v1)
	if err != nil {
		return err
	}
	to := s.res.row("primitives")
	to.title, to.metrics = fmt.Sprintf("Limits: primitives on one core, blocks of %d KiB of the image's data", limitBlock>>10), []metric{mPerCPU, mShrinks}
	to.note = "Decoders are counted by the bytes that they give."
	prims, err := primitives(blocks)
	if err != nil {
		return err
	}
	for range s.o.rounds {
		for _, p := range prims {
			begin := ownCPU()
			for _, b := range blocks {
				p.run(b)
			}
			got := sample{mPerCPU: float64(len(blocks)*limitBlock) / 1e9 / (ownCPU() - begin).Seconds()}
			if p.ratio > 0 {
				got[mShrinks] = p.ratio
			}
			to.add(p.name, got)
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return s.readLimits(ctx)
}

// dataBlocks reads blocks that are not zeros.
func dataBlocks(path string) ([][]byte, error) {
	img, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	defer unmapFile(img)
	var blocks [][]byte
	zero := make([]byte, limitBlock)
	for off := 0; off+limitBlock <= len(img) && len(blocks) < limitSample/limitBlock; off += limitBlock {
		if b := img[off:][:limitBlock]; string(b) != string(zero) {
			blocks = append(blocks, append([]byte{}, b...))
		}
	}
	return blocks, nil
}

// primitive is one thing that a backup is made of.
type primitive struct {
	name  string
	ratio float64 // how much smaller a codec makes the data
	run   func(block []byte)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func primitives(blocks [][]byte) ([]primitive, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	buf, out := make([]byte, limitBlock), make([]byte, 0, 2*limitBlock)
	var zipped, packed [][]byte
	var zippedLen, packedLen int
	for _, b := range blocks {
		zipped, packed = append(zipped, enc.EncodeAll(b, nil)), append(packed, s2.Encode(nil, b))
		zippedLen += len(zipped[len(zipped)-1])
		packedLen += len(packed[len(packed)-1])
	}
	total := float64(len(blocks) * limitBlock)
	hash := blake3.New(32, nil)
	next := 0
	turn := func(of [][]byte) []byte { // the decoders go through what the encoders made
		next++
		return of[next%len(of)]
	}
	return []primitive{
		{"memory copy", 0, func(b []byte) { copy(buf, b) }},
		{"xxHash64", 0, func(b []byte) { xxhash.Sum64(b) }},
		{"CRC-32C", 0, func(b []byte) { crc32.Checksum(b, castagnoli) }},
		{"BLAKE3", 0, func(b []byte) { _, _ = hash.Write(b) }},
		{"SHA-256", 0, func(b []byte) { sha256.Sum256(b) }},
		{"zstd fastest", total / float64(zippedLen), func(b []byte) { out = enc.EncodeAll(b, out[:0]) }},
		{"s2", total / float64(packedLen), func(b []byte) { s2.Encode(out[:cap(out)], b) }},
		{"zstd decode", 0, func([]byte) { out, _ = dec.DecodeAll(turn(zipped), out[:0]) }},
		{"s2 decode", 0, func([]byte) { _, _ = s2.Decode(out[:cap(out)], turn(packed)) }},
	}, nil
}

// readLimits reads the second image as a file, through a loop device and through a FUSE server that does nothing but pass it on.
func (s *suite) readLimits(ctx context.Context) error {
	to := s.res.row("reads")
	to.title, to.metrics = "Limits: ways to read the image", mountMetrics
	to.note = "Plain FUSE is a go-fuse server that answers from the file, without the page cache (FOPEN_DIRECT_IO)."
	self, err := os.Executable()
	if err != nil {
		return err
	}
	mnt := filepath.Join(s.dir, "plain")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		return err
	}
	for range s.o.rounds {
		got, err := s.readPlain(ctx, s.w.v2)
		if err != nil {
			return err
		}
		to.add("the file", got)
		if os.Geteuid() == 0 {
			if got, err = s.readLoop(ctx); err != nil {
				return err
			}
			to.add("kernel loop device", got)
		}
		if got, err = s.readMount(ctx, command{argv: []string{self, plainFuseArg, s.w.v2, mnt}}, mnt, plainFuseFile); err != nil {
			return err
		}
		to.add("plain FUSE", got)
	}
	return nil
}

// readPlain reads a file or device as a mount's file is read.
func (s *suite) readPlain(ctx context.Context, path string) (sample, error) {
	want, err := mapFile(s.w.v2)
	if err != nil {
		return nil, err
	}
	defer unmapFile(want)
	begin := time.Now()
	f, err := firstByte(ctx, path, begin.Add(time.Second), nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	got := sample{mFirst: millis(time.Since(begin))}
	one, err := randomReads(ctx, f, want, 1, s.o.seconds)
	if err != nil {
		return nil, err
	}
	many, err := randomReads(ctx, f, want, 16, s.o.seconds)
	if err != nil {
		return nil, err
	}
	got[mIOPS1], got[mP50], got[mP99], got[mIOPS16] = one.rate, one.p50, one.p99, many.rate
	got[mSeq], err = sequentialRead(ctx, f)
	return got, err
}

// readLoop reads the image through a loop device.
func (s *suite) readLoop(ctx context.Context) (_ sample, err error) {
	dev, err := output(ctx, command{argv: []string{"losetup", "--find", "--show", "--read-only", s.w.v2}})
	if err != nil {
		return nil, err
	}
	defer func() {
		_, detachErr := output(context.WithoutCancel(ctx), command{argv: []string{"losetup", "--detach", dev}})
		err = firstOf(err, detachErr)
	}()
	return s.readPlain(ctx, dev)
}
