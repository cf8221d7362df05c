package chunkstore

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"filippo.io/age"
	"github.com/cespare/xxhash/v2"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Key objects, keys/<key ID>: one for each passphrase or public key that opens a sealed repository. They are text, three lines:
//
//	JSON, without a line break: Key
//	xxHash64 of the first line, 16 hex digits
//	keyed_hash(derive_key("shale repository v1: key object", master key of the epoch), first line), 64 hex digits
//
// The master keys lie in the age file "wrapped", as the JSON of keySecrets. age wants a passphrase to be a file's only recipient, so
// each key has an object of its own; keys come and go without touching anything else.
//
// A key has a key pair of its own, too: what is rotated is wrapped to its public half, so that a rotation needs nobody's passphrase.

// Key is a key object: who may open the repository.
type Key struct {
	Format     string    `json:"format"`  // keyFormat
	Version    int       `json:"version"` // 1
	ID         string    `json:"id"`      // 32 hex digits, random
	Repository string    `json:"repository"`
	Created    time.Time `json:"created"`
	Label      string    `json:"label,omitempty"`     // the user's
	Kind       string    `json:"kind"`                // passphrase, age or ssh
	Recipient  string    `json:"recipient,omitempty"` // the public key; none for a passphrase
	Epoch      int       `json:"epoch"`               // newest master key when it was written; authenticates the object
	Public     string    `json:"public"`              // age recipient of the key's own pair
	Wrapped    []byte    `json:"wrapped"`             // age file, base64

	signed signedText
}

// keySecrets is what a key object wraps.
type keySecrets struct {
	Repository string   `json:"repository"`
	Key        string   `json:"key"`
	Identity   string   `json:"identity"` // private half of the key's own pair
	Masters    []string `json:"masters"`  // 64 hex digits each, by epoch
}

const (
	keyFormat  = "shale key"
	keyVersion = 1
	prefixKeys = "keys/" // keys/<key ID>

	contextKeyObject = "shale repository v1: key object"
	contextConfigMAC = "shale repository v1: configuration"

	maxKeyObject = 64 << 10 // bytes
	maxKeys      = 128      // objects under keys/
	maxLabel     = 255      // bytes
	maxPublicKey = 8 << 10  // bytes
)

// signedText is one line of JSON with its checksum and its keyed hash.
type signedText struct {
	line []byte
	mac  ID
}

// encodeSigned makes the three lines of signed text.
func encodeSigned(v any, master *secret, context string) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var mac ID
	newHasher(master.derive(context)).id(&mac, line)
	return fmt.Appendf(nil, "%s\n%016x\n%s\n", line, xxhash.Sum64(line), mac), nil
}

var errTextSum = errors.New("checksum line does not match")

// decodeSigned undoes encodeSigned, but for the keyed hash, which it does not check.
func decodeSigned(b []byte) (t signedText, err error) {
	line, rest, _ := bytes.Cut(b, []byte("\n"))
	sum := fmt.Sprintf("%016x\n", xxhash.Sum64(line))
	mac, ok := strings.CutPrefix(string(rest), sum)
	if !ok {
		return t, errTextSum
	}
	t.line = line
	hexed, ok := strings.CutSuffix(mac, "\n")
	if !ok || hexed != strings.ToLower(hexed) {
		return t, errors.New("line of the keyed hash is not 64 hex digits")
	}
	if err := t.mac.UnmarshalText([]byte(hexed)); err != nil {
		return t, fmt.Errorf("keyed hash: %w", err)
	}
	return t, nil
}

var errSignature = errors.New("keyed hash does not match: it was not written by an owner of this repository's master key")

// verify checks the keyed hash.
func (t *signedText) verify(master *secret, context string) error {
	var mac ID
	newHasher(master.derive(context)).id(&mac, t.line)
	if !hmac.Equal(mac[:], t.mac[:]) {
		return errSignature
	}
	return nil
}

// newKey wraps the master keys to a recipient, as the object of that name.
func newKey(to Recipient, label, repository string, masters []secret) (*Key, []byte, error) {
	if !printable(label, maxLabel) {
		return nil, nil, fmt.Errorf("label %q: at most %d bytes, no control characters", label, maxLabel)
	}
	id, err := randomHex(16)
	if err != nil {
		return nil, nil, err
	}
	own, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, nil, err
	}
	k := &Key{
		Format: keyFormat, Version: keyVersion, ID: id, Repository: repository, Created: time.Now().UTC().Truncate(time.Second),
		Label: label, Kind: to.kind, Recipient: to.public, Epoch: len(masters) - 1, Public: own.Recipient().String(),
	}
	secrets, err := json.Marshal(keySecrets{Repository: repository, Key: id, Identity: own.String(), Masters: hexSecrets(masters)})
	if err != nil {
		return nil, nil, err
	}
	if k.Wrapped, err = wrap(secrets, to.age); err != nil {
		return nil, nil, fmt.Errorf("encrypt to %s: %w", k.describe(), err)
	}
	b, err := encodeSigned(k, &masters[len(masters)-1], contextKeyObject)
	return k, b, err
}

// printable says whether s may be shown on a terminal: whoever can write to the backend chooses it.
func printable(s string, n int) bool {
	return len(s) <= n && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// describe names a key for people.
func (k *Key) describe() string {
	s := "key " + k.ID + " (" + k.Kind
	if k.Label != "" {
		s += ", " + k.Label
	}
	return s + ")"
}

func wrap(plain []byte, to ...age.Recipient) ([]byte, error) {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// unwrap decrypts an age file of at most maxKeyObject.
func unwrap(b []byte, ids ...age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(b), ids...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxKeyObject))
}

func hexSecrets(masters []secret) (s []string) {
	for i := range masters {
		s = append(s, hex.EncodeToString(masters[i][:]))
	}
	return s
}

func parseSecrets(hexed []string) ([]secret, error) {
	masters := make([]secret, len(hexed))
	for i, h := range hexed {
		if !isHex(h, len(secret{})) {
			return nil, fmt.Errorf("master key %d is not 64 hex digits", i)
		}
		_, _ = hex.Decode(masters[i][:], []byte(h))
	}
	return masters, nil
}

// decodeKey decodes the key object of that name.
func decodeKey(name string, b []byte) (*Key, error) {
	t, err := decodeSigned(b)
	if err != nil {
		return nil, err
	}
	k := &Key{signed: t}
	if err := json.Unmarshal(t.line, k); err != nil {
		return nil, err
	}
	switch {
	case k.Format != keyFormat:
		return nil, fmt.Errorf("format is %q, not %q", k.Format, keyFormat)
	case k.Version != keyVersion:
		return nil, fmt.Errorf("%w: key version %d", ErrUnsupported, k.Version)
	case name != prefixKeys+k.ID || !isHex(k.ID, 16) || !isHex(k.Repository, 16):
		return nil, errors.New("content is not what the name says")
	case k.Kind != kindPassphrase && k.Kind != kindAge && k.Kind != kindSSH:
		return nil, fmt.Errorf("%w: key of kind %q", ErrUnsupported, k.Kind)
	case k.Epoch < 0 || k.Epoch > maxEpoch:
		return nil, fmt.Errorf("epoch is %d, not 0 to %d", k.Epoch, maxEpoch)
	case !printable(k.Label, maxLabel) || !printable(k.Recipient, maxPublicKey):
		return nil, errors.New("label or public key has control characters, or is too long")
	}
	if _, err := age.ParseX25519Recipient(k.Public); err != nil {
		return nil, fmt.Errorf("public half of the key's own pair: %w", err)
	}
	return k, nil
}

// open unwraps the key. *age.NoIdentityMatchError: it is for somebody else.
func (k *Key) open(ids ...age.Identity) (*age.X25519Identity, []secret, error) {
	b, err := unwrap(k.Wrapped, ids...)
	if err != nil {
		return nil, nil, err
	}
	var s keySecrets
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, nil, fmt.Errorf("secrets of the key: %w", errors.New("not what belongs there")) // JSON errors would quote them
	}
	if s.Repository != k.Repository || s.Key != k.ID || len(s.Masters) != k.Epoch+1 {
		return nil, nil, errors.New("its secrets belong to another key")
	}
	masters, err := parseSecrets(s.Masters)
	if err != nil {
		return nil, nil, err
	}
	if err := k.signed.verify(&masters[k.Epoch], contextKeyObject); err != nil {
		return nil, nil, err
	}
	own, err := age.ParseX25519Identity(s.Identity)
	if err != nil || own.Recipient().String() != k.Public {
		return nil, nil, errors.New("its own key pair does not match")
	}
	return own, masters, nil
}

// readKeys reads the key objects of a repository, by time. What cannot be read is in damage, by name.
func readKeys(ctx context.Context, be backend.Backend, repository string) (keys []*Key, damage []error, err error) {
	var names []string
	err = be.List(ctx, prefixKeys, func(o backend.Object) error {
		if len(names) == maxKeys {
			return fmt.Errorf("more than %d objects in keys/", maxKeys)
		}
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list the repository's keys: %w", err)
	}
	for _, name := range names {
		b, err := readSmall(ctx, be, name)
		if errors.Is(err, backend.ErrNotExist) {
			continue // removed meanwhile
		}
		var k *Key
		if err == nil {
			k, err = decodeKey(name, b)
			if err != nil && !errors.Is(err, ErrUnsupported) {
				err = &CorruptError{Object: name, Err: err}
			}
		}
		switch {
		case errors.Is(err, ErrCorrupt):
			damage = append(damage, err)
		case errors.Is(err, ErrUnsupported):
			damage = append(damage, fmt.Errorf("%s: %w", name, err))
		case err != nil:
			return nil, nil, fmt.Errorf("read %s: %w", name, err)
		case k.Repository == repository: // another's is left over from an init that lost a race
			keys = append(keys, k)
		}
	}
	slices.SortStableFunc(keys, func(a, b *Key) int { return a.Created.Compare(b.Created) })
	return keys, damage, nil
}

// readSmall reads an object of at most maxKeyObject.
func readSmall(ctx context.Context, be backend.Backend, name string) ([]byte, error) {
	o, err := be.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if o.Size > maxKeyObject {
		return nil, &CorruptError{Object: name, Err: fmt.Errorf("%d bytes are more than a key takes", o.Size)}
	}
	b := make([]byte, o.Size)
	if err := be.ReadAt(ctx, name, b, 0); err != nil {
		if errors.Is(err, backend.ErrShort) {
			return nil, &CorruptError{Object: name, Err: err}
		}
		return nil, err
	}
	return b, nil
}
