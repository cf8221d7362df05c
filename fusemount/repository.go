package fusemount

import (
	"context"
	"iter"
	"time"
)

// Repository is what a mount asks of a store. All methods are called from many goroutines at once.
type Repository interface {
	ChunkReader

	// Volumes lists the names of the volumes that have backups.
	Volumes(ctx context.Context) ([]string, error)
	// Backups lists the backups of a volume, oldest first, without reading any of them.
	Backups(ctx context.Context, volume string) ([]Entry, error)
	// Backup reads one backup record, and nothing that it refers to.
	Backup(ctx context.Context, volume, id string) (*Backup, error)
}

// ChunkReader gives the plain bytes of chunks, verified.
type ChunkReader interface {
	// ReadChunk returns the plain bytes of a chunk: in dst's memory if its capacity allows, else in memory of their own.
	ReadChunk(ctx context.Context, id ID, dst []byte) ([]byte, error)
	// FillChunks puts the plain bytes of each chunk in dst(i), which is as long, and then calls done(i) if it could be read,
	// both perhaps from many goroutines at once. After an error some chunks may have been delivered and others not.
	FillChunks(ctx context.Context, chunks []Chunk, dst func(i int) []byte, done func(i int) error) error
}

// Entry is a backup in a listing.
type Entry struct {
	ID   string
	Time time.Time // when it was taken; a listing that knows no time leaves it zero
}

// Backup is one backup record, as far as a mount needs it.
type Backup struct {
	Time   time.Time
	Record any   // shown as backup.json
	Image  Blob  // nil when the backup is not of a block volume: there is no image.raw then
	Size   int64 // bytes of the image
	Data   int64 // bytes of the image that are not holes
}

// Blob is where the chunks of one image are.
type Blob interface {
	// Chunks yields the chunks that overlap [off, end), ascending; what lies between them is holes.
	Chunks(ctx context.Context, off, end int64) iter.Seq2[Chunk, error]
}
