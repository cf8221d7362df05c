package fusemount

import (
	"context"
	"strings"
	"time"
)

// latestName is the symlink in each volume's folder to its newest backup.
const latestName = "latest"

// maxName is the kernel's limit of a file name, in bytes.
const maxName = 255

// goodName reports whether a name from a store can be shown as a file name. Names are whatever a writer of the store chose.
func goodName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}

// remembered is an answer of the repository that is believed for a while, so that a walk through a folder of a thousand
// backups asks once. Equal questions at the same time share one answer.
type remembered[T any] struct {
	ask func(context.Context) (T, error)
	ttl time.Duration // forever when negative

	turn  chan struct{} // holds a token while somebody asks or looks; it guards what follows
	value T
	until time.Time
	known bool
}

func remember[T any](ttl time.Duration, ask func(context.Context) (T, error)) *remembered[T] {
	return &remembered[T]{ask: ask, ttl: ttl, turn: make(chan struct{}, 1)}
}

func (r *remembered[T]) get(ctx context.Context) (T, error) {
	var none T
	select {
	case r.turn <- struct{}{}:
	default:
		select {
		case r.turn <- struct{}{}:
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
	defer func() { <-r.turn }()
	if r.known && (r.ttl < 0 || time.Now().Before(r.until)) {
		return r.value, nil
	}
	value, err := r.ask(ctx)
	if err != nil {
		return none, err
	}
	r.value, r.known, r.until = value, true, time.Now().Add(r.ttl)
	return value, nil
}

// volumeNames asks for the volumes whose names can be shown.
func (t *tree) volumeNames(ctx context.Context) (map[string]bool, error) {
	names, err := t.repo.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	good := make(map[string]bool, len(names))
	for _, name := range names {
		if goodName(name) {
			good[name] = true
		} else {
			t.log.Warn("volume left out: its name cannot be a file name", "volume", name)
		}
	}
	return good, nil
}

// backupList is one listing of a volume.
type backupList struct {
	byID   map[string]Entry
	newest Entry // ID is empty when there is none
}

// backups asks for the backups of a volume.
func (t *tree) backups(ctx context.Context, volume string) (backupList, error) {
	entries, err := t.repo.Backups(ctx, volume)
	if err != nil {
		return backupList{}, err
	}
	list := backupList{byID: make(map[string]Entry, len(entries))}
	for _, e := range entries {
		if !goodName(e.ID) || e.ID == latestName {
			t.log.Warn("backup left out: its ID cannot be a file name", "volume", volume, "backup", e.ID)
			continue
		}
		list.byID[e.ID] = e
		list.newest = e
	}
	return list, nil
}
