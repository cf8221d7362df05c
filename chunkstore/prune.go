package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// PruneOptions say what Prune may do.
type PruneOptions struct {
	// Grace is how long condemned packs stay. A prune deletes what one at least that long ago condemned, by the store's clock. 0
	// deletes at once: only when nobody else writes to the repository.
	Grace time.Duration
	// MaxUnused is the part of all packs' bytes, 0 to 1, that may stay unused in packs that are in use: to give such bytes back, what
	// is in use beside them is copied. The packs with most waste come first.
	MaxUnused float64
	// DryRun: only say what would be done. Nothing is written, not even the lock.
	DryRun bool
	// BreakLock: take the lock even if its holder may be alive.
	BreakLock bool
	// Progress is called from several goroutines, with what is being done, and how far it is; may be nil.
	Progress func(what string, done, total int64)
}

// DefaultGrace is long enough for backups of a day and clocks of hosts that disagree; DefaultMaxUnused for a cost that follows the
// garbage.
const (
	DefaultGrace     = 24 * time.Hour
	DefaultMaxUnused = 0.1
)

// PruneReport is what a prune did, or would do.
type PruneReport struct {
	DryRun    bool       `json:"dry_run"`
	Backups   int        `json:"backups"`
	Packs     Usage      `json:"packs"`      // all there were at the beginning
	Needed    int64      `json:"needed"`     // bytes of records that backups need, each counted once
	Freed     Usage      `json:"freed"`      // packs deleted
	Condemned Usage      `json:"condemned"`  // packs condemned now, to be deleted by a prune after FreeAfter; with no grace they are freed
	Waiting   Usage      `json:"waiting"`    // packs condemned by earlier prunes, whose grace is not over
	FreeAfter *time.Time `json:"free_after"` // when the first grace of those that stay ends, by the store's clock; null: none does
	Repacked  Usage      `json:"repacked"`   // packs whose needed records were copied, so that the rest can go; they are condemned
	Copied    int64      `json:"copied"`     // bytes of records copied for that
	Rescued   int64      `json:"rescued"`    // bytes of records copied out of condemned packs, because a backup came to need them
	Young     Usage      `json:"young"`      // unused packs that are not older than the grace: a backup under way may have made them
	Unused    int64      `json:"unused"`     // bytes not needed that stay in packs that are in use
	Stale     Usage      `json:"stale"`      // remains of broken-off writes, removed
	Segments  int        `json:"segments"`   // index segments written
	Locked    Usage      `json:"locked"`     // packs that would be condemned or deleted, but an object lock keeps
	Damage    []Damage   `json:"damage"`     // packs that could not be copied and were left
}

// Prune gives back the space of what no backup needs, in two phases: packs are condemned by one prune and deleted by a later one, when
// the grace is over. Backups may run meanwhile, on any host. When it is interrupted, the next one goes on. What backups need and
// cannot be found is an error (ErrCorrupt or ErrNotFound), and then nothing is deleted. ErrLocked: another prune is running.
func (r *Repository) Prune(ctx context.Context, o PruneOptions) (_ *PruneReport, err error) {
	if o.Grace < 0 || o.MaxUnused < 0 || o.MaxUnused > 1 {
		return nil, fmt.Errorf("grace of %v and %g unused: neither may be negative, nor the second above 1", o.Grace, o.MaxUnused)
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	p := &prune{r: r, o: o, now: time.Now()}
	p.report.DryRun, p.report.Damage = o.DryRun, []Damage{}
	defer func() { releaseAll(p.segs) }()
	if !o.DryRun {
		lock, err := r.lockPrune(ctx, o.BreakLock)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, lock.release()) }()
		p.now = lock.taken
	}
	if err := p.run(ctx); err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	return &p.report, nil
}

// prune is one run.
type prune struct {
	r      *Repository
	o      PruneOptions
	now    time.Time // by the store's clock, before anything was listed; of a dry run by this host's
	report PruneReport

	records []string // names of the backup records
	trash   *trashSet
	segs    []*segment
	packs   map[packID]*prunedPack
	uses    [][]*prunedPack      // by segment and its pack number; nil: there is no such pack
	seen    [][]atomic.Uint64    // a bit for each entry of each segment: some backup needs it, and it is the place to keep
	shared  [][]uint64           // a bit for each entry of each segment: another segment has its key too
	roots   map[key]struct{}     // of all backups
	mu      sync.Mutex           // guards keep and the report's damage while packs are copied
	keep    map[packID]struct{}  // packs that could not be copied
	locker  backend.ObjectLocker // nil: there are no locks
}

// prunedPack is a pack and what becomes of it.
type prunedPack struct {
	id        packID
	kind      packKind
	size      int64
	mod       time.Time // by the store's clock
	condemned bool      // by an earlier prune
	damaged   bool      // and by a repair: what is needed of it is best taken from elsewhere
	due       bool      // and its grace is over
	named     bool      // by the index
	live      int64     // bytes of records to keep
	records   int64     // their number
	sealing   int64     // bytes that sealing adds to the table
}

func (p *prunedPack) object() string { return p.id.object(p.kind) }

// waste is what copying the pack's live records would give back, in bytes.
func (p *prunedPack) waste() int64 {
	return max(0, p.size-p.live-p.records*tableEntryLen-p.sealing-packHeaderLen-recordHeaderLen-trailerLen)
}

func (p *prune) run(ctx context.Context) error {
	if err := p.look(ctx); err != nil {
		return err
	}
	locker, err := p.r.locker(ctx)
	if err != nil {
		return err
	}
	p.locker = locker
	if err := p.mark(ctx); err != nil {
		return err
	}
	dead, repack, rescue := p.plan()
	if dead, err = p.unlocked(ctx, dead); err == nil {
		repack, err = p.unlocked(ctx, repack)
	}
	if err != nil {
		return err
	}
	if p.o.DryRun {
		p.foretell(dead, repack)
		return nil
	}
	// What backups need is durable elsewhere before anything is condemned or deleted.
	if err := p.copyOut(ctx, repack, rescue); err != nil {
		return err
	}
	for _, pack := range repack {
		if _, kept := p.keep[pack.id]; !kept {
			dead = append(dead, pack)
			p.report.Repacked.add(pack.size)
		}
	}
	if err := p.condemn(ctx, dead); err != nil {
		return err
	}
	if p.o.Grace == 0 {
		for _, pack := range dead {
			pack.due = true
		}
	}
	if err := p.sweep(ctx); err != nil {
		return err
	}
	if err := p.r.removeProbes(ctx, p.now); err != nil {
		return err
	}
	if s, ok := backend.As[backend.StaleRemover](p.r.be); ok {
		var err error
		if p.report.Stale.Objects, p.report.Stale.Bytes, err = s.RemoveStale(ctx, backend.StaleAge); err != nil {
			return fmt.Errorf("remove remains of broken-off writes: %w", err)
		}
	}
	return nil
}

// plan says which packs nobody needs, which are worth copying, and out of which condemned ones something is needed.
func (p *prune) plan() (dead, repack, rescue []*prunedPack) {
	var total, unused int64
	for _, pack := range p.packs {
		p.report.Packs.add(pack.size)
		p.report.Needed += pack.live
		switch {
		case pack.condemned:
			if pack.live > 0 {
				rescue = append(rescue, pack)
			}
		case pack.live == 0 && p.young(pack):
			p.report.Young.add(pack.size)
		case pack.live == 0:
			dead = append(dead, pack)
		default:
			total += pack.size
			unused += pack.waste()
			if !p.young(pack) {
				repack = append(repack, pack)
			}
		}
	}
	slices.SortFunc(repack, func(a, b *prunedPack) int { // most waste for its size first
		return cmp.Or(cmp.Compare(float64(b.waste())/float64(b.size), float64(a.waste())/float64(a.size)), slices.Compare(a.id[:], b.id[:]))
	})
	n := 0
	for ; n < len(repack) && unused > int64(p.o.MaxUnused*float64(total)); n++ {
		if repack[n].waste() < repack[n].size/leastWaste {
			break
		}
		unused -= repack[n].waste()
	}
	p.report.Unused = unused
	for _, packs := range [][]*prunedPack{dead, rescue} {
		slices.SortFunc(packs, func(a, b *prunedPack) int { return slices.Compare(a.id[:], b.id[:]) })
	}
	return dead, repack[:n], rescue
}

// leastWaste: a pack is never copied for less than this part of it.
const leastWaste = 200

// young: a backup under way may have made the pack, and not yet said so.
func (p *prune) young(pack *prunedPack) bool {
	return pack.mod.Add(p.o.Grace).After(p.now) && p.o.Grace > 0 && !p.r.off.young
}

// foretell fills in the report of a dry run.
func (p *prune) foretell(dead, repack []*prunedPack) {
	for _, pack := range repack {
		p.report.Repacked.add(pack.size)
		p.report.Copied += pack.live
	}
	for _, pack := range slices.Concat(dead, repack) {
		if p.o.Grace == 0 {
			p.report.Freed.add(pack.size)
		} else {
			p.report.Condemned.add(pack.size)
		}
	}
	for _, pack := range p.packs {
		if pack.condemned {
			p.report.Rescued += pack.live
		}
		if pack.due {
			p.report.Freed.add(pack.size)
		}
	}
	p.waiting()
	if p.report.Condemned.Objects > 0 {
		p.freeAfter(p.now)
	}
}

// waiting reports what earlier prunes condemned and stays.
func (p *prune) waiting() {
	stays := map[packID]bool{}
	for id, pack := range p.packs {
		if pack.condemned && !pack.due {
			p.report.Waiting.add(pack.size)
			stays[id] = true
		}
	}
	for _, t := range p.trash.lists {
		if slices.ContainsFunc(t.Packs, func(c trashedPack) bool { id, _, _ := parsePackObject(c.Object); return stays[id] }) {
			p.freeAfter(t.mod)
		}
	}
}

// freeAfter reports that packs condemned at a time may go a grace later.
func (p *prune) freeAfter(condemned time.Time) {
	at := condemned.Add(p.o.Grace).UTC()
	if p.report.FreeAfter == nil || at.Before(*p.report.FreeAfter) {
		p.report.FreeAfter = &at
	}
}

// condemn writes the trash list.
func (p *prune) condemn(ctx context.Context, dead []*prunedPack) error {
	if len(dead) == 0 {
		return nil
	}
	host, _ := os.Hostname() // for people
	t := &trashList{Version: trashVersion, Time: time.Now().UTC(), Host: host, Known: p.trash.names()}
	for _, k := range sortedKeys(p.roots) {
		t.Roots = append(t.Roots, k[:]...)
	}
	for _, pack := range dead {
		t.Packs = append(t.Packs, trashedPack{Object: pack.object(), Size: pack.size})
		if p.o.Grace > 0 {
			p.report.Condemned.add(pack.size)
		}
	}
	name, err := p.r.putTrash(ctx, t)
	if err != nil {
		return err
	}
	if p.o.Grace > 0 {
		o, err := p.r.be.Stat(ctx, name)
		if err != nil {
			return fmt.Errorf("look at the trash list just written: %w", err)
		}
		p.freeAfter(o.ModTime)
	}
	return nil
}
