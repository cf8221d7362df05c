package chunkstore

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"lukechampine.com/blake3"
)

// A client remembers which sealed repositories it has opened, in <cache>/known: by location and by the repository's ID. Whoever can write
// to the backend could otherwise put a repository of their own there, plain or sealed to the user's public key, and be given the next
// backup; or take away the newest master key, and have the next backup sealed under one that was to be retired.

const (
	pinsDir            = "known"
	contextFingerprint = "shale repository v1: fingerprint"
)

// pin is the JSON of one file.
type pin struct {
	Location    string `json:"location"`
	ID          string `json:"id"`
	Fingerprint string `json:"fingerprint"` // of master key 0
	Epoch       int    `json:"epoch"`       // the newest seen
}

// ReplacedError says what was known of a sealed repository, and where that is noted.
type ReplacedError struct {
	Location string
	Was, Is  string
	File     string // without it the repository is taken as it is now
}

func (e *ReplacedError) Error() string {
	return fmt.Sprintf("%s: %v: %s, and now %s", e.Location, ErrReplaced, e.Was, e.Is)
}
func (e *ReplacedError) Unwrap() error { return ErrReplaced }

// pins are the files that may speak of a repository.
type pins struct {
	location string
	files    []string // none without a cache folder
}

func newPins(cacheDir, location string, cfg *Config) *pins {
	p := &pins{location: location}
	if cacheDir == "" {
		return p
	}
	sum := blake3.Sum256([]byte(location))
	for _, name := range []string{"location-" + hex.EncodeToString(sum[:16]), "id-" + cfg.ID} {
		p.files = append(p.files, filepath.Join(cacheDir, pinsDir, name))
	}
	return p
}

func readPin(file string) (k pin, ok bool) {
	b, err := os.ReadFile(file)
	return k, err == nil && json.Unmarshal(b, &k) == nil
}

// checkConfig refuses a configuration that cannot be that of the repository known.
func (p *pins) checkConfig(cfg *Config) error {
	for _, file := range p.files {
		k, ok := readPin(file)
		if !ok || k.ID == cfg.ID && cfg.Sealed() {
			continue
		}
		is := "it is one that is not encrypted"
		if cfg.Sealed() {
			is = "it is repository " + cfg.ID
		}
		return &ReplacedError{p.location, "it was encrypted, repository " + k.ID, is, file}
	}
	return nil
}

// checkKeys refuses master keys that are not those known, and notes them.
func (p *pins) checkKeys(cfg *Config, masters []secret) error {
	now := pin{p.location, cfg.ID, hexFingerprint(&masters[0]), len(masters) - 1}
	for _, file := range p.files {
		k, ok := readPin(file)
		switch {
		case ok && k.Fingerprint != now.Fingerprint:
			return &ReplacedError{p.location, "it had another master key", "it has one that was never seen", file}
		case ok && k.Location == p.location && k.Epoch > now.Epoch: // a copy elsewhere may be behind
			return &ReplacedError{p.location, fmt.Sprintf("it had master key %d", k.Epoch), fmt.Sprintf("the newest is %d", now.Epoch), file}
		case ok && k == now:
			continue
		}
		now.write(file)
	}
	return nil
}

// renew forgets what was known of the location, where a repository was just made.
func (p *pins) renew(cfg *Config) {
	for _, file := range p.files {
		_ = os.Remove(file)
	}
	if masters, err := parseSecrets([]string{cfg.Secret}); err == nil && cfg.Sealed() {
		_ = p.checkKeys(cfg, masters)
	}
}

// write notes k, if the cache can be written: it may be deleted at any time, and then nothing is known.
func (k pin) write(file string) {
	b, err := json.Marshal(k)
	if err != nil || os.MkdirAll(filepath.Dir(file), 0o700) != nil {
		return
	}
	_ = writeFileSync(file, b)
}
