package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// pruneModel lets hosts back up, copy, delete, merge, prune, repair, read and die, one backend call at a time in random order, with the
// store's clock in its hands, and packs be lost or rot. It runs in a synctest bubble: hosts are goroutines that wait at the gate before each call.
type pruneModel struct {
	t      *testing.T
	ctx    context.Context
	rnd    *rand.Rand
	off    pruneRules
	kind   modelKind
	stores [2]*modelStore
	hosts  []*pruneHost
	begun  time.Time

	mu      sync.Mutex // guards waiting: several goroutines of a host may come to the gate at once
	waiting []*gateCall

	failures []error
	count    struct{ backups, copies, pruned, prunes, crashes, verified, frees, harms, repairs, heals, excused int }
}

// modelKind is what a run is about, beside what all are.
type modelKind struct {
	sealed bool          // repositories are sealed
	harm   bool          // packs and segments are lost, rot and are repaired
	lag    time.Duration // listings miss what is younger, and show what is gone, up to so long
}

// modelStore is a backend with a repository, and what it must hold.
type modelStore struct {
	be     *mem.Backend
	opened Options
	images map[string][]byte    // by backup ID: what a record that may be listed must give back
	trying map[string]bool      // of these, records that are being put
	harmed bool                 // something is damaged, or may be, and was not repaired since
	harms  int                  // how often that began
	events map[string]time.Time // when each object was put, or deleted if it is gone; for lag
}

const (
	modelGrace = time.Hour
	modelPool  = 12 // different blocks there are
)

// pruneHost is one process on one host; a crash makes another of it.
type pruneHost struct {
	m      *pruneModel
	cache  string
	n      int // which host
	dead   atomic.Bool
	busy   bool
	slow   bool // its calls take long, so that much happens between them
	what   string
	trying string // the backup whose record it puts
	store  int    // where it is busy
	other  int    // and whence it copies
	harms  [2]int // of both stores when it began, -1: harmed then
	r      [2]*Repository
	rnd    *rand.Rand
}

type gateCall struct {
	h      *pruneHost
	store  int
	method string
	name   string
	open   chan error
}

// critical calls are those that docs/adr/0007 bounds: the clock does not move while one is under way.
func (c *gateCall) critical() bool {
	return (c.method == "put" && strings.HasPrefix(c.name, prefixBackups)) || (c.method == "delete" && strings.HasPrefix(c.name, prefixIndex))
}

// runPruneModel takes that many steps and returns the first thing that is wrong.
func runPruneModel(t *testing.T, seed uint64, steps int, kind modelKind, off pruneRules) (*pruneModel, error) {
	t.Helper()
	m := &pruneModel{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), kind: kind, off: off}
	caches := []string{"", t.TempDir(), t.TempDir(), ""}
	var failed error
	synctest.Test(t, func(t *testing.T) {
		m.ctx, m.begun = t.Context(), time.Now()
		for i := range m.stores {
			s := &modelStore{be: mem.New(), images: map[string][]byte{}, trying: map[string]bool{}, events: map[string]time.Time{}}
			o := InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20, CutBits: -1, MaxChunk: 4096}
			if kind.sealed {
				o, s.opened.Credentials = half(t, 1, o)
			}
			s.opened.Parallel = 1
			if _, err := Init(m.ctx, s.be, o); err != nil {
				failed = err
				return
			}
			m.stores[i] = s
		}
		for i, cache := range caches {
			m.hosts = append(m.hosts, &pruneHost{m: m, cache: cache, n: i})
		}
		for step := 0; step < steps && failed == nil; step++ {
			if err := m.step(); err != nil {
				failed = fmt.Errorf("step %d: %w", step, err)
			}
		}
		for i := range m.hosts {
			m.crash(i)
		}
		synctest.Wait()
		for i := range m.stores {
			if failed == nil {
				failed = m.settle(i)
			}
		}
	})
	return m, failed
}

// settle repairs and prunes a store when nobody else is there: all is whole, and only what is needed stays.
func (m *pruneModel) settle(store int) error {
	s := m.stores[store]
	time.Sleep(2 * m.kind.lag)
	if err := m.verify(store); err != nil {
		return err
	}
	if s.harmed {
		rep, err := Repair(m.ctx, s.be, s.opened, RepairOptions{Level: CheckStored, From: s.sources(), BreakLock: true})
		if err != nil || len(rep.Lost)+len(rep.Left) > 0 {
			return fmt.Errorf("the last repair: %+v, %w", rep, err)
		}
		s.harmed = false
	}
	r, err := Open(m.ctx, s.be, s.opened)
	if err != nil {
		return err
	}
	defer r.Close()
	for i, d := range []time.Duration{2 * modelGrace, 2 * modelGrace, 2 * modelGrace, trashKeep + 2*modelGrace, modelGrace} {
		time.Sleep(d)
		if err := m.verify(store); err != nil {
			return fmt.Errorf("quiet prune %d: %w", i, err)
		}
		rep, err := r.Prune(m.ctx, PruneOptions{Grace: modelGrace, BreakLock: true})
		if err != nil || len(rep.Damage) > 0 {
			return fmt.Errorf("quiet prune %d: %+v, %w", i, rep, err)
		}
		if left := rep.Condemned.Objects + rep.Waiting.Objects + rep.Young.Objects + rep.Freed.Objects; i >= 3 && left > 0 {
			return fmt.Errorf("quiet prune %d: there is garbage left: %+v", i, rep)
		}
	}
	for _, prefix := range []string{prefixTrash, "prune/"} {
		if err := s.be.List(m.ctx, prefix, func(o backend.Object) error { return fmt.Errorf("%s is left", o.Name) }); err != nil {
			return err
		}
	}
	return m.verify(store)
}

func (m *pruneModel) step() error {
	synctest.Wait()
	if len(m.failures) > 0 {
		return m.failures[0]
	}
	switch n := m.rnd.IntN(1000); {
	case n < 8:
		m.count.crashes++
		m.crash(m.rnd.IntN(len(m.hosts)))
		return nil
	case n < 14 && m.kind.harm:
		return m.harm(m.rnd.IntN(len(m.stores)))
	case n < 60:
		m.wait()
		return nil
	case n < 250:
		for _, i := range m.rnd.Perm(len(m.hosts)) {
			if !m.hosts[i].busy {
				m.begin(m.hosts[i])
				return nil
			}
		}
	}
	c := m.pick()
	if c == nil {
		return nil
	}
	c.open <- nil
	synctest.Wait()
	tells := c.method == "delete" || strings.HasPrefix(c.name, prefixBackups) || strings.HasPrefix(c.name, prefixIndex)
	if c.method == "read" || c.method == "list" || c.method == "stat" || !tells {
		return nil
	}
	if c.method == "delete" && strings.HasPrefix(c.name, prefixPacks) {
		m.count.frees++
	}
	if err := m.verify(c.store); err != nil {
		return fmt.Errorf("store %d after %s %s by %s: %w", c.store, c.method, c.name, c.h.what, err)
	}
	return nil
}

// harm damages one pack or segment, unless what was damaged before is not repaired.
func (m *pruneModel) harm(store int) error {
	s := m.stores[store]
	var names []string
	for _, prefix := range []string{prefixPacks, prefixPacks, prefixIndex} {
		if m.rnd.IntN(8) > 0 && prefix == prefixIndex {
			continue
		}
		err := s.be.List(m.ctx, prefix, func(o backend.Object) error {
			names = append(names, o.Name)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if s.harmed || len(names) == 0 {
		return nil
	}
	m.count.harms++
	s.harmed = true
	s.harms++
	name := names[m.rnd.IntN(len(names))]
	data, err := backend.ReadAll(m.ctx, s.be, name)
	if err != nil {
		return err
	}
	switch m.rnd.IntN(3) {
	case 0:
		return s.be.Delete(m.ctx, name)
	case 1:
		return s.be.Put(m.ctx, name, data[:m.rnd.IntN(len(data))])
	}
	for range 1 + m.rnd.IntN(3) {
		data[m.rnd.IntN(len(data))] ^= 1 << m.rnd.IntN(8)
	}
	return s.be.Put(m.ctx, name, data)
}

// sources are all images that backups of the store have.
func (s *modelStore) sources() (from []RepairSource) {
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		from = append(from, RepairSource{Name: id, Content: imageContent(s.images[id])})
	}
	return from
}

// pick takes a call that waits, nil for none.
func (m *pruneModel) pick() *gateCall {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) == 0 {
		return nil
	}
	for range 20 {
		i := m.rnd.IntN(len(m.waiting))
		c := m.waiting[i]
		if c.h.slow && !c.critical() && m.rnd.IntN(20) > 0 {
			continue
		}
		m.waiting = slices.Delete(m.waiting, i, i+1)
		return c
	}
	return nil
}

// wait lets the store's time pass, unless a call is under way that must be quick.
func (m *pruneModel) wait() {
	d := time.Duration(1+m.rnd.IntN(40)) * time.Minute
	m.mu.Lock()
	critical := slices.ContainsFunc(m.waiting, (*gateCall).critical)
	m.mu.Unlock()
	if critical {
		return
	}
	if !slices.ContainsFunc(m.hosts, func(h *pruneHost) bool { return h.busy }) && m.rnd.IntN(4) == 0 {
		d = trashKeep + 2*modelGrace
	}
	time.Sleep(d)
	synctest.Wait()
}

// crash ends what the host is doing, and its process.
func (m *pruneModel) crash(i int) {
	h := m.hosts[i]
	h.dead.Store(true)
	m.mu.Lock()
	all := m.waiting
	m.waiting = slices.DeleteFunc(slices.Clone(all), func(c *gateCall) bool { return c.h == h })
	m.mu.Unlock()
	lossy := m.rnd.IntN(2) == 0 // one of its calls is made all the same
	for _, c := range all {
		if c.h == h {
			err := backendtest.ErrStopped
			if lossy && (c.method == "put" || c.method == "delete") {
				lossy, err = false, errLost
			}
			c.open <- err
		}
	}
	synctest.Wait()
	for _, r := range h.r {
		if r != nil {
			_ = r.Close()
		}
	}
	if h.busy && m.tainted(h, h.store) && h.what != "read" { // what it left half done may count on what was lost
		m.stores[h.store].harmed = true
	}
	delete(m.stores[h.store].trying, h.trying)
	m.hosts[i] = &pruneHost{m: m, cache: h.cache, n: h.n}
}

// tainted reports whether something in the store was damaged while the host was at it.
func (m *pruneModel) tainted(h *pruneHost, store int) bool {
	s := m.stores[store]
	return s.harmed || h.harms[store] != s.harms
}

// begin gives an idle host something to do.
func (m *pruneModel) begin(h *pruneHost) {
	h.busy = true
	h.rnd = rand.New(rand.NewPCG(m.rnd.Uint64(), 3))
	h.store = m.rnd.IntN(2) * m.rnd.IntN(2) // mostly the first
	h.other = h.store
	for i, s := range m.stores {
		if h.harms[i] = s.harms; s.harmed {
			h.harms[i] = -1
		}
	}
	job := h.backUp
	h.what = "back up"
	switch n := m.rnd.IntN(100); {
	case m.stores[h.store].harmed && n < 25:
		job, h.what = h.repair, "repair"
	case n < 30:
	case n < 38:
		job, h.what = h.copyBackup, "copy"
	case n < 57:
		job, h.what = h.forget, "delete"
	case n < 76:
		job, h.what = h.prune, "prune"
	case n < 83:
		job, h.what = h.compact, "merge"
	case n < 90:
		job, h.what = h.read, "read"
	case n < 96 || m.stores[h.store].harmed:
		job, h.what = h.repair, "repair"
	default:
		job, h.what = h.reindex, "reindex"
	}
	h.slow = (h.what == "back up" || h.what == "merge" || h.what == "repair") && m.rnd.IntN(3) == 0
	go func() {
		_, err := h.open(h.store)
		if err == nil {
			err = job()
		}
		h.busy = false
		if err == nil || h.dead.Load() {
			return
		}
		if m.excused(h, err) {
			m.count.excused++
			return
		}
		m.failures = append(m.failures, fmt.Errorf("%s in store %d: %w", h.what, h.store, err))
	}()
}

// excused reports whether a job may fail with err: it met damage, or a listing that lags.
func (m *pruneModel) excused(h *pruneHost, err error) bool {
	missing := errors.Is(err, ErrNotFound) || errors.Is(err, backend.ErrNotExist) || errors.Is(err, ErrPruned)
	if m.kind.lag > 0 && (missing || errors.Is(err, errTrashChanged)) {
		return true
	}
	if !m.tainted(h, h.store) && !m.tainted(h, h.other) {
		return false
	}
	return missing || errors.Is(err, ErrCorrupt) || errors.Is(err, backend.ErrShort) || errors.Is(err, errTrashChanged)
}

// open returns the host's repository in that store.
func (h *pruneHost) open(store int) (*Repository, error) {
	if h.r[store] != nil {
		return h.r[store], nil
	}
	o := h.m.stores[store].opened
	o.CacheDir = h.cache
	r, err := Open(h.m.ctx, &gate{h, store}, o)
	if err == nil {
		r.off = h.m.off
		r.bootTime = func() time.Duration { return time.Since(h.m.begun) }
		h.r[store] = r
	}
	return r, err
}

// at is the store where the host is busy, and its repository there.
func (h *pruneHost) at() (*modelStore, *Repository) { return h.m.stores[h.store], h.r[h.store] }

// verify reads every listed backup of a store as a stranger would. Where something is damaged some may be unreadable, but none may be wrong.
func (m *pruneModel) verify(store int) error {
	m.count.verified++
	s := m.stores[store]
	damaged := func(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) }
	r, err := Open(context.Background(), s.be, s.opened)
	if err != nil {
		if s.harmed && damaged(err) {
			return nil
		}
		return err
	}
	defer r.Close()
	all, err := r.ListBackups(context.Background(), "")
	if err != nil {
		return err
	}
	for _, b := range all {
		got := make([]byte, b.Blob.Size)
		if _, err := r.OpenBlob(b.Blob).ReadAt(context.Background(), got, 0); err != nil {
			if (s.harmed || s.harms > 0 && s.trying[b.ID]) && damaged(err) { // who puts that record looks once more
				continue
			}
			return fmt.Errorf("backup %s: %w", b.ID, err)
		}
		if !bytes.Equal(got, s.images[b.ID]) {
			return fmt.Errorf("backup %s is not what was stored", b.ID)
		}
	}
	if m.count.verified%10 == 0 && !s.harmed && len(s.trying) == 0 {
		rep, err := r.Check(context.Background(), CheckOptions{Level: CheckData})
		if err != nil || len(rep.Damage) > 0 {
			return fmt.Errorf("check: %+v, %w", rep, err)
		}
	}
	return nil
}

// modelRuns are the seeds and steps of a run: SHALE_MODEL_SEED and SHALE_MODEL_STEPS repeat one or make it longer, SHALE_MODEL_RUNS makes more.
func modelRuns(t *testing.T, steps, runs int) (uint64, int, int) {
	seed := uint64(time.Now().UnixNano())
	for name, n := range map[string]*int{"SHALE_MODEL_STEPS": &steps, "SHALE_MODEL_RUNS": &runs} {
		if s := os.Getenv(name); s != "" {
			var err error
			if *n, err = strconv.Atoi(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := os.Getenv("SHALE_MODEL_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
		if os.Getenv("SHALE_MODEL_RUNS") == "" {
			runs = 1
		}
	}
	return seed, steps, runs
}

// TestPruneModel runs the model: every second seed over sealed repositories, every second pair with damage, every fourth with listings that lag.
func TestPruneModel(t *testing.T) {
	seed, steps, runs := modelRuns(t, 600, 4)
	for run := range uint64(runs) {
		seed := seed + run
		kind := modelKind{sealed: seed%2 == 1, harm: seed/2%2 == 1}
		if seed/4%4 == 3 {
			kind.lag = 5 * time.Minute
		}
		m, err := runPruneModel(t, seed, steps, kind, pruneRules{})
		t.Logf("SHALE_MODEL_SEED=%d SHALE_MODEL_STEPS=%d: %+v: %+v", seed, steps, kind, m.count)
		if err != nil {
			t.Fatal(err)
		}
	}
}
