package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

func TestReindexFromPacksAlone(t *testing.T) {
	good, all := smallRepository(t)
	for name, harm := range map[string]func(object string, data []byte) []byte{
		"sound":   func(_ string, data []byte) []byte { return data },
		"lost":    func(string, []byte) []byte { return nil },
		"garbage": func(_ string, data []byte) []byte { return append([]byte("x"), data...) },
		"empty":   func(string, []byte) []byte { return []byte{} },
	} {
		be := cloneBackend(t, good)
		segments := 0
		for _, object := range objectNames(t, be) {
			if !strings.HasPrefix(object, prefixIndex) {
				continue
			}
			segments++
			data, err := backend.ReadAll(t.Context(), be, object)
			if err != nil {
				t.Fatal(err)
			}
			if left := harm(object, data); left == nil {
				err = be.Delete(t.Context(), object)
			} else {
				err = be.Put(t.Context(), object, left)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		calls, last := 0, 0
		r, rep, err := Reindex(t.Context(), be, Options{CacheDir: t.TempDir()}, func(done, total int) { calls, last = calls+1, done-total })
		if err != nil || len(rep.Damage) > 0 || rep.Segments != 1 || rep.Packs != calls || last != 0 || name != "lost" && rep.Removed != segments {
			t.Fatalf("%s: %+v, %v; %d calls of progress", name, rep, err, calls)
		}
		if s := segmentsOf(t, r); len(s) != 1 || int64(s[0].count) != rep.Chunks {
			t.Errorf("%s: %d segments", name, len(s))
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		mustReindex(t, name+", again", be, all)
	}
}

// TestReindexBesideABackup: what another host writes while the index is made anew stays.
func TestReindexBesideABackup(t *testing.T) {
	for _, prefix := range []string{prefixIndex, prefixPacks} {
		be, all := smallRepository(t)
		other := openTest(t, be, Options{})
		chunks := randomChunks(rand.New(rand.NewPCG(1, 2)), 10, 1000)
		hook := &onList{be, prefix, func() { putFlushed(t, other, chunks) }}
		r, rep, err := Reindex(t.Context(), hook, Options{}, nil)
		if err != nil || len(rep.Damage) > 0 || hook.after != nil {
			t.Fatalf("%s: %+v, %v", prefix, rep, err)
		}
		_ = r.Close()
		mustReadChunks(t, be, chunks)
		mustReindex(t, prefix, be, all)
	}
}

// TestReindexKeepsWhatItCannotMake: the table of a pack is damaged, its records are not, and the old index knows them.
func TestReindexKeepsWhatItCannotMake(t *testing.T) {
	be, all := smallRepository(t)
	for _, object := range objectNames(t, be) {
		if !strings.HasPrefix(object, prefixPacks) {
			continue
		}
		harmed := cloneBackend(t, be)
		data, err := backend.ReadAll(t.Context(), harmed, object)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)-1] ^= 1
		if err := harmed.Put(t.Context(), object, data); err != nil {
			t.Fatal(err)
		}
		r, rep, err := Reindex(t.Context(), harmed, Options{}, nil)
		if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Object != object || rep.Kept == 0 {
			t.Fatalf("%s: %+v, %v", object, rep, err)
		}
		for _, b := range all {
			if slices.Contains(lossOf(t, r, b), true) {
				t.Errorf("%s: backup %s of %s could be read before", object, b.ID, b.Volume)
			}
		}
		_ = r.Close()
	}
}

func TestReindexPassesOnErrors(t *testing.T) {
	be, all := smallRepository(t)
	if _, _, err := Reindex(t.Context(), mem.New(), Options{}, nil); !errors.Is(err, ErrNoRepository) {
		t.Errorf("no repository: %v", err)
	}
	for _, f := range []backendtest.Fault{
		{Method: backendtest.List, Prefix: prefixIndex},
		{Method: backendtest.List, Prefix: prefixPacks},
		{Method: backendtest.Stat, Prefix: prefixPacks, N: 2},
		{Method: backendtest.ReadAt, Prefix: prefixPacks},
		{Method: backendtest.ReadAt, Prefix: prefixPacks, N: 4},
		{Method: backendtest.Put, Prefix: prefixIndex},
		{Method: backendtest.Delete, Prefix: prefixIndex},
		{Method: backendtest.Delete, Prefix: prefixIndex, N: 2},
	} {
		if _, _, err := Reindex(t.Context(), backendtest.NewFaulty(t, be, f), Options{}, nil); !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("%v of %q fails: %v", f.Method, f.Prefix, err)
		}
		mustReindex(t, fmt.Sprintf("after %v of %q", f.Method, f.Prefix), be, all)
		be, _ = smallRepositoryLike(t, be, all)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Reindex(ctx, be, Options{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// smallRepositoryLike adds two segments, so that there is something to replace again.
func smallRepositoryLike(t *testing.T, be *mem.Backend, all []stored) (*mem.Backend, []stored) {
	t.Helper()
	r, err := Open(t.Context(), be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	putFlushed(t, r, randomChunks(rand.New(rand.NewPCG(uint64(len(objectNames(t, be))), 1)), 2, 50))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return be, all
}
