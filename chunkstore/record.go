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
//	  8   8 tag     bytes 16..23 of the ID, so that a record read from the wrong place is noticed
//	 16     payload the codec's output, sealed; its place in the pack and recordAAD are authenticated with it
//
// Where it begins, its length, its codec and the plain length are in the pack's table and in the index.

const recordHeaderLen = 16

// tableRecordID stands in for the ID of a pack's table.
var tableRecordID = ID{0: 't', 1: 'a', 2: 'b', 3: 'l', 4: 'e'}

// recordAAD is what sealing authenticates beside the payload: ID, plain length (3 bytes) and codec.
func recordAAD(id *ID, codec Codec, rawLen int) (aad [36]byte) {
	copy(aad[:], id[:])
	binary.LittleEndian.PutUint32(aad[32:], uint32(rawLen)|uint32(codec)<<24)
	return aad
}

// appendRecord appends a record to the pack in b.
func appendRecord(b []byte, bx box, id *ID, payload []byte, codec Codec, rawLen int) []byte {
	off := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, id.tag()...)
	if _, plain := bx.(plainBox); plain {
		b = append(b, payload...)
	} else {
		aad := recordAAD(id, codec, rawLen)
		b = bx.seal(b, payload, uint64(off), aad[:])
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

// openRecord verifies rec, which lies at off in its pack, and returns its payload before the codec. The result may alias rec.
func openRecord(rec []byte, bx box, id *ID, codec Codec, rawLen int, off uint64) ([]byte, error) {
	if err := checkRecordSum(rec); err != nil {
		return nil, err
	}
	return openUnsummed(rec, bx, id, codec, rawLen, off)
}

// openUnsummed is openRecord without the check of the sum, for those who check more than that afterwards.
func openUnsummed(rec []byte, bx box, id *ID, codec Codec, rawLen int, off uint64) ([]byte, error) {
	if len(rec) < recordHeaderLen {
		return nil, fmt.Errorf("record has %d bytes, fewer than its header", len(rec))
	}
	if !bytes.Equal(rec[8:16], id.tag()) {
		return nil, errRecordTag
	}
	if _, plain := bx.(plainBox); plain {
		return rec[recordHeaderLen:], nil
	}
	aad := recordAAD(id, codec, rawLen)
	return bx.open(nil, rec[recordHeaderLen:], off, aad[:])
}
