package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// Record: the stored form of one chunk.
//
//	off len field
//	  0   8 sum     xxHash64 of the rest of the record
//	  8   8 tag     bytes 16..23 of the ID, so that a record read from the wrong place is noticed; zero in a sealed repository, where
//	                sealing shows that, and equal tags would show which records are equal
//	 16     payload the codec's output, sealed; its place in the pack and recordAAD are authenticated with it
//
// Where it begins, its length, its codec and the plain length are in the pack's table and in the index.

const recordHeaderLen = 16

// tableRecordID stands in for the ID of a pack's table.
var tableRecordID = ID{0: 't', 1: 'a', 2: 'b', 3: 'l', 4: 'e'}

// recordAAD is what sealing authenticates beside the payload: ID, plain length (3 bytes) and codec.
type recordAAD [36]byte

func newRecordAAD(id *ID, codec Codec, rawLen int) (aad recordAAD) {
	copy(aad[:], id[:])
	binary.LittleEndian.PutUint32(aad[32:], uint32(rawLen)|uint32(codec)<<24)
	return aad
}

// appendRecord appends a record to the pack in b.
func appendRecord(b []byte, bx box, id *ID, payload []byte, codec Codec, rawLen int) []byte {
	off := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	if _, plain := bx.(plainBox); plain {
		b = append(append(b, id.tag()...), payload...)
	} else {
		b = append(b, sealedTag[:]...)
		b = bx.seal(b, payload, uint64(off), newRecordAAD(id, codec, rawLen))
	}
	binary.LittleEndian.PutUint64(b[off:], xxhash.Sum64(b[off+8:]))
	return b
}

// Errors of a record's own checks.
var (
	errRecordSum = errors.New("record checksum does not match")
	errRecordTag = errors.New("record belongs to another ID")
)

// checkRecordSum is the check that needs no key: the stored bytes are those that were written.
func checkRecordSum(rec []byte) error {
	if len(rec) < recordHeaderLen {
		return fmt.Errorf("record has %d bytes, fewer than its header", len(rec))
	}
	if binary.LittleEndian.Uint64(rec) != xxhash.Sum64(rec[8:]) {
		return errRecordSum
	}
	return nil
}

// sealedTag is the tag of every record in a sealed repository.
var sealedTag [8]byte

// openRecord verifies rec, which lies at off in its pack, and returns its payload before the codec. The result may alias rec.
func openRecord(rec []byte, bx box, id *ID, codec Codec, rawLen int, off uint64) ([]byte, error) {
	return openRecordTo(nil, rec, bx, id, codec, rawLen, off)
}

// openRecordTo is openRecord with room for a payload that was sealed: the result is in dst's array, or in a new one, or in rec's.
func openRecordTo(dst, rec []byte, bx box, id *ID, codec Codec, rawLen int, off uint64) ([]byte, error) {
	if err := checkRecordSum(rec); err != nil {
		return nil, err
	}
	return openUnsummed(dst, rec, bx, id, codec, rawLen, off)
}

// openUnsummed is openRecordTo without the check of the sum, for those who check more than that afterwards.
func openUnsummed(dst, rec []byte, bx box, id *ID, codec Codec, rawLen int, off uint64) ([]byte, error) {
	if len(rec) < recordHeaderLen {
		return nil, fmt.Errorf("record has %d bytes, fewer than its header", len(rec))
	}
	_, plain := bx.(plainBox)
	tag := sealedTag[:]
	if plain {
		tag = id.tag()
	}
	if !bytes.Equal(rec[8:recordHeaderLen], tag) {
		return nil, errRecordTag
	}
	if plain {
		return rec[recordHeaderLen:], nil
	}
	return bx.open(dst[:0], rec[recordHeaderLen:], off, newRecordAAD(id, codec, rawLen))
}
