package chunkstore

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Codec is how a record's bytes were compressed; it is stored with each record.
type Codec uint8

// Codecs. The numbers are part of the format.
const (
	CodecRaw  Codec = 0 // as they are
	CodecZstd Codec = 1 // one zstd frame (RFC 8878), without checksum or dictionary
	CodecS2   Codec = 2 // one s2 block
)

func (c Codec) String() string {
	switch c {
	case CodecRaw:
		return "none"
	case CodecZstd:
		return "zstd"
	case CodecS2:
		return "s2"
	}
	return "codec " + strconv.Itoa(int(c))
}

// Compression says how new records are compressed: "none", "s2", "zstd" or "zstd:1" (fastest) to "zstd:4" (smallest). What
// is stored already stays as it is.
type Compression string

// DefaultCompression was chosen by measurement: docs/adr.
const DefaultCompression Compression = "zstd:1"

// encoder compresses; safe for many goroutines.
type encoder interface {
	codec() Codec
	// encode appends the compressed form of src to dst.
	encode(dst, src []byte) []byte
}

// newEncoder parses c. workers bounds how many goroutines compress at once.
func newEncoder(c Compression, workers int) (encoder, error) {
	name, level, _ := strings.Cut(string(c), ":")
	switch {
	case c == "":
		return newEncoder(DefaultCompression, workers)
	case c == "none":
		return rawEncoder{}, nil
	case c == "s2":
		return s2Encoder{}, nil
	case name == "zstd":
		n := 1
		if level != "" {
			var err error
			if n, err = strconv.Atoi(level); err != nil || n < 1 || n > 4 {
				return nil, fmt.Errorf("compression %q: the level is 1 to 4", c)
			}
		}
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevel(n)), zstd.WithEncoderConcurrency(max(workers, 1)),
			zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
		if err != nil {
			return nil, fmt.Errorf("compression %q: %w", c, err)
		}
		return zstdEncoder{enc}, nil
	}
	return nil, fmt.Errorf("compression %q: not one of none, s2, zstd, zstd:1 to zstd:4", c)
}

type rawEncoder struct{}

func (rawEncoder) codec() Codec                  { return CodecRaw }
func (rawEncoder) encode(dst, src []byte) []byte { return append(dst, src...) }

type s2Encoder struct{}

func (s2Encoder) codec() Codec { return CodecS2 }
func (s2Encoder) encode(dst, src []byte) []byte {
	n := len(dst)
	if need := n + s2.MaxEncodedLen(len(src)); cap(dst) < need {
		dst = append(make([]byte, 0, need), dst...)
	}
	out := s2.Encode(dst[n:cap(dst)], src)
	return dst[:n+len(out)]
}

type zstdEncoder struct{ enc *zstd.Encoder }

func (zstdEncoder) codec() Codec                    { return CodecZstd }
func (e zstdEncoder) encode(dst, src []byte) []byte { return e.enc.EncodeAll(src, dst) }

// compress returns src in its smallest form and that form's codec. The result lies in dst's array, or is src itself when less
// than 3 % would be won: reading raw bytes back costs nothing.
func compress(e encoder, dst, src []byte) ([]byte, Codec) {
	if e.codec() == CodecRaw {
		return src, CodecRaw
	}
	out := e.encode(dst[:0], src)
	if len(out) > len(src)-len(src)/32 {
		return src, CodecRaw
	}
	return out, e.codec()
}

// decoder decompresses; safe for many goroutines.
type decoder struct{ zstd *zstd.Decoder }

func newDecoder() (*decoder, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithDecoderMaxMemory(maxRaw),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxRaw), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, err
	}
	return &decoder{d}, nil
}

// decode puts the rawLen bytes that src stands for into dst's array, which it grows when needed. The result never aliases src.
func (d *decoder) decode(dst, src []byte, c Codec, rawLen int) ([]byte, error) {
	if cap(dst) < rawLen {
		dst = make([]byte, 0, rawLen)
	}
	dst = dst[:0]
	switch c {
	case CodecRaw:
		dst = append(dst, src...)
	case CodecZstd:
		var err error
		if dst, err = d.zstd.DecodeAll(src, dst); err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
	case CodecS2:
		n, err := s2.DecodedLen(src)
		if err != nil || n != rawLen {
			return nil, fmt.Errorf("s2 block says %d bytes, the index %d", n, rawLen)
		}
		if dst, err = s2.Decode(dst[:rawLen], src); err != nil {
			return nil, fmt.Errorf("s2: %w", err)
		}
	default:
		return nil, fmt.Errorf("%w: %v", ErrUnsupported, c)
	}
	if len(dst) != rawLen {
		return nil, fmt.Errorf("%v gave %d bytes, the index says %d", c, len(dst), rawLen)
	}
	return dst, nil
}
