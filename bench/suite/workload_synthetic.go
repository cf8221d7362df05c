package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// A synthetic image is laid out as a file system would be, from pieces that are files: made in plain Go from the seed, the same bytes on
// every machine and in any order of writing.

// content is what a piece's bytes are like.
type content int

const (
	contentText    content = iota // lines of words
	contentProgram                // short instructions, few of them frequent
	contentTable                  // rows of a database
	contentRandom                 // does not compress
)

// piece is one file, or a part that was written anew, at its place in the image. Equal seeds give equal bytes.
type piece struct {
	off, len int64 // bytes; off on a block
	kind     content
	seed     uint64
}

func (p piece) end() int64 { return p.off + p.len }

// dice is random numbers that depend on the seed alone.
type dice struct{ src *rand.PCG }

func newDice(seed, stream uint64) dice { return dice{rand.NewPCG(seed, stream)} }

func (d dice) n(n int) int { return int(d.src.Uint64() % uint64(n)) }

const pieceBlock = 4096

// planImage lays out an image: 30 % holes, 15 % incompressible, 10 % duplicates, the rest text, programs and a database.
func planImage(seed uint64, size int64) []piece {
	d := newDice(seed, 1)
	var out []piece
	for at := int64(0); at < size; {
		n := int64(1 + d.n(16)) // blocks; files are mostly small
		if d.n(8) == 0 {
			n = int64(64 + d.n(448))
		}
		n = min(n*pieceBlock, size-at)
		roll := d.n(100)
		p := piece{off: at, len: n, seed: d.src.Uint64()}
		switch {
		case roll < 30:
			at += n
			continue
		case roll < 45:
			p.kind = contentRandom
		case roll < 55 && len(out) > 0:
			twin := out[d.n(len(out))]
			p.kind, p.seed, p.len = twin.kind, twin.seed, min(twin.len, size-at)
		case roll < 70:
			p.kind = contentProgram
		case roll < 75:
			p.kind = contentTable
		default:
			p.kind = contentText
		}
		out = append(out, p)
		at += (p.len + pieceBlock - 1) / pieceBlock * pieceBlock
	}
	return out
}

// planChange rewrites about 1 % of what planImage laid out: blocks of tables in place, whole small files, new files in holes.
func planChange(seed uint64, size int64, before []piece) []piece {
	d := newDice(seed, 2)
	var out []piece
	for budget := size / 100; budget > 0; {
		p := before[d.n(len(before))]
		w := piece{seed: d.src.Uint64()}
		switch d.n(3) {
		case 0: // in place
			w.kind, w.off = contentTable, p.off+int64(d.n(int(p.len+pieceBlock-1)/pieceBlock))*pieceBlock
			w.len = min(int64(1+d.n(4))*pieceBlock, size-w.off)
		case 1: // rewritten
			w.kind, w.off, w.len = p.kind, p.off, min(p.len, 64<<10)
		default: // after a file: appended, or new
			w.kind, w.off = content(d.n(4)), (p.end()+pieceBlock-1)/pieceBlock*pieceBlock
			w.len = min(int64(1+d.n(8))*pieceBlock, size-w.off)
		}
		if w.len <= 0 {
			continue
		}
		out = append(out, w)
		budget -= w.len
	}
	return out
}

// writePieces writes pieces in their order, so that later ones lie over earlier ones.
func writePieces(w io.WriterAt, pieces []piece) error {
	var buf []byte
	for _, p := range pieces {
		if int64(cap(buf)) < p.len {
			buf = make([]byte, p.len)
		}
		p.fill(buf[:p.len])
		if _, err := w.WriteAt(buf[:p.len], p.off); err != nil {
			return fmt.Errorf("write the image at %d: %w", p.off, err)
		}
	}
	return nil
}

// words are what texts and rows are made of.
var words = [...]string{
	"return", "err", "func", "if", "the", "nil", "volume", "backup", "snapshot", "len", "block", "range", "context", "0x1f", "offset", "a", "of",
	"metadata", "struct", "int64", "for", "string", "status=active", "status=closed", "user", "example.org", "2026-11-21", "string", "read", "write",
	"\n\t", "\n", "{", "}\n", "(", ")", " := ", ", ",
}

// fill makes the piece's bytes.
func (p piece) fill(b []byte) {
	d := newDice(p.seed, uint64(p.kind))
	switch p.kind {
	case contentRandom:
		for len(b) >= 8 {
			binary.LittleEndian.PutUint64(b, d.src.Uint64())
			b = b[8:]
		}
		clear(b)
	case contentProgram:
		var ops [64]uint32
		for i := range ops {
			ops[i] = uint32(d.src.Uint64())
		}
		for len(b) >= 4 {
			r := d.src.Uint64()
			op := ops[(r&63)*(r>>6&63)>>6]
			if r>>12&3 == 0 {
				op ^= uint32(r>>32) & 0xffff00
			}
			binary.LittleEndian.PutUint32(b, op)
			b = b[4:]
		}
		clear(b)
	case contentTable:
		for row := uint32(0); len(b) > 0; row++ {
			var head [16]byte
			binary.LittleEndian.PutUint32(head[:], row)
			binary.LittleEndian.PutUint64(head[4:], d.src.Uint64()>>24)
			b = b[copy(b, head[:]):]
			b = b[copy(b, words[22+d.n(4)]):]
			b = b[copy(b, words[d.n(len(words))]):]
		}
	default:
		for len(b) > 0 {
			b = b[copy(b, words[d.n(len(words))]):]
			b = b[copy(b, " "):]
		}
	}
}
