package chunkstore

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
)

// Credentials are what a user has to open a sealed repository with; the zero value opens plain ones.
type Credentials struct {
	// Identities are private keys; ParseIdentities reads them.
	Identities []age.Identity
	// Passphrases are tried one after the other when no identity fits, and asked for only then. The first error ends it. May be nil.
	Passphrases iter.Seq2[string, error]
	// Sealed refuses a repository that is not encrypted, with ErrNotSealed: who gives a password means one that is.
	Sealed bool
}

// Recipient is whom a key object is for; PassphraseRecipient and ParseRecipient make one.
type Recipient struct {
	kind   string // of Key
	public string // empty for a passphrase
	age    age.Recipient
}

const (
	kindPassphrase = "passphrase"
	kindAge        = "age"
	kindSSH        = "ssh"

	// scrypt's work factor: 2^17 blocks of 1 KiB, so 128 MiB of memory and about half a second for each guess and each opening.
	scryptWork = 17
	// What a key object may ask of who opens it; a hostile one could ask for hours, and for all memory.
	maxScryptWork = 18

	maxPassphrase   = 4096    // bytes
	maxIdentityFile = 1 << 20 // bytes
)

// PassphraseRecipient is whoever knows the passphrase. work is scrypt's, the logarithm of its blocks: 0 for the default; less is for
// tests.
func PassphraseRecipient(passphrase string, work int) (Recipient, error) {
	if work == 0 {
		work = scryptWork
	}
	if work < 1 || work > maxScryptWork {
		return Recipient{}, fmt.Errorf("scrypt's work factor is %d, not 1 to %d", work, maxScryptWork)
	}
	if len(passphrase) == 0 || len(passphrase) > maxPassphrase {
		return Recipient{}, fmt.Errorf("a password has 1 to %d bytes, not %d", maxPassphrase, len(passphrase))
	}
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return Recipient{}, err
	}
	r.SetWorkFactor(work)
	return Recipient{kind: kindPassphrase, age: r}, nil
}

// ParseRecipient reads a public key: age1…, age1pq1…, ssh-ed25519 … or ssh-rsa ….
func ParseRecipient(s string) (Recipient, error) {
	s = strings.TrimSpace(s)
	r := Recipient{kind: kindAge, public: s}
	var err error
	switch {
	case strings.HasPrefix(s, "ssh-"):
		r.kind = kindSSH
		if f := strings.Fields(s); len(f) >= 2 { // the comment is often somebody's name: not stored in the clear
			r.public = f[0] + " " + f[1]
		}
		r.age, err = agessh.ParseRecipient(r.public)
	case strings.HasPrefix(s, "age1pq1"):
		r.age, err = age.ParseHybridRecipient(s)
	case strings.HasPrefix(s, "age1"):
		r.age, err = age.ParseX25519Recipient(s)
	case strings.HasPrefix(s, "AGE-SECRET-KEY"):
		return Recipient{}, errors.New("this is a private key: a recipient is the public one that belongs to it")
	default:
		return Recipient{}, fmt.Errorf("%q is no public key: age1…, ssh-ed25519 … or ssh-rsa …", s)
	}
	if err != nil {
		return Recipient{}, fmt.Errorf("public key %q: %w", s, err)
	}
	return r, nil
}

// ParseIdentities reads the private keys in a file: age's, one a line with # for comments, or one SSH key in PEM. passphrase is
// asked when an SSH key is encrypted and needed.
func ParseIdentities(file []byte, passphrase func() ([]byte, error)) ([]age.Identity, error) {
	if len(file) > maxIdentityFile {
		return nil, fmt.Errorf("%d bytes are too many for a file of keys", len(file))
	}
	if !bytes.HasPrefix(bytes.TrimSpace(file), []byte("-----BEGIN ")) {
		return age.ParseIdentities(bytes.NewReader(file))
	}
	id, err := agessh.ParseIdentity(file)
	var locked *ssh.PassphraseMissingError
	if !errors.As(err, &locked) {
		if err != nil {
			return nil, err
		}
		return []age.Identity{id}, nil
	}
	if locked.PublicKey == nil || passphrase == nil {
		return nil, errors.New("the SSH key is encrypted, and in a form that cannot be opened here: ssh-keygen -p changes it")
	}
	e, err := agessh.NewEncryptedSSHIdentity(locked.PublicKey, file, passphrase)
	if err != nil {
		return nil, err
	}
	return []age.Identity{e}, nil
}
