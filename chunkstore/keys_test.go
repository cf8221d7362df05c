package chunkstore

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// testPassphrase is a recipient whose opening costs a millisecond.
func testPassphrase(t *testing.T, p string) Recipient {
	t.Helper()
	r, err := PassphraseRecipient(p, 4)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// passphrases yields them; asked counts those that were taken.
func passphrases(asked *int, all ...string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, p := range all {
			*asked++
			if !yield(p, nil) {
				return
			}
		}
	}
}

func TestPassphrase(t *testing.T) {
	be := mem.New()
	o := InitOptions{Recipients: []Recipient{testPassphrase(t, "correct horse"), testPassphrase(t, "second"), testRecipient(t, 1)}}
	cfg, err := Init(t.Context(), be, o)
	if err != nil || !cfg.Sealed() || cfg.Secret != "" {
		t.Fatalf("%+v, %v", cfg, err)
	}
	var asked int
	for _, c := range []struct {
		name  string
		c     Credentials
		asked int
		want  error
	}{
		{"nothing", Credentials{}, 0, ErrSealed},
		{"nothing, for what is sealed", Credentials{Sealed: true}, 0, ErrSealed},
		{"right", Credentials{Passphrases: passphrases(&asked, "correct horse", "x")}, 1, nil},
		{"the other", Credentials{Passphrases: passphrases(&asked, "second")}, 1, nil},
		{"third try", Credentials{Passphrases: passphrases(&asked, "a", "", "second", "x")}, 3, nil},
		{"wrong", Credentials{Passphrases: passphrases(&asked, "correct horse ", "Correct horse")}, 2, ErrKey},
		{"empty", Credentials{Passphrases: passphrases(&asked, "")}, 1, ErrKey},
		{"endless", Credentials{Passphrases: passphrases(&asked, strings.Repeat("x", maxPassphrase+1))}, 1, ErrKey},
		{"identity", Credentials{Identities: testCredentials(t, 1).Identities, Passphrases: passphrases(&asked, "a")}, 0, nil},
		{"wrong identity", testCredentials(t, 2), 0, ErrKey},
		{"wrong identity, right passphrase", Credentials{Identities: testCredentials(t, 2).Identities, Passphrases: passphrases(&asked, "second")}, 1, nil},
		{"cancelled prompt", Credentials{Passphrases: func(yield func(string, error) bool) { yield("", context.Canceled) }}, 0, context.Canceled},
	} {
		asked = 0
		r, err := Open(t.Context(), be, Options{Credentials: c.c})
		if !errors.Is(err, c.want) || asked != c.asked || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v after %d, want %v after %d", c.name, err, asked, c.want, c.asked)
		}
		if err != nil && strings.Contains(err.Error(), "orse") {
			t.Errorf("%s: the passphrase is in %q", c.name, err)
		}
		if r != nil {
			r.Close()
		}
	}
}

// TestPlainRepositoryAndPassword: who gives a password means a repository that is encrypted.
func TestPlainRepositoryAndPassword(t *testing.T) {
	be := mem.New()
	if _, err := Init(t.Context(), be, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	c := testCredentials(t, 0)
	c.Sealed = true
	if _, err := Open(t.Context(), be, Options{Credentials: c}); !errors.Is(err, ErrNotSealed) {
		t.Errorf("got %v, want %v", err, ErrNotSealed)
	}
	c.Sealed = false
	r, err := Open(t.Context(), be, Options{Credentials: c})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, _, err := r.Keys(t.Context()); !errors.Is(err, errPlainHasNoKeys) {
		t.Errorf("keys: %v", err)
	}
	if _, err := r.AddKey(t.Context(), testRecipient(t, 0), ""); !errors.Is(err, errPlainHasNoKeys) {
		t.Errorf("add: %v", err)
	}
}

func TestKeysAddListRemove(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	before := objectNames(t, be)
	r := openSealed(t, be)
	if err := r.RemoveKey(t.Context(), r.keys.key.ID); !errors.Is(err, ErrLastKey) {
		t.Errorf("the last key: %v", err)
	}
	ssh, err := ParseRecipient("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIrMBJ3UC6ZsKiP3Sgsz5oQ9x7NVtWgIJrKCCpiAfNMx somebody@host")
	if err != nil {
		t.Fatal(err)
	}
	for i, to := range []Recipient{testRecipient(t, 1), testPassphrase(t, "pass"), ssh} {
		if _, err := r.AddKey(t.Context(), to, fmt.Sprintf("label %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	keys, damage, err := r.Keys(t.Context())
	if err != nil || len(damage) > 0 || len(keys) != 4 {
		t.Fatalf("%+v, %v, %v", keys, damage, err)
	}
	var kinds []string
	for _, k := range keys {
		kinds = append(kinds, k.Kind)
		if !k.Trusted || k.Current != (k.ID == r.keys.key.ID) || strings.Contains(k.Recipient, "somebody") {
			t.Errorf("%+v", k)
		}
		if k.Label == "label 1" {
			if err := r.RemoveKey(t.Context(), k.ID); err != nil {
				t.Error(err)
			}
		}
	}
	slices.Sort(kinds)
	if want := []string{"age", "age", "passphrase", "ssh"}; !slices.Equal(kinds, want) {
		t.Errorf("kinds %v", kinds)
	}
	if err := r.RemoveKey(t.Context(), strings.Repeat("00", 16)); !errors.Is(err, ErrNotFound) {
		t.Errorf("no key: %v", err)
	}
	if err := r.RemoveKey(t.Context(), r.keys.key.ID); err != nil { // there are others
		t.Error(err)
	}
	if _, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 0)}); !errors.Is(err, ErrKey) {
		t.Errorf("the removed key: %v", err)
	}
	other, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	if after := objectNames(t, be); !slices.Contains(after, objectConfig) || len(after) != len(before)+1 {
		t.Errorf("objects before: %v, after: %v", before, after)
	}
	if _, err := r.AddKey(t.Context(), testRecipient(t, 0), "two\nlines"); err == nil {
		t.Error("a label of two lines was taken")
	}
}

// sealedBackup stores an image as a backup of volume vol.
func sealedBackup(t *testing.T, r *Repository, img []byte) *Backup {
	t.Helper()
	w := newTestWriter(t, r)
	b := &Backup{Volume: "vol", Blob: putImage(t, r, w, img, nil)}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRotate: what is stored after a rotation is sealed under a key that those removed before it do not have, and shares what was
// there; who had the repository open reads on.
func TestRotate(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	r := openSealed(t, be)
	if _, err := r.AddKey(t.Context(), testRecipient(t, 1), "leaver"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddKey(t.Context(), testPassphrase(t, "stays"), ""); err != nil {
		t.Fatal(err)
	}
	leaver, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer leaver.Close()
	old := make([]byte, 1<<20)
	copy(old, bytes.Repeat([]byte("before the rotation"), 5000))
	first := sealedBackup(t, r, old)
	removed, err := backend.ReadAll(t.Context(), be, prefixKeys+leaver.keys.key.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveKey(t.Context(), leaver.keys.key.ID); err != nil {
		t.Fatal(err)
	}
	reader := openSealed(t, be) // opened before the rotation, by who stays
	rot, err := r.Rotate(t.Context())
	if err != nil || rot.Epoch != 1 || len(rot.Keys) != 2 || len(rot.Left) != 0 {
		t.Fatalf("%+v, %v", rot, err)
	}
	names := map[string]bool{}
	for _, name := range packNames(t, be) {
		names[name] = true
	}
	r2 := openSealed(t, be)
	img := append(bytes.Clone(old), bytes.Repeat([]byte("after the rotation!"), 5000)...)
	second := sealedBackup(t, r2, img)
	if second.Counts != (Counts{}) { // filled by the engine
		t.Fatalf("%+v", second.Counts)
	}
	for _, name := range packNames(t, be) {
		h := headerOf(t, be, name)
		if want := byte(1); !names[name] && h.salt[0] != want {
			t.Errorf("%s is sealed under master key %d, want %d", name, h.salt[0], want)
		} else if names[name] && h.salt[0] != 0 && !strings.HasPrefix(name, prefixVolumes) { // names are put again
			t.Errorf("%s was sealed anew", name)
		}
	}
	var asked int
	passphrase, err := Open(t.Context(), be, Options{Credentials: Credentials{Passphrases: passphrases(&asked, "stays")}})
	if err != nil {
		t.Fatal(err)
	}
	defer passphrase.Close()
	for _, r := range []*Repository{r2, passphrase, reader} {
		for id, want := range map[string][]byte{first.ID: old, second.ID: img} {
			b, err := r.Backup(t.Context(), "vol", id)
			if err != nil {
				t.Fatal(err)
			}
			mustReadBlob(t, r, b.Blob, want)
		}
	}
	if _, err := leaver.Backup(t.Context(), "vol", second.ID); !errors.Is(err, ErrKey) {
		t.Errorf("who left reads what came after: %v", err)
	}
	if _, err := leaver.Rotate(t.Context()); !errors.Is(err, ErrKey) {
		t.Errorf("who left rotates: %v", err)
	}
	if _, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 1)}); !errors.Is(err, ErrKey) {
		t.Errorf("who left opens: %v", err)
	}
	// The removed key object, put back, stays without the next master key too.
	if err := be.Put(t.Context(), prefixKeys+leaver.keys.key.ID, removed); err != nil {
		t.Fatal(err)
	}
	if rot, err = r2.Rotate(t.Context()); err != nil || rot.Epoch != 2 || len(rot.Keys) != 2 || len(rot.Left) != 1 {
		t.Fatalf("%+v, %v", rot, err)
	}
	for i := range rot.Keys {
		if rot.Keys[i].Label == "leaver" {
			t.Error("who left was given the next master key")
		}
	}
	r3 := openSealed(t, be)
	if r3.Epoch() != 2 {
		t.Errorf("epoch %d", r3.Epoch())
	}
	if rep, err := r3.Check(t.Context(), CheckOptions{Level: CheckData}); err != nil || len(rep.Damage) > 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if _, err := r3.AddKey(t.Context(), testRecipient(t, 2), "joiner"); err != nil {
		t.Fatal(err)
	}
	joiner, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 2)})
	if err != nil {
		t.Fatal(err)
	}
	defer joiner.Close()
	mustReadBlob(t, joiner, second.Blob, img)
}

func headerOf(t *testing.T, be backend.Backend, name string) packHeader {
	t.Helper()
	b, err := backend.ReadAll(t.Context(), be, name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := decodePackHeader(b)
	if err != nil {
		t.Fatal(name, err)
	}
	return h
}

// TestForgedKeysAreNotTrusted: somebody who may write to the backend, but has no master key, or only one that was retired, puts a key
// object of their own there. A rotation passes it over.
func TestForgedKeysAreNotTrusted(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	r := openSealed(t, be)
	retired := r.keys.sealer.masters()
	put := func(masters []secret) string {
		t.Helper()
		k, b, err := newKey(testRecipient(t, 1), "friend", r.cfg.ID, masters)
		if err == nil {
			err = be.Put(t.Context(), prefixKeys+k.ID, b)
		}
		if err != nil {
			t.Fatal(err)
		}
		return k.ID
	}
	forged := []string{put([]secret{{1}})}
	mustTrust := func(want bool, ids ...string) {
		t.Helper()
		keys, _, err := r.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if slices.Contains(ids, k.ID) && k.Trusted != want {
				t.Errorf("key %s: trusted: %v, want %v", k.ID, k.Trusted, want)
			}
		}
	}
	mustTrust(false, forged...)
	mustTrust(true, r.keys.key.ID)
	if err := r.RemoveKey(t.Context(), r.keys.key.ID); !errors.Is(err, ErrLastKey) {
		t.Errorf("the last trusted key: %v", err)
	}
	rot, err := r.Rotate(t.Context())
	if err != nil || len(rot.Keys) != 1 || len(rot.Left) != 1 {
		t.Fatalf("%+v, %v", rot, err)
	}
	forged = append(forged, put(retired))
	mustTrust(false, forged...)
	rot, err = r.Rotate(t.Context())
	if err != nil || len(rot.Keys) != 1 || rot.Keys[0].ID != r.keys.key.ID || len(rot.Left) != 2 {
		t.Fatalf("%+v, %v", rot, err)
	}
	if _, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 1)}); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrKey) {
		t.Errorf("opened by a forged key: %v", err)
	}
	// A master key that no owner made is refused by name.
	b, err := encodeMaster(r.cfg.ID, []secret{retired[0], {2}, {3}}, []*Key{r.keys.key})
	if err == nil {
		err = be.Put(t.Context(), epochObject(3), b)
	}
	if err != nil {
		t.Fatal(err)
	}
	var ce *CorruptError
	if _, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 0)}); !errors.As(err, &ce) || ce.Object != "epochs/003" {
		t.Errorf("a forged master key: %v", err)
	}
}

// TestWorkFactor: a key object cannot ask for hours and all memory.
func TestWorkFactor(t *testing.T) {
	be := mem.New()
	to, err := PassphraseRecipient("p", 4)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), be, InitOptions{Recipients: []Recipient{to}}); err != nil {
		t.Fatal(err)
	}
	names := objectNames(t, be)
	name := names[slices.IndexFunc(names, func(s string) bool { return strings.HasPrefix(s, prefixKeys) })]
	b, err := backend.ReadAll(t.Context(), be, name)
	if err != nil {
		t.Fatal(err)
	}
	k, err := decodeKey(name, b)
	if err != nil {
		t.Fatal(err)
	}
	k.Wrapped = bytes.Replace(k.Wrapped, []byte(" 4\n"), []byte(" 30\n"), 1)
	if b, err = encodeSigned(k, &secret{}, contextKeyObject); err == nil {
		err = be.Put(t.Context(), name, b)
	}
	if err != nil {
		t.Fatal(err)
	}
	var asked int
	began := time.Now()
	var ce *CorruptError
	_, err = Open(t.Context(), be, Options{Credentials: Credentials{Passphrases: passphrases(&asked, "p")}})
	if !errors.As(err, &ce) || ce.Object != name || time.Since(began) > 10*time.Second {
		t.Errorf("work factor 30: %v after %v", err, time.Since(began))
	}
}

// TestKeyObjectsRefuse: key objects that are cut short, changed, or under another's name.
func TestKeyObjectsRefuse(t *testing.T) {
	masters := []secret{{1}, {2}}
	k, good, err := newKey(testRecipient(t, 0), "label", strings.Repeat("ab", 16), masters)
	if err != nil {
		t.Fatal(err)
	}
	name := prefixKeys + k.ID
	got, err := decodeKey(name, good)
	if err != nil || got.Label != "label" || got.Epoch != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if own, m, err := got.open(testIdentity(t, 0)); err != nil || !slices.Equal(m, masters) || own.Recipient().String() != k.Public {
		t.Fatalf("%v, %v", m, err)
	}
	var other *age.NoIdentityMatchError
	if _, _, err := got.open(testIdentity(t, 1)); !errors.As(err, &other) {
		t.Errorf("another's identity: %v", err)
	}
	if _, err := decodeKey(prefixKeys+strings.Repeat("0", 32), good); err == nil {
		t.Error("under another name: no error")
	}
	for n := range good {
		if _, err := decodeKey(name, good[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes: no error", n, len(good))
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		k, err := decodeKey(name, bad)
		if err == nil { // the last line is checked with the master key
			_, _, err = k.open(testIdentity(t, 0))
		}
		if err == nil {
			t.Errorf("byte %d changed: no error", i)
		}
	}
	for _, c := range []struct {
		name        string
		edit        func(k *Key)
		unsupported bool
	}{
		{"format", func(k *Key) { k.Format = "age" }, false},
		{"version", func(k *Key) { k.Version = 2 }, true},
		{"kind", func(k *Key) { k.Kind = "fingerprint" }, true},
		{"epoch", func(k *Key) { k.Epoch = -1 }, false},
		{"epoch 256", func(k *Key) { k.Epoch = 256 }, false},
		{"public", func(k *Key) { k.Public = "age1" }, false},
		{"repository", func(k *Key) { k.Repository = "../x" }, false},
		{"label", func(k *Key) { k.Label = strings.Repeat("x", 256) }, false},
		{"label that moves the cursor", func(k *Key) { k.Label = "a\x1b[2J" }, false},
		{"recipient that moves the cursor", func(k *Key) { k.Recipient = "age1\u009b2J" }, false},
	} {
		bad := *got
		c.edit(&bad)
		b, err := encodeSigned(&bad, &masters[1], contextKeyObject)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeKey(name, b); err == nil || errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%s: %v; unsupported: want %v", c.name, err, c.unsupported)
		}
	}
	// Changes by somebody who can compute checksums, and whom only the keyed hash stops.
	for _, c := range []struct {
		name string
		edit func(k *Key)
	}{
		{"another's public half", func(k *Key) { k.Public = testIdentity(t, 2).Recipient().String() }},
		{"label", func(k *Key) { k.Label = "other" }},
		{"repository", func(k *Key) { k.Repository = strings.Repeat("cd", 16) }},
		{"an older epoch", func(k *Key) { k.Epoch = 0 }},
	} {
		bad := *got
		c.edit(&bad)
		b, err := encodeSigned(&bad, &secret{9}, contextKeyObject)
		if err != nil {
			t.Fatal(err)
		}
		forged, err := decodeKey(name, b)
		if err != nil {
			t.Fatal(c.name, err)
		}
		if _, _, err := forged.open(testIdentity(t, 0)); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
}

// TestTooManyKeys: what a hostile backend lists does not keep a client busy for ever.
func TestTooManyKeys(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	for i := range maxKeys {
		if err := be.Put(t.Context(), fmt.Sprintf("%s%032x", prefixKeys, i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), be, Options{Credentials: testCredentials(t, 0)}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

// TestInitSealedLosesRace: of two that make a repository at once, the loser leaves nothing.
func TestInitSealedLosesRace(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	before := objectNames(t, be)
	o := InitOptions{Recipients: []Recipient{testRecipient(t, 1)}}
	if _, err := Init(t.Context(), be, o); !errors.Is(err, ErrRepositoryExists) {
		t.Errorf("got %v", err)
	}
	if _, err := Init(t.Context(), &lateConfig{be}, o); !errors.Is(err, ErrRepositoryExists) {
		t.Errorf("late: %v", err)
	}
	if after := objectNames(t, be); !slices.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

// lateConfig does not show the configuration before it is written.
type lateConfig struct{ backend.Backend }

func (b *lateConfig) Stat(ctx context.Context, name string) (backend.Object, error) {
	if name == objectConfig {
		return backend.Object{}, backend.ErrNotExist
	}
	return b.Backend.Stat(ctx, name)
}

func TestParseRecipientRefuses(t *testing.T) {
	for _, s := range []string{"", "age1", "age1qqqq", "ssh-rsa", "ssh-dss AAAA", "ssh-ed25519 AAAA", "recipient", testIdentities[0]} {
		_, err := ParseRecipient(s)
		if err == nil {
			t.Errorf("%q: no error", s)
		}
		if err != nil && strings.Contains(err.Error(), "ZZUDFJ72HGK") {
			t.Errorf("the private key is in %q", err)
		}
	}
}

// TestKeySecretsNeverPrinted: no secret is in what is printed of a key or a configuration.
func TestKeySecretsNeverPrinted(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	r := openSealed(t, be)
	keys, _, err := r.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal([]any{keys, r.Config()})
	if err != nil {
		t.Fatal(err)
	}
	printed := fmt.Sprintf("%s %+v %+v", text, keys, r.Config())
	secrets := map[string]string{"own identity": r.keys.own.String(), "master key": hexSecrets(r.keys.sealer.masters())[0]}
	for name, s := range maps.All(secrets) {
		if strings.Contains(printed, s) {
			t.Errorf("%s is printed", name)
		}
	}
}

func FuzzDecodeKey(f *testing.F) {
	masters := []secret{{1}}
	to, err := ParseRecipient("age156lqqsc4vm0d3xvxuh0k4r5dsthe2kscxhvx4vr0km5962yf3scqvfnumh")
	if err != nil {
		f.Fatal(err)
	}
	k, b, err := newKey(to, "x", strings.Repeat("ab", 16), masters)
	if err != nil {
		f.Fatal(err)
	}
	id, err := age.ParseX25519Identity(testIdentities[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(prefixKeys+k.ID, b)
	f.Add("", []byte("{}\n"))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		k, err := decodeKey(name, b)
		if err != nil {
			return
		}
		if prefixKeys+k.ID != name {
			t.Fatalf("%s under the name %s", k.ID, name)
		}
		_, _, _ = k.open(id)
	})
}

func FuzzDecodeMaster(f *testing.F) {
	own, err := age.ParseX25519Identity(testIdentities[0])
	if err != nil {
		f.Fatal(err)
	}
	repo, masters := strings.Repeat("ab", 16), []secret{{1}}
	b, err := encodeMaster(repo, masters, []*Key{{ID: repo, Public: own.Recipient().String()}})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := decodeMaster(b, repo, 1, &masters[0], own); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeMaster(b, repo, 1, &masters[0], own)
		if err == nil && (s.Epoch != 1 || s.Repository != repo || len(s.Master) != 64) {
			t.Fatalf("%+v", s)
		}
	})
}

// sshKey makes an SSH key; with a passphrase the private half is encrypted.
func sshKey(t *testing.T, passphrase string) (public string, private []byte) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "comment")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(priv, "comment", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(sshPub)), pem.EncodeToMemory(block)
}

// TestSSHKeys: public keys of SSH are recipients, their private halves identities; a passphrase is asked for when the key fits.
func TestSSHKeys(t *testing.T) {
	plainPub, plain := sshKey(t, "")
	lockedPub, locked := sshKey(t, "ssh pass")
	_, other := sshKey(t, "another")
	be := mem.New()
	var to []Recipient
	for _, s := range []string{plainPub, lockedPub} {
		r, err := ParseRecipient(s)
		if err != nil {
			t.Fatal(err)
		}
		to = append(to, r)
	}
	if _, err := Init(t.Context(), be, InitOptions{Recipients: to}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		file       []byte
		passphrase string
		asked      int
		want       error
	}{
		{"plain", plain, "", 0, nil},
		{"locked", locked, "ssh pass", 1, nil},
		{"locked, wrong passphrase", locked, "wrong", 1, ErrKey},
		{"one that does not fit", other, "another", 0, ErrKey},
	} {
		asked := 0
		ids, err := ParseIdentities(c.file, func() ([]byte, error) { asked++; return []byte(c.passphrase), nil })
		if err != nil {
			t.Fatal(c.name, err)
		}
		r, err := Open(t.Context(), be, Options{Credentials: Credentials{Identities: ids}})
		if !errors.Is(err, c.want) || asked != c.asked {
			t.Errorf("%s: %v, asked %d times; want %v, %d", c.name, err, asked, c.want, c.asked)
		}
		if r != nil {
			r.Close()
		}
	}
	if _, err := ParseIdentities(bytes.Repeat([]byte("#"), maxIdentityFile+1), nil); err == nil {
		t.Error("an endless file of identities was taken")
	}
	for _, bad := range []string{"", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "AGE-SECRET-KEY-1", plainPub} {
		if _, err := ParseIdentities([]byte(bad), nil); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestPostQuantumKeys: age's hybrid keys, whose public halves are long.
func TestPostQuantumKeys(t *testing.T) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	to, err := ParseRecipient(id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	be := mem.New()
	if _, err := Init(t.Context(), be, InitOptions{Recipients: []Recipient{to}}); err != nil {
		t.Fatal(err)
	}
	ids, err := ParseIdentities([]byte("# comment\n"+id.String()+"\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), be, Options{Credentials: Credentials{Identities: ids}})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

// TestInitSealedCrashes: stopped at any write, an init leaves a repository that opens, or none.
func TestInitSealedCrashes(t *testing.T) {
	for n := 0; ; n++ {
		be := mem.New()
		stopped := backendtest.StopAfter(be, n)
		o := InitOptions{Recipients: []Recipient{testRecipient(t, 0), testRecipient(t, 1)}}
		_, err := Init(t.Context(), stopped, o)
		left := stopped.Survivors()
		r, openErr := Open(t.Context(), left, Options{Credentials: testCredentials(t, 1)})
		switch {
		case openErr == nil:
			r.Close()
		case !errors.Is(openErr, ErrNoRepository):
			t.Fatalf("stopped at write %d: %v", n, openErr)
		default:
			if _, err := Init(t.Context(), left, o); err != nil {
				t.Fatalf("stopped at write %d, again: %v", n, err)
			}
		}
		if err == nil {
			break
		}
		if n > 50 {
			t.Fatal(err)
		}
	}
}

// TestRotateAnswerLost: a rotation whose answer is lost is made, and the next one follows it.
func TestRotateAnswerLost(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	lost := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.PutIfAbsent, Prefix: prefixEpochs, N: 1, Kind: backendtest.LoseAnswer})
	r, err := Open(t.Context(), lost, Options{Credentials: testCredentials(t, 0)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Rotate(t.Context()); !errors.Is(err, backendtest.ErrInjected) {
		t.Fatal(err)
	}
	rot, err := r.Rotate(t.Context())
	if err != nil || rot.Epoch != 2 {
		t.Errorf("%+v, %v", rot, err)
	}
}

// TestCheckFindsDamagedKeys: of whoever cannot open the repository any more, before they try.
func TestCheckFindsDamagedKeys(t *testing.T) {
	be := mem.New()
	initSealed(t, be)
	r := openSealed(t, be)
	k, err := r.AddKey(t.Context(), testRecipient(t, 1), "")
	if err != nil {
		t.Fatal(err)
	}
	name := prefixKeys + k.ID
	b, err := backend.ReadAll(t.Context(), be, name)
	if err == nil {
		err = be.Put(t.Context(), name, b[:len(b)/2])
	}
	if err != nil {
		t.Fatal(err)
	}
	rep, err := r.Check(t.Context(), CheckOptions{})
	if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Object != name {
		t.Errorf("check: %+v, %v", rep, err)
	}
	var ce *CorruptError
	_, err = Open(t.Context(), be, Options{Credentials: testCredentials(t, 1)})
	if !errors.Is(err, ErrKey) || !errors.As(err, &ce) || ce.Object != name {
		t.Errorf("its owner: %v", err)
	}
}

// TestKeyGolden: key objects and rotations of this version are read for ever. They are random, so the golden files are what was written
// once; -update writes others.
func TestKeyGolden(t *testing.T) {
	repo := strings.Repeat("ab", 16)
	if *update {
		masters := []secret{secret(seq(1, 32))}
		_, b, err := newKey(testRecipient(t, 0), "golden", repo, masters)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "key", b)
		k, err := decodeKey(goldenKeyName(t, b), b)
		if err == nil {
			b, err = encodeMaster(repo, masters, []*Key{k})
		}
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "master-key", b)
	}
	b := readGolden(t, "key")
	k, err := decodeKey(goldenKeyName(t, b), b)
	if err != nil || k.Label != "golden" || k.Repository != repo || k.Kind != kindAge {
		t.Fatalf("%+v, %v", k, err)
	}
	own, masters, err := k.open(testIdentity(t, 0))
	if err != nil || len(masters) != 1 || masters[0] != secret(seq(1, 32)) {
		t.Fatalf("%v, %v", masters, err)
	}
	s, err := decodeMaster(readGolden(t, "master-key"), repo, 1, &masters[0], own)
	if err != nil || len(s.Keys) != 1 || s.Keys[0].ID != k.ID {
		t.Errorf("%+v, %v", s, err)
	}
}

func goldenKeyName(t *testing.T, b []byte) string {
	t.Helper()
	var k Key
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if err := json.Unmarshal(line, &k); err != nil {
		t.Fatal(err)
	}
	return prefixKeys + k.ID
}

// TestSealedConfigGolden: the configuration of a sealed repository.
func TestSealedConfigGolden(t *testing.T) {
	c := testConfig()
	c.Sealing = sealingAES
	b, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "sealed-config", b)
	got, err := decodeConfig(b)
	if err != nil || !got.Sealed() || got.Secret != "" || bytes.Contains(b, []byte(c.Secret)) {
		t.Fatalf("%+v, %v", got, err)
	}
	masters, err := parseSecrets([]string{c.Secret})
	if err != nil {
		t.Fatal(err)
	}
	if err := got.signed.verify(&masters[0], contextConfigMAC); err != nil {
		t.Error(err)
	}
	if err := got.signed.verify(&secret{1}, contextConfigMAC); !errors.Is(err, errSignature) {
		t.Errorf("under another master key: %v", err)
	}
}
