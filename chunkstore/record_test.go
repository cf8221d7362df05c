package chunkstore

import (
	"bytes"
	"errors"
	"testing"
)

func TestRecordGolden(t *testing.T) {
	id := seqID(0x80)
	rec := appendRecord(nil, plainBox{}, &id, []byte("hello"), CodecRaw, 5)
	golden(t, "record", rec)
	payload, err := openRecord(rec, plainBox{}, &id, CodecRaw, 5, 0)
	if err != nil || string(payload) != "hello" {
		t.Fatalf("got %q, %v", payload, err)
	}
}

func TestRecordRefuses(t *testing.T) {
	id := seqID(0x80)
	rec := appendRecord(nil, plainBox{}, &id, []byte("hello"), CodecRaw, 5)
	for n := range rec { // cut short anywhere
		if _, err := openRecord(rec[:n], plainBox{}, &id, CodecRaw, 5, 0); err == nil {
			t.Errorf("opened %d of %d bytes", n, len(rec))
		}
	}
	for bit := range 8 * len(rec) { // one bit changed anywhere
		bad := bytes.Clone(rec)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := openRecord(bad, plainBox{}, &id, CodecRaw, 5, 0); !errors.Is(err, errRecordSum) {
			t.Errorf("bit %d changed: %v, want %v", bit, err, errRecordSum)
		}
	}
	other := id
	other[16] ^= 1
	if _, err := openRecord(rec, plainBox{}, &other, CodecRaw, 5, 0); !errors.Is(err, errRecordTag) {
		t.Errorf("another ID: %v, want %v", err, errRecordTag)
	}
}

func FuzzRecord(f *testing.F) {
	id := seqID(1)
	f.Add(appendRecord(nil, plainBox{}, &id, []byte("payload"), CodecRaw, 7), id[:])
	f.Add([]byte("short"), id[:])
	f.Fuzz(func(t *testing.T, rec, idBytes []byte) {
		var id ID
		copy(id[:], idBytes)
		payload, err := openRecord(rec, plainBox{}, &id, CodecRaw, 0, 0)
		if err != nil {
			return
		}
		if again := appendRecord(nil, plainBox{}, &id, payload, CodecRaw, 0); !bytes.Equal(again, rec) {
			t.Fatalf("got %x, want %x", again, rec)
		}
	})
}
