package thin

import (
	"errors"
	"fmt"
)

var (
	// ErrDamaged: the metadata contradicts itself or its checksums. A [DamageError] says where.
	ErrDamaged = errors.New("thin: metadata is damaged")
	// ErrNotMetadata: block 0 is not the superblock of a thin pool.
	ErrNotMetadata = errors.New("thin: not the metadata of a thin pool")
	// ErrUnsupported: a version or feature that this package does not know; reading on could give wrong answers.
	ErrUnsupported = errors.New("thin: metadata has an unsupported version or feature")
	// ErrNeedsCheck: the kernel marked the pool as needing thin_check. See [Options.AllowNeedsCheck].
	ErrNeedsCheck = errors.New("thin: the pool is marked needs_check: run thin_check on it")
	// ErrNoMetadataSnapshot: [Options.MetadataSnapshot] was asked for and the pool holds none.
	ErrNoMetadataSnapshot = errors.New("thin: the pool holds no metadata snapshot")
	// ErrNoDevice: the pool has no thin device of that ID.
	ErrNoDevice = errors.New("thin: no such thin device")
	// ErrInUse: the metadata device belongs to an active pool and was not to be read at its held root.
	ErrInUse = errors.New("thin: the metadata device is in use: reserve a metadata snapshot and read at the held root")
	// ErrChanged: the metadata is no longer the one that was opened.
	ErrChanged = errors.New("thin: the metadata changed while it was read")
)

// DamageError locates damage: Block counts metadata blocks of [BlockSize] bytes from the start of the device.
type DamageError struct {
	Block uint64
	Err   error
}

func (e *DamageError) Error() string { return fmt.Sprintf("metadata block %d: %v", e.Block, e.Err) }

// Unwrap makes every DamageError an ErrDamaged.
func (e *DamageError) Unwrap() []error { return []error{ErrDamaged, e.Err} }

func damagef(block uint64, format string, args ...any) error {
	return &DamageError{Block: block, Err: fmt.Errorf(format, args...)}
}
