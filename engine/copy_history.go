package engine

import (
	"context"
	"path"
	"slices"

	"github.com/shalebackup/shale/chunkstore"
)

// history is what one repository has of a volume. Records are read once.
type history struct {
	repo    *chunkstore.Repository
	volume  string
	ids     []string // ascending
	records map[string]historyRecord
}

type historyRecord struct {
	b   *chunkstore.Backup
	err error
}

// openHistory lists a volume's backups.
func openHistory(ctx context.Context, repo *chunkstore.Repository, volume string) (*history, error) {
	ids, err := repo.Backups(ctx, volume)
	return &history{repo: repo, volume: volume, ids: ids, records: map[string]historyRecord{}}, err
}

// readAll reads the records that all will be needed, several at once.
func (h *history) readAll(ctx context.Context) error {
	return h.repo.WalkBackups(ctx, h.volume, func(object string, b *chunkstore.Backup, err error) error {
		h.records[path.Base(object)] = historyRecord{b, err}
		return nil
	})
}

func (h *history) record(ctx context.Context, id string) (*chunkstore.Backup, error) {
	r, ok := h.records[id]
	if !ok {
		r.b, r.err = h.repo.Backup(ctx, h.volume, id)
		h.records[id] = r
	}
	return r.b, r.err
}

func (h *history) has(id string) bool {
	_, found := slices.BinarySearch(h.ids, id)
	return found
}

func (h *history) add(b *chunkstore.Backup) {
	if i, found := slices.BinarySearch(h.ids, b.ID); !found {
		h.ids = slices.Insert(h.ids, i, b.ID)
	}
	h.records[b.ID] = historyRecord{b: b}
}

// find returns the record of the backup that has this origin, nil when there is none. Copies keep the time that is in an ID. Records
// that cannot be read for their damage are passed over.
func (h *history) find(ctx context.Context, origin chunkstore.Origin) (*chunkstore.Backup, error) {
	when := chunkstore.BackupTime(origin.Backup)
	for _, id := range h.ids {
		if !chunkstore.BackupTime(id).Equal(when) {
			continue
		}
		b, err := h.record(ctx, id)
		if damaged(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if h.repo.Origin(b) == origin {
			return b, nil
		}
	}
	return nil, nil
}

// nearest yields the IDs by their distance in the list from id, which is left out: first those before, then those after it.
func (h *history) nearest(id string) []string {
	i, found := slices.BinarySearch(h.ids, id)
	before := slices.Clone(h.ids[:i])
	slices.Reverse(before)
	if found {
		i++
	}
	return append(before, h.ids[i:]...)
}
