package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// CheckLevel says how deep a check goes; each level includes those before.
type CheckLevel int

// Levels of a check.
const (
	CheckStructure CheckLevel = iota // records, trees, index; every pack exists in its full length
	CheckStored                      // and every stored byte has the checksum it was written with
	CheckData                        // and every chunk decompresses to bytes that have its ID
)

// CheckOptions are options of Check.
type CheckOptions struct {
	Level    CheckLevel
	Subset   Subset                  // of the packs that levels above structure read; the zero Subset is all of them
	Progress func(done, total int64) // bytes of packs read, at levels above structure; called from several goroutines; may be nil
}

// Damage is one thing that is wrong with a repository.
type Damage struct {
	Object  string         `json:"object"`
	Off     int64          `json:"off"` // bytes from the object's start
	Error   string         `json:"error"`
	Copies  int64          `json:"copies,omitempty"`  // records that it harms and that are read from another copy
	Touches []DamagedRange `json:"touches,omitempty"` // what backups lose by it
}

// DamagedRange is a part of a backup that cannot be read.
type DamagedRange struct {
	Volume string `json:"volume"`
	Backup string `json:"backup"`
	Range
}

// CheckReport is what a check looked at and found.
type CheckReport struct {
	Backups   int      `json:"backups"`
	Packs     int      `json:"packs"`
	Segments  int      `json:"segments"`
	Chunks    int64    `json:"chunks"`     // index entries
	Unused    int64    `json:"unused"`     // index entries that no backup refers to
	Unindexed int      `json:"unindexed"`  // packs that no index segment names; an interrupted backup leaves such
	Condemned int      `json:"condemned"`  // packs that a prune has condemned and not yet deleted
	Healed    int      `json:"healed"`     // local copies of segments that had gone bad and were fetched anew
	BytesRead int64    `json:"bytes_read"` // of packs
	Damage    []Damage `json:"damage"`

	Subset *SubsetReport `json:"subset,omitempty"` // when a subset was asked for
}

// Check examines the repository and reports what is damaged and which backups that touches. The error is of the check itself;
// damage is in the report.
func (r *Repository) Check(ctx context.Context, o CheckOptions) (*CheckReport, error) {
	c, err := r.check(ctx, o)
	if err != nil {
		return nil, err
	}
	defer releaseAll(c.segs)
	return &c.report, nil
}

// check is Check. The caller releases the segments.
func (r *Repository) check(ctx context.Context, o CheckOptions) (*check, error) {
	if err := o.Subset.validate(); err != nil {
		return nil, err
	}
	if o.Subset != (Subset{}) {
		o.Level = max(o.Level, CheckStored)
	}
	// Backups are listed first: what they need is in the index before them, also when others back up meanwhile.
	records, err := r.listBackups(ctx, prefixBackups)
	if err != nil {
		return nil, err
	}
	err = r.index.refresh(ctx)
	var segs []*segment
	var healed int
	if err == nil {
		segs, healed, err = r.index.whole(ctx)
	}
	if err != nil {
		if errors.Is(err, ErrCorrupt) {
			return nil, fmt.Errorf("the index cannot be read, 'repo reindex' makes it anew: %w", err)
		}
		return nil, err
	}
	c := &check{report: CheckReport{Damage: []Damage{}}, r: r, o: o, backupObjects: records, segs: segs, edges: map[key]struct{}{}}
	c.report.Healed = healed
	if err := c.run(ctx); err != nil {
		releaseAll(segs)
		return nil, err
	}
	return c, nil
}

func (c *check) run(ctx context.Context) error {
	c.trash = c.r.index.trashSet()
	if err := c.trash.err; err != nil {
		c.damage(prefixTrash, 0, err)
	}
	c.report.Segments = len(c.segs)
	for _, s := range c.segs {
		c.seen = append(c.seen, make([]atomic.Uint64, (s.count+63)/64))
		c.report.Chunks += int64(s.count)
	}
	for _, step := range []func(context.Context) error{c.keys, c.packs, c.content, c.backups, c.copies, c.repaired, c.unused} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

type check struct {
	r             *Repository
	o             CheckOptions
	backupObjects []string // names of the backup records
	segs          []*segment
	seen          [][]atomic.Uint64 // a bit for each entry of each segment: some backup refers to it
	edges         map[key]struct{}  // subtrees walked at the edge of a blob only; a path for each backup at most
	ok            map[packID]int64  // packs that are there, and their lengths
	trash         *trashSet
	gone          map[packID]struct{} // packs that a prune has deleted and the index, as we read it, still names
	objects       []backend.Object    // the packs listed

	short map[packID]shortPack // packs that are missing or have another length than the index says

	mu     sync.Mutex // guards all below
	report CheckReport
	bad    map[key][]badPlace // places where a record is not what was written, beside those in short packs
	lost   map[key]int        // records without a place, and tree nodes that cannot be read: by which Damage
}

// shortPack is a pack of which only the first size bytes are there.
type shortPack struct {
	size   int64
	damage int // its number in the report
}

type badPlace struct {
	pack   packID
	off    uint32
	damage int // its number in the report
}

// damage notes something wrong and returns its number in the report.
func (c *check) damage(object string, off int64, err error) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ce *CorruptError
	if errors.As(err, &ce) {
		object, off, err = ce.Object, ce.Off, ce.Err
	}
	c.report.Damage = append(c.report.Damage, Damage{Object: object, Off: off, Error: err.Error()})
	return len(c.report.Damage) - 1
}

// damageLost notes damage of the record of id, which nobody can read.
func (c *check) damageLost(id *ID, object string, off int64, err error) int {
	n := c.damage(object, off, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost == nil {
		c.lost = map[key]int{}
	}
	c.lost[id.key()] = n
	return n
}

// packs checks that every pack that the index names is there in its full length.
func (c *check) packs(ctx context.Context) error {
	c.ok = map[packID]int64{}
	err := c.r.be.List(ctx, prefixPacks, func(o backend.Object) error {
		if id, _, ok := parsePackObject(o.Name); ok {
			c.ok[id] = o.Size
			c.objects = append(c.objects, o)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list packs: %w", err)
	}
	c.report.Packs = len(c.objects)
	for id := range c.ok {
		if c.trash.condemned(id) {
			c.report.Condemned++
		}
	}
	c.gone = map[packID]struct{}{}
	c.short = map[packID]shortPack{}
	named := map[packID]struct{}{}
	for _, s := range c.segs {
		for i := range s.packs {
			p := s.pack(i)
			if _, ok := named[p.id]; ok {
				continue
			}
			named[p.id] = struct{}{}
			size, ok := c.ok[p.id]
			if !ok { // a listing may be older than the index
				var err error
				if size, ok, err = c.stat(ctx, &p); err != nil {
					return err
				}
			}
			if !ok && c.pruned(ctx, p.id) {
				c.gone[p.id] = struct{}{}
			} else if !ok {
				c.short[p.id] = shortPack{0, c.damage(p.id.object(p.kind), 0, errors.New("pack is missing"))}
			} else if size != p.size {
				n := c.damage(p.id.object(p.kind), min(size, p.size), fmt.Errorf("pack has %d bytes, the index says %d", size, p.size))
				c.short[p.id] = shortPack{size, n}
			}
		}
	}
	for id := range c.ok {
		if _, ok := named[id]; !ok {
			c.report.Unindexed++
		}
	}
	return ctx.Err()
}

// stat looks for a pack that was not listed.
func (c *check) stat(ctx context.Context, p *packRef) (size int64, ok bool, err error) {
	o, err := c.r.be.Stat(ctx, p.id.object(p.kind))
	if errors.Is(err, backend.ErrNotExist) {
		return 0, false, nil
	}
	return o.Size, err == nil, err
}

// pruned says whether a pack that is not there was condemned.
func (c *check) pruned(ctx context.Context, id packID) bool {
	if !c.trash.condemned(id) {
		if trash, err := c.r.index.refreshTrash(ctx); err == nil { // perhaps since we began
			c.trash = trash
		}
	}
	return c.trash.condemned(id)
}

// content reads every pack, when the level asks for it.
func (c *check) content(ctx context.Context) error {
	if c.o.Level < CheckStored {
		return nil
	}
	for _, s := range c.segs { // until here a cached copy stood in for the object
		if _, err := c.r.readObject(ctx, s.name, kindIndex); errors.Is(err, ErrCorrupt) {
			c.damage(s.name, 0, err)
		} else if err != nil && !errors.Is(err, backend.ErrNotExist) {
			return err
		}
	}
	if c.o.Subset != (Subset{}) {
		return c.subset(ctx)
	}
	_, err := c.readPacks(ctx, c.objects)
	return err
}

// readPacks checks what these packs hold. It returns how many at the front are done.
func (c *check) readPacks(ctx context.Context, objects []backend.Object) (front int, err error) {
	var total int64
	for _, o := range objects {
		total += o.Size
	}
	var done atomic.Int64
	read := make([]atomic.Bool, len(objects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.r.atOnce)
	for i, o := range objects {
		g.Go(func() error {
			if err := c.pack(ctx, o); err != nil {
				return err
			}
			read[i].Store(true)
			if n := done.Add(o.Size); c.o.Progress != nil {
				c.o.Progress(n, total)
			}
			return nil
		})
	}
	err = g.Wait()
	c.report.BytesRead = done.Load()
	for front < len(read) && read[front].Load() {
		front++
	}
	return front, err
}

// pack checks one pack's bytes. Its error is one of reading at all.
func (c *check) pack(ctx context.Context, o backend.Object) error {
	if o.Size > maxPackLen {
		c.damage(o.Name, 0, fmt.Errorf("%d bytes cannot be a pack", o.Size))
		return nil
	}
	t, _, err := c.r.readPackTable(ctx, o.Name)
	if errors.Is(err, backend.ErrNotExist) {
		return nil // went meanwhile, or noted as missing
	}
	if errors.Is(err, ErrCorrupt) || errors.Is(err, backend.ErrShort) {
		c.damage(o.Name, 0, err) // the records may be sound all the same; the index still finds them
		return c.indexedRecords(ctx, o)
	}
	if err != nil {
		return err
	}
	return c.records(ctx, o, t)
}

// indexedRecords checks the records of a pack whose own table is unusable, as far as the index knows them.
func (c *check) indexedRecords(ctx context.Context, o backend.Object) error {
	id, _, _ := parsePackObject(o.Name)
	var entries []tableEntry
	for _, s := range c.segs {
		for n := range s.packs {
			if s.pack(n).id == id {
				entries = s.appendPackEntries(entries, uint32(n))
			}
		}
	}
	slices.SortFunc(entries, func(a, b tableEntry) int { return cmp.Compare(a.off, b.off) })
	return c.sums(ctx, o, entries)
}

// appendPackEntries appends the entries of the segment's pack number n; of each ID only the key is known.
func (s *segment) appendPackEntries(entries []tableEntry, n uint32) []tableEntry {
	for i := range s.count {
		if e := s.entryAt(i); e.pack == n {
			t := tableEntry{off: e.off, stored: e.stored, raw: e.raw, codec: e.codec}
			copy(t.id[:], e.key[:])
			entries = append(entries, t)
		}
	}
	return entries
}

// sums checks only the checksums: of these entries the whole ID is not known.
func (c *check) sums(ctx context.Context, o backend.Object, entries []tableEntry) error {
	buf := c.r.bufs.get(c.r.cfg.MaxChunk)
	defer c.r.bufs.put(buf)
	for i := range entries {
		e := &entries[i]
		if int64(e.off)+int64(e.stored) > o.Size {
			continue // known to be lost
		}
		*buf = slices.Grow((*buf)[:0], int(e.stored))[:e.stored]
		err := c.r.be.ReadAt(ctx, o.Name, *buf, int64(e.off))
		if err == nil {
			err = checkRecordSum(*buf)
		} else if !errors.Is(err, backend.ErrShort) {
			return err
		}
		if err != nil {
			c.badRecord(e, o, err)
		}
	}
	return nil
}

// badRecord notes a record that is not what was written.
func (c *check) badRecord(e *tableEntry, o backend.Object, err error) {
	id, _, _ := parsePackObject(o.Name)
	n := c.damage(o.Name, int64(e.off), err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bad == nil {
		c.bad = map[key][]badPlace{}
	}
	k := e.id.key()
	c.bad[k] = append(c.bad[k], badPlace{id, e.off, n})
}

// records checks the records of a pack, some megabytes at a time.
func (c *check) records(ctx context.Context, o backend.Object, t *packTable) error {
	bx, err := c.r.box(ctx, t.header.kind, t.header.salt)
	if err != nil {
		return err
	}
	entries, sound := t.entries, true
	var body xxhash.Digest
	body.Reset()
	buf, plain := c.r.bufs.get(batchMax), c.r.bufs.get(c.r.cfg.MaxChunk)
	defer c.r.bufs.put(buf)
	defer c.r.bufs.put(plain)
	for len(entries) > 0 {
		n, from := 1, entries[0].off
		for n < len(entries) && entries[n].off+entries[n].stored-from <= batchMax {
			n++
		}
		end := entries[n-1].off + entries[n-1].stored
		*buf = slices.Grow((*buf)[:0], int(end-from))[:end-from]
		if err := c.r.be.ReadAt(ctx, o.Name, *buf, int64(from)); errors.Is(err, backend.ErrNotExist) && c.pruned(ctx, t.id) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read %s at %d: %w", o.Name, from, err)
		}
		for i := range entries[:n] {
			e := &entries[i]
			if err := c.record((*buf)[e.off-from:][:e.stored], bx, e, o, plain); err != nil {
				sound = false
				c.badRecord(e, o, err)
			}
			_, _ = body.Write((*buf)[e.off-from:][:8])
		}
		entries = entries[n:]
	}
	if sound && body.Sum64() != t.trailer.bodySum {
		c.damage(o.Name, int64(t.trailer.tableOff), errors.New("records are not those that the trailer vouches for"))
	}
	return nil
}

func (c *check) record(rec []byte, bx box, e *tableEntry, o backend.Object, plain *[]byte) (err error) {
	if c.o.Level < CheckData {
		return checkRecordSum(rec)
	}
	if *plain, err = c.r.decodeRecord((*plain)[:0], rec, bx, e); err != nil {
		return err
	}
	h := c.r.chunkIDs
	if _, kind, _ := parsePackObject(o.Name); kind == kindTree {
		h = c.r.nodeIDs
	}
	var id ID
	if h.id(&id, *plain); id != e.id {
		return errors.New("content does not match its ID")
	}
	return nil
}
