package engine_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

// openRepo makes and opens a repository at be. The test's clean-up checks it down to the data.
func openRepo(t testing.TB, be backend.Backend) *chunkstore.Repository {
	t.Helper()
	return openRepoWith(t, be, chunkstore.InitOptions{PackBytes: 1 << 20})
}

func openRepoWith(t testing.TB, be backend.Backend, o chunkstore.InitOptions) *chunkstore.Repository {
	t.Helper()
	ctx := context.Background()
	if _, err := chunkstore.Init(ctx, be, o); err != nil {
		t.Fatal(err)
	}
	r, err := chunkstore.Open(ctx, be, chunkstore.Options{CacheDir: t.TempDir(), Credentials: testCredentials(t, o)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		rep, err := r.Check(ctx, chunkstore.CheckOptions{Level: chunkstore.CheckData})
		if err != nil || len(rep.Damage) > 0 {
			t.Errorf("check: %+v, %v", rep, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// testKey is a private key that guards nothing.
const testKey = "AGE-SECRET-KEY-1ZZUDFJ72HGKECWAU92JPF2UYANHTM7MZYY4X6RA57EH9AHDJ3LHSV0QT44"

func testIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.ParseX25519Identity(testKey)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// testRecipient makes a repository sealed.
func testRecipient(t testing.TB) chunkstore.Recipient {
	t.Helper()
	r, err := chunkstore.ParseRecipient(testIdentity(t).Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testCredentials open a repository that was made with o.
func testCredentials(t testing.TB, o chunkstore.InitOptions) (c chunkstore.Credentials) {
	if len(o.Recipients) > 0 {
		c.Identities = []age.Identity{testIdentity(t)}
	}
	return c
}

func memRepo(t testing.TB) *chunkstore.Repository { return openRepo(t, mem.New()) }

// backup is engine.Backup that must succeed.
func backup(t testing.TB, r *chunkstore.Repository, s source.Opener, o engine.BackupOptions) *engine.BackupResult {
	t.Helper()
	res, err := engine.Backup(t.Context(), r, s, o)
	if err != nil {
		t.Fatalf("backup of %s: %v", o.Volume, err)
	}
	return res
}

// pool is a captured thin pool with the answers of the kernel and of thin_delta.
type pool struct {
	name, meta, data string
	BlockSize        int64  `json:"block_size_bytes"`
	ReadFrom         string `json:"read_from"`
	Devices          []poolDevice
	Deltas           []poolDelta
}

type poolDevice struct {
	ID     uint32
	Size   int64 `json:"size_bytes"`
	SHA256 string
}

type poolDelta struct {
	From, To uint32
	Changed  [][3]any // begin, length (in blocks), type
}

func (p *pool) options(d poolDevice) source.ThinPoolOptions {
	return source.ThinPoolOptions{
		Metadata: p.meta, Data: p.data, Device: d.ID, Size: d.Size, MetadataSnapshot: p.ReadFrom == "held metadata snapshot",
	}
}

func (p *pool) device(t testing.TB, id uint32) poolDevice {
	for _, d := range p.Devices {
		if d.ID == id {
			return d
		}
	}
	t.Fatalf("pool %s has no device %d", p.name, id)
	return poolDevice{}
}

var poolNames = []string{"basic-ext4", "live-metasnap", "odd-block-size", "lvm-xfs"}

// openPool unpacks a pool of ../thin/testdata.
func openPool(t testing.TB, name string) *pool {
	t.Helper()
	dir := filepath.Join("..", "thin", "testdata", name)
	b, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	p := &pool{name: name}
	if err := json.Unmarshal(b, p); err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	p.meta = unpack(t, filepath.Join(dir, "meta.img.zst"), tmp)
	p.data = unpack(t, filepath.Join(dir, "data.img.zst"), tmp)
	return p
}

func unpack(t testing.TB, path, dir string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(1<<28))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	out, err := os.Create(filepath.Join(dir, filepath.Base(path[:len(path)-len(".zst")])))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, z); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

func sha256File(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
