package engine_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

// Every device of every captured pool, backed up from metadata and data alone and restored, has the sum that the kernel read.
func TestThinPoolsRestore(t *testing.T) {
	for _, name := range poolNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := openPool(t, name)
			r := memRepo(t)
			for _, d := range p.Devices {
				res := backup(t, r, source.ThinPool(p.options(d)), engine.BackupOptions{Volume: fmt.Sprintf("dev%d", d.ID)})
				if res.Backup.Blob.Size != d.Size {
					t.Errorf("device %d: size %d, want %d", d.ID, res.Backup.Blob.Size, d.Size)
				}
				target := filepath.Join(t.TempDir(), "restored")
				if _, err := engine.Restore(t.Context(), r, res.Backup, target, engine.RestoreOptions{Verify: true}); err != nil {
					t.Fatal(err)
				}
				if got := sha256File(t, target); d.SHA256 != "" && got != d.SHA256 {
					t.Errorf("device %d: restored bytes have sha256 %s, want %s", d.ID, got, d.SHA256)
				}
			}
		})
	}
}

// An incremental backup of every known difference reads the changed chunks and at most one neighbour a run, and gives the
// tree of a full scan.
func TestThinPoolsIncremental(t *testing.T) {
	for _, name := range poolNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := openPool(t, name)
			for _, delta := range p.Deltas {
				t.Run(fmt.Sprintf("%d-%d", delta.From, delta.To), func(t *testing.T) { incremental(t, p, delta) })
			}
		})
	}
}

func incremental(t *testing.T, p *pool, delta poolDelta) {
	r := memRepo(t)
	from, to := p.device(t, delta.From), p.device(t, delta.To)
	first := backup(t, r, source.ThinPool(p.options(from)), engine.BackupOptions{Volume: "vol"})
	if first.Reason == "" || first.Parent != "" {
		t.Errorf("first backup: parent %q, reason %q", first.Parent, first.Reason)
	}
	o := p.options(to)
	o.Base = &delta.From
	incr := backup(t, r, source.ThinPool(o), engine.BackupOptions{Volume: "vol"})
	if incr.Parent != first.Backup.ID {
		t.Fatalf("base not used: %s", incr.Reason)
	}
	full := backup(t, r, source.ThinPool(p.options(to)), engine.BackupOptions{Volume: "scan", Full: true})
	if incr.Backup.Blob != full.Backup.Blob {
		t.Fatalf("incremental tree %+v, full scan %+v", incr.Backup.Blob, full.Backup.Blob)
	}
	want, runs := readBound(t, p, delta, r, first.Backup, incr.Backup)
	c := incr.Backup.Counts
	t.Logf("%d changed runs: read %d bytes (bound %d), %d metadata blocks, %d tree nodes", runs, c.Read, want, c.MetadataBlocks, c.NewNodes)
	if c.Read > want {
		t.Errorf("read %d bytes, the changed chunks and one neighbour a run have %d", c.Read, want)
	}
	if limit := int64(24 + 6*runs); c.MetadataBlocks > limit {
		t.Errorf("read %d metadata blocks for %d changed runs, at most %d", c.MetadataBlocks, runs, limit)
	}
	if limit := nodeBound(p, delta, r); c.NewNodes > limit {
		t.Errorf("wrote %d tree nodes, at most %d have changed", c.NewNodes, limit)
	}
	target := filepath.Join(t.TempDir(), "restored")
	if _, err := engine.Restore(t.Context(), r, incr.Backup, target, engine.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := sha256File(t, target); to.SHA256 != "" && got != to.SHA256 {
		t.Errorf("restored sha256 %s, want %s", got, to.SHA256)
	}
}

// nodeBound is how many tree nodes an incremental backup may write: the leaf of each span that a changed run touches, and
// the two levels of inner nodes that volumes of this size have.
func nodeBound(p *pool, delta poolDelta, r *chunkstore.Repository) int64 {
	spans := map[int64]bool{}
	for _, c := range delta.Changed {
		if c[2] == "same" {
			continue
		}
		off, n := int64(c[0].(float64))*p.BlockSize, int64(c[1].(float64))*p.BlockSize
		for s := off / int64(r.SpanBytes()); s <= (off+n-1)/int64(r.SpanBytes()); s++ {
			spans[s] = true
		}
	}
	if len(spans) == 0 {
		return 0
	}
	return int64(len(spans)) + 3
}

// readBound is how many bytes an incremental backup may read: the old and new chunks that touch a changed run, and the
// longest neighbour of each run.
func readBound(t *testing.T, p *pool, delta poolDelta, r *chunkstore.Repository, before, after *chunkstore.Backup) (bound int64, runs int) {
	for _, c := range delta.Changed {
		if c[2] == "same" {
			continue
		}
		runs++
		off := int64(c[0].(float64)) * p.BlockSize
		end := min(off+int64(c[1].(float64))*p.BlockSize, after.Blob.Size)
		lo, hi := off, end
		neighbour := int64(0)
		for _, b := range []*chunkstore.Backup{before, after} {
			for c, err := range r.OpenBlob(b.Blob).Chunks(t.Context(), off-1, end+1) {
				if err != nil {
					t.Fatal(err)
				}
				if c.Off < end && c.End() > off {
					lo, hi = min(lo, c.Off), max(hi, c.End())
				} else {
					neighbour = max(neighbour, int64(c.Len))
				}
			}
		}
		bound += hi - lo + neighbour
	}
	return bound, runs
}
