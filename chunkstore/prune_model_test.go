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

// pruneModel lets hosts back up, delete, merge, prune, read and die, one backend call at a time in random order, with the store's
// clock in its hands. It runs in a synctest bubble: hosts are goroutines that wait at the gate before each call.
type pruneModel struct {
	keys  Credentials // of a sealed repository
	ctx   context.Context
	rnd   *rand.Rand
	be    *mem.Backend
	off   pruneRules
	hosts []*pruneHost
	begun time.Time

	mu      sync.Mutex // guards waiting: several goroutines of a host may come to the gate at once
	waiting []*gateCall

	images   map[string][]byte // by backup ID: what a record that may be listed must give back
	failures []error
	count    struct{ backups, pruned, prunes, crashes, verified, frees int }
}

const (
	modelGrace = time.Hour
	modelPool  = 12 // different blocks there are
)

// pruneHost is one process on one host; a crash makes another of it.
type pruneHost struct {
	m     *pruneModel
	cache string
	dead  atomic.Bool
	busy  bool
	slow  bool // its calls take long, so that much happens between them
	r     *Repository
	rnd   *rand.Rand
}

type gateCall struct {
	h      *pruneHost
	method string
	name   string
	open   chan error
}

// critical calls are those that docs/adr/0007 bounds: the clock does not move while one is under way.
func (c *gateCall) critical() bool {
	return (c.method == "put" && strings.HasPrefix(c.name, prefixBackups)) || (c.method == "delete" && strings.HasPrefix(c.name, prefixIndex))
}

// gate is the backend as a host sees it.
type gate struct {
	be backend.Backend
	h  *pruneHost
}

func (g *gate) pass(method, name string) error {
	if g.h.dead.Load() {
		return backendtest.ErrStopped
	}
	c := &gateCall{g.h, method, name, make(chan error)}
	g.h.m.mu.Lock()
	g.h.m.waiting = append(g.h.m.waiting, c)
	g.h.m.mu.Unlock()
	return <-c.open
}

func (g *gate) Put(ctx context.Context, name string, data []byte) error {
	if err := g.pass("put", name); err != nil {
		return err
	}
	return g.be.Put(ctx, name, data)
}

func (g *gate) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	if err := g.pass("put", name); err != nil {
		return err
	}
	return g.be.PutIfAbsent(ctx, name, data)
}

func (g *gate) Delete(ctx context.Context, name string) error {
	if err := g.pass("delete", name); err != nil {
		return err
	}
	return g.be.Delete(ctx, name)
}

func (g *gate) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if strings.HasPrefix(name, prefixPacks) { // other objects never change between Stat and ReadAt
		if err := g.pass("read", name); err != nil {
			return err
		}
	}
	return g.be.ReadAt(ctx, name, p, off)
}

func (g *gate) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	if err := g.pass("list", prefix); err != nil {
		return err
	}
	return g.be.List(ctx, prefix, fn)
}

func (g *gate) Stat(ctx context.Context, name string) (backend.Object, error) {
	if err := g.pass("stat", name); err != nil {
		return backend.Object{}, err
	}
	return g.be.Stat(ctx, name)
}

func (g *gate) Location() string { return "gate" }

// runPruneModel takes that many steps and returns the first thing that is wrong.
func runPruneModel(t *testing.T, seed uint64, steps int, off pruneRules) (*pruneModel, error) {
	t.Helper()
	m := &pruneModel{rnd: rand.New(rand.NewPCG(seed, 7)), off: off, images: map[string][]byte{}}
	caches := []string{"", t.TempDir(), t.TempDir(), ""}
	var failed error
	synctest.Test(t, func(t *testing.T) {
		m.ctx, m.be, m.begun = t.Context(), mem.New(), time.Now()
		var o InitOptions
		o, m.keys = half(t, seed, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20, CutBits: -1, MaxChunk: 4096})
		if _, err := Init(m.ctx, m.be, o); err != nil {
			failed = err
			return
		}
		for _, cache := range caches {
			m.hosts = append(m.hosts, &pruneHost{m: m, cache: cache})
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
		if failed == nil {
			failed = m.verify()
		}
	})
	return m, failed
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
	if err := m.verify(); err != nil {
		return fmt.Errorf("after %s %s: %w", c.method, c.name, err)
	}
	return nil
}

// pick takes a call that waits, nil for none.
func (m *pruneModel) pick() *gateCall {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) == 0 {
		return nil
	}
	i := m.rnd.IntN(len(m.waiting))
	c := m.waiting[i]
	if c.h.slow && !c.critical() && m.rnd.IntN(20) > 0 {
		return nil
	}
	m.waiting = slices.Delete(m.waiting, i, i+1)
	return c
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
	for _, c := range all {
		if c.h == h {
			c.open <- backendtest.ErrStopped
		}
	}
	synctest.Wait()
	if h.r != nil {
		_ = h.r.Close()
	}
	m.hosts[i] = &pruneHost{m: m, cache: h.cache}
}

// begin gives an idle host something to do.
func (m *pruneModel) begin(h *pruneHost) {
	h.busy = true
	h.rnd = rand.New(rand.NewPCG(m.rnd.Uint64(), 3))
	job, what := h.backUp, "back up"
	switch n := m.rnd.IntN(100); {
	case n < 40:
	case n < 60:
		job, what = h.forget, "delete"
	case n < 82:
		job, what = h.prune, "prune"
	case n < 90:
		job, what = h.compact, "merge"
	case n < 97:
		job, what = h.read, "read"
	default:
		job, what = h.reindex, "reindex"
	}
	h.slow = (what == "back up" || what == "merge") && m.rnd.IntN(3) == 0
	go func() {
		err := h.open()
		if err == nil {
			err = job()
		}
		h.busy = false
		if err != nil && !h.dead.Load() {
			m.failures = append(m.failures, fmt.Errorf("%s: %w", what, err))
		}
	}()
}

func (h *pruneHost) open() error {
	if h.r != nil {
		return nil
	}
	r, err := Open(h.m.ctx, &gate{h.m.be, h}, Options{CacheDir: h.cache, Parallel: 1, Credentials: h.m.keys})
	if err == nil {
		h.own(r)
	}
	return err
}

func (h *pruneHost) own(r *Repository) {
	h.r = r
	r.off = h.m.off
	r.bootTime = func() time.Duration { return time.Since(h.m.begun) }
}

// image is two spans with a few blocks out of a small pool, so that backups share much and what was deleted comes back.
func (h *pruneHost) image(old []byte) []byte {
	img := make([]byte, 2<<20)
	copy(img, old)
	for range 1 + h.rnd.IntN(3) {
		at := (h.rnd.IntN(2)<<8 + h.rnd.IntN(3)) * 4096
		n := h.rnd.IntN(modelPool + 1)
		copy(img[at:], bytes.Repeat([]byte{byte(n)}, 4096))
	}
	return img
}

func (h *pruneHost) backUp() error {
	ctx := h.m.ctx
	all, err := h.r.ListBackups(ctx, "")
	if err != nil {
		return err
	}
	b := &Backup{Volume: "v"}
	var base *Blob
	var old []byte
	if len(all) > 0 && h.rnd.IntN(4) > 0 {
		parent := all[h.rnd.IntN(len(all))]
		base, old = h.r.OpenBlob(parent.Blob), h.m.images[parent.ID]
		if h.rnd.IntN(4) > 0 {
			b.Parent = parent.ID
		}
	}
	img := h.image(old)
	w, err := h.r.NewWriter(ctx, WriterOptions{Compression: "none"})
	if err != nil {
		return err
	}
	var changed func(int64) bool
	if base != nil {
		changed = func(span int64) bool { return spanDiffers(old, img, span<<20) }
	}
	if b.ID, err = NewBackupID(time.Now()); err != nil {
		return err
	}
	b.Blob, err = storeImage(ctx, h.r, w, img, base, changed)
	if err == nil {
		h.m.images[b.ID] = img
		err = w.PutBackup(ctx, b)
	}
	_ = w.Close()
	if errors.Is(err, ErrPruned) || (base != nil && (errors.Is(err, ErrNotFound) || errors.Is(err, backend.ErrNotExist))) {
		h.m.count.pruned++ // its base or its own chunks were removed: it failed, as it should
		return nil
	}
	if err == nil {
		h.m.count.backups++
	}
	return err
}

func (h *pruneHost) forget() error {
	all, err := h.r.Backups(h.m.ctx, "v")
	if err != nil || len(all) == 0 || (len(all) < 4 && h.rnd.IntN(2) == 0) {
		return err
	}
	err = h.r.DeleteBackup(h.m.ctx, "v", all[h.rnd.IntN(len(all))])
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (h *pruneHost) prune() error {
	h.m.count.prunes++
	_, err := h.r.Prune(h.m.ctx, PruneOptions{Grace: modelGrace, MaxUnused: []float64{0, 0.3}[h.rnd.IntN(2)], BreakLock: h.rnd.IntN(3) == 0})
	if errors.Is(err, ErrLocked) || errors.Is(err, backend.ErrExist) || errors.Is(err, backend.ErrNotExist) {
		return nil // of two prunes, one may run into what the other removed
	}
	return err
}

func (h *pruneHost) compact() error {
	err := h.r.CompactIndex(h.m.ctx)
	return err
}

func (h *pruneHost) reindex() error {
	r, rep, err := Reindex(h.m.ctx, &gate{h.m.be, h}, Options{Parallel: 1, Credentials: h.m.keys}, nil)
	if errors.Is(err, errTrashChanged) {
		return nil
	}
	if err == nil && len(rep.Damage) > 0 {
		err = fmt.Errorf("%+v", rep.Damage)
	}
	if err == nil {
		err = r.Close()
	}
	return err
}

// read reads a backup through an index that may be old.
func (h *pruneHost) read() error {
	all, err := h.r.ListBackups(h.m.ctx, "v")
	if err != nil || len(all) == 0 {
		return err
	}
	b := all[h.rnd.IntN(len(all))]
	got := make([]byte, b.Blob.Size)
	if _, err := h.r.OpenBlob(b.Blob).ReadAt(h.m.ctx, got, 0); err != nil {
		if _, err := h.m.be.Stat(h.m.ctx, h.r.backupObject("v", b.ID)); err != nil {
			return nil // deleted meanwhile
		}
		return err
	}
	if !bytes.Equal(got, h.m.images[b.ID]) {
		return fmt.Errorf("backup %s read through an old index is not what was stored", b.ID)
	}
	return nil
}

// verify reads every listed backup as a stranger would.
func (m *pruneModel) verify() error {
	m.count.verified++
	r, err := Open(context.Background(), m.be, Options{Parallel: 1, Credentials: m.keys})
	if err != nil {
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
			return fmt.Errorf("backup %s: %w", b.ID, err)
		}
		if !bytes.Equal(got, m.images[b.ID]) {
			return fmt.Errorf("backup %s is not what was stored", b.ID)
		}
	}
	if m.count.verified%10 == 0 {
		rep, err := r.Check(context.Background(), CheckOptions{Level: CheckData})
		if err != nil || len(rep.Damage) > 0 {
			return fmt.Errorf("check: %+v, %w", rep, err)
		}
	}
	return nil
}

// TestPruneModel: SHALE_MODEL_SEED and SHALE_MODEL_STEPS repeat a run or make it longer.
func TestPruneModel(t *testing.T) {
	seed, steps, runs := uint64(time.Now().UnixNano()), 1500, 2
	if s := os.Getenv("SHALE_MODEL_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
		runs = 1
	}
	if s := os.Getenv("SHALE_MODEL_STEPS"); s != "" {
		var err error
		if steps, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for run := range uint64(runs) {
		t.Logf("SHALE_MODEL_SEED=%d SHALE_MODEL_STEPS=%d", seed+run, steps)
		m, err := runPruneModel(t, seed+run, steps, pruneRules{})
		t.Logf("%+v, %d listed at the end", m.count, len(slices.Collect(maps.Keys(m.images))))
		if err != nil {
			t.Fatal(err)
		}
	}
}
