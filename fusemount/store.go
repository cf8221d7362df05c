package fusemount

import (
	"context"

	"github.com/shalebackup/shale/chunkstore"
)

// ID names a chunk by its content.
type ID = chunkstore.ID

// Chunk is one run of an image's bytes.
type Chunk = chunkstore.Chunk

// Store shows a chunkstore's repository to Mount. It does not close it.
func Store(r *chunkstore.Repository) Repository { return store{r} }

// store takes the names that Repository asks for from what a chunkstore offers.
type store struct{ *chunkstore.Repository }

func (s store) Backups(ctx context.Context, volume string) ([]Entry, error) {
	ids, err := s.Repository.Backups(ctx, volume)
	if err != nil {
		return nil, err
	}
	list := make([]Entry, len(ids))
	for i, id := range ids {
		list[i] = Entry{ID: id, Time: chunkstore.BackupTime(id)}
	}
	return list, nil
}

func (s store) Backup(ctx context.Context, volume, id string) (*Backup, error) {
	b, err := s.Repository.Backup(ctx, volume, id)
	if err != nil {
		return nil, err
	}
	return &Backup{Time: b.Time, Record: b, Image: s.OpenBlob(b.Blob), Size: b.Blob.Size, Data: b.Blob.Data}, nil
}
