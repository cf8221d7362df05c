package engine_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
)

// openDamaged opens a repository that no clean-up checks.
func openDamaged(t *testing.T, be backend.Backend) *chunkstore.Repository {
	t.Helper()
	r, err := chunkstore.Open(t.Context(), be, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// objects are the names of the backend's objects that begin so.
func objects(t *testing.T, be backend.Backend, prefix string) (names []string) {
	t.Helper()
	err := be.List(t.Context(), prefix, func(o backend.Object) error {
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// copyOf copies a backend, so that a test can spoil it.
func copyOf(t *testing.T, be backend.Backend) *mem.Backend {
	t.Helper()
	out := mem.New()
	for _, name := range objects(t, be, "") {
		b, err := backend.ReadAll(t.Context(), be, name)
		if err == nil {
			err = out.Put(t.Context(), name, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func ranges(rep *engine.VerifyReport) (out []chunkstore.Range) {
	for _, d := range rep.Damage {
		out = append(out, d.Range)
	}
	return out
}

func TestVerifySound(t *testing.T) {
	r := memRepo(t)
	for _, image := range [][]byte{nil, make([]byte, 3*mib), sparseImage()} {
		b := backup(t, r, plainVolume(image), engine.BackupOptions{Volume: "vol"}).Backup
		p := &progress{}
		got, err := engine.Verify(t.Context(), r, b, p)
		if err != nil {
			t.Fatal(err)
		}
		want := &engine.VerifyReport{Volume: "vol", Backup: b.ID, Size: int64(len(image)), Data: b.Blob.Data, Read: b.Blob.Data}
		if !reflect.DeepEqual(got, want) || p.done.Load() != b.Blob.Data {
			t.Errorf("got %+v and progress %d, want %+v", got, p.done.Load(), want)
		}
	}
}

// Verify names exactly the chunks that cannot be read one by one, and reads all others.
func TestVerifyDamagedData(t *testing.T) {
	be := mem.New()
	b := backup(t, openRepo(t, be), plainVolume(sparseImage()), engine.BackupOptions{Volume: "vol"}).Backup
	packs := objects(t, be, "packs/data/")
	if len(packs) < 2 {
		t.Fatalf("%d data packs, want some that stay sound", len(packs))
	}
	rng := rand.New(rand.NewPCG(7, 7))
	damage := map[string]func(*mem.Backend) error{
		"pack gone": func(be *mem.Backend) error { return be.Delete(t.Context(), packs[0]) },
		"pack cut": func(be *mem.Backend) error {
			p, err := backend.ReadAll(t.Context(), be, packs[0])
			return errors.Join(err, be.Put(t.Context(), packs[0], p[:len(p)/2]))
		},
		"three bytes": func(be *mem.Backend) error {
			p, err := backend.ReadAll(t.Context(), be, packs[1])
			for range 3 {
				p[64+rng.IntN(len(p)*3/4)] ^= 4
			}
			return errors.Join(err, be.Put(t.Context(), packs[1], p))
		},
	}
	for name, spoil := range damage {
		t.Run(name, func(t *testing.T) {
			spoilt := copyOf(t, be)
			if err := spoil(spoilt); err != nil {
				t.Fatal(err)
			}
			r := openDamaged(t, spoilt)
			var want []chunkstore.Range
			read := int64(0)
			for c, err := range r.OpenBlob(b.Blob).Chunks(t.Context(), 0, b.Blob.Size) {
				if err != nil {
					t.Fatal(err)
				}
				if p, err := r.ReadChunk(t.Context(), c.ID, nil); err != nil || r.ChunkID(p) != c.ID {
					want = append(want, chunkstore.Range{Off: c.Off, Len: int64(c.Len)})
				} else {
					read += int64(c.Len)
				}
			}
			got, err := engine.Verify(t.Context(), r, b, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(want) == 0 || !reflect.DeepEqual(ranges(got), want) || got.Read != read {
				t.Errorf("read %d, damage %v;\nwant %d and %v", got.Read, got.Damage, read, want)
			}
		})
	}
}

// Damage of the tree costs the spans below it and no other; those of one inner node are one range.
func TestVerifyDamagedTree(t *testing.T) {
	const spans = 130 // three inner nodes below the root
	image := make([]byte, spans*spanBytes)
	for i := range spans {
		copy(image[i*spanBytes+i%7*8192:], randomImage(uint64(i), 4096))
	}
	be := mem.New()
	v := plainVolume(image)
	b := backup(t, openRepoWith(t, be, chunkstore.InitOptions{SpanBytes: spanBytes, PackBytes: 1 << 20}), v, engine.BackupOptions{Volume: "vol"}).Backup
	packs := objects(t, be, "packs/tree/")
	if len(packs) != 1 {
		t.Fatalf("tree packs %v", packs)
	}
	pack, err := backend.ReadAll(t.Context(), be, packs[0])
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for off := 0; off < len(pack); off += 61 {
		flipped := bytes.Clone(pack)
		flipped[off] ^= 16
		spoilt := copyOf(t, be)
		if err := spoilt.Put(t.Context(), packs[0], flipped); err != nil {
			t.Fatal(err)
		}
		r := openDamaged(t, spoilt)
		blob := r.OpenBlob(b.Blob)
		var want []chunkstore.Range
		lost := 0
		for s := range int64(spans) {
			if _, err := blob.SpanChunks(t.Context(), nil, s); err == nil {
				continue
			}
			lost++
			if n := len(want); n > 0 && want[n-1].End() == s*spanBytes {
				want[n-1].Len += spanBytes
			} else {
				want = append(want, chunkstore.Range{Off: s * spanBytes, Len: spanBytes})
			}
		}
		seen[lost] = true
		got, err := engine.Verify(t.Context(), r, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(ranges(got), want) || got.Read != int64(spans-lost)*4096 {
			t.Errorf("byte %d flipped: read %d, damage %v;\nwant %d and %v", off, got.Read, got.Damage, (spans-lost)*4096, want)
		}
	}
	if want := map[int]bool{0: true, 1: true, 2: true, 64: true, spans: true}; !reflect.DeepEqual(seen, want) {
		t.Errorf("the flips cost %v spans, want a leaf, both inner nodes' sizes, the root, and nothing", seen)
	}
}

// A tree node that reads wrong once and right then costs nothing, and no chunk is passed over.
func TestVerifyFlakyTree(t *testing.T) {
	image := sparseImage()
	be := mem.New()
	b := backup(t, openRepoWith(t, be, chunkstore.InitOptions{SpanBytes: spanBytes, PackBytes: 1 << 20}), plainVolume(image),
		engine.BackupOptions{Volume: "vol"}).Backup
	for n := 1; ; n++ {
		faulty := backendtest.NewFaulty(t, be, backendtest.Fault{
			Method: backendtest.ReadAt, Prefix: "packs/tree/", N: n, Kind: backendtest.FlipBit, Bit: 300, Optional: true,
		})
		got, err := engine.Verify(t.Context(), openDamaged(t, faulty), b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.Read != b.Blob.Data || len(got.Damage) > 0 {
			t.Errorf("read %d flipped: read %d of %d, damage %v", n, got.Read, b.Blob.Data, got.Damage)
		}
		if !faulty.Fired() {
			break
		}
	}
}

func TestVerifyErrors(t *testing.T) {
	be := mem.New()
	r := openRepo(t, be)
	b := backup(t, r, plainVolume(sparseImage()), engine.BackupOptions{Volume: "vol"}).Backup
	for _, prefix := range []string{"packs/data/", "packs/tree/"} {
		faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.ReadAt, Prefix: prefix, Times: -1})
		if _, err := engine.Verify(t.Context(), openDamaged(t, faulty), b, nil); !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("%s cannot be read: %v", prefix, err)
		}
	}
	large := backup(t, r, plainVolume(randomImage(1, 20*mib)), engine.BackupOptions{Volume: "large"}).Backup
	ctx, cancel := context.WithCancel(t.Context())
	p := &progress{on: func(int64) { cancel() }}
	if _, err := engine.Verify(ctx, openDamaged(t, be), large, p); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
