package chunkstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// initKeys puts the first key objects of a sealed repository. undo removes them again.
func initKeys(ctx context.Context, be backend.Backend, cfg *Config, to []Recipient) (undo func() error, err error) {
	var put []string
	undo = func() error {
		var errs []error
		for _, name := range put {
			errs = append(errs, be.Delete(context.WithoutCancel(ctx), name))
		}
		return errors.Join(errs...)
	}
	if len(to) == 0 {
		return undo, nil
	}
	if len(to) > maxKeys {
		return undo, fmt.Errorf("%d keys; a repository has at most %d", len(to), maxKeys)
	}
	if _, err := be.Stat(ctx, objectConfig); err == nil {
		return undo, backend.ErrExist
	} else if !errors.Is(err, backend.ErrNotExist) {
		return undo, err
	}
	masters, err := parseSecrets([]string{cfg.Secret})
	if err != nil {
		return undo, err
	}
	for _, r := range to {
		k, b, err := newKey(r, "", cfg.ID, masters)
		if err != nil {
			return undo, err
		}
		name := prefixKeys + k.ID
		put = append(put, name) // a failed put may have arrived
		if err := be.PutIfAbsent(ctx, name, b); err != nil {
			return undo, fmt.Errorf("write %s: %w", name, err)
		}
	}
	return undo, nil
}

// keys notes the key objects of a sealed repository that are damaged: their owners would find out when they need them.
func (c *check) keys(ctx context.Context) error {
	if c.r.keys == nil {
		return nil
	}
	_, damage, err := readKeys(ctx, c.r.be, c.r.cfg.ID)
	for _, err := range damage {
		if errors.Is(err, ErrCorrupt) { // not those that a newer shale wrote
			c.damage(prefixKeys, 0, err)
		}
	}
	return err
}

// Sealed says whether the repository is encrypted.
func (r *Repository) Sealed() bool { return r.keys != nil }

// KeyStatus is a key object and what is known of it.
type KeyStatus struct {
	Key
	Current bool // it opened the repository
	// Trusted: whoever put it there knew the newest master key, or it was given that by a rotation. An object that is not trusted
	// is passed over by rotations; it may be the work of somebody who may write to the backend.
	Trusted bool
}

// Keys lists the key objects of a sealed repository by time. damage are those that cannot be read.
func (r *Repository) Keys(ctx context.Context) (keys []KeyStatus, damage []error, err error) {
	if r.keys == nil {
		return nil, nil, fmt.Errorf("%s: %w", r.Location(), errPlainHasNoKeys)
	}
	if err := r.keys.refresh(ctx); err != nil {
		return nil, nil, err
	}
	all, damage, err := readKeys(ctx, r.be, r.cfg.ID)
	for _, k := range all {
		keys = append(keys, KeyStatus{Key: *k, Current: k.ID == r.keys.key.ID, Trusted: r.keys.trusts(k)})
	}
	return keys, damage, err
}

var errPlainHasNoKeys = errors.New("the repository is not encrypted and has no keys")

// Epoch is the number of the newest master key, counted from 0.
func (r *Repository) Epoch() int {
	if r.keys == nil {
		return 0
	}
	return len(r.keys.sealer.masters()) - 1
}

// Fingerprint is the same for all who have the same first master key, and tells nothing of it: 32 hex digits; empty for a plain repository.
func (r *Repository) Fingerprint() string {
	if r.keys == nil {
		return ""
	}
	return hexFingerprint(&r.keys.sealer.masters()[0])
}

// AddKey gives the repository's master keys to another recipient.
func (r *Repository) AddKey(ctx context.Context, to Recipient, label string) (*Key, error) {
	all, _, err := r.Keys(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) >= maxKeys {
		return nil, fmt.Errorf("a repository has at most %d keys", maxKeys)
	}
	for { // a rotation meanwhile would leave the new key behind
		masters := r.keys.sealer.masters()
		k, b, err := newKey(to, label, r.cfg.ID, masters)
		if err != nil {
			return nil, err
		}
		name := prefixKeys + k.ID
		if err := r.be.PutIfAbsent(ctx, name, b); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
		if err := r.keys.refresh(ctx); err != nil {
			return nil, err
		}
		if len(r.keys.sealer.masters()) == len(masters) {
			return k, nil
		}
		if err := r.be.Delete(ctx, name); err != nil {
			return nil, fmt.Errorf("remove %s: %w", name, err)
		}
	}
}

// RemoveKey removes a key object. Who knows the master keys goes on knowing them. ErrLastKey when no other key is left that is
// trusted, ErrNotFound when there is none of that ID.
func (r *Repository) RemoveKey(ctx context.Context, id string) error {
	others := func() (found []byte, n int, err error) {
		all, _, err := r.Keys(ctx)
		for i := range all {
			if k := &all[i]; k.ID == id {
				found = k.signed.line
			} else if k.Trusted {
				n++
			}
		}
		return found, n, err
	}
	found, n, err := others()
	switch {
	case err != nil:
		return err
	case found == nil:
		return &NotFoundError{What: "key", Name: id}
	case n == 0:
		return fmt.Errorf("key %s: %w", id, ErrLastKey)
	}
	name := prefixKeys + id
	b, err := readSmall(ctx, r.be, name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := r.be.Delete(ctx, name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if _, n, err = others(); err == nil && n == 0 { // another host removed the others meanwhile
		return errors.Join(fmt.Errorf("key %s: %w", id, ErrLastKey), r.be.PutIfAbsent(context.WithoutCancel(ctx), name, b))
	}
	return err
}

// Rotation says what Rotate did.
type Rotation struct {
	Epoch int   // of the new master key
	Keys  []Key // that it was given to
	Left  []Key // that it was not given to: they are not trusted, or were added while this ran
}

// Rotate makes a new master key, gives it to every trusted key, and has everything sealed under it from then on by whoever opens the
// repository. What is stored already stays as it is. Processes that have the repository open write under the old one until they end.
func (r *Repository) Rotate(ctx context.Context) (*Rotation, error) {
	all, _, err := r.Keys(ctx)
	if err != nil {
		return nil, err
	}
	masters := r.keys.sealer.masters()
	if len(masters) > maxEpoch {
		return nil, fmt.Errorf("the repository has had all of its %d master keys: copy it to a new one", maxEpoch+1)
	}
	var rot Rotation
	var to []*Key
	given := map[string]bool{}
	for i := range all {
		if all[i].Trusted {
			to = append(to, &all[i].Key)
			given[all[i].ID] = true
		}
	}
	if !given[r.keys.key.ID] {
		return nil, fmt.Errorf("%w: %s was removed meanwhile, or is not one of the trusted", ErrKey, r.keys.key.describe())
	}
	b, err := encodeMaster(r.cfg.ID, masters, to)
	if err != nil {
		return nil, err
	}
	rot.Epoch = len(masters)
	name := epochObject(rot.Epoch)
	if err := r.be.PutIfAbsent(ctx, name, b); errors.Is(err, backend.ErrExist) {
		return nil, fmt.Errorf("write %s: another rotation has just made it: %w", name, err)
	} else if err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	if all, _, err = r.Keys(ctx); err != nil {
		return nil, err
	}
	for _, k := range all {
		if given[k.ID] {
			rot.Keys = append(rot.Keys, k.Key)
		} else {
			rot.Left = append(rot.Left, k.Key)
		}
	}
	r.pin()
	return &rot, nil
}

// pin notes the newest epoch in the cache.
func (r *Repository) pin() {
	_ = newPins(r.opts.CacheDir, r.Location(), &r.cfg).checkKeys(&r.cfg, r.keys.sealer.masters())
}

func hexFingerprint(master *secret) string {
	k := master.derive(contextFingerprint)
	return hex.EncodeToString(k[:16])
}
