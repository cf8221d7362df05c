package chunkstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Master keys. A sealed repository begins with one, of epoch 0; each rotation adds one, with which everything is sealed from then on.
// That of epoch 0 is also the secret from which IDs, volume keys and the seed of the cut derive, for life: or nothing would be shared
// across a rotation. Epoch 0 lies only in key objects; the others in epochs/<epoch, 3 digits>, signed text as key objects are
// (keys.go): masterObject, under derive_key("shale repository v1: master key", master key of the epoch before).

// masterObject is the JSON of epochs/<epoch>.
type masterObject struct {
	Format     string    `json:"format"`  // masterFormat
	Version    int       `json:"version"` // 1
	Repository string    `json:"repository"`
	Epoch      int       `json:"epoch"`
	Created    time.Time `json:"created"`
	Wrapped    []byte    `json:"wrapped"` // age file, base64, to each key's own pair: masterSecrets
}

// masterSecrets is what a masterObject wraps.
type masterSecrets struct {
	Repository string      `json:"repository"`
	Epoch      int         `json:"epoch"`
	Master     string      `json:"master"` // 64 hex digits
	Keys       []masterKey `json:"keys"`   // those that it was wrapped to
}

type masterKey struct {
	ID     string `json:"id"`
	Public string `json:"public"`
}

const (
	masterFormat  = "shale master key"
	masterVersion = 1
	prefixEpochs  = "epochs/" // epochs/<epoch>
	maxEpoch      = 255       // one byte of the salt

	contextMasterObject = "shale repository v1: master key"
)

func epochObject(epoch int) string { return fmt.Sprintf("%s%03d", prefixEpochs, epoch) }

// keyring is an open key and the master keys that it gives.
type keyring struct {
	be     backend.Backend
	repo   string // the repository's ID
	key    *Key   // that was opened
	own    *age.X25519Identity
	sealer *aesSealer

	mu     sync.Mutex  // guards all below; held while epochs are read
	listed []masterKey // to whom the newest epoch was wrapped
}

// unlock opens a key object with one of the credentials, checks that the configuration is the owner's, and learns all master keys.
func unlock(ctx context.Context, be backend.Backend, cfg *Config, c Credentials) (*keyring, error) {
	if len(c.Identities) == 0 && c.Passphrases == nil {
		return nil, fmt.Errorf("%s: %w", be.Location(), ErrSealed)
	}
	keys, damage, err := readKeys(ctx, be, cfg.ID)
	if err != nil {
		return nil, err
	}
	k, err := openKey(ctx, be, keys, damage, c)
	if err != nil {
		return nil, err
	}
	masters := k.sealer.masters()
	if err := cfg.signed.verify(&masters[0], contextConfigMAC); err != nil {
		return nil, &CorruptError{Object: objectConfig, Err: err}
	}
	k.be, k.repo = be, cfg.ID
	return k, k.refresh(ctx)
}

// openKey finds a key object that the credentials open.
func openKey(ctx context.Context, be backend.Backend, keys []*Key, damage []error, c Credentials) (*keyring, error) {
	broken := map[*Key]error{}
	try := func(passphrases bool, ids ...age.Identity) *keyring {
		for _, k := range keys {
			if passphrases != (k.Kind == kindPassphrase) || ctx.Err() != nil {
				continue
			}
			own, masters, err := k.open(ids...)
			if err == nil {
				return &keyring{key: k, own: own, sealer: newAESSealer(masters)}
			}
			var other *age.NoIdentityMatchError
			if !errors.As(err, &other) {
				broken[k] = &CorruptError{Object: prefixKeys + k.ID, Err: err}
			}
		}
		return nil
	}
	if len(c.Identities) > 0 {
		if r := try(false, c.Identities...); r != nil {
			return r, nil
		}
	}
	if c.Passphrases != nil {
		for p, err := range c.Passphrases {
			if err != nil {
				return nil, err
			}
			id, err := age.NewScryptIdentity(p)
			if err != nil || len(p) > maxPassphrase {
				continue
			}
			id.SetMaxWorkFactor(maxScryptWork)
			if r := try(true, id); r != nil {
				return r, nil
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err := fmt.Errorf("%s: %w", be.Location(), ErrKey)
	if len(keys) == 0 && len(damage) == 0 {
		err = &CorruptError{Object: prefixKeys, Err: errors.New("the repository is encrypted, and all its keys are gone")}
	}
	for _, k := range keys {
		if broken[k] != nil {
			damage = append(damage, broken[k])
		}
	}
	return nil, errors.Join(append([]error{err}, damage...)...) // perhaps it is one of these
}

// refresh reads the master keys of epochs that a rotation has added.
func (k *keyring) refresh(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		masters := k.sealer.masters()
		epoch := len(masters)
		if epoch > maxEpoch {
			return nil
		}
		name := epochObject(epoch)
		b, err := readSmall(ctx, k.be, name)
		if errors.Is(err, backend.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read master key %d: %w", epoch, err)
		}
		s, err := decodeMaster(b, k.repo, epoch, &masters[epoch-1], k.own)
		var other *age.NoIdentityMatchError
		switch {
		case errors.As(err, &other):
			return fmt.Errorf("%w: %s was not given master key %d of a rotation since", ErrKey, k.key.describe(), epoch)
		case errors.Is(err, ErrUnsupported):
			return fmt.Errorf("%s: %w", name, err)
		case err != nil:
			return &CorruptError{Object: name, Err: err}
		}
		var master secret
		_, _ = hex.Decode(master[:], []byte(s.Master))
		k.listed = s.Keys
		k.sealer.learn(append(masters, master))
	}
}

// decodeMaster decodes and opens the object of an epoch's master key.
func decodeMaster(b []byte, repository string, epoch int, before *secret, own age.Identity) (s masterSecrets, err error) {
	t, err := decodeSigned(b)
	if err != nil {
		return s, err
	}
	if err := t.verify(before, contextMasterObject); err != nil {
		return s, err
	}
	var m masterObject
	if err := json.Unmarshal(t.line, &m); err != nil {
		return s, err
	}
	switch {
	case m.Format != masterFormat:
		return s, fmt.Errorf("format is %q, not %q", m.Format, masterFormat)
	case m.Version != masterVersion:
		return s, fmt.Errorf("%w: master key version %d", ErrUnsupported, m.Version)
	case m.Repository != repository || m.Epoch != epoch:
		return s, errors.New("content is not what the name says")
	}
	plain, err := unwrap(m.Wrapped, own)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(plain, &s); err != nil {
		return s, errors.New("secrets of the master key are not what belongs there")
	}
	if s.Repository != repository || s.Epoch != epoch || !isHex(s.Master, len(secret{})) {
		return s, errors.New("its secrets belong to another master key")
	}
	return s, nil
}

// encodeMaster makes the object of the master key that follows masters, for these keys.
func encodeMaster(repository string, masters []secret, keys []*Key) ([]byte, error) {
	master, err := randomHex(len(secret{}))
	if err != nil {
		return nil, err
	}
	m := masterObject{Format: masterFormat, Version: masterVersion, Repository: repository, Epoch: len(masters), Created: time.Now().UTC().Truncate(time.Second)}
	s := masterSecrets{Repository: repository, Epoch: m.Epoch, Master: master}
	var to []age.Recipient
	for _, k := range keys {
		r, err := age.ParseX25519Recipient(k.Public)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.describe(), err)
		}
		to = append(to, r)
		s.Keys = append(s.Keys, masterKey{k.ID, k.Public})
	}
	plain, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if m.Wrapped, err = wrap(plain, to...); err != nil {
		return nil, err
	}
	return encodeSigned(m, &masters[len(masters)-1], contextMasterObject)
}

// trusts says whether the key was put there by somebody who knew the newest master key, or had that wrapped to it by a rotation. A
// key that only an older master key vouches for may be the work of somebody who lost theirs.
func (k *keyring) trusts(key *Key) bool {
	masters := k.sealer.masters()
	if key.Epoch == len(masters)-1 {
		return key.signed.verify(&masters[key.Epoch], contextKeyObject) == nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.listed {
		if l.ID == key.ID && l.Public == key.Public {
			return true
		}
	}
	return false
}

// learnEpoch reads new master keys when the object that begins with header is sealed under one. What is wrong with the header is
// said by who decodes it.
func (r *Repository) learnEpoch(ctx context.Context, header []byte) error {
	h, err := decodePackHeader(header)
	if r.keys == nil || err != nil || h.scheme != schemeAES || int(h.salt[0]) < len(r.keys.sealer.masters()) {
		return nil
	}
	return r.keys.refresh(ctx)
}

// box returns the box of an object that the index names.
func (r *Repository) box(ctx context.Context, kind packKind, salt [saltLen]byte) (box, error) {
	b, err := r.sealer.box(kind, salt)
	var unknown *unknownEpochError
	if err == nil || r.keys == nil || !errors.As(err, &unknown) {
		return b, err
	}
	if err := r.keys.refresh(ctx); err != nil {
		return nil, err
	}
	if b, err = r.sealer.box(kind, salt); errors.As(err, &unknown) {
		return nil, &CorruptError{Object: epochObject(unknown.epoch), Err: backend.ErrNotExist}
	}
	return b, err
}

func randomHex(n int) (string, error) {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}
