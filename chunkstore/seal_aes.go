package chunkstore

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"lukechampine.com/blake3"
)

// Scheme 1: AES-256-GCM.
//
// The first byte of an object's salt is the epoch, the number of the master key that it is sealed under; 15 are random. The object's
// key is derive_key("shale repository v1: pack key", master key || kind || salt). A record's nonce is its offset in the object, 8
// bytes little-endian, and four zero bytes; its additional data is recordAAD; 16 bytes of tag follow the ciphertext.
//
// One key seals one object, so offsets are nonces that never repeat; 120 random bits keep two objects from having one salt.

const (
	contextPackKey = "shale repository v1: pack key"
	gcmOverhead    = 16
	maxOpenBoxes   = 256 // objects whose expanded keys are kept for readers, 1 KiB each
)

// errNotAuthentic: the record was not sealed with the repository's key, for this place.
var errNotAuthentic = errors.New("record is not authentic: it was changed, or belongs to another place")

// unknownEpochError: an object is sealed under a master key that this process has not.
type unknownEpochError struct{ epoch int }

func (e *unknownEpochError) Error() string {
	return fmt.Sprintf("object is sealed under master key %d, which this key does not open", e.epoch)
}

// aesSealer seals under the last of its master keys and opens under all. Safe for many goroutines.
type aesSealer struct {
	mu     sync.Mutex // guards all below
	master []secret   // by epoch; only ever longer
	boxes  map[boxKey]*aesBox
	recent []boxKey // ring of boxes' keys, the oldest at next
	next   int
}

type boxKey struct {
	kind packKind
	salt [saltLen]byte
}

func newAESSealer(master []secret) *aesSealer {
	return &aesSealer{master: master, boxes: map[boxKey]*aesBox{}}
}

func (s *aesSealer) scheme() byte  { return schemeAES }
func (s *aesSealer) overhead() int { return gcmOverhead }

func (s *aesSealer) mark(salt *[saltLen]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	salt[0] = byte(len(s.master) - 1)
}

// masters returns the master keys by epoch.
func (s *aesSealer) masters() []secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.master[:len(s.master):len(s.master)]
}

// learn takes the longer list of master keys.
func (s *aesSealer) learn(master []secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(master) > len(s.master) {
		s.master = master
	}
}

func (s *aesSealer) box(kind packKind, salt [saltLen]byte) (box, error) {
	k := boxKey{kind, salt}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.boxes[k]; b != nil {
		return b, nil
	}
	epoch := int(salt[0])
	if epoch >= len(s.master) {
		return nil, &unknownEpochError{epoch}
	}
	b, err := newAESBox(&s.master[epoch], kind, salt)
	if err != nil {
		return nil, err
	}
	if len(s.recent) < maxOpenBoxes {
		s.recent = append(s.recent, k)
	} else {
		delete(s.boxes, s.recent[s.next])
		s.recent[s.next] = k
		s.next = (s.next + 1) % maxOpenBoxes
	}
	s.boxes[k] = b
	return b, nil
}

// packKey is the key of one object.
func packKey(master *secret, kind packKind, salt [saltLen]byte) (k [32]byte) {
	var material [32 + 1 + saltLen]byte
	copy(material[:], master[:])
	material[32] = byte(kind)
	copy(material[33:], salt[:])
	blake3.DeriveKey(k[:], contextPackKey, material[:])
	return k
}

type aesBox struct{ gcm cipher.AEAD }

func newAESBox(master *secret, kind packKind, salt [saltLen]byte) (*aesBox, error) {
	k := packKey(master, kind, salt)
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &aesBox{gcm}, nil
}

// gcmArgs are the small arguments of a call through cipher.AEAD, which would be allocated for each.
type gcmArgs struct {
	nonce [12]byte
	aad   recordAAD
}

var gcmArgsPool = sync.Pool{New: func() any { return new(gcmArgs) }}

func newGCMArgs(off uint64, aad *recordAAD) *gcmArgs {
	a := gcmArgsPool.Get().(*gcmArgs)
	binary.LittleEndian.PutUint64(a.nonce[:], off)
	a.aad = *aad
	return a
}

func (b *aesBox) seal(dst, plain []byte, off uint64, aad recordAAD) []byte {
	a := newGCMArgs(off, &aad)
	dst = b.gcm.Seal(dst, a.nonce[:], plain, a.aad[:])
	gcmArgsPool.Put(a)
	return dst
}

func (b *aesBox) open(dst, sealed []byte, off uint64, aad recordAAD) ([]byte, error) {
	a := newGCMArgs(off, &aad)
	dst, err := b.gcm.Open(dst, a.nonce[:], sealed, a.aad[:])
	gcmArgsPool.Put(a)
	if err != nil {
		return nil, errNotAuthentic
	}
	return dst, nil
}
