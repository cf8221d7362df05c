package source

import (
	"context"
	"encoding/json"
	"iter"
)

// Extent is a byte range of a volume. Off and Len are multiples of 512; the last extent may end at the volume's size.
type Extent struct {
	Off, Len int64
	Hole     bool // the range reads as zeros and need not be read
}

// End is the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Source is one volume, frozen at a point in time, opened for one backup. ReadAt may be called from many goroutines.
type Source interface {
	// Size is the volume's length in bytes.
	Size() int64

	// Extents yields ranges in ascending order, without overlap, inside [0, Size).
	// Opened without a base: every range that may hold data; whatever is not yielded is a hole.
	// Opened with a base: every range that may differ from the base; whatever is not yielded is equal to it.
	// The sequence ends after the first error.
	Extents(ctx context.Context) iter.Seq2[Extent, error]

	// ReadAt fills p with the volume's bytes from off on; holes read as zeros. off+len(p) <= Size.
	ReadAt(ctx context.Context, p []byte, off int64) error

	// State is stored in the backup record: what a later Open needs to recognise this point in time as its base.
	State() json.RawMessage

	// Stats counts what was read so far.
	Stats() Stats

	// Close releases what the source holds. A snapshot taken for this backup is kept as the next base when kept is true,
	// and removed otherwise.
	Close(ctx context.Context, kept bool) error
}

// Stats counts a source's work.
type Stats struct {
	BytesRead      int64 // from the volume's data
	MetadataBlocks int64 // metadata blocks read to learn what changed (thin), or extents asked for (reflink)
}

// Parent is an earlier backup of the same volume, a candidate for the base.
type Parent struct {
	ID    string          // the backup's ID, for messages
	Size  int64           // bytes, the volume's size then
	State json.RawMessage // what Source.State returned then
	// Elsewhere says that the backup was made into another repository and copied from there: what the source kept on this host for
	// the next backup may be compared with, but belongs to the other repository and stays.
	Elsewhere bool
}

// Base is an Opener's decision.
type Base struct {
	Parent *Parent // what Extents is relative to; nil: everything is read
	Reason string  // for the user, when Parent is nil: why no base was usable
}

// Opener opens a volume for backup.
type Opener interface {
	// Open takes the candidates newest first and chooses the first whose point in time still exists, provably unchanged,
	// on this host. It need not read the sequence to its end.
	Open(ctx context.Context, parents iter.Seq2[Parent, error]) (Source, Base, error)
}
