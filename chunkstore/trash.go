package chunkstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// trashList is what one prune condemned: packs that no backup needed. It is the JSON in an object trash/<pack ID>, immutable.
// Its packs are deleted when it is older than a grace; it stays much longer (trashKeep), because a host that read the index before
// may yet write entries of those packs. docs/adr/0007 says why this is safe without locks.
type trashList struct {
	Version int           `json:"version"` // trashVersion
	Time    time.Time     `json:"time"`    // by the pruning host's clock, for people; age is counted by the store's
	Host    string        `json:"host,omitempty"`
	Known   []string      `json:"known,omitempty"` // names of the trash lists that this prune saw
	Roots   []byte        `json:"roots,omitempty"` // 16 bytes of the root of each backup it saw, ascending
	Packs   []trashedPack `json:"packs"`

	name string    // of its object
	mod  time.Time // of its object, by the store's clock
}

type trashedPack struct {
	Object  string `json:"object"`
	Size    int64  `json:"size"`              // bytes
	Damaged bool   `json:"damaged,omitempty"` // condemned by a repair: some of its records cannot be read
}

const (
	trashVersion = 1
	// trashKeep is how long a trash list stays after its grace. It must be longer than any writer's session, and than any
	// host takes between reading the index and writing what it read.
	trashKeep = 30 * 24 * time.Hour
	// maxSession bounds a Writer's life; after it trash lists that concern it may be gone.
	maxSession = 28 * 24 * time.Hour
)

// hasRoot reports whether the prune saw a backup with that root, and so left alone what it needs.
func (t *trashList) hasRoot(root *ID) bool {
	const n = len(key{})
	k := root.key()
	lo, hi := 0, len(t.Roots)/n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch bytes.Compare(t.Roots[mid*n:(mid+1)*n], k[:]) {
		case 0:
			return true
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

func decodeTrash(data []byte) (*trashList, error) {
	t := &trashList{}
	if err := json.Unmarshal(data, t); err != nil {
		return nil, err
	}
	if t.Version != trashVersion {
		return nil, fmt.Errorf("%w: trash list version %d", ErrUnsupported, t.Version)
	}
	if len(t.Roots)%len(key{}) != 0 {
		return nil, fmt.Errorf("%d bytes of roots", len(t.Roots))
	}
	for _, p := range t.Packs {
		if _, _, ok := parsePackObject(p.Object); !ok {
			return nil, fmt.Errorf("%q names no pack", p.Object)
		}
	}
	return t, nil
}

// putTrash writes a trash list and returns its name.
func (r *Repository) putTrash(ctx context.Context, t *trashList) (string, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	id, b, err := r.buildObject(kindTrash, data)
	if err != nil {
		return "", err
	}
	name := prefixTrash + id.String()
	if err := r.be.Put(ctx, name, b); err != nil {
		return "", fmt.Errorf("write trash list: %w", err)
	}
	return name, nil
}

func (r *Repository) readTrash(ctx context.Context, o backend.Object) (*trashList, error) {
	data, err := r.trashObject(ctx, o.Name)
	if err != nil {
		return nil, err
	}
	t, err := decodeTrash(data)
	switch {
	case errors.Is(err, ErrUnsupported):
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	case err != nil:
		return nil, &CorruptError{Object: o.Name, Err: err}
	}
	t.name, t.mod = o.Name, o.ModTime
	return t, nil
}

// trashSet is the trash lists of one moment. Immutable.
type trashSet struct {
	lists map[string]*trashList // by name
	packs map[packID]bool       // of all lists; true: condemned as damaged
	err   error                 // some list cannot be read: nobody may write, reading goes on
}

func newTrashSet(lists map[string]*trashList, err error) *trashSet {
	s := &trashSet{lists: lists, packs: map[packID]bool{}, err: err}
	for _, t := range lists {
		for _, p := range t.Packs {
			id, _, _ := parsePackObject(p.Object)
			s.packs[id] = s.packs[id] || p.Damaged
		}
	}
	return s
}

func (s *trashSet) condemned(id packID) bool {
	_, ok := s.packs[id]
	return ok
}

// rank says how good a place a pack is for a record: 0, or 1 when it is condemned, or 2 when it is condemned as damaged.
func (s *trashSet) rank(id packID) int {
	damaged, condemned := s.packs[id]
	switch {
	case damaged:
		return 2
	case condemned:
		return 1
	}
	return 0
}

// damaged reports whether a repair has condemned the pack: there is nothing in it that a repair could take out.
func (s *trashSet) damaged(id packID) bool { return s.packs[id] }

// anyDamaged reports whether a repair has condemned some pack.
func (s *trashSet) anyDamaged() bool {
	for _, damaged := range s.packs {
		if damaged {
			return true
		}
	}
	return false
}

func (s *trashSet) names() []string { return slices.Sorted(maps.Keys(s.lists)) }

// within reports whether every list of s is among names.
func (s *trashSet) within(names []string) bool {
	for name := range s.lists {
		if !slices.Contains(names, name) {
			return false
		}
	}
	return true
}

// last returns the list whose prune knew all others: what it saw live lies in none of their packs. nil when prunes that did not
// know each other made lists, or there is none.
func (s *trashSet) last() *trashList {
	for name, t := range s.lists {
		all := true
		for other := range s.lists {
			all = all && (other == name || slices.Contains(t.Known, other))
		}
		if all {
			return t
		}
	}
	return nil
}

// refreshTrash lists the trash, reads what is new in it, and returns it.
func (x *index) refreshTrash(ctx context.Context) (*trashSet, error) {
	begun := x.r.bootTime()
	var objects []backend.Object
	err := x.r.be.List(ctx, prefixTrash, func(o backend.Object) error {
		objects = append(objects, o)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the trash: %w", err)
	}
	old := x.trashSet()
	set, err := x.readTrashSet(ctx, objects, old)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.trash = set
	for k, e := range x.pending { // what waits to be indexed for so long may have been removed and forgotten
		id := x.packs[e.pack].id
		if begun-x.trashRead > maxSession || (old.condemned(id) && !set.condemned(id)) {
			delete(x.pending, k)
		}
	}
	x.trashRead = begun
	return set, nil
}

// readTrashSet reads the objects that old does not have. Nothing changed: it is old.
func (x *index) readTrashSet(ctx context.Context, objects []backend.Object, old *trashSet) (*trashSet, error) {
	same := len(objects) == len(old.lists) && old.err == nil
	lists := make([]*trashList, len(objects))
	bad := make([]error, len(objects))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(x.r.atOnce)
	for i, o := range objects {
		if lists[i] = old.lists[o.Name]; lists[i] != nil {
			continue
		}
		same = false
		g.Go(func() (err error) {
			lists[i], err = x.r.readTrash(gctx, o)
			switch {
			case errors.Is(err, backend.ErrNotExist): // its time was over
				err = nil
			case errors.Is(err, ErrCorrupt), errors.Is(err, ErrUnsupported):
				bad[i], err = err, nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("read trash list: %w", err)
	}
	if same {
		return old, nil
	}
	byName := map[string]*trashList{}
	for _, t := range lists {
		if t != nil {
			byName[t.name] = t
		}
	}
	x.r.forgetTrashCopies(byName)
	return newTrashSet(byName, errors.Join(bad...)), nil
}

// trashSet returns the trash as last listed.
func (x *index) trashSet() *trashSet {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.trash
}

// pruneRules are the protocol's rules, to be switched off by tests that show that each is needed.
type pruneRules struct {
	trashAtStart bool // a Writer knows what was condemned before it began
	beforeRecord bool // it looks again before its record
	afterRecord  bool // and after it
	baseRule     bool // a base must be known not to need condemned packs
	rescue       bool // a prune copies what backups need out of condemned packs before it deletes them
	graceWait    bool // a prune deletes only what was condemned a grace ago
	young        bool // a prune condemns only packs older than a grace
	mergeRule    bool // a merge is taken back when packs are condemned meanwhile
	tombstone    bool // a trash list stays after its packs are gone
	freshNames   bool // a pack never has the name of an earlier one
}

// forgetTrash is for tests.
func (x *index) forgetTrash() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.trash = newTrashSet(nil, nil)
}
