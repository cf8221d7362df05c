package chunkstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
)

func TestCodecsRoundTrip(t *testing.T) {
	d, err := newDecoder()
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, name := range []Compression{"", "none", "s2", "zstd", "zstd:1", "zstd:2", "zstd:3", "zstd:4"} {
		enc, err := newEncoder(name, 2)
		if err != nil {
			t.Fatal(err)
		}
		var scratch, out []byte
		for _, size := range []int{0, 1, 31, 32, 100, 4096, 65536, 256 << 10} {
			for _, random := range []bool{false, true} {
				src := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
				if random {
					for i := range src {
						src[i] = byte(rnd.Uint32())
					}
				}
				want := bytes.Clone(src)
				payload, codec := compress(enc, scratch, src)
				if codec != CodecRaw {
					scratch = payload
				}
				if random && codec != CodecRaw && size > 0 {
					t.Errorf("%q: %d random bytes were stored as %v", name, size, codec)
				}
				if !random && size >= 4096 && name != "none" && len(payload) > size/10 {
					t.Errorf("%q: %d repeated bytes take %d", name, size, len(payload))
				}
				out, err = d.decode(out, payload, codec, size)
				if err != nil || !bytes.Equal(out, want) || !bytes.Equal(src, want) {
					t.Fatalf("%q, %d bytes: not what was encoded; %v", name, size, err)
				}
				if size > 0 && &out[0] == &payload[0] {
					t.Fatalf("%q: the result aliases its source", name)
				}
			}
		}
	}
}

func TestCompressionNames(t *testing.T) {
	for _, name := range []Compression{"zstd:0", "zstd:5", "zstd:-1", "zstd:x", "zstd:1:2", "s2:1", "none:1", "gzip", " zstd", "ZSTD"} {
		if _, err := newEncoder(name, 1); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
	if CodecRaw.String() != "none" || CodecZstd.String() != "zstd" || CodecS2.String() != "s2" || Codec(7).String() != "codec 7" {
		t.Error("codecs have other names")
	}
}

func TestDecodeRefuses(t *testing.T) {
	d, err := newDecoder()
	if err != nil {
		t.Fatal(err)
	}
	bomb := s2.Encode(nil, make([]byte, 1<<20))
	z, err := newEncoder("zstd", 1)
	if err != nil {
		t.Fatal(err)
	}
	zbomb := z.encode(nil, make([]byte, 20<<20))
	for _, c := range []struct {
		name  string
		src   []byte
		codec Codec
		raw   int
	}{
		{"raw too short", helloRaw, CodecRaw, 9},
		{"raw too long", helloRaw, CodecRaw, 7},
		{"zstd too short", helloZstd, CodecZstd, 9},
		{"zstd too long", helloZstd, CodecZstd, 7},
		{"zstd cut", helloZstd[:10], CodecZstd, 8},
		{"zstd of nothing", nil, CodecZstd, 8},
		{"zstd bomb", zbomb, CodecZstd, 8},
		{"zstd bomb, largest length", zbomb, CodecZstd, maxRaw},
		{"zstd twice", append(bytes.Clone(helloZstd), helloZstd...), CodecZstd, 8},
		{"s2 too short", helloS2, CodecS2, 9},
		{"s2 too long", helloS2, CodecS2, 7},
		{"s2 cut", helloS2[:5], CodecS2, 8},
		{"s2 of nothing", nil, CodecS2, 8},
		{"s2 bomb", bomb, CodecS2, 8},
		{"s2 with a huge length", append([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, helloRaw...), CodecS2, 8},
	} {
		if out, err := d.decode(nil, c.src, c.codec, c.raw); err == nil {
			t.Errorf("%s: decoded %d bytes", c.name, len(out))
		}
	}
	if _, err := d.decode(nil, helloRaw, 3, 8); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown codec: %v, want %v", err, ErrUnsupported)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(helloRaw, byte(CodecRaw), 8)
	f.Add(helloZstd, byte(CodecZstd), 8)
	f.Add(helloS2, byte(CodecS2), 8)
	z, err := newEncoder("zstd:2", 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(z.encode(nil, bytes.Repeat([]byte("abcdefghij"), 1000)), byte(CodecZstd), 10000)
	dec := sync.OnceValues(newDecoder)
	f.Fuzz(func(t *testing.T, src []byte, codec byte, rawLen int) {
		if rawLen < 0 || rawLen > 1<<20 { // three bytes in the format; fewer here, for speed
			return
		}
		d, err := dec()
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(src)
		out, err := d.decode(nil, src, Codec(codec), rawLen)
		if err == nil && len(out) != rawLen {
			t.Fatalf("%d bytes, want %d", len(out), rawLen)
		}
		if !bytes.Equal(src, before) {
			t.Fatal("the source was changed")
		}
	})
}
