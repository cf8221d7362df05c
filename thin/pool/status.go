package pool

import (
	"fmt"
	"strconv"
	"strings"
)

// MetadataBlockSize is dm-thin's: the unit of Status's metadata counts and of held roots, in bytes.
const MetadataBlockSize = 4096

// Mode is what a pool is able to do.
type Mode string

// Modes, in the kernel's words. A pool out of metadata space shows as ModeReadOnly.
const (
	ModeWritable       Mode = "rw"
	ModeOutOfDataSpace Mode = "out_of_data_space"
	ModeReadOnly       Mode = "ro"
	ModeFailed         Mode = "Fail"
)

// Status is a pool's state. The counts of a failed pool are not known and zero.
type Status struct {
	Mode          Mode
	TransactionID uint64

	UsedMetadataBlocks, MetadataBlocks uint64 // of MetadataBlockSize; about a tenth counts as used in an empty pool
	UsedDataBlocks, DataBlocks         uint64 // pool blocks

	HeldRoot       uint64 // metadata block of the reserved metadata snapshot; 0: none is reserved
	NeedsCheck     bool   // the kernel refuses to write until thin_check has passed
	ErrorIfNoSpace bool   // else writes wait for space
}

// ReadErr says whether the pool serves reads: nil, or ErrFailed.
func (s Status) ReadErr() error {
	if s.Mode == ModeFailed {
		return ErrFailed
	}
	return nil
}

// MessageErr says whether the pool takes messages (reserve, create, delete): nil, ErrFailed, ErrNeedsCheck or ErrReadOnly.
func (s Status) MessageErr() error {
	switch {
	case s.Mode == ModeFailed:
		return ErrFailed
	case s.NeedsCheck:
		return ErrNeedsCheck
	case s.Mode == ModeReadOnly:
		return ErrReadOnly
	}
	return nil
}

// WriteErr says whether data can be written: that of MessageErr, or ErrOutOfSpace.
func (s Status) WriteErr() error {
	if err := s.MessageErr(); err != nil {
		return err
	}
	if s.Mode == ModeOutOfDataSpace {
		return ErrOutOfSpace
	}
	return nil
}

// parseStatus reads `dmsetup status` of a pool (dm-thin.c, pool_status):
//
//	0 393216 thin-pool 3 221/2048 614/3072 445 rw discard_passdown queue_if_no_space - 512
//	                   |     |        |     |  |          |                |         | metadata low-water mark
//	         transaction  metadata   data  held root, -  mode                        needs_check, -
//
// Older kernels leave out fields at the end.
func parseStatus(out string) (Status, error) {
	t, err := parseTarget(out)
	if err != nil {
		return Status{}, err
	}
	if t.kind != "thin-pool" {
		return Status{}, fmt.Errorf("its target is %s: %w", t.kind, ErrNotThin)
	}
	if len(t.args) == 1 && (t.args[0] == "Fail" || t.args[0] == "Error") { // Error: the kernel could not read its own counts
		return Status{Mode: ModeFailed}, nil
	}
	bad := func() (Status, error) {
		return Status{}, fmt.Errorf("thin-pool status %q is not understood", strings.TrimSpace(out))
	}
	if len(t.args) < 5 {
		return bad()
	}
	var s Status
	var ok [3]bool
	s.TransactionID, ok[0] = parseCount(t.args[0])
	s.UsedMetadataBlocks, s.MetadataBlocks, ok[1] = parseUsed(t.args[1])
	s.UsedDataBlocks, s.DataBlocks, ok[2] = parseUsed(t.args[2])
	if ok != [3]bool{true, true, true} {
		return bad()
	}
	if root := t.args[3]; root != "-" {
		if s.HeldRoot, ok[0] = parseCount(root); !ok[0] {
			return bad()
		}
	}
	switch s.Mode = Mode(t.args[4]); s.Mode {
	case ModeWritable, ModeOutOfDataSpace, ModeReadOnly:
	default:
		return bad()
	}
	for _, word := range t.args[5:] {
		switch word {
		case "needs_check":
			s.NeedsCheck = true
		case "error_if_no_space":
			s.ErrorIfNoSpace = true
		}
	}
	return s, nil
}

// ThinStatus is a thin device's state.
type ThinStatus struct {
	Failed      bool
	MappedBytes int64 // shared with snapshots or not
}

// parseThinStatus reads `dmsetup status` of a thin device: "0 131072 thin 93696 131071", "- " or "Fail" (dm-thin.c, thin_status).
func parseThinStatus(out string) (ThinStatus, error) {
	t, err := parseTarget(out)
	if err != nil {
		return ThinStatus{}, err
	}
	if t.kind != "thin" {
		return ThinStatus{}, fmt.Errorf("its target is %s: %w", t.kind, ErrNotThin)
	}
	if len(t.args) > 0 {
		switch t.args[0] {
		case "Fail", "Error", "-":
			return ThinStatus{Failed: true}, nil
		}
		if n, ok := parseCount(t.args[0]); ok && n <= 1<<62/sectorSize {
			return ThinStatus{MappedBytes: int64(n) * sectorSize}, nil
		}
	}
	return ThinStatus{}, fmt.Errorf("thin status %q is not understood", strings.TrimSpace(out))
}

func parseCount(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// parseUsed reads "221/2048".
func parseUsed(s string) (used, total uint64, ok bool) {
	a, b, found := strings.Cut(s, "/")
	used, ok1 := parseCount(a)
	total, ok2 := parseCount(b)
	return used, total, found && ok1 && ok2
}
