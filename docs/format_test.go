package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/file"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

// image is a volume in memory that knows which ranges of it were written since the backup before.
type image struct {
	data    []byte
	changed []source.Extent
}

func (m *image) Open(_ context.Context, parents iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	for p, err := range parents {
		return m, source.Base{Parent: &p}, err
	}
	m.changed = []source.Extent{{Len: m.Size()}}
	return m, source.Base{Reason: "it is the first backup"}, nil
}

func (m *image) Extents(context.Context) iter.Seq2[source.Extent, error] {
	return func(yield func(source.Extent, error) bool) {
		for _, e := range m.changed {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (m *image) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, m.data[off:])
	return nil
}

func (m *image) Size() int64                       { return int64(len(m.data)) }
func (m *image) State() json.RawMessage            { return json.RawMessage(`{"kind":"test"}`) }
func (m *image) Stats() source.Stats               { return source.Stats{} }
func (m *image) Close(context.Context, bool) error { return nil }

// write notes that [off, off+n) changes and fills it: half with noise, half with text that compresses.
func (m *image) write(rng *rand.Rand, off, n int) {
	m.changed = append(m.changed, source.Extent{Off: int64(off), Len: int64(n)})
	for i := range n {
		if i < n/2 {
			m.data[off+i] = byte(rng.Uint32())
		} else {
			m.data[off+i] = "all work and no play "[i%21]
		}
	}
}

func (m *image) zero(off, n int) {
	m.changed = append(m.changed, source.Extent{Off: int64(off), Len: int64(n), Hole: true})
	clear(m.data[off : off+n])
}

// reader returns a function that runs format_reader/read.py, and skips the test where it cannot run.
func reader(t *testing.T, env ...string) func(args ...string) (talk string, err error) {
	t.Helper()
	for _, tool := range []string{"python3", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the second reader needs %s: %v", tool, err)
		}
	}
	script := filepath.Join("format_reader", "read.py")
	if _, err := os.Stat(script); err != nil { // looked at here so that go test runs anew when it changes
		t.Fatal(err)
	}
	return func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "python3", append([]string{script}, args...)...)
		cmd.Env = append(os.Environ(), env...)
		talk, err := cmd.CombinedOutput()
		return string(talk), err
	}
}

// A reader that was written from format.md alone restores what shale stored, and refuses what is damaged.
func TestSecondReader(t *testing.T) {
	t.Parallel()
	for _, compression := range []chunkstore.Compression{"none", "zstd:3", "s2"} {
		t.Run(string(compression), func(t *testing.T) {
			t.Parallel()
			read := reader(t)
			dir := filepath.Join(t.TempDir(), "repo")
			r := newRepository(t, dir, compression)
			rng := rand.New(rand.NewPCG(1, 2))
			m := &image{data: make([]byte, 66<<20+5<<12+777)} // 67 spans of 1 MiB: a tree of two levels above the leaves
			m.write(rng, 0, 40_000)
			m.write(rng, 5<<20-9000, 30_000) // over the border of two spans
			m.write(rng, len(m.data)-5000, 5000)
			backUpAndRead(t, r, m, dir, read)

			m.changed = nil
			m.zero(40<<12, 4<<12)
			m.write(rng, 3<<20, 30_000)
			m.write(rng, 5<<20, 3000)
			b := backUpAndRead(t, r, m, dir, read)
			if b.Parent == "" {
				t.Error("the second backup was not incremental")
			}
			packs, err := filepath.Glob(filepath.Join(dir, "packs", "*", "*", "*"))
			if err != nil || len(packs) < 4 {
				t.Errorf("%d packs, %v; want data and trees of two backups", len(packs), err)
			}

			if talk, err := read(dir); err != nil {
				t.Errorf("read.py finds the packs or the index wrong: %v: %s", err, talk)
			}

			damaged := largest(t, packs)
			flipByte(t, damaged, 1000)
			talk, err := read(dir, b.Volume, b.ID, filepath.Join(t.TempDir(), "out"))
			if err == nil || !strings.Contains(talk, filepath.Base(damaged)) {
				t.Errorf("with a damaged pack: %v, %q; want the name %s", err, talk, filepath.Base(damaged))
			}
		})
	}
}

// The second reader reads sealed repositories, too, also what was stored after a rotation, when it is given what age decrypts.
func TestSecondReaderOfSealed(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("python3", "-c", "import ctypes.util, sys; sys.exit(not ctypes.util.find_library('crypto'))").CombinedOutput(); err != nil {
		t.Skipf("the second reader needs libcrypto: %v %s", err, out)
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to, err := chunkstore.ParseRecipient(identity.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "repo")
	be, err := file.Options{NoSync: true}.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := chunkstore.InitOptions{SpanBytes: 1 << 20, MaxChunk: 64 << 10, PackBytes: 1 << 20, Recipients: []chunkstore.Recipient{to}}
	c := chunkstore.Credentials{Identities: []age.Identity{identity}}
	r := initAndOpen(t, be, o, c)
	rng := rand.New(rand.NewPCG(3, 4))
	m := &image{data: make([]byte, 3<<20+777)}
	m.write(rng, 1<<20-9000, 30_000)

	keys, err := filepath.Glob(filepath.Join(dir, "keys", "*"))
	if err != nil || len(keys) != 1 {
		t.Fatalf("%v, %v", keys, err)
	}
	secrets := unwrapSecrets(t, keys[0], identity)
	backUpAndRead(t, r, m, dir, reader(t, "MASTER_KEYS="+secrets))
	var s struct {
		Identity string `json:"identity"`
	}
	if text, err := os.ReadFile(secrets); err != nil || json.Unmarshal(text, &s) != nil {
		t.Fatalf("%s, %v", text, err)
	}
	own, err := age.ParseX25519Identity(s.Identity)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := chunkstore.Open(t.Context(), be, chunkstore.Options{Credentials: c})
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	m.changed = nil
	m.write(rng, 2<<20, 20_000)
	both := "MASTER_KEYS=" + secrets + ":" + unwrapSecrets(t, filepath.Join(dir, "epochs", "001"), own)
	b := backUpAndRead(t, after, m, dir, reader(t, both))
	if talk, err := reader(t, both)(dir); err != nil {
		t.Errorf("read.py finds the packs or the index wrong: %v: %s", err, talk)
	}
	for what, env := range map[string]string{"is sealed": "", "is not known": "MASTER_KEYS=" + secrets} {
		if talk, err := reader(t, env)(dir, b.Volume, b.ID, filepath.Join(t.TempDir(), "out")); err == nil || !strings.Contains(talk, what) {
			t.Errorf("%v, %q; want %q", err, talk, what)
		}
	}
	packs, err := filepath.Glob(filepath.Join(dir, "packs", "data", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	flipByte(t, largest(t, packs), 1000)
	if talk, err := reader(t, both)(dir, b.Volume, b.ID, filepath.Join(t.TempDir(), "out")); err == nil {
		t.Errorf("with a damaged pack: %q", talk)
	}
}

// unwrapSecrets does as format.md says: it decrypts the "wrapped" of a key object or a rotation, and returns the file with the result.
func unwrapSecrets(t *testing.T, object string, identity age.Identity) string {
	t.Helper()
	text, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	var o struct {
		Wrapped []byte `json:"wrapped"`
	}
	if err := json.Unmarshal(line, &o); err != nil {
		t.Fatal(err)
	}
	plain, err := age.Decrypt(bytes.NewReader(o.Wrapped), identity)
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(file, secrets, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func newRepository(t *testing.T, dir string, c chunkstore.Compression) *chunkstore.Repository {
	t.Helper()
	be, err := file.Options{NoSync: true}.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := chunkstore.InitOptions{Compression: c, SpanBytes: 1 << 20, CutBits: 3, MaxChunk: 64 << 10, PackBytes: 1 << 20}
	return initAndOpen(t, be, o, chunkstore.Credentials{})
}

func initAndOpen(t *testing.T, be backend.Backend, o chunkstore.InitOptions, c chunkstore.Credentials) *chunkstore.Repository {
	t.Helper()
	if _, err := chunkstore.Init(t.Context(), be, o); err != nil {
		t.Fatal(err)
	}
	r, err := chunkstore.Open(t.Context(), be, chunkstore.Options{Credentials: c})
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

// backUpAndRead stores the image and compares it with what the second reader restores.
func backUpAndRead(t *testing.T, r *chunkstore.Repository, m *image, dir string, read func(...string) (string, error)) *chunkstore.Backup {
	t.Helper()
	res, err := engine.Backup(t.Context(), r, m, engine.BackupOptions{Volume: "db.1", Labels: map[string]string{"é": "☃"}})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if talk, err := read(dir, "db.1", res.Backup.ID, out); err != nil {
		t.Fatalf("read.py: %v: %s", err, talk)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, m.data) {
		t.Fatalf("the reader restored other bytes than were backed up (%d of %d)", len(got), len(m.data))
	}
	return res.Backup
}

// largest returns the longest file: a data pack that every backup here needs.
func largest(t *testing.T, paths []string) (path string) {
	t.Helper()
	var size int64
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() > size {
			path, size = p, st.Size()
		}
	}
	return path
}

func flipByte(t *testing.T, path string, off int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
