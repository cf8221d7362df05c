package chunkstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Names of objects in the backend.
const (
	objectConfig  = "config"
	prefixPacks   = "packs/"   // packs/data/ab/<pack ID>, packs/tree/ab/<pack ID>
	prefixIndex   = "index/"   // index/<pack ID>
	prefixBackups = "backups/" // backups/<volume key>/<backup ID>
	prefixVolumes = "volumes/" // volumes/<volume key>
	prefixTrash   = "trash/"   // trash/<pack ID>
	objectLock    = "prune/lock"
	prefixProbe   = "prune/now-" // written to learn the store's time, and deleted at once
)

// Config is a repository's constants: one line of JSON, then a line with the xxHash64 of the first line in 16 hex digits; in a sealed
// repository then a line with 64 hex digits of the first line's keyed hash, under
// derive_key("shale repository v1: configuration", master key of epoch 0). It is written once, by Init.
type Config struct {
	Format      string      `json:"format"`  // configFormat
	Version     int         `json:"version"` // 1
	ID          string      `json:"id"`      // 32 hex digits, random; names the local cache
	Created     time.Time   `json:"created"`
	SpanBytes   int         `json:"span_bytes"`        // a power of two, 1 MiB to 8 MiB
	CutBits     int         `json:"cut_bits"`          // a block ends a chunk with probability 1/2^CutBits; 0 to 12
	MaxChunk    int         `json:"max_chunk_bytes"`   // a multiple of CutBlock, at most SpanBytes
	PackBytes   int         `json:"pack_bytes"`        // data packs are closed at this size; 1 MiB to 256 MiB
	Compression Compression `json:"compression"`       // what writers use unless told otherwise
	Hash        string      `json:"hash"`              // "blake3"
	Secret      string      `json:"secret,omitempty"`  // 64 hex digits; the key of IDs derives from it. None in a sealed repository
	Sealing     string      `json:"sealing,omitempty"` // sealingAES; empty: none

	signed *signedText // of a sealed repository's configuration
}

// Sealed says whether the repository is encrypted.
func (c *Config) Sealed() bool { return c.Sealing != "" }

const (
	configFormat  = "shale repository"
	configVersion = 1
	hashBLAKE3    = "blake3"
	sealingAES    = "aes-256-gcm" // seal_aes.go

	// Defaults, chosen by measurement: docs/adr.
	defaultSpan     = 4 << 20
	defaultCutBits  = 3
	defaultMaxChunk = 256 << 10
	defaultPack     = 16 << 20
)

// InitOptions are what a new repository can be given; the zero value is good.
type InitOptions struct {
	Compression Compression // default DefaultCompression
	SpanBytes   int         // default 4 MiB
	CutBits     int         // default 3: chunks of 32 KiB on average; -1 for 0
	MaxChunk    int         // bytes; default 256 KiB
	PackBytes   int         // default 16 MiB
	// Recipients of the master key. With one or more the repository is sealed; each gets a key object.
	Recipients []Recipient
	// CacheDir is that of Options: it remembers that the repository is sealed.
	CacheDir string
}

func newConfig(o InitOptions) (Config, error) {
	var id [16]byte
	var s secret
	for _, b := range [][]byte{id[:], s[:]} {
		if _, err := rand.Read(b); err != nil {
			return Config{}, err
		}
	}
	c := Config{
		Format: configFormat, Version: configVersion, ID: hex.EncodeToString(id[:]), Created: time.Now().UTC().Truncate(time.Second),
		SpanBytes: o.SpanBytes, CutBits: o.CutBits, MaxChunk: o.MaxChunk, PackBytes: o.PackBytes,
		Compression: o.Compression, Hash: hashBLAKE3, Secret: hex.EncodeToString(s[:]),
	}
	if len(o.Recipients) > 0 {
		c.Sealing = sealingAES
	}
	if c.SpanBytes == 0 {
		c.SpanBytes = defaultSpan
	}
	if c.CutBits == 0 {
		c.CutBits = defaultCutBits
	}
	if c.CutBits == -1 {
		c.CutBits = 0
	}
	if c.MaxChunk == 0 {
		c.MaxChunk = min(defaultMaxChunk, c.SpanBytes)
	}
	if c.PackBytes == 0 {
		c.PackBytes = defaultPack
	}
	if c.Compression == "" {
		c.Compression = DefaultCompression
	}
	return c, c.validate()
}

func (c *Config) validate() error {
	if c.Format != configFormat {
		return fmt.Errorf("format is %q, not %q", c.Format, configFormat)
	}
	if c.Version != configVersion {
		return fmt.Errorf("%w: repository version %d", ErrUnsupported, c.Version)
	}
	if c.Hash != hashBLAKE3 {
		return fmt.Errorf("%w: hash %q", ErrUnsupported, c.Hash)
	}
	if _, err := newEncoder(c.Compression, 1); err != nil { // a later shale may have more
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if c.Sealing != "" && c.Sealing != sealingAES {
		return fmt.Errorf("%w: sealing %q", ErrUnsupported, c.Sealing)
	}
	var s secret
	switch {
	case !isHex(c.ID, 16):
		return errors.New("id is not 32 hex digits")
	case c.Secret != "" && !isHex(c.Secret, len(s)), c.Secret == "" && c.Sealing == "":
		return errors.New("secret is not 64 hex digits")
	case c.SpanBytes < 1<<20 || c.SpanBytes > 8<<20 || bits.OnesCount(uint(c.SpanBytes)) != 1:
		return fmt.Errorf("span_bytes is %d, not a power of two from 1 MiB to 8 MiB", c.SpanBytes)
	case c.CutBits < 0 || c.CutBits > 12:
		return fmt.Errorf("cut_bits is %d, not 0 to 12", c.CutBits)
	case c.MaxChunk < CutBlock || c.MaxChunk > c.SpanBytes || c.MaxChunk%CutBlock != 0:
		return fmt.Errorf("max_chunk_bytes is %d, not a multiple of %d up to the span's %d", c.MaxChunk, CutBlock, c.SpanBytes)
	case c.PackBytes < 1<<20 || c.PackBytes > 256<<20:
		return fmt.Errorf("pack_bytes is %d, not 1 MiB to 256 MiB", c.PackBytes)
	}
	return nil
}

func isHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == n
}

func (c *Config) encode() ([]byte, error) {
	if c.Sealed() {
		var s secret
		if _, err := hex.Decode(s[:], []byte(c.Secret)); err != nil {
			return nil, err
		}
		open := *c
		open.Secret = ""
		return encodeSigned(open, &s, contextConfigMAC)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(b, "\n%016x\n", xxhash.Sum64(b)), nil
}

func decodeConfig(b []byte) (Config, error) {
	var c Config
	line, sum, ok := bytes.Cut(b, []byte("\n"))
	if !ok || len(sum) < 17 || string(sum[:17]) != fmt.Sprintf("%016x\n", xxhash.Sum64(line)) {
		return c, errTextSum
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	if err := dec.Decode(&c); err != nil {
		return c, err
	}
	if err := c.validate(); err != nil {
		return c, err
	}
	if !c.Sealed() {
		if len(sum) > 17 {
			return c, errors.New("something follows the checksum line")
		}
		return c, nil
	}
	if c.Secret != "" {
		return c, errors.New("the secret of a sealed repository lies in the clear")
	}
	signed, err := decodeSigned(b)
	c.signed = &signed
	return c, err
}

func loadConfig(ctx context.Context, be backend.Backend) (Config, error) {
	b, err := backend.ReadAll(ctx, be, objectConfig)
	if errors.Is(err, backend.ErrNotExist) {
		return Config{}, fmt.Errorf("%s: %w", be.Location(), ErrNoRepository)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the repository's configuration: %w", err)
	}
	c, err := decodeConfig(b)
	if errors.Is(err, ErrUnsupported) {
		return c, fmt.Errorf("%s: %w", be.Location(), err)
	}
	if err != nil {
		return c, &CorruptError{Object: objectConfig, Err: err}
	}
	return c, nil
}
