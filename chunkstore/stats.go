package chunkstore

import (
	"context"
	"fmt"
	"strings"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// RepositoryStats are what a repository holds, by its listings and its index.
type RepositoryStats struct {
	ID          string      `json:"id"`
	Location    string      `json:"location"`
	Version     int         `json:"version"`
	Compression Compression `json:"compression"`
	Encrypted   bool        `json:"encrypted"`
	Volumes     int         `json:"volumes"`
	Backups     int         `json:"backups"`
	DataPacks   Usage       `json:"data_packs"`
	TreePacks   Usage       `json:"tree_packs"`
	Index       Usage       `json:"index"`
	Condemned   Usage       `json:"condemned"`   // of the packs: to be deleted by a prune when its grace is over
	Trash       Usage       `json:"trash"`       // lists of such packs, and for a month of those that were deleted
	Stored      int64       `json:"stored"`      // bytes of all objects
	Chunks      int64       `json:"chunks"`      // index entries of data packs
	Nodes       int64       `json:"nodes"`       // index entries of tree packs
	Plain       int64       `json:"plain"`       // plain bytes of all chunks
	IndexLocal  int64       `json:"index_local"` // bytes of index that this host has at hand
}

// Usage counts objects of a kind.
type Usage struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

func (u *Usage) add(n int64) {
	u.Objects++
	u.Bytes += n
}

// Stats lists the repository and counts.
func (r *Repository) Stats(ctx context.Context) (*RepositoryStats, error) {
	if err := r.index.refresh(ctx); err != nil {
		return nil, err
	}
	s := &RepositoryStats{ID: r.cfg.ID, Location: r.be.Location(), Version: r.cfg.Version, Compression: r.cfg.Compression, Encrypted: r.Sealed()}
	trash := r.index.trashSet()
	err := r.be.List(ctx, "", func(o backend.Object) error {
		s.Stored += o.Size
		id, kind, ok := parsePackObject(o.Name)
		if ok && trash.condemned(id) {
			s.Condemned.add(o.Size)
		}
		switch {
		case ok && kind == kindData:
			s.DataPacks.add(o.Size)
		case ok && kind == kindTree:
			s.TreePacks.add(o.Size)
		case strings.HasPrefix(o.Name, prefixIndex):
			s.Index.add(o.Size)
		case strings.HasPrefix(o.Name, prefixTrash):
			s.Trash.add(o.Size)
		case strings.HasPrefix(o.Name, prefixBackups):
			s.Backups++
		case strings.HasPrefix(o.Name, prefixVolumes):
			s.Volumes++
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the repository: %w", err)
	}
	segs, err := r.index.open(ctx)
	if err != nil {
		return nil, err
	}
	defer releaseAll(segs)
	for _, seg := range segs {
		s.IndexLocal += seg.local()
		s.Nodes += int64(seg.nodes)
		s.Chunks += int64(seg.count - seg.nodes)
		s.Plain += seg.plain
	}
	return s, nil
}
