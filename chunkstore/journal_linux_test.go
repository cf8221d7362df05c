package chunkstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/file"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// abandon leaves a Writer as a dead process does: what was uploaded is in the backend and the journal, nothing is indexed, the
// lock is gone.
func abandon(t *testing.T, w *Writer) {
	t.Helper()
	w.uploads.Wait()
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	if err := w.journal.file.Close(); err != nil {
		t.Fatal(err)
	}
}

// abandonedWriter puts chunks until some packs are uploaded, in a process of its own as it were, and dies.
func abandonedWriter(t *testing.T, be backend.Backend, cache string, chunks [][]byte) {
	t.Helper()
	r, err := Open(t.Context(), be, Options{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.NewWriter(t.Context(), WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range chunks {
		if _, err := w.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.rotateAll(); err != nil {
		t.Fatal(err)
	}
	abandon(t, w)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// rotateAll sends off what is in memory.
func (w *Writer) rotateAll() error { return errors.Join(w.data.rotate(), w.tree.rotate()) }

func journals(t *testing.T, cache, repoID string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(cache, repoID, "journal", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestAdoptPacksOfADeadWriter(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	cache := t.TempDir()
	r := openTest(t, be, Options{CacheDir: cache})
	chunks := randomChunks(rand.New(rand.NewPCG(1, 2)), 300, 30_000)
	abandonedWriter(t, be, cache, chunks)
	uploaded := be.Bytes(backendtest.Put)
	be.Reset()

	w := newTestWriter(t, r)
	for _, p := range chunks {
		if _, err := w.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := w.Stats()
	if s.Adopted < 3 || s.NewChunks != 0 || be.Calls(backendtest.Put) != 1 || be.Bytes(backendtest.Put) > uploaded/100 {
		t.Errorf("%+v; %d bytes put again, of %d", s, be.Bytes(backendtest.Put), uploaded)
	}
	mustReadChunks(t, be, chunks)
	if left := journals(t, cache, r.ID()); len(left) != 1 { // our own
		t.Errorf("journals: %v", left)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if left := journals(t, cache, r.ID()); len(left) != 0 {
		t.Errorf("journals after close: %v", left)
	}
}

// TestAdoptTwice: the Writer that adopts dies too, before its index is written.
func TestAdoptTwice(t *testing.T) {
	be := mem.New()
	cache := t.TempDir()
	openTest(t, be, Options{CacheDir: cache})
	chunks := randomChunks(rand.New(rand.NewPCG(3, 4)), 300, 30_000)
	abandonedWriter(t, be, cache, chunks[:150])
	abandonedWriter(t, be, cache, chunks)
	r := openTest(t, be, Options{CacheDir: cache})
	w := newTestWriter(t, r)
	for _, p := range chunks {
		if _, err := w.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.Stats(); s.NewChunks != 0 {
		t.Errorf("%+v", s)
	}
	mustReadChunks(t, be, chunks)
}

func TestLivingWritersJournalIsLeftAlone(t *testing.T) {
	be := mem.New()
	cache := t.TempDir()
	r := openTest(t, be, Options{CacheDir: cache})
	chunks := randomChunks(rand.New(rand.NewPCG(5, 6)), 200, 30_000)
	living := newTestWriter(t, r)
	for _, p := range chunks {
		if _, err := living.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := living.rotateAll(); err != nil {
		t.Fatal(err)
	}
	living.uploads.Wait()
	// As another process sees it.
	r2, err := Open(t.Context(), be, Options{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	w := newTestWriter(t, r2)
	if _, err := w.PutChunk(t.Context(), []byte("mine")); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.Stats(); s.Adopted != 0 {
		t.Errorf("took over %d packs of a Writer that lives", s.Adopted)
	}
	if _, err := os.Stat(living.journal.file.Name()); err != nil {
		t.Errorf("its journal: %v", err)
	}
	if err := living.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDamagedJournal: what a journal lists is a hint. Whatever it holds, the next Writer works.
func TestDamagedJournal(t *testing.T) {
	be := mem.New()
	cache := t.TempDir()
	r := openTest(t, be, Options{CacheDir: cache})
	chunks := randomChunks(rand.New(rand.NewPCG(7, 8)), 450, 30_000)
	abandonedWriter(t, be, cache, chunks)
	path := journals(t, cache, r.ID())[0]
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	lines = lines[:len(lines)-1]
	if len(lines) < 5 {
		t.Fatalf("only %d packs", len(lines))
	}
	damaged := strings.TrimSpace(lines[0])
	data, err := backend.ReadAll(t.Context(), be, damaged)
	if err != nil {
		t.Fatal(err)
	}
	if err := be.Delete(t.Context(), strings.TrimSpace(lines[1])); err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), damaged, data[:len(data)-1]); err != nil {
		t.Fatal(err)
	}
	torn := "\n\x00\xff garbage\npacks/data/zz/../../etc/passwd\nconfig\n" + strings.Join(lines[:4], "") + lines[4][:30]
	if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newTestWriter(t, r)
	if s := w.Stats(); s.Adopted != 2 {
		t.Errorf("adopted %d packs, want 2: one is missing, one damaged, one name torn", s.Adopted)
	}
	for _, p := range chunks {
		if _, err := w.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustReadChunks(t, be, chunks)
	// Unless the same chunks made the same pack again, it belongs to nothing, and check would rightly name it.
	if st, err := be.Stat(t.Context(), damaged); err != nil {
		t.Fatal(err)
	} else if st.Size < int64(len(data)) {
		if err := be.Delete(t.Context(), damaged); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAdoptSkipsWhatIsIndexed: a Writer that died behind its index segment left packs that need no second entry.
func TestAdoptSkipsWhatIsIndexed(t *testing.T) {
	be := mem.New()
	cache := t.TempDir()
	r := openTest(t, be, Options{CacheDir: cache})
	w, err := r.NewWriter(t.Context(), WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutChunk(t.Context(), []byte("chunk")); err != nil {
		t.Fatal(err)
	}
	if err := w.rotateAll(); err != nil {
		t.Fatal(err)
	}
	w.uploads.Wait()
	if _, err := r.index.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	abandon(t, w)
	w2 := newTestWriter(t, r)
	if err := w2.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w2.Stats(); s.Adopted != 0 || len(segmentsOf(t, r)) != 1 {
		t.Errorf("%+v, %d segments", s, len(segmentsOf(t, r)))
	}
	if left := journals(t, cache, r.ID()); len(left) != 1 {
		t.Errorf("journals: %v", left)
	}
}

// TestJournalsBeingMade: Writers that begin at once do not take each other's journals for those of dead ones.
func TestJournalsBeingMade(t *testing.T) {
	cache := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 60 {
				j, err := openJournal(cache, "repo")
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := j.takeOver(); err != nil {
					t.Error(err)
				}
				if err := j.settle(); err != nil {
					t.Error(err)
				}
				if err := j.add("x"); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(j.file.Name()); err != nil {
					t.Errorf("a living journal: %v", err)
				}
				if err := errors.Join(j.settle(), j.close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left := journals(t, cache, "repo"); len(left) != 0 {
		t.Errorf("%d journals are left", len(left))
	}
}

const childEnv = "SHALE_TEST_JOURNAL_CHILD"

func childChunks() [][]byte { return randomChunks(rand.New(rand.NewPCG(9, 10)), 300, 30_000) }

// TestMain runs, where it is told to, the process that TestAdoptAfterKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Println(journalChild(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func journalChild(dir string) error {
	ctx := context.Background()
	be, err := file.Open(filepath.Join(dir, "repo"))
	if err != nil {
		return err
	}
	r, err := Open(ctx, be, Options{CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		return err
	}
	w, err := r.NewWriter(ctx, WriterOptions{})
	if err != nil {
		return err
	}
	for _, p := range childChunks() {
		if _, err := w.PutChunk(ctx, p); err != nil {
			return err
		}
	}
	w.uploads.Wait()
	fmt.Println("waiting to be killed")
	time.Sleep(time.Minute)
	return errors.New("not killed")
}

func TestAdoptAfterKill(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "repo"), 0o700); err != nil {
		t.Fatal(err)
	}
	fb, err := file.Create(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	be := backendtest.NewCounting(fb)
	r := openTest(t, be, Options{CacheDir: filepath.Join(dir, "cache")})
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for s := bufio.NewScanner(out); s.Scan() && !strings.Contains(s.Text(), "waiting to be killed"); {
		said.WriteString(s.Text() + "\n")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil {
		t.Fatalf("the child ended by itself: %s", said.String())
	}
	be.Reset()
	w := newTestWriter(t, r)
	var plain int64
	for _, p := range childChunks() {
		plain += int64(len(p))
		if _, err := w.PutChunk(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Only what was in the child's memory, less than one pack, is stored again.
	if s := w.Stats(); s.Adopted < 2 || s.NewBytes > plain/2 || be.Bytes(backendtest.Put) > 3<<19 {
		t.Errorf("%+v of %d bytes; put %d; the child said:\n%s", s, plain, be.Bytes(backendtest.Put), said.String())
	}
	mustReadChunks(t, be, childChunks())
}

// FuzzJournal: no journal keeps a Writer from beginning, or makes it believe what is not so.
func FuzzJournal(f *testing.F) {
	id, pack := smallPack(f, kindData)
	f.Add([]byte(id.object(kindData) + "\n"))
	f.Add([]byte("packs/tree/" + id.object(kindData)[len("packs/data/"):] + "\nconfig\n\n../x"))
	f.Add(bytes.Repeat([]byte("x"), 70_000))
	be := mem.New()
	ctx := context.Background()
	cfg, err := Init(ctx, be, InitOptions{})
	if err != nil {
		f.Fatal(err)
	}
	if err := be.Put(ctx, id.object(kindData), pack); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cache := t.TempDir()
		dir := filepath.Join(cache, cfg.ID, "journal")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "packs-1"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(ctx, be, Options{CacheDir: cache})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		w, err := r.NewWriter(ctx, WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		adopted := w.Stats().Adopted
		if real := strings.Contains(string(text), id.object(kindData)); adopted > 1 || adopted == 1 && !real {
			t.Fatalf("adopted %d packs from %q", adopted, text)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
