package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// stored is a backup and what it must give back.
type stored struct {
	*Backup
	img  []byte
	hole []bool // by spans of 1 MiB: all zeros
}

func newStored(b *Backup, img []byte) stored {
	s := stored{Backup: b, img: bytes.Clone(img)}
	for p := range slices.Chunk(img, 1<<20) {
		s.hole = append(s.hole, bytes.Count(p, []byte{0}) == len(p))
	}
	return s
}

// openSmall opens with packs so small that little data makes several.
func openSmall(t *testing.T, be backend.Backend) *Repository {
	t.Helper()
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.cfg.PackBytes = 64 << 10
	return r
}

// smallRepository holds three backups of two volumes; the larger one has a tree of three levels, most of it holes.
func smallRepository(t *testing.T) (*mem.Backend, []stored) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	be := mem.New()
	if _, err := Init(t.Context(), be, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	r := openSmall(t, be)
	defer r.Close()
	large := make([]byte, 66<<20+4000)
	fill := func(off, n int) {
		for i := off; i < off+n; i++ {
			large[i] = byte(rnd.Uint32())
		}
	}
	fill(0, 100_000)
	fill(5<<20+8192, 60_000)
	fill(64<<20, 50_000)
	fill(66<<20, 4000)
	var all []stored
	put := func(volume string, img []byte, base *Blob, changed func(int64) bool) {
		w, err := r.NewWriter(t.Context(), WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ref, err := storeImage(t.Context(), r, w, img, base, changed)
		if err != nil {
			t.Fatal(err)
		}
		b := &Backup{Volume: volume, Blob: ref}
		if err := errors.Join(w.PutBackup(t.Context(), b), w.Close()); err != nil {
			t.Fatal(err)
		}
		all = append(all, newStored(b, img))
	}
	put("large", large, nil, func(span int64) bool { return span == 0 || span == 5 || span == 64 || span == 66 })
	fill(5<<20+8192, 20_000)
	put("large", large, r.OpenBlob(all[0].Blob), func(span int64) bool { return span == 5 })
	put("small", large[:300_000], nil, nil) // shares chunks with the other
	return be, all
}

func cloneBackend(t *testing.T, be backend.Backend) *mem.Backend {
	t.Helper()
	out := mem.New()
	err := be.List(t.Context(), "", func(o backend.Object) error {
		data, err := backend.ReadAll(t.Context(), be, o.Name)
		if err != nil {
			return err
		}
		return out.Put(t.Context(), o.Name, data)
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func objectNames(t *testing.T, be backend.Backend) (names []string) {
	t.Helper()
	if err := be.List(t.Context(), "", func(o backend.Object) error { names = append(names, o.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	return names
}

// lossOf reads a backup chunk by chunk and returns which of its blocks cannot be read. What can be must be right.
func lossOf(t *testing.T, r *Repository, b stored) []bool {
	t.Helper()
	ctx := context.Background()
	lost := make([]bool, (len(b.img)+CutBlock-1)/CutBlock)
	blob := r.OpenBlob(b.Blob)
	n := int64(r.SpanBytes())
	for span := range r.spans(b.Blob.Size) {
		p := b.img[span*n : min(span*n+n, int64(len(b.img)))]
		chunks, err := blob.SpanChunks(ctx, nil, span)
		if err != nil {
			mustBeDamage(t, err)
			markBlocks(lost, span*n, span*n+int64(len(p)))
			continue
		}
		if len(chunks) == 0 {
			if !b.hole[span] {
				t.Fatalf("backup %s of %s, span %d: a hole where data was stored", b.ID, b.Volume, span)
			}
			continue
		}
		got := make([]byte, len(p))
		for _, c := range chunks {
			data, err := r.ReadChunk(ctx, c.ID, nil)
			if err == nil && len(data) != c.Len {
				t.Fatalf("chunk %+v has %d bytes", c, len(data))
			}
			if err != nil {
				mustBeDamage(t, err)
				markBlocks(lost, c.Off, c.End())
				data = p[c.Off-span*n:][:c.Len]
			}
			copy(got[c.Off-span*n:], data)
		}
		if !bytes.Equal(got, p) {
			t.Fatalf("backup %s of %s, span %d: read other bytes than were stored", b.ID, b.Volume, span)
		}
	}
	return lost
}

func mustBeDamage(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFound) {
		t.Fatalf("not called damage: %v", err)
	}
}

func markBlocks(blocks []bool, off, end int64) {
	for i := off / CutBlock; i*CutBlock < end; i++ {
		blocks[i] = true
	}
}

// touched returns the blocks of a backup that the report says cannot be read.
func touched(rep *CheckReport, b stored) []bool {
	blocks := make([]bool, (len(b.img)+CutBlock-1)/CutBlock)
	for _, d := range rep.Damage {
		for _, r := range d.Touches {
			if r.Volume == b.Volume && r.Backup == b.ID {
				markBlocks(blocks, r.Off, r.End())
			}
		}
	}
	return blocks
}

func named(rep *CheckReport, object string) bool {
	return slices.ContainsFunc(rep.Damage, func(d Damage) bool { return d.Object == object })
}

// damages are what is done to an object: by name, the bytes that are left, nil when it is deleted.
func damages(rnd *rand.Rand, data []byte) map[string][]byte {
	out := map[string][]byte{
		"delete": nil, "cut to nothing": {}, "cut in half": data[:len(data)/2], "cut by one": data[:len(data)-1],
		"one byte more": append(bytes.Clone(data), 0),
	}
	for _, off := range []int{0, 5, 24, 31, 32, 40, 47, 48, len(data) - 41, len(data) - 40, len(data) - 12, len(data) - 1, rnd.IntN(len(data)), rnd.IntN(len(data))} {
		if off >= 0 && off < len(data) && (fullTest() || rnd.IntN(3) == 0) {
			bad := bytes.Clone(data)
			bad[off] ^= 1 << rnd.IntN(8)
			out[fmt.Sprintf("flip at %d", off)] = bad
		}
	}
	return out
}

// TestCheckFindsEveryDamage damages every object of a repository in every way: a check names it, says exactly which bytes of
// which backups are lost, all others read right, and where only the index is harmed, it can be made anew.
func TestCheckFindsEveryDamage(t *testing.T) {
	good, all := smallRepository(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	names := objectNames(t, good)
	if len(names) < 15 {
		t.Fatalf("only %d objects: %v", len(names), names)
	}
	for _, object := range names {
		data, err := backend.ReadAll(t.Context(), good, object)
		if err != nil {
			t.Fatal(err)
		}
		for what, left := range damages(rnd, data) {
			name := object[:min(len(object), 24)] + ": " + what
			be := cloneBackend(t, good)
			if left == nil {
				err = be.Delete(t.Context(), object)
			} else {
				err = be.Put(t.Context(), object, left)
			}
			if err != nil {
				t.Fatal(err)
			}
			checkDamaged(t, name, be, object, what, all)
			if t.Failed() {
				return
			}
		}
	}
}

// checkDamaged examines a repository with one damaged object.
func checkDamaged(t *testing.T, name string, be *mem.Backend, object, what string, all []stored) {
	t.Helper()
	isIndex := strings.HasPrefix(object, prefixIndex)
	for _, level := range []CheckLevel{CheckStructure, CheckStored, CheckData} {
		r, err := Open(t.Context(), be, Options{})
		if err != nil {
			switch {
			case object == objectConfig && what == "delete":
				if !errors.Is(err, ErrNoRepository) {
					t.Errorf("%s: open: %v", name, err)
				}
				return
			case object == objectConfig:
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: open: %v", name, err)
				}
				return
			default:
				t.Errorf("%s: open: %v", name, err)
				return
			}
		}
		rep, err := r.Check(t.Context(), CheckOptions{Level: level})
		if isIndex && errors.Is(err, ErrCorrupt) && strings.Contains(err.Error(), object) {
			_ = r.Close()
			break // to make the index anew
		}
		if err != nil {
			t.Fatalf("%s: check: %v", name, err)
		}
		flipped := strings.HasPrefix(what, "flip")
		switch {
		case what == "delete" && strings.HasPrefix(object, prefixBackups):
			if len(rep.Damage) > 0 || rep.Backups != len(all)-1 {
				t.Errorf("%s: %+v", name, rep)
			}
		case isIndex: // only of a deleted one no more is known than what it lacks
			if !named(rep, "index") {
				t.Errorf("%s: level %d: %+v", name, level, rep.Damage)
			}
		case level > CheckStructure || !strings.HasPrefix(object, prefixPacks) || !flipped:
			if !named(rep, object) {
				t.Errorf("%s: level %d does not name it: %+v", name, level, rep.Damage)
			}
		}
		if level > CheckStructure || !flipped || !strings.HasPrefix(object, prefixPacks+"data") {
			compareLoss(t, name, level, r, rep, all, object)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if isIndex {
		mustReindex(t, name, be, all)
	}
}

// compareLoss compares what a check says that backups lose with what cannot be read.
func compareLoss(t *testing.T, name string, level CheckLevel, r *Repository, rep *CheckReport, all []stored, object string) {
	t.Helper()
	for _, b := range all {
		if _, err := r.Backup(t.Context(), b.Volume, b.ID); object == r.backupObject(b.Volume, b.ID) {
			mustBeDamage(t, err)
			continue
		} else if err != nil {
			t.Errorf("%s: record of another backup: %v", name, err)
		}
		lost, says := lossOf(t, r, b), touched(rep, b)
		if !slices.Equal(lost, says) {
			count := func(s []bool) (n int) {
				for _, b := range s {
					if b {
						n++
					}
				}
				return n
			}
			t.Errorf("%s: level %d: backup %s of %s: %d blocks cannot be read, %d are said to be lost\n%+v",
				name, level, b.ID, b.Volume, count(lost), count(says), rep.Damage)
		}
	}
}

func mustReindex(t *testing.T, name string, be backend.Backend, all []stored) {
	t.Helper()
	r, rep, err := Reindex(t.Context(), be, Options{}, nil)
	if err != nil || len(rep.Damage) > 0 || rep.Segments == 0 {
		t.Fatalf("%s: reindex: %+v, %v", name, rep, err)
	}
	defer r.Close()
	check, err := r.Check(t.Context(), CheckOptions{Level: CheckData})
	if err != nil || len(check.Damage) > 0 {
		t.Fatalf("%s: check after reindex: %+v, %v", name, check, err)
	}
	for _, b := range all {
		if slices.Contains(lossOf(t, r, b), true) {
			t.Errorf("%s: after reindex backup %s cannot be read", name, b.ID)
		}
	}
}

// TestCheckNamesTheRecord: damage inside a data pack is located at its record.
func TestCheckNamesTheRecord(t *testing.T) {
	be, _ := smallRepository(t)
	var object string
	for _, name := range objectNames(t, be) {
		if strings.HasPrefix(name, prefixPacks+"data") {
			object = name
		}
	}
	data, err := backend.ReadAll(t.Context(), be, object)
	if err != nil {
		t.Fatal(err)
	}
	pt, err := decodePackTail(plainSealer{}, data[:packHeaderLen], data, uint64(len(data)))
	if err != nil || len(pt.entries) == 0 {
		t.Fatalf("%+v, %v", pt, err)
	}
	e := pt.entries[len(pt.entries)/2]
	data[e.off+e.stored/2] ^= 4
	if err := be.Put(t.Context(), object, data); err != nil {
		t.Fatal(err)
	}
	for _, level := range []CheckLevel{CheckStored, CheckData} {
		r, err := Open(t.Context(), be, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex // guards the two below
		var last, total int64
		rep, err := r.Check(t.Context(), CheckOptions{Level: level, Progress: func(d, n int64) {
			mu.Lock()
			defer mu.Unlock()
			last, total = max(last, d), n
		}})
		if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Object != object || rep.Damage[0].Off != int64(e.off) || len(rep.Damage[0].Touches) == 0 {
			t.Errorf("level %d: %+v, %v; want one damage at %d", level, rep, err, e.off)
		}
		if last != total || total == 0 || rep.BytesRead != total {
			t.Errorf("progress: %d of %d, read %d", last, total, rep.BytesRead)
		}
		_ = r.Close()
	}
}

// TestCheckStoredFindsSwappedRecords: each record is sound, but two have changed places.
func TestCheckStoredFindsSwappedRecords(t *testing.T) {
	be := mem.New()
	r, err := initAndOpen(be, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	putFlushed(t, r, nil)
	w, err := r.NewWriter(t.Context(), WriterOptions{Compression: "none"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"one", "two"} {
		if _, err := w.PutChunk(t.Context(), []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	var object string
	for _, name := range objectNames(t, be) {
		if strings.HasPrefix(name, prefixPacks) {
			object = name
		}
	}
	data, err := backend.ReadAll(t.Context(), be, object)
	if err != nil {
		t.Fatal(err)
	}
	const n = recordHeaderLen + 3
	swapped := slices.Concat(data[:32], data[32+n:32+2*n], data[32:32+n], data[32+2*n:])
	if err := be.Put(t.Context(), object, swapped); err != nil {
		t.Fatal(err)
	}
	for _, level := range []CheckLevel{CheckStored, CheckData} {
		rep, err := r.Check(t.Context(), CheckOptions{Level: level})
		if err != nil || !named(rep, object) {
			t.Errorf("level %d: %+v, %v", level, rep, err)
		}
	}
	if _, err := r.ReadChunk(t.Context(), r.ChunkID([]byte("one")), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read: %v", err)
	}
}

// TestCheckBesideABackup: a backup that is written while a check runs is no damage.
func TestCheckBesideABackup(t *testing.T) {
	for _, prefix := range []string{prefixBackups, prefixIndex, prefixPacks} {
		be, _ := smallRepository(t)
		other := openTest(t, be, Options{})
		img := sparseImage(rand.New(rand.NewPCG(5, 6)), 2<<20)
		wrote := false
		r, err := Open(t.Context(), be, Options{})
		if err != nil {
			t.Fatal(err)
		}
		hook := &onList{be, prefix, func() {
			w := newTestWriter(t, other)
			ref := putImage(t, other, w, img, nil)
			if err := w.PutBackup(t.Context(), &Backup{Volume: "new", Blob: ref}); err != nil {
				t.Error(err)
			}
			wrote = true
		}}
		r.be = hook
		rep, err := r.Check(t.Context(), CheckOptions{Level: CheckData})
		if err != nil || len(rep.Damage) > 0 || !wrote {
			t.Errorf("written behind the listing of %s (%v): %+v, %v", prefix, wrote, rep, err)
		}
		_ = r.Close()
	}
}

// TestCheckKnowsSecondCopies: two hosts stored the same chunk at once. Damage of the copy that nobody reads touches no backup.
func TestCheckKnowsSecondCopies(t *testing.T) {
	be := mem.New()
	a, err := initAndOpen(be, "")
	if err != nil {
		t.Fatal(err)
	}
	b := openTest(t, be, Options{})
	img := make([]byte, 600_000)
	rnd := rand.New(rand.NewPCG(7, 8))
	for i := range img {
		img[i] = byte(rnd.Uint32())
	}
	var backups []stored
	writers := []*Writer{newTestWriter(t, a), newTestWriter(t, b)} // neither learns of the other's chunks
	for i, r := range []*Repository{a, b} {
		w := writers[i]
		ref := putImage(t, r, w, append([]byte{byte(i + 1)}, img[1:]...), nil)
		rec := &Backup{Volume: fmt.Sprint("host", i), Blob: ref}
		if err := w.PutBackup(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		backups = append(backups, newStored(rec, append([]byte{byte(i + 1)}, img[1:]...)))
	}
	if rep, err := b.Check(t.Context(), CheckOptions{}); err != nil || len(rep.Damage) > 0 || rep.Unused == 0 {
		t.Fatalf("there are no second copies: %+v, %v", rep, err)
	}
	for _, object := range objectNames(t, be) {
		if !strings.HasPrefix(object, prefixPacks+"data") {
			continue
		}
		harmed := cloneBackend(t, be)
		data, err := backend.ReadAll(t.Context(), harmed, object)
		if err != nil {
			t.Fatal(err)
		}
		pt, err := decodePackTail(plainSealer{}, data[:packHeaderLen], data, uint64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range pt.entries {
			data[pt.entries[i].off+9] ^= 1
		}
		for _, left := range [][]byte{data, data[:len(data)/2], nil} {
			if err = harmed.Put(t.Context(), object, left); left == nil {
				err = harmed.Delete(t.Context(), object)
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := Open(t.Context(), harmed, Options{})
			if err != nil {
				t.Fatal(err)
			}
			rep, err := r.Check(t.Context(), CheckOptions{Level: CheckStored})
			if err != nil || !named(rep, object) {
				t.Errorf("%d bytes left of %s: %+v, %v", len(left), object, rep, err)
			} else {
				compareLoss(t, fmt.Sprintf("%d bytes left of %s", len(left), object), CheckStored, r, rep, backups, object)
			}
			_ = r.Close()
		}
	}
	_ = a.Close()
}

// TestCheckSpansSegments: the records of a missing pack that several segments name are all lost.
func TestCheckSpansSegments(t *testing.T) {
	be, all := smallRepository(t)
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	old := segmentsOf(t, r)
	m := newSegmentMerge(old) // cut as a long run is
	for {
		packs, entries, err := m.next(t.Context(), 3)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			break
		}
		if _, _, err := r.index.put(t.Context(), encodeSegment(1, packs, entries)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range old {
		if err := be.Delete(t.Context(), s.name); err != nil {
			t.Fatal(err)
		}
	}
	_ = r.Close()
	for _, object := range objectNames(t, be) {
		if !strings.HasPrefix(object, prefixPacks) {
			continue
		}
		for _, what := range []string{"delete", "table"} {
			harmed := cloneBackend(t, be)
			data, err := backend.ReadAll(t.Context(), harmed, object)
			if err != nil {
				t.Fatal(err)
			}
			if err = harmed.Delete(t.Context(), object); what == "table" { // and a record beside
				data[len(data)-1] ^= 1
				data[packHeaderLen+2] ^= 1
				err = harmed.Put(t.Context(), object, data)
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := Open(t.Context(), harmed, Options{})
			if err != nil {
				t.Fatal(err)
			}
			rep, err := r.Check(t.Context(), CheckOptions{Level: CheckData})
			if err != nil || !named(rep, object) {
				t.Errorf("%s %s: %+v, %v", what, object, rep, err)
			} else {
				compareLoss(t, what+" "+object, CheckData, r, rep, all, object)
			}
			_ = r.Close()
		}
	}
}

// TestCheckFindsWrongRecords: records that are sealed well but say what cannot be.
func TestCheckFindsWrongRecords(t *testing.T) {
	be, all := smallRepository(t)
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first := all[0].Blob
	for name, ref := range map[string]BlobRef{
		"size of fewer spans": {first.Root, 65 << 20, first.Data},
		"size of one level":   {first.Root, 1 << 20, 4096},
		"size of more levels": {first.Root, 1 << 40, first.Data},
		"largest size":        {first.Root, maxBlobSize, first.Data},
		"short last span":     {first.Root, 66<<20 + 4096*2, first.Data},
		"unknown root":        {ID{1}, 1 << 20, 4096},
		"chunk as root":       {r.ChunkID([]byte("x")), 1 << 20, 4096},
	} {
		w, err := r.NewWriter(t.Context(), WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b := &Backup{Volume: "wrong", Blob: ref}
		if err := w.PutBackup(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		rep, err := r.Check(t.Context(), CheckOptions{})
		if err != nil || len(rep.Damage) == 0 {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
		for _, d := range rep.Damage {
			for _, touch := range d.Touches {
				if touch.Backup != b.ID || touch.Off < 0 || touch.Len < 0 || touch.End() > ref.Size {
					t.Errorf("%s: touches %+v", name, touch)
				}
			}
		}
		if err := errors.Join(r.DeleteBackup(t.Context(), "wrong", b.ID), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range all { // what follows is found where no other backup has the same tree
		if err := r.DeleteBackup(t.Context(), b.Volume, b.ID); err != nil {
			t.Fatal(err)
		}
	}
	w := newTestWriter(t, r)
	b := &Backup{Volume: "wrong", Blob: BlobRef{first.Root, first.Size, first.Data - 1}}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if rep, err := r.Check(t.Context(), CheckOptions{}); err != nil || len(rep.Damage) != 1 || !named(rep, r.backupObject("wrong", b.ID)) {
		t.Errorf("too few bytes of data: %+v, %v", rep, err)
	}
}

func TestCheckPassesOnErrors(t *testing.T) {
	be, _ := smallRepository(t)
	for _, f := range []backendtest.Fault{
		{Method: backendtest.List, Prefix: prefixIndex, N: 2}, // the first is Open's
		{Method: backendtest.List, Prefix: prefixPacks},
		{Method: backendtest.List, Prefix: prefixBackups},
		{Method: backendtest.Stat, Prefix: prefixBackups},
		{Method: backendtest.ReadAt, Prefix: prefixVolumes},
		{Method: backendtest.ReadAt, Prefix: prefixPacks + "data"},
		{Method: backendtest.ReadAt, Prefix: prefixPacks + "data", N: 3},
		{Method: backendtest.ReadAt, Prefix: prefixPacks + "tree"},
		{Method: backendtest.Stat, Prefix: prefixPacks},
	} {
		r, err := Open(t.Context(), backendtest.NewFaulty(t, be, f), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Check(t.Context(), CheckOptions{Level: CheckData}); !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("%v of %q fails: %v", f.Method, f.Prefix, err)
		}
		_ = r.Close()
	}
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Check(ctx, CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// FuzzOpenIndex: whatever stands in an index object, well sealed or not, Open and reads end in errors, not in panics.
func FuzzOpenIndex(f *testing.F) {
	f.Add(encodeSegment(1, testPacks(), testEntries()), true)
	f.Add([]byte("not a pack"), false)
	ctx := context.Background()
	cfg, err := newConfig(InitOptions{})
	if err != nil {
		f.Fatal(err)
	}
	config, err := cfg.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, sealed bool) {
		be := mem.New()
		if err := be.Put(ctx, objectConfig, config); err != nil {
			t.Fatal(err)
		}
		r, err := Open(ctx, be, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		name, object := prefixIndex+seqID(0).String(), data
		if sealed {
			id, pack, err := r.buildObject(kindIndex, data)
			if err != nil {
				t.Fatal(err)
			}
			name, object = prefixIndex+id.String(), pack
		}
		if err := be.Put(ctx, name, object); err != nil {
			t.Fatal(err)
		}
		err = r.Refresh(ctx)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("refresh: %v", err)
		}
		var chunks []Chunk
		segs, _, err := r.index.whole(ctx)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("read the index: %v", err)
		}
		defer releaseAll(segs)
		for _, s := range segs {
			for i := range s.count {
				e := s.entryAt(i)
				c := Chunk{Off: int64(i), Len: int(e.raw)}
				copy(c.ID[:], e.key[:])
				chunks = append(chunks, c)
			}
		}
		err = r.ReadChunks(ctx, chunks, func(int, []byte) error { return errors.New("there are no packs to read from") })
		if len(chunks) > 0 && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("read: %v", err)
		}
	})
}
