package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// RepairOptions say what Repair may do.
type RepairOptions struct {
	// Level is that of the check that looks for damage. What it does not find is not repaired.
	Level CheckLevel
	// From are places where lost content may be found, in the order in which they are asked.
	From []RepairSource
	// DryRun: only say what would be done. Sources are read all the same, and nothing is written.
	DryRun bool
	// BreakLock: take the lock of prunes even if its holder may be alive.
	BreakLock bool
	// Alone: no backup runs anywhere. Then trash lists that cannot be read are removed; otherwise only those older than any backup
	// under way can be.
	Alone bool
	// Force: go on even if a large part of all packs is damaged or missing, as when part of the store is not mounted.
	Force bool
	// Progress is called from several goroutines, with what is being done, and how far it is; may be nil.
	Progress func(what string, done, total int64)
}

// RepairReport is what a repair did, or would do.
type RepairReport struct {
	DryRun    bool          `json:"dry_run"`
	Backups   int           `json:"backups"`   // listed
	Packs     int           `json:"packs"`     // in the repository at the beginning
	Damage    []Damage      `json:"damage"`    // found
	Reindexed bool          `json:"reindexed"` // the index was made anew, for it could not be read
	Indexed   int           `json:"indexed"`   // packs that were put in the index again
	Objects   []string      `json:"objects"`   // records and names that were written anew, and trash lists that were removed
	Salvaged  Salvage       `json:"salvaged"`  // taken out of damaged packs
	Found     []RepairFound `json:"found"`     // by source, in their order
	Condemned Usage         `json:"condemned"` // damaged packs that now wait for a prune to delete them; 0 bytes of those that are missing
	Lost      []LostBackup  `json:"lost"`      // what still cannot be read
	Left      []Damage      `json:"left"`      // what else is still damaged
}

// Salvage counts what was stored anew.
type Salvage struct {
	Chunks int64 `json:"chunks"`
	Nodes  int64 `json:"nodes"` // of trees
	Bytes  int64 `json:"bytes"` // plain
}

// RepairFound is what a source gave back.
type RepairFound struct {
	Source string `json:"source"`
	Salvage
}

// LostBackup is a backup that cannot be read whole.
type LostBackup struct {
	Volume string  `json:"volume"`
	Backup string  `json:"backup"`
	Bytes  int64   `json:"bytes"`
	Ranges []Range `json:"ranges"` // ascending
}

// ErrMuchDamage: so much is missing that it looks as if the store is not all there.
var ErrMuchDamage = errors.New("a large part of all packs is damaged or missing")

const (
	// muchDamage is how many damaged packs, and which part of all, make Repair ask.
	muchDamage     = 32
	muchDamagePart = 4
)

// Repair re-creates what can be: the index, copies of chunks and nodes out of damaged packs, and what is lost from sources that have
// the same content. Damaged packs are condemned, and what nobody can read is taken out of the index, so that the next backup that
// meets it stores it again. No backup record is deleted. Other hosts may write meanwhile, and a prune may run: what Repair relies on is
// written by a Writer, and damaged packs go as a prune's do (docs/adr/0007). When it is interrupted, the next one goes on.
func Repair(ctx context.Context, be backend.Backend, o Options, ro RepairOptions) (_ *RepairReport, err error) {
	if ro.Progress == nil {
		ro.Progress = func(string, int64, int64) {}
	}
	if ro.DryRun {
		be, o.CacheDir = newRehearsal(be), ""
	}
	r, reindexed, err := openToRepair(ctx, be, o, ro)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p := &repair{r: r, o: ro, report: RepairReport{
		DryRun: ro.DryRun, Reindexed: reindexed, Damage: []Damage{}, Objects: []string{}, Found: []RepairFound{}, Lost: []LostBackup{}, Left: []Damage{},
	}}
	if !ro.DryRun {
		lock, err := r.lockPrune(ctx, ro.BreakLock)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, lock.release()) }()
	}
	if err := p.run(ctx); err != nil {
		return nil, fmt.Errorf("repair: %w", err)
	}
	return &p.report, nil
}

// openToRepair opens the repository, and makes its index anew when that cannot be read.
func openToRepair(ctx context.Context, be backend.Backend, o Options, ro RepairOptions) (r *Repository, reindexed bool, err error) {
	if r, err = openWithoutIndex(ctx, be, o); err != nil {
		return nil, false, err
	}
	if err = r.index.refresh(ctx); err == nil {
		var segs []*segment
		segs, _, err = r.index.whole(ctx)
		releaseAll(segs)
	}
	if err == nil {
		return r, false, nil
	}
	if err = errors.Join(err, r.Close()); !errors.Is(err, ErrCorrupt) {
		return nil, false, err
	}
	if r, err = openWithoutIndex(ctx, be, o); err != nil {
		return nil, false, err
	}
	if _, err = r.reindex(ctx, func(done, total int) { ro.Progress("reindex", int64(done), int64(total)) }); err != nil {
		return nil, false, errors.Join(err, r.Close())
	}
	return r, true, nil
}

// repair is one run.
type repair struct {
	r      *Repository
	o      RepairOptions
	report RepairReport

	check *check                         // what is damaged
	void  map[packID]*damagedPack        // packs that are to go
	w     *Writer                        // stores what is found
	limit int                            // maxWanted, but for tests
	tried map[*RepairSource]*RepairFound // what each source gave

	mu sync.Mutex // guards the counts of the report while sources are read
}

type damagedPack struct {
	object    string
	size      int64 // bytes that are there
	condemned bool  // as damaged, by an earlier repair
}

func (p *repair) run(ctx context.Context) error {
	if err := p.objects(ctx); err != nil {
		return err
	}
	if err := p.look(ctx); err != nil {
		return err
	}
	defer func() { releaseAll(p.check.segs) }()
	p.report.Packs = p.check.report.Packs
	if err := p.examine(); err != nil {
		return err
	}
	if len(p.report.Damage) > 0 {
		if err := p.mend(ctx); err != nil {
			return err
		}
	}
	return p.sum(ctx)
}

// look checks the repository. What the index lacks is looked for in the tables of all packs first: a segment may be lost.
func (p *repair) look(ctx context.Context) error {
	c, err := p.r.check(ctx, CheckOptions{Level: CheckStructure})
	if err != nil {
		return err
	}
	for range maxLevel + 2 { // a node that comes back may show that those below it are missing too
		if len(c.lost) == 0 {
			break
		}
		n, err := p.indexAgain(ctx)
		if err != nil {
			releaseAll(c.segs)
			return err
		}
		if n == 0 {
			break
		}
		p.report.Indexed += n
		releaseAll(c.segs)
		if c, err = p.r.check(ctx, CheckOptions{Level: CheckStructure}); err != nil {
			return err
		}
	}
	if p.o.Level > CheckStructure {
		releaseAll(c.segs)
		c, err = p.r.check(ctx, CheckOptions{Level: p.o.Level, Progress: func(done, total int64) { p.o.Progress("check", done, total) }})
		if err != nil {
			return err
		}
	}
	p.check = c
	return nil
}

// indexAgain puts the packs in the index that have records which it lacks, and returns their number.
func (p *repair) indexAgain(ctx context.Context) (int, error) {
	var packs []string
	err := p.r.be.List(ctx, prefixPacks, func(o backend.Object) error {
		packs = append(packs, o.Name)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("list packs: %w", err)
	}
	trash := p.r.index.trashSet()
	found := 0
	for i, object := range packs {
		p.o.Progress("tables", int64(i), int64(len(packs)))
		id, kind, ok := parsePackObject(object)
		if !ok || trash.damaged(id) {
			continue
		}
		t, size, err := p.r.readPackTable(ctx, object)
		if errors.Is(err, ErrCorrupt) || errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrShort) {
			continue // a check tells of it
		}
		if err != nil {
			return found, fmt.Errorf("read table of %s: %w", object, err)
		}
		if !slices.ContainsFunc(t.entries, func(e tableEntry) bool { k := e.id.key(); _, ok := p.r.index.lookup(&k); return !ok }) {
			continue
		}
		found++
		if p.r.index.addPending(packRef{id: id, salt: t.header.salt, kind: kind, size: size}, t.entries) >= maxPending {
			if _, err := p.r.index.flush(ctx); err != nil {
				return found, err
			}
		}
	}
	if _, err := p.r.index.flush(ctx); err != nil {
		return found, err
	}
	return found, p.r.index.compact(ctx)
}

// examine says which packs are to go: every one in which something is damaged. What is sound in them is stored anew.
func (p *repair) examine() error {
	p.report.Damage = p.check.report.Damage
	p.void = map[packID]*damagedPack{}
	add := func(object string) {
		if id, _, ok := parsePackObject(object); ok && p.void[id] == nil {
			p.void[id] = &damagedPack{object: object, size: p.check.ok[id], condemned: p.check.trash.damaged(id)}
		}
	}
	for i := range p.report.Damage {
		add(p.report.Damage[i].Object)
	}
	for k := range p.check.lost { // a node that none of its places gives back
		for _, l := range p.r.index.places(&k) {
			add(l.pack.id.object(l.pack.kind))
		}
	}
	fresh := 0
	for _, d := range p.void {
		if !d.condemned {
			fresh++
		}
	}
	if all := max(p.check.report.Packs, 1); fresh > muchDamage && fresh > all/muchDamagePart && !p.o.Force {
		return fmt.Errorf("%w: %d of %d", ErrMuchDamage, fresh, all)
	}
	return nil
}

// mend stores anew what can be had, condemns the damaged packs, and takes out of the index what cannot be read.
func (p *repair) mend(ctx context.Context) (err error) {
	void := map[packID]struct{}{}
	for id := range p.void {
		void[id] = struct{}{}
	}
	p.r.index.setVoid(void)
	defer p.r.index.setVoid(nil)
	if p.w, err = p.r.NewWriter(ctx, WriterOptions{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.w.Close()) }()
	if err := p.restore(ctx); err != nil {
		return err
	}
	// What backups need is durable elsewhere, if it is to be had, before anything is condemned.
	if err := p.w.Flush(ctx); err != nil {
		return err
	}
	if err := p.condemn(ctx); err != nil {
		return err
	}
	return p.drop(ctx)
}

// restore looks for what is wanted, in the repository itself and then in the sources. Each round may show more: a node that was lost
// names others.
func (p *repair) restore(ctx context.Context) error {
	p.tried = map[*RepairSource]*RepairFound{}
	for i := range p.o.From {
		p.report.Found = append(p.report.Found, RepairFound{Source: p.o.From[i].Name})
	}
	for i := range p.o.From {
		p.tried[&p.o.From[i]] = &p.report.Found[i]
	}
	for range maxLevel + 2 {
		before := p.w.Stats()
		for from := uint64(0); ; {
			want, next, err := p.collect(ctx, from)
			if err != nil {
				return err
			}
			if err := p.fill(ctx, want); err != nil {
				return err
			}
			if next == 0 {
				break
			}
			from = next
		}
		if after := p.w.Stats(); after.NewNodes == before.NewNodes {
			return nil
		}
		if err := p.w.Flush(ctx); err != nil { // so that what is below the new nodes can be walked
			return err
		}
	}
	return nil
}

// condemn lists the damaged packs in the trash.
func (p *repair) condemn(ctx context.Context) error {
	trash, err := p.r.index.refreshTrash(ctx)
	if err != nil {
		return err
	}
	if trash.err != nil {
		return trash.err
	}
	host, _ := os.Hostname() // for people
	t := &trashList{Version: trashVersion, Time: time.Now().UTC(), Host: host, Known: trash.names()}
	for id, d := range p.void {
		p.report.Condemned.add(d.size)
		if !trash.damaged(id) {
			t.Packs = append(t.Packs, trashedPack{Object: d.object, Size: d.size, Damaged: true})
		}
	}
	if len(t.Packs) == 0 {
		return nil
	}
	slices.SortFunc(t.Packs, func(a, b trashedPack) int { return strings.Compare(a.Object, b.Object) })
	_, err = p.r.putTrash(ctx, t)
	return err
}
