package chunkstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// modelHost is one of the hosts that use the repository.
type modelHost struct {
	cache string // "": none
	r     *Repository
}

// modelTest takes random steps on a repository and on a map of what it must hold.
type modelTest struct {
	keys    Credentials // of a sealed repository
	t       *testing.T
	rnd     *rand.Rand
	be      *mem.Backend
	hosts   [2]*modelHost
	volumes map[string][]byte // what the volume holds now

	mu      sync.Mutex                        // guards backups
	backups map[string]map[string]modelBackup // by volume and ID
}

type modelBackup struct {
	ref BlobRef
	img []byte
}

const modelSteps = 120

// TestModel: SHALE_MODEL_SEED and SHALE_MODEL_STEPS repeat a run or make it longer.
func TestModel(t *testing.T) {
	seed, steps := uint64(time.Now().UnixNano()), modelSteps
	if s := os.Getenv("SHALE_MODEL_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("SHALE_MODEL_STEPS"); s != "" {
		var err error
		if steps, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SHALE_MODEL_SEED=%d SHALE_MODEL_STEPS=%d", seed, steps)
	m := &modelTest{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), be: mem.New(),
		volumes: map[string][]byte{"a": {}, "b": {}, "c": {}}, backups: map[string]map[string]modelBackup{"a": {}, "b": {}, "c": {}},
	}
	var o InitOptions
	o, m.keys = half(t, seed, InitOptions{SpanBytes: 1 << 20, PackBytes: 1 << 20})
	if _, err := Init(t.Context(), m.be, o); err != nil {
		t.Fatal(err)
	}
	for i := range m.hosts {
		m.hosts[i] = &modelHost{cache: t.TempDir()}
		m.open(m.hosts[i])
	}
	for step := range steps {
		name := m.step()
		if t.Failed() {
			t.Fatalf("step %d: %s", step, name)
		}
		m.compare()
		if t.Failed() {
			t.Fatalf("after step %d: %s", step, name)
		}
	}
	m.check(m.hosts[0])
	for _, h := range m.hosts {
		m.must(h.r.Close())
	}
}

func (m *modelTest) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Error(err)
	}
}

func (m *modelTest) open(h *modelHost) {
	m.t.Helper()
	r, err := Open(m.t.Context(), m.be, Options{CacheDir: h.cache, Credentials: m.keys})
	if err != nil {
		m.t.Fatal(err)
	}
	h.r = r
}

func (m *modelTest) host() *modelHost { return m.hosts[m.rnd.IntN(len(m.hosts))] }

func (m *modelTest) volume() string { return []string{"a", "b", "c"}[m.rnd.IntN(3)] }

// step does one thing and says what.
func (m *modelTest) step() string {
	h := m.host()
	switch n := m.rnd.IntN(100); {
	case n < 45:
		v := m.volume()
		m.write(v)
		return "backup of " + v + m.backUp(h, v, m.rnd.Uint64())
	case n < 60:
		return m.bothBackUp()
	case n < 70:
		v := m.volume()
		for id := range m.backups[v] {
			m.must(h.r.DeleteBackup(m.t.Context(), v, id))
			delete(m.backups[v], id)
			return "delete " + id
		}
		return "nothing to delete"
	case n < 80:
		m.must(h.r.Close())
		what := "reopen"
		if m.rnd.IntN(2) == 0 {
			m.must(os.RemoveAll(h.cache))
			what = "reopen with a lost cache"
		}
		if m.rnd.IntN(4) == 0 {
			h.cache = ""
		} else if h.cache == "" {
			h.cache = m.t.TempDir()
		}
		m.open(h)
		return what
	case n < 82 && h.r.Sealed():
		_, err := h.r.Rotate(m.t.Context())
		m.must(err)
		return "rotate"
	case n < 90:
		m.must(h.r.CompactIndex(m.t.Context()))
		return "compact"
	case n < 94:
		m.must(h.r.Close())
		r, rep, err := Reindex(m.t.Context(), m.be, Options{CacheDir: h.cache, Credentials: m.keys}, nil)
		if err != nil || len(rep.Damage) > 0 {
			m.t.Fatalf("reindex: %+v, %v", rep, err)
		}
		h.r = r
		return "reindex"
	case n < 97:
		return m.abandon(h)
	default:
		m.check(h)
		return "check"
	}
}

// write changes a volume: its length now and then, some ranges always.
func (m *modelTest) write(volume string) {
	img := m.volumes[volume]
	if len(img) == 0 || m.rnd.IntN(5) == 0 {
		img = append(slices.Clone(img), make([]byte, 4<<20)...)[:m.rnd.IntN(4<<20)]
	} else {
		img = slices.Clone(img)
	}
	for range m.rnd.IntN(4) {
		if len(img) == 0 {
			break
		}
		off := m.rnd.IntN(len(img))
		n := min(1+m.rnd.IntN(150_000), len(img)-off)
		switch m.rnd.IntN(3) {
		case 0:
			clear(img[off : off+n])
		case 1:
			copy(img[off:off+n], sparseImage(m.rnd, n))
		default: // what another volume has
			other := m.volumes[m.volume()]
			copy(img[off:off+n], other[min(off, len(other)):])
		}
	}
	m.volumes[volume] = img
}

// backUp stores a volume, whole or on one of its backups, and returns how. It takes its randomness from seed, so that two may
// run at once.
func (m *modelTest) backUp(h *modelHost, volume string, seed uint64) string {
	ctx, img := m.t.Context(), m.volumes[volume]
	rnd := rand.New(rand.NewPCG(seed, 2))
	how, changed := ", whole", (func(int64) bool)(nil)
	var base *Blob
	b := &Backup{Volume: volume, Labels: map[string]string{"seed": fmt.Sprint(seed)}}
	if ids, err := h.r.Backups(ctx, volume); err != nil {
		m.t.Error(err)
	} else if len(ids) > 0 && rnd.IntN(4) > 0 {
		b.Parent = ids[rnd.IntN(len(ids))]
		m.mu.Lock()
		old := m.backups[volume][b.Parent]
		m.mu.Unlock()
		base, how = h.r.OpenBlob(old.ref), " on "+b.Parent
		changed = func(span int64) bool { return spanDiffers(old.img, img, span<<20) }
	}
	w, err := h.r.NewWriter(ctx, WriterOptions{Compression: []Compression{"", "none", "s2", "zstd:3"}[rnd.IntN(4)]})
	if err != nil {
		m.t.Error(err)
		return how
	}
	b.Blob, err = storeImage(ctx, h.r, w, img, base, changed)
	if err == nil {
		err = w.PutBackup(ctx, b)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		m.t.Errorf("%s of %s%s: %v", b.ID, volume, how, err)
		return how
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.backups[volume][b.ID] = modelBackup{b.Blob, img}
	return how
}

// spanDiffers compares a span of 1 MiB of two images; where only one goes on, or one ends inside the span, it differs.
func spanDiffers(old, img []byte, off int64) bool {
	part := func(p []byte) []byte { return p[min(off, int64(len(p))):min(off+1<<20, int64(len(p)))] }
	return !bytes.Equal(part(old), part(img))
}

// bothBackUp lets each host back up another volume at the same time.
func (m *modelTest) bothBackUp() string {
	volumes := []string{"a", "b", "c"}
	m.rnd.Shuffle(len(volumes), func(i, j int) { volumes[i], volumes[j] = volumes[j], volumes[i] })
	for i := range m.hosts {
		m.write(volumes[i])
	}
	var wg sync.WaitGroup
	for i, h := range m.hosts {
		seed := m.rnd.Uint64()
		wg.Go(func() { m.backUp(h, volumes[i], seed) })
	}
	wg.Wait()
	return "two backups at once"
}

// abandon stores a volume's chunks without a backup record, as an interrupted backup does.
func (m *modelTest) abandon(h *modelHost) string {
	v := m.volume()
	m.write(v)
	w, err := h.r.NewWriter(m.t.Context(), WriterOptions{})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := storeImage(m.t.Context(), h.r, w, m.volumes[v], nil, nil); err != nil {
		m.t.Error(err)
	}
	if m.rnd.IntN(2) == 0 {
		m.must(w.Flush(m.t.Context()))
	}
	m.must(w.Close())
	return "interrupted backup of " + v
}

func (m *modelTest) check(h *modelHost) {
	m.t.Helper()
	level := CheckLevel(m.rnd.IntN(3))
	rep, err := h.r.Check(m.t.Context(), CheckOptions{Level: level})
	if err != nil || len(rep.Damage) > 0 {
		m.t.Errorf("check at level %d: %+v, %v", level, rep, err)
	}
}

// compare asks a host what there is, and reads one backup of each volume.
func (m *modelTest) compare() {
	m.t.Helper()
	h := m.host()
	for volume, want := range m.backups {
		all, err := h.r.ListBackups(m.t.Context(), volume)
		if err != nil || len(all) != len(want) {
			m.t.Errorf("volume %s: %d backups, want %d; %v", volume, len(all), len(want), err)
			continue
		}
		for i, b := range all {
			w, ok := want[b.ID]
			if !ok || w.ref != b.Blob {
				m.t.Errorf("backup %s of %s: %+v, want %+v (%v)", b.ID, volume, b.Blob, w.ref, ok)
			} else if i == len(all)-1-m.rnd.IntN(min(len(all), 2)) {
				mustReadBlob(m.t, h.r, b.Blob, w.img)
			}
		}
	}
}
