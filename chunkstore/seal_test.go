package chunkstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// testIdentities are private keys that guard nothing.
var testIdentities = [3]string{
	"AGE-SECRET-KEY-1ZZUDFJ72HGKECWAU92JPF2UYANHTM7MZYY4X6RA57EH9AHDJ3LHSV0QT44",
	"AGE-SECRET-KEY-127WYHTP6USKEPMTX0FF4KHRKZJX52EAJ20SYMKHR3UUCEP7T0MWSE0ADDQ",
	"AGE-SECRET-KEY-129RE9CGP85X0ZN890967LWH32FL59MJ4H7Q36F9CDCGCCHKERE7Q32NP66",
}

func testIdentity(t testing.TB, i int) *age.X25519Identity {
	t.Helper()
	id, err := age.ParseX25519Identity(testIdentities[i])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// testRecipient is the public key that belongs to testIdentities[i].
func testRecipient(t testing.TB, i int) Recipient {
	t.Helper()
	r, err := ParseRecipient(testIdentity(t, i).Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testCredentials open what testRecipient(t, i) may open.
func testCredentials(t testing.TB, i int) Credentials {
	return Credentials{Identities: []age.Identity{testIdentity(t, i)}}
}

// half gives every second test, by its number, a repository that is sealed: what to make it with and to open it with.
func half(t testing.TB, n uint64, o InitOptions) (InitOptions, Credentials) {
	t.Helper()
	if n%2 == 0 {
		return o, Credentials{}
	}
	o.Recipients = []Recipient{testRecipient(t, 0)}
	return o, testCredentials(t, 0)
}

// initSealed makes a sealed repository for testIdentities[0].
func initSealed(t testing.TB, be backend.Backend) {
	t.Helper()
	o := InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20, Recipients: []Recipient{testRecipient(t, 0)}}
	if _, err := Init(t.Context(), be, o); err != nil {
		t.Fatal(err)
	}
}

// openSealed opens a repository of initSealed.
func openSealed(t testing.TB, be backend.Backend) *Repository {
	t.Helper()
	r, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// testSealer has master keys of its own.
func testSealer() *aesSealer { return newAESSealer([]secret{{1, 2, 3}, {4, 5, 6}}) }

// TestSealedRepository: every record is opened as it was sealed: with its place, its ID, its codec and its object's salt.
func TestSealedRepository(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
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
	for _, object := range packNames(t, be) {
		data, err := backend.ReadAll(t.Context(), be, object)
		if err != nil {
			t.Fatal(err)
		}
		h, err := decodePackHeader(data)
		if err != nil || h.scheme != schemeAES || salts[string(h.salt[:])] {
			t.Errorf("%s: header %+v, %v: a salt is to be new for each object", object, h, err)
		}
		salts[string(h.salt[:])] = true
	}
}

// packNames are the names of all objects that are packs.
func packNames(t *testing.T, be backend.Backend) (names []string) {
	for _, object := range objectNames(t, be) {
		if object != objectConfig && !strings.HasPrefix(object, prefixKeys) && !strings.HasPrefix(object, prefixEpochs) {
			names = append(names, object)
		}
	}
	return names
}

// TestMovedRecordIsRefused: a record is opened only in its place, as what it is, with the master key of its epoch.
func TestMovedRecordIsRefused(t *testing.T) {
	s := testSealer()
	var p packBuilder
	if err := p.reset(s, kindData); err != nil {
		t.Fatal(err)
	}
	if p.header.salt[0] != 1 {
		t.Fatalf("sealed under master key %d, not under the newest", p.header.salt[0])
	}
	ids := []ID{seqID(1), seqID(2)}
	for i := range ids {
		p.add(&ids[i], helloRaw, CodecRaw, 8)
	}
	_, pack := p.finish()
	n := recordHeaderLen + len(helloRaw) + gcmOverhead
	if got := int(p.entries[1].off) - 32; got != n {
		t.Fatalf("a record of %d bytes, not %d", got, n)
	}
	if !bytes.Equal(pack[32+8:32+16], make([]byte, 8)) {
		t.Error("the tag tells of the ID")
	}
	if bytes.Contains(pack, helloRaw) || bytes.Contains(pack, ids[0][:]) {
		t.Error("plain bytes, or an ID, in a sealed pack")
	}
	moved := bytes.Clone(pack)
	copy(moved[32:], pack[32+n:32+2*n])
	copy(moved[32+n:], pack[32:32+n])
	salt := p.header.salt
	open := func(s *aesSealer, kind packKind, salt [saltLen]byte, rec []byte, id *ID, codec Codec, rawLen int) error {
		bx, err := s.box(kind, salt)
		if err != nil {
			return err
		}
		got, err := openRecord(rec, bx, id, codec, rawLen, 32)
		if err == nil && !bytes.Equal(got, helloRaw) {
			t.Errorf("got %x", got)
		}
		return err
	}
	rec := pack[32 : 32+n]
	otherSalt, otherEpoch := salt, salt
	otherSalt[15]++
	otherEpoch[0] = 0
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"as it is", open(s, kindData, salt, rec, &ids[0], CodecRaw, 8), nil},
		{"another record's place", open(s, kindData, salt, moved[32:32+n], &ids[1], CodecRaw, 8), errNotAuthentic},
		{"another ID", open(s, kindData, salt, rec, &ids[1], CodecRaw, 8), errNotAuthentic},
		{"another codec", open(s, kindData, salt, rec, &ids[0], CodecS2, 8), errNotAuthentic},
		{"another length", open(s, kindData, salt, rec, &ids[0], CodecRaw, 9), errNotAuthentic},
		{"another kind", open(s, kindTree, salt, rec, &ids[0], CodecRaw, 8), errNotAuthentic},
		{"another salt", open(s, kindData, otherSalt, rec, &ids[0], CodecRaw, 8), errNotAuthentic},
		{"another epoch", open(s, kindData, otherEpoch, rec, &ids[0], CodecRaw, 8), errNotAuthentic},
		{"another repository", open(newAESSealer([]secret{{1}, {2}}), kindData, salt, rec, &ids[0], CodecRaw, 8), errNotAuthentic},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	if _, err := decodePackTail(s, pack[:32], pack, uint64(len(pack))); err != nil {
		t.Errorf("table: %v", err)
	}
	if _, err := decodePackTail(plainSealer{}, pack[:32], pack, uint64(len(pack))); err == nil || !strings.Contains(err.Error(), "scheme 1") {
		t.Errorf("as a plain pack: %v", err)
	}
	if err := p.reset(plainSealer{}, kindData); err != nil {
		t.Fatal(err)
	}
	_, plain := p.finish()
	if _, err := decodePackTail(s, plain[:32], plain, uint64(len(plain))); err == nil || !strings.Contains(err.Error(), "scheme 0") {
		t.Errorf("a plain pack in a sealed repository: %v", err)
	}
	var unknown *unknownEpochError
	if err := open(s, kindData, [saltLen]byte{2}, rec, &ids[0], CodecRaw, 8); !errors.As(err, &unknown) || unknown.epoch != 2 {
		t.Errorf("epoch 2: %v", err)
	}
}

// TestSealAllocates: sealing and opening a chunk allocate nothing.
func TestSealAllocates(t *testing.T) {
	s := testSealer()
	salt := [saltLen]byte{1, 9}
	bx, err := s.box(kindData, salt)
	if err != nil {
		t.Fatal(err)
	}
	id, payload := seqID(3), make([]byte, 32<<10)
	buf, out := make([]byte, 0, 64<<10), make([]byte, 64<<10)
	if n := testing.AllocsPerRun(100, func() { appendRecord(buf, bx, &id, payload, CodecRaw, len(payload)) }); n > 0.5 {
		t.Errorf("sealing: %v allocations", n)
	}
	rec := appendRecord(buf, bx, &id, payload, CodecRaw, len(payload))
	if n := testing.AllocsPerRun(100, func() {
		bx, err := s.box(kindData, salt)
		if err == nil {
			_, err = openRecordTo(out, rec, bx, &id, CodecRaw, len(payload), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}); n > 0.5 {
		t.Errorf("opening: %v allocations", n)
	}
}

// TestSealerKeepsFewBoxes: however many objects are read.
func TestSealerKeepsFewBoxes(t *testing.T) {
	s := testSealer()
	for i := range 3 * maxOpenBoxes {
		if _, err := s.box(kindData, [saltLen]byte{0, byte(i), byte(i >> 8)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.boxes) != maxOpenBoxes || len(s.recent) != maxOpenBoxes {
		t.Errorf("%d boxes, %d in the ring, want %d", len(s.boxes), len(s.recent), maxOpenBoxes)
	}
}

// TestSealedPackGolden: the sealed form of a pack, byte by byte.
func TestSealedPackGolden(t *testing.T) {
	s := testSealer()
	h := packHeader{kind: kindData, scheme: schemeAES, salt: [saltLen]byte(seq(1, saltLen))} // epoch 1
	bx, err := s.box(h.kind, h.salt)
	if err != nil {
		t.Fatal(err)
	}
	p := packBuilder{sealer: s, header: h, box: bx, buf: h.append(nil)}
	p.body.Reset()
	ids := []ID{seqID(1), seqID(2)}
	for i := range ids {
		p.add(&ids[i], helloRaw, CodecRaw, len(helloRaw))
	}
	id, b := p.finish()
	golden(t, "sealed-pack", b)
	k := packKey(&s.master[1], h.kind, h.salt)
	golden(t, "sealed-pack-key", k[:])
	golden(t, "sealed-pack-id", id[:])
	table, err := decodePackTail(s, b[:packHeaderLen], b, uint64(len(b)))
	if err != nil || table.id != id || len(table.entries) != 2 || table.entries[1].id != ids[1] {
		t.Errorf("got %+v, %v", table, err)
	}
}
