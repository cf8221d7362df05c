package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// sumSealer is no encryption. It puts behind each record a sum over its bytes, its place, what is authenticated beside it and
// the object's salt: so it notices whatever a real sealer would.
type sumSealer struct{}

const schemeSum = 200

func (sumSealer) scheme() byte                        { return schemeSum }
func (sumSealer) overhead() int                       { return 8 }
func (sumSealer) box(salt [saltLen]byte) (box, error) { return sumBox{salt}, nil }

type sumBox struct{ salt [saltLen]byte }

func (b sumBox) sum(plain []byte, off uint64, aad []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	for _, p := range [][]byte{b.salt[:], binary.LittleEndian.AppendUint64(nil, off), aad, plain} {
		_, _ = d.Write(p)
	}
	return d.Sum64()
}

func (b sumBox) seal(dst, plain []byte, off uint64, aad []byte) []byte {
	dst = append(dst, plain...)
	return binary.LittleEndian.AppendUint64(dst, b.sum(plain, off, aad))
}

var errSealBroken = errors.New("seal is broken")

func (b sumBox) open(dst, sealed []byte, off uint64, aad []byte) ([]byte, error) {
	n := len(sealed) - 8
	if n < 0 || binary.LittleEndian.Uint64(sealed[n:]) != b.sum(sealed[:n], off, aad) {
		return nil, errSealBroken
	}
	return append(dst, sealed[:n]...), nil
}

// openSealed opens a repository whose objects are all sealed.
func openSealed(t *testing.T, be backend.Backend) *Repository {
	t.Helper()
	cfg, err := loadConfig(t.Context(), be)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRepository(be, cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.sealer = sumSealer{}
	r.cutter.seed = 12345
	if err := r.index.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestSealedRepository: every record is opened as it was sealed: with its place, its ID, its codec and its object's salt.
func TestSealedRepository(t *testing.T) {
	be := mem.New()
	if _, err := Init(t.Context(), be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	r := openSealed(t, be)
	img := sparseImage(rand.New(rand.NewPCG(1, 2)), 3<<20+100)
	w := newTestWriter(t, r)
	ref := putImage(t, r, w, img, nil)
	b := &Backup{Volume: "v", Blob: ref}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	r2 := openSealed(t, be)
	mustReadBlob(t, r2, ref, img)
	if rep, err := r2.Check(t.Context(), CheckOptions{Level: CheckData}); err != nil || len(rep.Damage) > 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if all, err := r2.ListBackups(t.Context(), ""); err != nil || len(all) != 1 || all[0].ID != b.ID {
		t.Errorf("backups: %v, %v", all, err)
	}
	salts := map[string]bool{}
	for _, object := range objectNames(t, be) {
		if object == objectConfig {
			continue
		}
		data, err := backend.ReadAll(t.Context(), be, object)
		if err != nil {
			t.Fatal(err)
		}
		h, err := decodePackHeader(data)
		if err != nil || h.scheme != schemeSum || salts[string(h.salt[:])] {
			t.Errorf("%s: header %+v, %v: a salt is to be new for each object", object, h, err)
		}
		salts[string(h.salt[:])] = true
	}
	plain, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Check(t.Context(), CheckOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read as a plain repository: %v", err)
	}
}

// TestMovedRecordIsRefused: two records of equal length and right checksums change places; the table is made to agree.
func TestMovedRecordIsRefused(t *testing.T) {
	var p packBuilder
	if err := p.reset(sumSealer{}, kindData); err != nil {
		t.Fatal(err)
	}
	ids := []ID{seqID(1), seqID(2)}
	for i := range ids {
		p.add(&ids[i], helloRaw, CodecRaw, 8)
	}
	_, pack := p.finish()
	const n = recordHeaderLen + 16
	moved := bytes.Clone(pack)
	copy(moved[32:], pack[32+n:32+2*n])
	copy(moved[32+n:], pack[32:32+n])
	bx := p.box
	if _, err := openRecord(pack[32:32+n], bx, &ids[0], CodecRaw, 8, 32); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"at another place": func() error { _, err := openRecord(moved[32:32+n], bx, &ids[1], CodecRaw, 8, 32); return err }(),
		"another codec":    func() error { _, err := openRecord(pack[32:32+n], bx, &ids[0], CodecS2, 8, 32); return err }(),
		"another length":   func() error { _, err := openRecord(pack[32:32+n], bx, &ids[0], CodecRaw, 9, 32); return err }(),
		"another object": func() error {
			_, err := openRecord(pack[32:32+n], sumBox{}, &ids[0], CodecRaw, 8, 32)
			return err
		}(),
	} {
		if !errors.Is(err, errSealBroken) {
			t.Errorf("%s: %v, want %v", name, err, errSealBroken)
		}
	}
	if _, err := decodePackTail(sumSealer{}, pack[:32], pack, uint64(len(pack))); err != nil {
		t.Errorf("table: %v", err)
	}
	if _, err := decodePackTail(plainSealer{}, pack[:32], pack, uint64(len(pack))); err == nil || !strings.Contains(err.Error(), "scheme 200") {
		t.Errorf("as a plain pack: %v", err)
	}
}
