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
	Volumes     int         `json:"volumes"`
	Backups     int         `json:"backups"`
	DataPacks   Usage       `json:"data_packs"`
	TreePacks   Usage       `json:"tree_packs"`
	Index       Usage       `json:"index"`
	Stored      int64       `json:"stored"`       // bytes of all objects
	Chunks      int64       `json:"chunks"`       // index entries of data packs
	Nodes       int64       `json:"nodes"`        // index entries of tree packs
	Plain       int64       `json:"plain"`        // plain bytes of all chunks
	IndexMemory int64       `json:"index_memory"` // bytes of index that this host maps
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
	s := &RepositoryStats{ID: r.cfg.ID, Location: r.be.Location(), Version: r.cfg.Version, Compression: r.cfg.Compression}
	err := r.be.List(ctx, "", func(o backend.Object) error {
		s.Stored += o.Size
		_, kind, ok := parsePackObject(o.Name)
		switch {
		case ok && kind == kindData:
			s.DataPacks.add(o.Size)
		case ok && kind == kindTree:
			s.TreePacks.add(o.Size)
		case strings.HasPrefix(o.Name, prefixIndex):
			s.Index.add(o.Size)
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
	for _, seg := range r.index.snapshot() {
		s.IndexMemory += int64(len(seg.data))
		for i := range seg.count {
			if e := seg.entryAt(i); int(e.pack) < seg.packs && seg.pack(int(e.pack)).kind == kindTree {
				s.Nodes++
			} else {
				s.Chunks++
				s.Plain += int64(e.raw)
			}
		}
	}
	return s, nil
}
