package chunkstore

import (
	"encoding/hex"
	"fmt"
	"sync"

	"lukechampine.com/blake3"
)

// ID names a chunk or a tree node: the keyed BLAKE3-256 of its plain bytes.
type ID [32]byte

// IsZero reports whether id is the zero ID, which stands for content that is all holes and is never stored.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes id in hex.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads 64 hex digits.
func (id *ID) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(id) {
		return fmt.Errorf("an ID has %d hex digits, not %d", 2*len(id), len(b))
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// key is the part of an ID that the index sorts and searches by. 128 bits of a keyed hash do not collide by chance; the
// record itself carries a further 64 bits of the ID.
type key [16]byte

func (id *ID) key() key { return key(id[:16]) }

// tag is the part of an ID that a record carries, so that a record read from the wrong place is noticed.
func (id *ID) tag() []byte { return id[16:24] }

// secret is a repository's 32 random bytes from which all keys derive.
type secret [32]byte

// Contexts of BLAKE3's key derivation. Data and tree nodes have different keys, so that no chunk of user data can pass for
// a node.
const (
	contextChunk = "shale repository v1: chunk ID"
	contextNode  = "shale repository v1: tree node ID"
	contextName  = "shale repository v1: volume name"
	contextCut   = "shale repository v1: cut seed"
)

func (s secret) derive(context string) (k [32]byte) {
	blake3.DeriveKey(k[:], context, s[:])
	return k
}

// hasher makes IDs under one key, from many goroutines, without allocating.
type hasher struct{ pool sync.Pool }

func newHasher(key [32]byte) *hasher {
	return &hasher{pool: sync.Pool{New: func() any { return newKeyedBlake3(key) }}}
}

// id puts the ID of p into out.
func (h *hasher) id(out *ID, p []byte) {
	b := h.pool.Get().(*keyedBlake3)
	b.sum((*[32]byte)(out), p)
	h.pool.Put(b)
}
