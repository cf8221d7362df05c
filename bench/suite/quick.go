package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/thintest"
)

// quick counts one small workload, single-threaded: backup, scan, incremental, restore, verify, open, on the same data on
// every machine.
type quick struct {
	counts []count
	dir    string
	v1, v2 []byte
	began  time.Time
	took   []step // for the reader; never judged
}

type step struct {
	name string
	wall time.Duration
}

const (
	quickSize = 96 << 20
	quickSeed = 1
)

// runQuick prints the counts beside the baseline and fails when one rose.
func runQuick(ctx context.Context, o options, out io.Writer) error {
	base, err := readBaseline()
	if err != nil {
		return err
	}
	q := quick{}
	if q.dir, err = os.MkdirTemp(o.dir, "shale-bench"); err != nil {
		return err
	}
	defer os.RemoveAll(q.dir)
	begin := time.Now()
	if err := q.run(ctx); err != nil {
		return err
	}
	if o.update != "" {
		return writeBaseline(o.update, q.counts)
	}
	worse := compareCounts(out, q.counts, base)
	for _, s := range q.took {
		fmt.Fprintf(out, "%s: %.2f s\n", s.name, s.wall.Seconds())
	}
	fmt.Fprintf(out, "%d counts in %.1f s\n", len(q.counts), time.Since(begin).Seconds())
	if worse > 0 {
		return fmt.Errorf("%d counts are worse than the baseline; if that is meant, bench/run --quick --update records them", worse)
	}
	return nil
}

func (q *quick) run(ctx context.Context) error {
	pieces := planImage(quickSeed, quickSize)
	q.v1 = make([]byte, quickSize)
	if err := writePieces(imageBytes(q.v1), pieces); err != nil {
		return err
	}
	q.v2 = bytes.Clone(q.v1)
	if err := writePieces(imageBytes(q.v2), planChange(quickSeed, quickSize, pieces)); err != nil {
		return err
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // pools are emptied by each collection, which would blur the allocations
	for _, f := range []func(context.Context) error{q.images, q.s2, q.thin, q.metadata, q.many, q.putChunk} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (q *quick) begin() { q.began = time.Now() }

func (q *quick) end(name string) { q.took = append(q.took, step{name, time.Since(q.began)}) }

// images backs up both images with nothing known, restores and verifies.
func (q *quick) images(ctx context.Context) error {
	r, err := newCountedRepository(ctx, chunkstore.InitOptions{PackBytes: 4 << 20})
	if err != nil {
		return err
	}
	defer r.Close()
	first, err := q.backup(ctx, "first backup", r, &memorySource{img: q.v1}, "image")
	if err != nil {
		return err
	}
	if _, err := q.backup(ctx, "scan, nothing changed", r, &memorySource{img: q.v1}, "image"); err != nil {
		return err
	}
	second, err := q.backup(ctx, "scan, 1 % changed", r, &memorySource{img: q.v2}, "image")
	if err != nil {
		return err
	}
	if err := q.restore(ctx, r, first.Backup, second.Backup); err != nil {
		return err
	}
	if err := q.verify(ctx, r, second.Backup); err != nil {
		return err
	}
	return q.reads(ctx, r, second.Backup)
}

// backup counts one backup.
func (q *quick) backup(ctx context.Context, name string, r *countedRepository, from source.Opener, volume string) (*engine.BackupResult, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	q.begin()
	res, err := engine.Backup(ctx, r.Repository, from, engine.BackupOptions{Volume: volume, Workers: 1, Host: "host"})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	q.end(name)
	runtime.ReadMemStats(&after)
	reads, writes, lists, readBytes, _ := r.requests()
	c := res.Backup.Counts
	q.add(name, "bytes read of the source", c.Read, exact)
	q.add(name, "chunks cut", c.Chunks, exact)
	q.add(name, "new bytes", c.New, exact)
	q.add(name, "new tree nodes", c.NewNodes, exact)
	q.add(name, "bytes stored", res.Writer.Stored, within(0.002, 512))
	q.add(name, "objects stored", res.Writer.Objects, exact)
	q.add(name, "requests that write", writes, exact)
	q.add(name, "requests that read", reads, exact)
	q.add(name, "requests that list", lists, exact)
	q.add(name, "bytes read of the repository", readBytes, within(0.01, 512))
	q.add(name, "allocations", int64(after.Mallocs-before.Mallocs), within(0.10, 200))
	return res, nil
}

// s2 is the first backup with the faster codec.
func (q *quick) s2(ctx context.Context) error {
	r, err := newCountedRepository(ctx, chunkstore.InitOptions{Compression: "s2"})
	if err != nil {
		return err
	}
	defer r.Close()
	res, err := engine.Backup(ctx, r.Repository, &memorySource{img: q.v1}, engine.BackupOptions{Volume: "image", Workers: 1})
	if err != nil {
		return err
	}
	q.add("first backup, s2", "bytes stored", res.Writer.Stored, within(0.002, 512))
	return nil
}

// thin backs up a thin pool's snapshots; the second must have the root that a full scan gives.
func (q *quick) thin(ctx context.Context) error {
	pool, err := makeThinPool(filepath.Join(q.dir, "meta"), filepath.Join(q.dir, "data"), quickSeed, bytes.NewReader(q.v1), bytes.NewReader(q.v2), quickSize)
	if err != nil {
		return err
	}
	r, err := newCountedRepository(ctx, chunkstore.InitOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	from := func(device uint32, base *uint32) source.Opener {
		return source.ThinPool(source.ThinPoolOptions{Metadata: pool.meta, Data: pool.data, Device: device, Base: base, Size: pool.size})
	}
	first, err := q.backup(ctx, "thin, first", r, from(pool.before, nil), "volume")
	if err != nil {
		return err
	}
	q.add("thin, first", "metadata blocks", first.Backup.Counts.MetadataBlocks, exact)
	second, err := q.backup(ctx, "thin, 1 % changed", r, from(pool.then, &pool.before), "volume")
	if err != nil {
		return err
	}
	q.add("thin, 1 % changed", "metadata blocks", second.Backup.Counts.MetadataBlocks, exact)
	if second.Parent != first.Backup.ID {
		return fmt.Errorf("thin: the second backup was not compared with the first: %s", second.Reason)
	}
	full, err := engine.Backup(ctx, r.Repository, &memorySource{img: q.v2}, engine.BackupOptions{Volume: "image", Workers: 1})
	if err != nil {
		return err
	}
	if full.Backup.Blob != second.Backup.Blob {
		return fmt.Errorf("thin: the incremental backup has root %s, a full scan of the same content %s", second.Backup.Blob.Root, full.Backup.Blob.Root)
	}
	return nil
}

// metadata is the difference of two snapshots with many mappings.
func (q *quick) metadata(ctx context.Context) error {
	const mappings, changed = 1 << 20, 500
	var m thintest.Memory
	p := thintest.New(&m, thintest.Config{DataBlocks: 2 * mappings})
	if err := p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		for b := range uint64(mappings) {
			if !yield(thintest.Mapping{Thin: b, Data: b/64*64 ^ b%64}) {
				return
			}
		}
	}); err != nil {
		return err
	}
	if err := p.Snapshot(2, 1); err != nil {
		return err
	}
	for i := range uint64(changed) {
		if err := p.Map(1, (i*2654435761)%mappings, mappings+i); err != nil {
			return err
		}
	}
	if err := p.Commit(); err != nil {
		return err
	}
	r, err := thin.NewReader(&m, int64(p.MetaBlocks())*thintest.BlockSize, thin.Options{})
	if err != nil {
		return err
	}
	q.begin()
	found := uint64(0)
	for c, err := range r.Diff(ctx, 2, 1, thin.DiffOptions{}) {
		if err != nil {
			return err
		}
		found += c.Len
	}
	q.end("thin difference of 2^20 mappings")
	if found != changed {
		return fmt.Errorf("metadata: %d blocks differ, not %d", found, changed)
	}
	q.add("thin difference, 500 of 2^20 mappings", "metadata blocks", int64(r.Stats().BlocksRead), exact)
	return nil
}
