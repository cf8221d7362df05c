package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// victim is a small sealed repository, with an object of every kind that lasts.
type victim struct {
	t       *testing.T
	objects map[string][]byte
	images  map[string][]byte // content by volume and backup
}

// newVictim makes two volumes of two backups each, with a rotation between them, and a trash list.
func newVictim(t *testing.T) *victim {
	t.Helper()
	be := mem.New()
	initSealed(t, be)
	v := &victim{t, nil, map[string][]byte{}}
	rnd := rand.New(rand.NewPCG(3, 4))
	r := openSealed(t, be)
	backUp := func(volume string, img []byte) *Backup {
		w := newTestWriter(t, r)
		b := &Backup{Volume: volume, Blob: putImage(t, r, w, img, nil)}
		if err := w.PutBackup(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		v.images[volume+"/"+b.ID] = img
		return b
	}
	for _, volume := range []string{"a", "b"} {
		backUp(volume, randomBytes(rnd, 3000))
	}
	gone := backUp("a", randomBytes(rnd, 2000))
	delete(v.images, "a/"+gone.ID)
	if err := r.DeleteBackup(t.Context(), "a", gone.ID); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond) // packs younger than the grace are left alone
	if _, err := r.Prune(t.Context(), PruneOptions{Grace: 2 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, volume := range []string{"a", "b"} {
		backUp(volume, randomBytes(rnd, 3000))
	}
	v.objects = contents(t, be)
	if !slices.ContainsFunc(v.names(), func(s string) bool { return strings.HasPrefix(s, prefixTrash) }) {
		t.Fatal("no trash list")
	}
	return v
}

func randomBytes(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func contents(t *testing.T, be backend.Backend) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, name := range objectNames(t, be) {
		b, err := backend.ReadAll(t.Context(), be, name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = b
	}
	return all
}

func (v *victim) names() (names []string) {
	for name := range v.objects {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// with is the repository with one object changed; nil removes it.
func (v *victim) with(name string, data []byte) backend.Backend {
	be := mem.New()
	for n, b := range v.objects {
		if n == name {
			continue
		}
		if err := be.Put(v.t.Context(), n, b); err != nil {
			v.t.Fatal(err)
		}
	}
	if data != nil {
		if err := be.Put(v.t.Context(), name, data); err != nil {
			v.t.Fatal(err)
		}
	}
	return be
}

// read opens the repository and reads all that it lists, which must be what was stored. It returns the first error, and how many
// backups it could read.
func (v *victim) read(ctx context.Context, be backend.Backend, o Options) (good int, err error) {
	v.t.Helper()
	r, err := Open(ctx, be, o)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if _, err := r.Volumes(ctx); err != nil {
		return 0, err
	}
	var bad error
	err = r.WalkBackups(ctx, "", func(object string, b *Backup, err error) error {
		if err != nil {
			bad = errors.Join(bad, err)
			return nil
		}
		got := make([]byte, b.Blob.Size)
		if _, err = r.OpenBlob(b.Blob).ReadAt(ctx, got, 0); err != nil {
			bad = errors.Join(bad, err)
			return nil
		}
		if want := v.images[b.Volume+"/"+b.ID]; !bytes.Equal(got, want) {
			v.t.Errorf("%s: wrong bytes", object)
		}
		good++
		return nil
	})
	return good, errors.Join(err, bad)
}

// mustRefuse says whether err is one that a hostile backend may cause; nil is harmless.
func mustRefuse(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
		t.Errorf("%s: %v", what, err)
	}
}

// TestAnyChangeIsRefused: one bit of one object changes, or its end is cut off. Nothing else than what was stored is ever read, and
// what is needed is missed with an error that says that it is damaged.
func TestAnyChangeIsRefused(t *testing.T) {
	v := newVictim(t)
	if good, err := v.read(t.Context(), v.with("", nil), v.options()); err != nil || good != len(v.images) {
		t.Fatalf("as it is: %d, %v", good, err)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, name := range v.names() {
		data := v.objects[name]
		places := []int{0, 4, 5, 6, 7, 8, 23, 24, 31, 32, 40, 48, len(data) - 40, len(data) - 17, len(data) - 9, len(data) - 1}
		for range 6 {
			places = append(places, rnd.IntN(len(data)))
		}
		if fullTest() {
			places = seqInts(len(data))
		}
		for _, i := range places {
			if i < 0 || i >= len(data) {
				continue
			}
			bad := bytes.Clone(data)
			bad[i] ^= 1 << rnd.IntN(8)
			v.attack(fmt.Sprintf("%s, byte %d of %d", name, i, len(data)), name, bad)
		}
		for _, n := range []int{0, 1, len(data) / 2, len(data) - 1} {
			v.attack(fmt.Sprintf("%s, cut to %d of %d bytes", name, n, len(data)), name, append([]byte{}, data[:n]...))
		}
	}
}

func (v *victim) options() Options { return Options{Credentials: testCredentials(v.t, 0)} }

// attack changes an object and reads everything: what is needed is missed, and what is not needed to read is found by a check.
func (v *victim) attack(what, name string, bad []byte) {
	v.t.Helper()
	be := v.with(name, bad)
	good, err := v.read(v.t.Context(), be, v.options())
	mustRefuse(v.t, what, err)
	if err != nil {
		return
	}
	if good != len(v.images) {
		v.t.Errorf("%s: no error, and %d of %d backups", what, good, len(v.images))
	}
	if err := v.check(be); err == nil {
		v.t.Errorf("%s: check finds nothing", what)
	} else {
		mustRefuse(v.t, what+", check", err)
	}
}

// check returns the first damage that a check finds.
func (v *victim) check(be backend.Backend) error {
	v.t.Helper()
	r, err := Open(v.t.Context(), be, v.options())
	if err != nil {
		return err
	}
	defer r.Close()
	rep, err := r.Check(v.t.Context(), CheckOptions{Level: CheckData})
	if err != nil || len(rep.Damage) == 0 {
		return err
	}
	return &CorruptError{Object: rep.Damage[0].Object, Off: rep.Damage[0].Off, Err: errors.New(rep.Damage[0].Error)}
}

func seqInts(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// TestForgedSumsDoNotHelp: whoever changes a record and makes all checksums anew is stopped by the seal, or by the name.
func TestForgedSumsDoNotHelp(t *testing.T) {
	v := newVictim(t)
	for _, name := range v.names() {
		if name == objectConfig || strings.HasPrefix(name, prefixKeys) || strings.HasPrefix(name, prefixEpochs) {
			continue
		}
		for _, at := range []int{packHeaderLen + recordHeaderLen, packHeaderLen + 8} {
			bad := bytes.Clone(v.objects[name])
			bad[at] ^= 1
			resumRecord(t, bad, v.objects[name])
			v.attack(fmt.Sprintf("%s, byte %d and all sums", name, at), name, bad)
		}
	}
}

// resumRecord makes the checksums of a changed pack's first record and of its trailer right. Where the record ends is found by trying,
// as whoever can read the pack can do.
func resumRecord(t *testing.T, changed, pack []byte) {
	t.Helper()
	n := len(pack)
	for end := packHeaderLen + recordHeaderLen; end <= n-trailerLen; end++ {
		if checkRecordSum(pack[packHeaderLen:end]) == nil {
			binary.LittleEndian.PutUint64(changed[packHeaderLen:], xxhash.Sum64(changed[packHeaderLen+8:end]))
			resum(changed, n-trailerLen, trailerLen)
			return
		}
	}
	t.Fatal("the end of the first record was not found")
}

// TestSwappedObjectsAreRefused: each object's bytes under each other's name.
func TestSwappedObjectsAreRefused(t *testing.T) {
	v := newVictim(t)
	for _, from := range v.names() {
		for _, to := range v.names() {
			if from == to {
				continue
			}
			v.attack("the bytes of "+from+" under the name "+to, to, v.objects[from])
		}
	}
}

// TestObjectsOfAnotherRepository: an index segment, a backup record, a pack of another repository, sealed or plain, are refused by name.
func TestObjectsOfAnotherRepository(t *testing.T) {
	v, other := newVictim(t), newVictim(t)
	plain := mem.New()
	r := openTest(t, plain, Options{})
	sealedBackup(t, r, sparseImage(rand.New(rand.NewPCG(7, 8)), 30_000))
	for what, objects := range map[string]map[string][]byte{"sealed": other.objects, "plain": contents(t, plain)} {
		for name, data := range objects {
			if _, ok := v.objects[name]; ok || strings.HasPrefix(name, prefixPacks) || strings.HasPrefix(name, prefixKeys) {
				continue // TestSwappedObjectsAreRefused; packs that no index names are not read; keys are passed over
			}
			good, err := v.read(t.Context(), v.with(name, data), v.options())
			if err == nil { // a trash list, say, is not needed to read
				err = v.check(v.with(name, data))
			}
			var ce *CorruptError
			if !errors.As(err, &ce) || ce.Object != name {
				t.Errorf("%s repository's %s: %v after %d backups", what, name, err, good)
			}
		}
	}
	for name, data := range other.objects {
		if strings.HasPrefix(name, prefixPacks) {
			r, err := Open(t.Context(), v.with(name, data), v.options())
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := r.readPackTable(t.Context(), name); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
			}
			r.Close()
		}
	}
}

// TestConfigurationIsAuthenticated: whoever changes a constant and makes the checksum anew is refused; so is a configuration without
// sealing.
func TestConfigurationIsAuthenticated(t *testing.T) {
	v := newVictim(t)
	cfg, err := decodeConfig(v.objects[objectConfig])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		edit func(c *Config)
	}{
		{"span", func(c *Config) { c.SpanBytes *= 2 }},
		{"cut bits", func(c *Config) { c.CutBits++ }},
		{"longest chunk", func(c *Config) { c.MaxChunk -= CutBlock }},
		{"pack", func(c *Config) { c.PackBytes *= 2 }},
		{"compression", func(c *Config) { c.Compression = "none" }},
		{"created", func(c *Config) { c.Created = c.Created.Add(time.Hour) }},
	} {
		bad := cfg
		c.edit(&bad)
		bad.Secret = strings.Repeat("00", 32) // of the forger, who does not have the master key
		b, err := bad.encode()
		if err != nil {
			t.Fatal(err)
		}
		var ce *CorruptError
		if _, err := v.read(t.Context(), v.with(objectConfig, b), v.options()); !errors.As(err, &ce) || ce.Object != objectConfig {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// plainConfig is a configuration that claims the repository of that ID not to be encrypted.
func plainConfig(t *testing.T, id string) []byte {
	t.Helper()
	c := testConfig()
	c.ID = id
	b, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDowngrade: the configuration is replaced by that of a plain repository.
func TestDowngrade(t *testing.T) {
	v := newVictim(t)
	cfg, err := decodeConfig(v.objects[objectConfig])
	if err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	known := v.options()
	known.CacheDir = cache
	if _, err := v.read(t.Context(), v.with("", nil), known); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]string{"same ID": cfg.ID, "another ID": strings.Repeat("12", 16)} {
		be := v.with(objectConfig, plainConfig(t, id))
		var re *ReplacedError
		if _, err := v.read(t.Context(), be, Options{CacheDir: cache}); !errors.As(err, &re) || !errors.Is(err, ErrReplaced) {
			t.Errorf("%s, a client that knew it: %v", name, err)
		} else if _, err := os.Stat(re.File); err != nil {
			t.Error(err)
		}
		given := v.options()
		given.Credentials.Sealed = true
		if _, err := v.read(t.Context(), be, given); !errors.Is(err, ErrNotSealed) {
			t.Errorf("%s, a client with a password: %v", name, err)
		}
		if _, err := v.read(t.Context(), be, Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, a client that knows nothing: %v", name, err)
		}
		if _, _, err := Reindex(t.Context(), be, Options{CacheDir: cache}, nil); !errors.Is(err, ErrReplaced) {
			t.Errorf("%s, reindex: %v", name, err)
		}
	}
	// Somebody's own repository, sealed to the same public key.
	other := mem.New()
	initSealed(t, other)
	if _, err := Open(t.Context(), other, known); !errors.Is(err, ErrReplaced) {
		t.Errorf("another sealed repository: %v", err)
	}
	// The same ID and another master key.
	forged := mem.New()
	secretHex, err := randomHex(32)
	if err != nil {
		t.Fatal(err)
	}
	bad := cfg
	bad.Secret = secretHex
	b, err := bad.encode()
	if err == nil {
		err = forged.Put(t.Context(), objectConfig, b)
	}
	if err == nil {
		_, err = initKeys(t.Context(), &lateConfig{forged}, &bad, []Recipient{testRecipient(t, 0)})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), forged, known); !errors.Is(err, ErrReplaced) {
		t.Errorf("another master key: %v", err)
	}
	unknown := v.options()
	if r, err := Open(t.Context(), forged, unknown); err != nil { // nothing tells it from the user's own
		t.Errorf("another master key, a client that knows nothing: %v", err)
	} else {
		mine, err := Open(t.Context(), v.with("", nil), unknown)
		if err != nil {
			t.Fatal(err)
		}
		if mine.ID() != r.ID() || mine.Fingerprint() == r.Fingerprint() {
			t.Errorf("fingerprints %s and %s of repositories %s and %s", mine.Fingerprint(), r.Fingerprint(), mine.ID(), r.ID())
		}
		mine.Close()
		r.Close()
	}
}

// TestRotationIsNotTakenBack: without the newest master key's object nothing new is sealed under the old one.
func TestRotationIsNotTakenBack(t *testing.T) {
	v := newVictim(t)
	known := v.options()
	known.CacheDir = t.TempDir()
	if _, err := v.read(t.Context(), v.with("", nil), known); err != nil {
		t.Fatal(err)
	}
	be := v.with(epochObject(1), nil)
	if _, err := Open(t.Context(), be, known); !errors.Is(err, ErrReplaced) {
		t.Errorf("a client that knew it: %v", err)
	}
	_, err := v.read(t.Context(), be, v.options())
	var unknown *unknownEpochError
	if !errors.Is(err, ErrCorrupt) || !errors.As(err, &unknown) {
		t.Errorf("a client that knows nothing: %v", err)
	}
}

// TestReplayIsNotNoticed states what sealing does not do: the deletion of a backup record, and the return of one that was deleted, look
// like what they are.
func TestReplayIsNotNoticed(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	r := openSealed(t, be)
	img := bytes.Repeat([]byte("replayed "), 1000)
	b := sealedBackup(t, r, img)
	object := r.backupObject("vol", b.ID)
	data, err := backend.ReadAll(t.Context(), be, object)
	if err == nil {
		err = r.DeleteBackup(t.Context(), "vol", b.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	if all, err := r.ListBackups(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("hidden: %v, %v", all, err)
	}
	if err := be.Put(t.Context(), object, data); err != nil {
		t.Fatal(err)
	}
	all, err := r.ListBackups(t.Context(), "")
	if err != nil || len(all) != 1 {
		t.Fatalf("put back: %v, %v", all, err)
	}
	mustReadBlob(t, r, all[0].Blob, img)
}

// TestCacheIsPrivate: what a sealed repository leaves on this host is for its user alone.
func TestCacheIsPrivate(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	be := mem.New()
	initSealed(t, be)
	o := Options{CacheDir: cache, Credentials: testCredentials(t, 0)}
	r, err := Open(t.Context(), be, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w, err := r.NewWriter(t.Context(), WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() // its journal is there until then
	b := &Backup{Volume: "vol", Blob: putImage(t, r, w, []byte("some content"), nil)}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	master := r.keys.sealer.masters()[0]
	files := 0
	err = filepath.WalkDir(cache, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			files++
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, leak := range []string{"some content", "vol", "AGE-SECRET", string(master[:]), hexSecrets([]secret{master})[0]} {
				if bytes.Contains(data, []byte(leak)) && !(leak == "vol" && strings.Contains(path, "journal")) {
					t.Errorf("%q is in %s", leak, path)
				}
			}
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("%d files, %v", files, err)
	}
}

// TestNothingInTheClear: neither content nor names are in any object, or its name; equal content does not look equal.
func TestNothingInTheClear(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	r := openSealed(t, be)
	w := newTestWriter(t, r)
	img := bytes.Repeat([]byte("TOPSECRETCONTENT"), 10000)
	b := &Backup{Volume: "secretvolume", Host: "secrethost", Labels: map[string]string{"secretlabel": "x"}, Blob: putImage(t, r, w, img, nil)}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	id := r.ChunkID(img)
	for name, data := range contents(t, be) {
		for _, leak := range []string{"TOPSECRET", "secretvolume", "secrethost", "secretlabel", string(id[:8]), string(b.Blob.Root[16:24])} {
			if bytes.Contains(data, []byte(leak)) || strings.Contains(name, leak) {
				t.Errorf("%q is in %s", leak, name)
			}
		}
	}
	// Without the master key the cut cannot be foreseen: another repository cuts the same content elsewhere.
	other := mem.New()
	initSealed(t, other)
	r2 := openSealed(t, other)
	if r.cutter.seed == 0 || r.cutter.seed == r2.cutter.seed {
		t.Error("the cut is not seeded")
	}
	if r.ChunkID(img) == r2.ChunkID(img) || r.volumeKey("secretvolume") == r2.volumeKey("secretvolume") {
		t.Error("two repositories give one content one ID")
	}
}
