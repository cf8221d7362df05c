package chunkstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// The hot pieces of a backup and a restore, each alone. BenchmarkCutter and BenchmarkSegmentFind are beside their code's tests.

const benchChunk = 32 << 10 // bytes, what chunks are on average

// benchData is text-like data that zstd makes about half as large, the same in every run.
func benchData(n int) []byte {
	rnd := rand.New(rand.NewPCG(7, 7))
	var words [256][]byte
	for i := range words {
		words[i] = make([]byte, 2+rnd.IntN(9))
		for j := range words[i] {
			words[i][j] = byte(rnd.Uint32())
		}
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[rnd.IntN(256)&rnd.IntN(256)]...)
		b = append(b, byte(rnd.Uint32()))
	}
	return b[:n]
}

func BenchmarkChunkID(b *testing.B) {
	for _, n := range []int{CutBlock, benchChunk, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			h, p := newHasher([32]byte{1}), benchData(n)
			var id ID
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				h.id(&id, p)
			}
		})
	}
}

var benchCompressions = []Compression{"s2", "zstd:1", "zstd:2", "zstd:3", "zstd:4"}

func BenchmarkCompress(b *testing.B) {
	src := benchData(benchChunk)
	for _, c := range benchCompressions {
		b.Run(string(c), func(b *testing.B) {
			enc, err := newEncoder(c, 1)
			if err != nil {
				b.Fatal(err)
			}
			dst := make([]byte, 0, 2*benchChunk)
			out, codec := compress(enc, dst, src)
			if codec == CodecRaw {
				b.Fatal("the data does not compress")
			}
			b.SetBytes(benchChunk)
			b.ReportAllocs()
			for b.Loop() {
				out, _ = compress(enc, dst, src)
			}
			b.ReportMetric(float64(benchChunk)/float64(len(out)), "ratio")
		})
	}
}

func BenchmarkDecompress(b *testing.B) {
	src := benchData(benchChunk)
	dec, err := newDecoder()
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range benchCompressions[:2] {
		b.Run(string(c), func(b *testing.B) {
			enc, err := newEncoder(c, 1)
			if err != nil {
				b.Fatal(err)
			}
			out, codec := compress(enc, nil, src)
			dst := make([]byte, 0, benchChunk)
			b.SetBytes(benchChunk)
			b.ReportAllocs()
			for b.Loop() {
				if dst, err = dec.decode(dst, out, codec, benchChunk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRecord(b *testing.B) {
	payload, id := benchData(benchChunk/2), ID{1, 2, 3}
	rec := appendRecord(nil, plainBox{}, &id, payload, CodecZstd, benchChunk)
	b.Run("append", func(b *testing.B) {
		dst := make([]byte, 0, len(rec))
		b.SetBytes(int64(len(payload)))
		b.ReportAllocs()
		for b.Loop() {
			appendRecord(dst, plainBox{}, &id, payload, CodecZstd, benchChunk)
		}
	})
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(payload)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := openRecord(rec, plainBox{}, &id, CodecZstd, benchChunk, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchID makes different IDs.
func benchID(i int) (id ID) {
	binary.BigEndian.PutUint64(id[:], uint64(i+1)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(id[16:], uint64(i))
	return id
}

// BenchmarkLeaf encodes and decodes the leaf of a span of 4 MiB.
func BenchmarkLeaf(b *testing.B) {
	chunks := make([]Chunk, defaultSpan/benchChunk)
	for i := range chunks {
		chunks[i] = Chunk{Off: int64(i * benchChunk), Len: benchChunk, ID: benchID(i)}
	}
	leaf := appendLeaf(nil, 0, chunks)
	b.Run("encode", func(b *testing.B) {
		dst := make([]byte, 0, len(leaf))
		b.SetBytes(int64(len(leaf)))
		b.ReportAllocs()
		for b.Loop() {
			appendLeaf(dst, 0, chunks)
		}
	})
	b.Run("decode", func(b *testing.B) {
		dst := make([]Chunk, 0, len(chunks))
		b.SetBytes(int64(len(leaf)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeLeaf(dst, leaf, 0, defaultSpan); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkNode encodes and decodes a full inner node.
func BenchmarkNode(b *testing.B) {
	n := &node{level: 1}
	for i := range n.children {
		n.children[i] = benchID(i)
	}
	enc := n.append(nil)
	b.Run("encode", func(b *testing.B) {
		dst := make([]byte, 0, len(enc))
		b.SetBytes(int64(len(enc)))
		b.ReportAllocs()
		for b.Loop() {
			n.append(dst)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(enc)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeNode(enc, 1); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPack builds a pack of the default size, compression not counted, and decodes its table.
func BenchmarkPack(b *testing.B) {
	payload := benchData(benchChunk / 2)
	var p packBuilder
	build := func() []byte {
		if err := p.reset(plainSealer{}, kindData); err != nil {
			b.Fatal(err)
		}
		for i := 0; len(p.buf) < defaultPack; i++ {
			id := benchID(i)
			p.add(&id, payload, CodecZstd, benchChunk)
		}
		_, pack := p.finish()
		return pack
	}
	pack := build()
	b.Run("build", func(b *testing.B) {
		b.SetBytes(int64(len(pack)))
		b.ReportAllocs()
		for b.Loop() {
			build()
		}
	})
	b.Run("table", func(b *testing.B) {
		b.SetBytes(int64(len(p.entries) * tableEntryLen))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodePackTail(plainSealer{}, pack[:packHeaderLen], pack, uint64(len(pack))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSegmentEncode sorts and encodes as many entries as a flush does.
func BenchmarkSegmentEncode(b *testing.B) {
	entries := make([]indexEntry, maxPending)
	work := make([]indexEntry, maxPending)
	for i := range entries {
		id := benchID(i)
		entries[i] = indexEntry{key: id.key(), off: packHeaderLen, stored: benchChunk, raw: benchChunk}
	}
	packs := []packRef{{kind: kindData, size: 1 << 20}}
	b.SetBytes(maxPending * segmentEntryLen)
	b.ReportAllocs()
	for b.Loop() {
		copy(work, entries)
		encodeSegment(1, packs, sortEntries(work))
	}
}

// BenchmarkPutChunk is the writer's hot loop: new chunks with each codec, and chunks that the repository has.
func BenchmarkPutChunk(b *testing.B) {
	ctx := context.Background()
	data := benchData(benchChunk)
	for _, c := range []Compression{"none", "s2", "zstd:1"} {
		b.Run("new/"+string(c), func(b *testing.B) {
			_, w := benchWriter(b, dropping{mem.New()}, c)
			p := append([]byte{}, data...)
			b.SetBytes(benchChunk)
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				binary.LittleEndian.PutUint64(p, i)
				if _, err := w.PutChunk(ctx, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("known", func(b *testing.B) {
		_, w := benchWriter(b, dropping{mem.New()}, DefaultCompression)
		b.SetBytes(benchChunk)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.PutChunk(ctx, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkReadBlob reads an image of 64 MiB by MiB, and 4 KiB at random.
func BenchmarkReadBlob(b *testing.B) {
	ctx := context.Background()
	r, w := benchWriter(b, mem.New(), DefaultCompression)
	img := benchData(64 << 20)
	ref, err := storeImage(ctx, r, w, img, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1 << 20, CutBlock} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			blob, p, rnd := r.OpenBlob(ref), make([]byte, n), rand.New(rand.NewPCG(1, 1))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := blob.ReadAt(ctx, p, int64(rnd.IntN(len(img)/n)*n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// dropping is a store that keeps no data packs, so that a benchmark of writing can run for any time.
type dropping struct{ backend.Backend }

func (d dropping) Put(ctx context.Context, name string, data []byte) error {
	if strings.HasPrefix(name, prefixPacks+kindData.String()) {
		return nil
	}
	return d.Backend.Put(ctx, name, data)
}

func benchWriter(b *testing.B, be backend.Backend, c Compression) (*Repository, *Writer) {
	b.Helper()
	ctx := context.Background()
	if _, err := Init(ctx, be, InitOptions{Compression: c}); err != nil {
		b.Fatal(err)
	}
	r, err := Open(ctx, be, Options{})
	if err != nil {
		b.Fatal(err)
	}
	w, err := r.NewWriter(ctx, WriterOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := w.Close(); err != nil {
			b.Error(err)
		}
		if err := r.Close(); err != nil {
			b.Error(err)
		}
	})
	return r, w
}
