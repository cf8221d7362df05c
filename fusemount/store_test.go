package fusemount

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/file"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// backUp stores size bytes, which fill makes span by span, as a backup of volume.
func backUp(ctx context.Context, r *chunkstore.Repository, volume string, size int64, fill func(span []byte)) (*chunkstore.Backup, error) {
	w, err := r.NewWriter(ctx, chunkstore.WriterOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	blob, err := w.NewBlob(ctx, size, nil)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, r.SpanBytes())
	for n := int64(0); n*int64(len(buf)) < size; n++ {
		base := n * int64(len(buf))
		span := buf[:min(int64(len(buf)), size-base)]
		fill(span)
		chunks, err := putSpan(ctx, r, w, base, span)
		if err != nil {
			return nil, err
		}
		if err := blob.SetSpan(ctx, n, chunks, nil); err != nil {
			return nil, err
		}
	}
	ref, err := blob.Finish(ctx)
	if err != nil {
		return nil, err
	}
	b := &chunkstore.Backup{Volume: volume, Blob: ref}
	return b, w.PutBackup(ctx, b)
}

func putSpan(ctx context.Context, r *chunkstore.Repository, w *chunkstore.Writer, base int64, span []byte) ([]chunkstore.Chunk, error) {
	var chunks []chunkstore.Chunk
	for pos := 0; pos < len(span); {
		end, hole, err := r.Cutter().Next(span, pos, func(int) error { return nil })
		if err != nil {
			return nil, err
		}
		if !hole {
			id, err := w.PutChunk(ctx, span[pos:end])
			if err != nil {
				return nil, err
			}
			chunks = append(chunks, chunkstore.Chunk{Off: base + int64(pos), Len: end - pos, ID: id})
		}
		pos = end
	}
	return chunks, nil
}

func newStore(t testing.TB, be backend.Backend) *chunkstore.Repository {
	t.Helper()
	ctx := context.Background()
	if _, err := chunkstore.Init(ctx, be, chunkstore.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	r, err := chunkstore.Open(ctx, be, chunkstore.Options{})
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

// TestStore shows a real repository: what was stored is read, and a backup that another process adds appears.
func TestStore(t *testing.T) {
	rng := seeded(t)
	be := mem.New()
	r := newStore(t, be)
	image := randomImage(rng, 11<<20+4096)
	rest := image
	fill := func(span []byte) { rest = rest[copy(span, rest):] }
	b, err := backUp(t.Context(), r, "vol", int64(len(image)), fill)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := chunkstore.Open(t.Context(), be, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shown.Close() })
	m := mountFake(t, Store(shown), Options{Refresh: 10 * time.Millisecond})
	dir := filepath.Join(m.Dir(), "vol", b.ID)
	f, err := os.Open(filepath.Join(dir, imageName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := compareAll(f, image); err != nil {
		t.Error(err)
	}
	st := stat(t, filepath.Join(dir, imageName))
	if st.Size != int64(len(image)) || st.Blocks != (b.Blob.Data+511)/512 || st.Mtim.Sec != b.Time.Unix() {
		t.Errorf("%d bytes, %d blocks, mtime %d; the record says %+v, %v", st.Size, st.Blocks, st.Mtim.Sec, b.Blob, b.Time)
	}
	text, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		t.Fatal(err)
	}
	var record chunkstore.Backup
	if err := json.Unmarshal(text, &record); err != nil || record.ID != b.ID || record.Blob != b.Blob {
		t.Errorf("backup.json is %s (%v), want %+v", text, err, b)
	}

	rest = bytes.Repeat([]byte("later "), 1<<20)
	later := bytes.Clone(rest)
	time.Sleep(2 * time.Millisecond) // IDs carry milliseconds
	b2, err := backUp(t.Context(), r, "vol", int64(len(later)), fill)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new backup", func() bool {
		to, err := os.Readlink(filepath.Join(m.Dir(), "vol", latestName))
		return err == nil && to == b2.ID
	})
	got, err := os.ReadFile(filepath.Join(m.Dir(), "vol", latestName, imageName))
	if err != nil || !bytes.Equal(got, later) {
		t.Errorf("the new backup: %d bytes, %v", len(got), err)
	}
}

// TestStoreDamage flips bytes in a pack: what they hold is EIO and the pack is named, the rest is read.
func TestStoreDamage(t *testing.T) {
	rng := seeded(t)
	at := t.TempDir()
	be, err := file.Create(filepath.Join(at, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	r := newStore(t, be)
	image := make([]byte, 8<<20)
	fillText(rng, image)
	rest := image
	b, err := backUp(t.Context(), r, "vol", int64(len(image)), func(span []byte) { rest = rest[copy(span, rest):] })
	if err != nil {
		t.Fatal(err)
	}
	pack := biggestFile(t, filepath.Join(at, "repo"))
	raw, err := os.OpenFile(pack, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.WriteAt([]byte("damage"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	var log lockedBuilder
	m := mountFake(t, Store(r), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	f, err := os.Open(filepath.Join(m.Dir(), "vol", b.ID, imageName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	bad := 0
	buf := make([]byte, 4096)
	for off := 0; off < len(image); off += len(buf) {
		_, err := f.ReadAt(buf, int64(off))
		switch {
		case errors.Is(err, syscall.EIO):
			bad += len(buf)
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(buf, image[off:off+len(buf)]):
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	if bad == 0 || bad > 256<<10 {
		t.Errorf("%d bytes are unreadable, want one chunk", bad)
	}
	if said := log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, filepath.Base(pack)) {
		t.Errorf("want one line that names %s, got:\n%s", filepath.Base(pack), said)
	}
}

func biggestFile(t *testing.T, dir string) string {
	t.Helper()
	var biggest string
	var size int64
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() && fi.Size() > size {
			biggest, size = path, fi.Size()
		}
		return err
	})
	if err != nil || biggest == "" {
		t.Fatal("no pack", err)
	}
	return biggest
}
