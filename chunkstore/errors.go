package chunkstore

import (
	"errors"
	"fmt"
	"strings"
)

// Errors that callers decide on.
var (
	// ErrCorrupt: stored bytes are not those that were written. A CorruptError says where.
	ErrCorrupt = errors.New("corrupt")
	// ErrNotFound: the repository does not have what was asked for.
	ErrNotFound = errors.New("not found in the repository")
	// ErrNoRepository: there is no repository at the backend.
	ErrNoRepository = errors.New("no repository here")
	// ErrRepositoryExists: Init found one.
	ErrRepositoryExists = errors.New("there is a repository already")
	// ErrPruned: a prune removed what a backup under way relied on, which took longer than the prune's grace. Nothing is lost: no
	// backup was recorded, and the next one stores it again.
	ErrPruned = errors.New("removed by a prune while the backup ran, which took longer than the prune's --grace")
	// ErrLocked: another prune is running.
	ErrLocked = errors.New("another prune is running")
	// ErrSealed: the repository is encrypted, and there is nothing to open it with.
	ErrSealed = errors.New("the repository is encrypted: it takes a password or a private key")
	// ErrKey: none of the passwords and private keys that were given opens the repository.
	ErrKey = errors.New("wrong password, or no private key that fits")
	// ErrNotSealed: a password or private key was given for a repository that is not encrypted.
	ErrNotSealed = errors.New("the repository is not encrypted, and a password or private key was given")
	// ErrReplaced: another repository, or another state of it, was here before. A ReplacedError says what remembers it.
	ErrReplaced = errors.New("this is not the encrypted repository that was here before")
	// ErrLastKey: without this key nothing could open the repository.
	ErrLastKey = errors.New("it is the last key: without it nothing could open the repository")
	// ErrUnsupported: the object was written by a newer shale, or asks for a feature that this one lacks.
	ErrUnsupported = errors.New("not supported by this version of shale")
)

// CorruptError locates damage; Off counts bytes from the start of Object.
type CorruptError struct {
	Object string
	Off    int64
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s at byte %d: %v", e.Object, e.Off, e.Err)
}

// InIndex says that an index segment is damaged: what it indexes may be sound, and Reindex finds it.
func (e *CorruptError) InIndex() bool { return strings.HasPrefix(e.Object, prefixIndex) }

func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// NotFoundError names what an index or a listing lacks.
type NotFoundError struct {
	What string // "chunk", "node", "backup", "volume"
	Name string
}

func (e *NotFoundError) Error() string { return fmt.Sprintf("%s %s: %v", e.What, e.Name, ErrNotFound) }
func (e *NotFoundError) Unwrap() error { return ErrNotFound }
