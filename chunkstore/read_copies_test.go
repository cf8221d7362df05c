package chunkstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// twoCopies is a repository in which two hosts stored the same image at once, so that every chunk and node is in two packs.
func twoCopies(t *testing.T) (be *mem.Backend, b stored) {
	t.Helper()
	be = mem.New()
	img := sparseImage(rand.New(rand.NewPCG(9, 9)), 2<<20+5000)
	if _, err := Init(t.Context(), be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	var hosts [2]*Repository
	var writers [2]*Writer
	for i := range hosts {
		hosts[i] = openSmall(t, be)
		defer hosts[i].Close()
		writers[i] = newTestWriter(t, hosts[i]) // neither learns of the other's chunks
	}
	for i, r := range hosts {
		rec := &Backup{Volume: "v", Blob: putImage(t, r, writers[i], img, nil)}
		if err := writers[i].PutBackup(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		b = newStored(rec, img)
	}
	return be, b
}

// readEveryWay reads a backup through each of the paths.
func readEveryWay(t *testing.T, r *Repository, b stored) error {
	t.Helper()
	blob := r.OpenBlob(b.Blob)
	got := make([]byte, len(b.img))
	if _, err := blob.ReadAt(t.Context(), got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, b.img) {
		t.Fatal("read other bytes than were stored")
	}
	var chunks []Chunk
	for c, err := range blob.Chunks(t.Context(), 0, blob.Size()) {
		if err != nil {
			return err
		}
		chunks = append(chunks, c)
		p, err := r.ReadChunk(t.Context(), c.ID, nil)
		if err != nil {
			return err
		}
		if !bytes.Equal(p, b.img[c.Off:c.End()]) {
			t.Fatalf("chunk at %d has other bytes than were stored", c.Off)
		}
	}
	return r.ReadChunks(t.Context(), chunks, func(i int, p []byte) error {
		if c := chunks[i]; !bytes.Equal(p, b.img[c.Off:c.End()]) {
			t.Fatalf("chunk at %d of a batch has other bytes than were stored", c.Off)
		}
		return nil
	})
}

// TestReadsAnotherCopy: damage to one of two copies, of whatever kind, hurts no reader; a check names it and what it harms.
func TestReadsAnotherCopy(t *testing.T) {
	good, b := twoCopies(t)
	for _, object := range objectNames(t, good) {
		if !strings.HasPrefix(object, prefixPacks) {
			continue
		}
		data, err := backend.ReadAll(t.Context(), good, object)
		if err != nil {
			t.Fatal(err)
		}
		rotten := bytes.Clone(data)
		for i := packHeaderLen; i < len(rotten); i++ {
			rotten[i] ^= 0x55
		}
		for what, left := range map[string][]byte{"missing": nil, "rotten": rotten, "short": data[:len(data)/2], "empty": {}} {
			be := cloneBackend(t, good)
			if err = be.Put(t.Context(), object, left); left == nil {
				err = be.Delete(t.Context(), object)
			}
			if err != nil {
				t.Fatal(err)
			}
			var told atomic.Int64
			r, err := Open(t.Context(), be, Options{Damaged: func(err error) {
				told.Add(1)
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), object) {
					t.Errorf("told of %v", err)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			if err := readEveryWay(t, r, b); err != nil {
				t.Errorf("%s %s: %v", what, object, err)
			}
			if first := segmentsOf(t, r)[0].pack(0).id.String(); strings.HasSuffix(object, first) && what == "rotten" && told.Load() == 0 {
				t.Errorf("%s %s: nobody was told", what, object)
			}
			rep, err := r.Check(t.Context(), CheckOptions{Level: CheckData})
			if err != nil || !named(rep, object) {
				t.Fatalf("%s %s: %+v, %v", what, object, rep, err)
			}
			var copies int64
			for _, d := range rep.Damage {
				copies += d.Copies
				if len(d.Touches) > 0 || d.Object != object {
					t.Errorf("%s %s: %+v", what, object, d)
				}
			}
			pt, err := decodePackTail(plainSealer{}, data[:packHeaderLen], data, uint64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			if copies == 0 || copies > int64(len(pt.entries)) || (what != "short" && copies != int64(len(pt.entries))) {
				t.Errorf("%s %s: %d of %d records are said to be read elsewhere", what, object, copies, len(pt.entries))
			}
			_ = r.Close()
		}
	}
}

// TestBothCopiesDamaged: when no copy is good, that is an error and a loss.
func TestBothCopiesDamaged(t *testing.T) {
	be, b := twoCopies(t)
	for _, object := range objectNames(t, be) {
		if !strings.HasPrefix(object, prefixPacks+"data") {
			continue
		}
		data, err := backend.ReadAll(t.Context(), be, object)
		if err != nil {
			t.Fatal(err)
		}
		for i := packHeaderLen; i < len(data); i++ {
			data[i] ^= 0x55
		}
		if err := be.Put(t.Context(), object, data); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(t.Context(), be, Options{Damaged: func(err error) { t.Errorf("said to be made good: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rep, err := r.Check(t.Context(), CheckOptions{Level: CheckStored})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range rep.Damage {
		if d.Copies > 0 {
			t.Errorf("%+v", d)
		}
	}
	compareLoss(t, "both", CheckStored, r, rep, []stored{b}, "")
	if err := readEveryWay(t, r, b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read: %v", err)
	}
}

// TestLostPackIsListedOnce: thousands of records in a lost pack are not thousands of listings.
func TestLostPackIsListedOnce(t *testing.T) {
	be, all := smallRepository(t)
	for _, object := range objectNames(t, be) {
		if strings.HasPrefix(object, prefixPacks+"data") {
			if err := be.Delete(t.Context(), object); err != nil {
				t.Fatal(err)
			}
		}
	}
	counting := backendtest.NewCounting(be)
	r, err := Open(t.Context(), counting, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	now := time.Duration(0)
	r.bootTime = func() time.Duration { return now }
	lost := lossOf(t, r, all[0])
	packs := map[packID]bool{}
	for _, s := range segmentsOf(t, r) {
		for i := range s.packs {
			packs[s.pack(i).id] = true
		}
	}
	before := counting.Calls(backendtest.List)
	if len(lost) == 0 || before > 2+2*int64(len(packs)) {
		t.Errorf("%d listings for %d packs", before, len(packs))
	}
	if lossOf(t, r, all[0]); counting.Calls(backendtest.List) != before {
		t.Error("listed again at once")
	}
	now += 2 * listAgain
	if lossOf(t, r, all[0]); counting.Calls(backendtest.List) == before {
		t.Error("not listed again after a while")
	}
}
