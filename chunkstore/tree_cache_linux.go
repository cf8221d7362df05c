package chunkstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// treeCache keeps records of tree nodes that this host stored or read, in a file for each pack, at the records' own offsets; the rest are
// holes. An incremental backup reads the nodes above what changed, of the backup before: on a host that made that one they are here, and
// cost no requests. A record's own checksum says whether it is there, so that nothing is synced or locked, and any number of
// processes may fill one file. A nil treeCache has nothing.
type treeCache struct {
	dir   string
	limit int64

	mu    sync.Mutex // guards added
	added int64      // bytes since the last sweep
}

const (
	treeCacheBytes = 1 << 30
	// treeSweep is how much is added between two looks at how much there is.
	treeSweep = 32 << 20
	// treeTouch is how old a file's time may get while it is in use.
	treeTouch = time.Minute
)

// newTreeCache opens the cache of a repository; nil when there is no folder for it.
func newTreeCache(dir, repoID string, limit int64) *treeCache {
	c := &treeCache{dir: filepath.Join(dir, repoID, "trees"), limit: limit}
	if dir == "" || os.MkdirAll(c.dir, 0o700) != nil {
		return nil
	}
	return c
}

func (c *treeCache) path(id packID) string { return filepath.Join(c.dir, id.String()) }

// read fills p with the record at off of a pack, if it is here.
func (c *treeCache) read(id packID, p []byte, off int64) bool {
	if c == nil {
		return false
	}
	f, err := os.Open(c.path(id))
	if err != nil {
		return false
	}
	defer f.Close()
	if _, err := f.ReadAt(p, off); err != nil || checkRecordSum(p) != nil {
		return false
	}
	if st, err := f.Stat(); err == nil && time.Since(st.ModTime()) > treeTouch {
		_ = os.Chtimes(f.Name(), time.Time{}, time.Now()) // else it leaves early
	}
	return true
}

// add keeps a part of a pack: records, verified by the caller. What cannot be kept is read from the repository again.
func (c *treeCache) add(id packID, p []byte, off int64) {
	if c == nil {
		return
	}
	f, err := os.OpenFile(c.path(id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	_, err = f.WriteAt(p, off)
	if errors.Join(err, f.Close()) != nil {
		return
	}
	c.mu.Lock()
	c.added += int64(len(p))
	sweep := c.added >= treeSweep
	if sweep {
		c.added = 0
	}
	c.mu.Unlock()
	if sweep {
		c.sweep()
	}
}

// sweep removes the files that were not used for the longest time when there is more than the limit, and an eighth more.
func (c *treeCache) sweep() {
	if c == nil {
		return
	}
	type file struct {
		path string
		size int64 // bytes that it takes
		mod  time.Time
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	var files []file
	total := int64(0)
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || !isHex(e.Name(), len(packID{})) {
			continue
		}
		size := st.Size()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			size = sys.Blocks * 512
		}
		files = append(files, file{filepath.Join(c.dir, e.Name()), size, st.ModTime()})
		total += size
	}
	if total <= c.limit {
		return
	}
	slices.SortFunc(files, func(a, b file) int { return a.mod.Compare(b.mod) })
	for _, f := range files {
		if total <= c.limit-c.limit/8 {
			return
		}
		if os.Remove(f.path) == nil {
			total -= f.size
		}
	}
}

// treeSource says how tree nodes are read under a context.
type treeSource struct {
	store bool      // from the repository itself: what this host has kept proves nothing of it
	bulk  *bulkTree // nil: each by itself
}

type treeSourceKey struct{}

// FromStore returns a context under which tree nodes are read from the repository also when this host has copies of them: for who wants to
// know whether the repository is sound.
func FromStore(ctx context.Context) context.Context {
	s := treeSourceOf(ctx)
	s.store = true
	return context.WithValue(ctx, treeSourceKey{}, s)
}

// inBulk returns a context under which packs of trees are read whole, for walks over most of what is in them.
func inBulk(ctx context.Context) context.Context {
	s := treeSourceOf(ctx)
	s.bulk = &bulkTree{packs: map[packID]*bulkPack{}}
	return context.WithValue(ctx, treeSourceKey{}, s)
}

func treeSourceOf(ctx context.Context) treeSource {
	s, _ := ctx.Value(treeSourceKey{}).(treeSource)
	return s
}

// bulkTree holds the packs of trees that a walk read last. One that comes again after it left is read record by record.
type bulkTree struct {
	mu    sync.Mutex // guards all below
	packs map[packID]*bulkPack
	order []packID // of those with data, the one used last at the end
}

type bulkPack struct {
	ready chan struct{} // closed when it was read
	data  []byte        // nil: it cannot be read whole, or has left
	err   error         // of reading it, unless it is missing or short
}

// bulkPacks is how many packs of trees are in memory.
const bulkPacks = 6

// readTree reads a record of a tree node from where it is nearest.
func (r *Repository) readTree(ctx context.Context, l location, p []byte) error {
	s := treeSourceOf(ctx)
	if !s.store && r.trees.read(l.pack.id, p, int64(l.off)) {
		return nil
	}
	if s.bulk != nil {
		if done, err := s.bulk.read(ctx, r, l, p); done || err != nil {
			return err
		}
	}
	err := r.be.ReadAt(ctx, l.pack.id.object(l.pack.kind), p, int64(l.off))
	if err == nil && s.bulk == nil && checkRecordSum(p) == nil {
		r.trees.add(l.pack.id, p, int64(l.off))
	}
	return err
}

// read fills p from the whole pack; false when the record is to be read by itself.
func (b *bulkTree) read(ctx context.Context, r *Repository, l location, p []byte) (bool, error) {
	if l.pack.size > treePackBytes+treePackBytes/2 {
		return false, nil
	}
	b.mu.Lock()
	pack := b.packs[l.pack.id]
	first := pack == nil
	if first {
		pack = &bulkPack{ready: make(chan struct{})}
		b.packs[l.pack.id] = pack
	}
	b.mu.Unlock()
	if first {
		data := make([]byte, l.pack.size)
		err := r.be.ReadAt(ctx, l.pack.id.object(l.pack.kind), data, 0)
		if err != nil {
			data = nil
		}
		if errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrShort) {
			err = nil // what is left of it may have the record
		}
		b.keep(l.pack.id, pack, data, err)
	}
	select {
	case <-pack.ready:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.order, l.pack.id); i >= 0 && i < len(b.order)-1 {
		b.order = append(slices.Delete(b.order, i, i+1), l.pack.id)
	}
	if pack.err != nil || int64(l.off) > int64(len(pack.data)) {
		return false, pack.err
	}
	return copy(p, pack.data[l.off:]) == len(p), nil
}

// keep puts a pack that was read into memory, in the place of the one that was not used for the longest time.
func (b *bulkTree) keep(id packID, pack *bulkPack, data []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pack.data, pack.err = data, err
	if err != nil {
		delete(b.packs, id) // the next one tries again
	}
	close(pack.ready)
	if data == nil {
		return
	}
	b.order = append(b.order, id)
	if len(b.order) > bulkPacks {
		b.packs[b.order[0]].data = nil
		b.order = b.order[1:]
	}
}
