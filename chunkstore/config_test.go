package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

func testConfig() Config {
	return Config{
		Format: configFormat, Version: 1, ID: "000102030405060708090a0b0c0d0e0f",
		Created: time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC), SpanBytes: 4 << 20, CutBits: 4, MaxChunk: 256 << 10,
		PackBytes: 16 << 20, Compression: "zstd:1", Hash: hashBLAKE3, Secret: strings.Repeat("5a", 32),
	}
}

func TestConfigGolden(t *testing.T) {
	c := testConfig()
	b, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "config", b)
	got, err := decodeConfig(b)
	if err != nil || got != c {
		t.Fatalf("got %+v, %v, want %+v", got, err, c)
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, c := range []struct {
		name        string
		edit        func(c *Config)
		unsupported bool
	}{
		{"format", func(c *Config) { c.Format = "restic" }, false},
		{"version 0", func(c *Config) { c.Version = 0 }, true},
		{"version 2", func(c *Config) { c.Version = 2 }, true},
		{"hash", func(c *Config) { c.Hash = "sha256" }, true},
		{"compression", func(c *Config) { c.Compression = "lzma" }, true},
		{"compression level", func(c *Config) { c.Compression = "zstd:5" }, true},
		{"id", func(c *Config) { c.ID = "../../etc" }, false},
		{"id too long", func(c *Config) { c.ID += "00" }, false},
		{"secret", func(c *Config) { c.Secret = c.Secret[2:] }, false},
		{"secret not hex", func(c *Config) { c.Secret = "zz" + c.Secret[2:] }, false},
		{"span 0", func(c *Config) { c.SpanBytes = 0 }, false},
		{"span negative", func(c *Config) { c.SpanBytes = -1 << 20 }, false},
		{"span no power of two", func(c *Config) { c.SpanBytes = 3 << 20 }, false},
		{"span too large", func(c *Config) { c.SpanBytes = 16 << 20 }, false},
		{"span too small", func(c *Config) { c.SpanBytes = 512 << 10 }, false},
		{"cut bits negative", func(c *Config) { c.CutBits = -1 }, false},
		{"cut bits", func(c *Config) { c.CutBits = 13 }, false},
		{"chunk 0", func(c *Config) { c.MaxChunk = 0 }, false},
		{"chunk above span", func(c *Config) { c.MaxChunk = 8 << 20 }, false},
		{"chunk no multiple", func(c *Config) { c.MaxChunk = 4097 }, false},
		{"pack too small", func(c *Config) { c.PackBytes = 1<<20 - 1 }, false},
		{"pack too large", func(c *Config) { c.PackBytes = 256<<20 + 1 }, false},
	} {
		conf := testConfig()
		c.edit(&conf)
		b, err := conf.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeConfig(b); err == nil || errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%s: %v; unsupported: want %v", c.name, err, c.unsupported)
		}
	}
}

func TestOpenRefusesDamagedConfig(t *testing.T) {
	ctx := context.Background()
	c := testConfig()
	good, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	be := mem.New()
	if _, err := Open(ctx, be, Options{}); !errors.Is(err, ErrNoRepository) {
		t.Errorf("empty backend: %v, want %v", err, ErrNoRepository)
	}
	for n := range good { // cut anywhere
		_ = be.Put(ctx, objectConfig, good[:n])
		mustCorrupt(t, be, fmt.Sprintf("cut to %d", n))
	}
	for n := range good { // flipped anywhere
		bad := bytes.Clone(good)
		bad[n] ^= 0x04
		_ = be.Put(ctx, objectConfig, bad)
		mustCorrupt(t, be, fmt.Sprintf("byte %d changed", n))
	}
	_ = be.Put(ctx, objectConfig, append(bytes.Clone(good), '\n'))
	mustCorrupt(t, be, "a line more")
	_ = be.Put(ctx, objectConfig, fmt.Appendf(nil, "not JSON\n%016x\n", xxhash.Sum64String("not JSON")))
	mustCorrupt(t, be, "not JSON")
	c.Version = 2
	b, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	_ = be.Put(ctx, objectConfig, b)
	if _, err := Open(ctx, be, Options{}); !errors.Is(err, ErrUnsupported) || errors.Is(err, ErrCorrupt) {
		t.Errorf("version 2: %v, want %v", err, ErrUnsupported)
	}
	_ = be.Put(ctx, objectConfig, good)
	r, err := Open(ctx, be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Config(); got.Secret != "" || got.ID != c.ID || r.ID() != c.ID || r.Location() != "mem:" {
		t.Errorf("config is %+v", got)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func mustCorrupt(t *testing.T, be *mem.Backend, what string) {
	t.Helper()
	_, err := Open(context.Background(), be, Options{})
	var ce *CorruptError
	if !errors.Is(err, ErrCorrupt) || !errors.As(err, &ce) || ce.Object != objectConfig {
		t.Errorf("%s: %v, want %v of the configuration", what, err, ErrCorrupt)
	}
}

func TestInit(t *testing.T) {
	ctx := context.Background()
	for _, o := range []InitOptions{
		{Compression: "lzma"}, {SpanBytes: 5}, {CutBits: -2}, {CutBits: 13}, {MaxChunk: 5}, {PackBytes: 5},
		{SpanBytes: 1 << 20, MaxChunk: 2 << 20},
	} {
		be := mem.New()
		if _, err := Init(ctx, be, o); err == nil {
			t.Errorf("%+v: no error", o)
		}
		if _, err := be.Stat(ctx, objectConfig); err == nil {
			t.Errorf("%+v: left a configuration behind", o)
		}
	}
	be := mem.New()
	c, err := Init(ctx, be, InitOptions{})
	if err != nil || c.SpanBytes != defaultSpan || c.CutBits != defaultCutBits || c.MaxChunk != defaultMaxChunk || c.PackBytes != defaultPack || c.Compression != DefaultCompression {
		t.Fatalf("defaults: %+v, %v", c, err)
	}
	if _, err := Init(ctx, be, InitOptions{}); !errors.Is(err, ErrRepositoryExists) {
		t.Errorf("again: %v, want %v", err, ErrRepositoryExists)
	}
	c2, err := Init(ctx, mem.New(), InitOptions{CutBits: -1})
	if err != nil || c2.CutBits != 0 || c2.ID == c.ID || c2.Secret == c.Secret {
		t.Errorf("second repository: %+v, %v", c2, err)
	}
}

func FuzzConfig(f *testing.F) {
	c := testConfig()
	b, err := c.encode()
	if err != nil {
		f.Fatal(err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f.Add(line)
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := decodeConfig(fmt.Appendf(bytes.Clone(line), "\n%016x\n", xxhash.Sum64(line)))
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		c2, err := decodeConfig(again)
		if err != nil || c2.ID != c.ID || c2.Secret != c.Secret || c2.SpanBytes != c.SpanBytes || c2.MaxChunk != c.MaxChunk {
			t.Fatalf("got %+v, %v, want %+v", c2, err, c)
		}
	})
}
