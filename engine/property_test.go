package engine_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

var (
	propertySeed   = flag.Uint64("property.seed", 0, "seed of the first random history of volumes; 0: of the clock")
	propertyRounds = flag.Int("property.rounds", 30, "number of random histories")
)

const (
	sector    = 512
	block     = chunkstore.CutBlock
	spanBytes = 1 << 20
)

// The root of an incremental backup is that of a full scan, restoring gives the image, and nothing is read but the changed chunks
// and one neighbour a run: for random images, changes and ways to tell of them.
func TestIncrementalIsFullScan(t *testing.T) {
	seed := *propertySeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for i := range *propertyRounds {
		s := seed + uint64(i)
		ok := t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, rand.New(rand.NewPCG(s, 1)))
			for range 7 {
				h.step(t)
			}
		})
		if !ok {
			t.Fatalf("again: go test ./engine -run TestIncrementalIsFullScan -property.rounds=1 -property.seed=%d", s)
		}
	}
}

// history is a volume that changes, its backups, and a restored copy that follows it.
type history struct {
	rng    *rand.Rand
	repo   *chunkstore.Repository
	images imageMaker
	now    []byte
	parent *chunkstore.Backup
	target string
	held   *chunkstore.Backup // what target holds
}

func newHistory(t *testing.T, rng *rand.Rand) *history {
	pick := func(of ...int) int { return of[rng.IntN(len(of))] }
	o := chunkstore.InitOptions{
		SpanBytes: spanBytes, PackBytes: 1 << 20, Compression: "none",
		CutBits: pick(-1, 1, 2, 4, 12), MaxChunk: pick(4<<10, 12<<10, 64<<10, 256<<10, 1<<20),
	}
	if rng.IntN(2) == 0 {
		o.Recipients = []chunkstore.Recipient{testRecipient(t)}
	}
	t.Logf("cut bits %d, longest chunk %d, sealed: %v", o.CutBits, o.MaxChunk, len(o.Recipients) > 0)
	h := &history{rng: rng, repo: openRepoWith(t, mem.New(), o), images: newImageMaker(rng), target: filepath.Join(t.TempDir(), "target")}
	h.now = make([]byte, h.images.size())
	for range rng.IntN(12) {
		h.images.change(h.now)
	}
	return h
}

// step backs up what changed since the last step, and everything, and compares.
func (h *history) step(t *testing.T) {
	before := h.now
	h.now = h.images.next(before)
	v := &volume{image: h.now, full: h.images.dataExtents(h.now), changed: h.images.changedExtents(before, h.now), base: h.parent != nil}
	o := engine.BackupOptions{Volume: "vol", Workers: 1 + h.rng.IntN(3)}
	if h.parent != nil {
		o.Base = h.parent.ID // two backups of one millisecond have no order
	}
	incr := backup(t, h.repo, v, o)
	scan := &volume{image: h.now, full: v.full}
	full := backup(t, h.repo, scan, engine.BackupOptions{Volume: "scan", Full: true})
	if incr.Backup.Blob != full.Backup.Blob {
		t.Fatalf("size %d to %d, changed %v:\nincremental %+v\nfull scan   %+v", len(before), len(h.now), v.changed, incr.Backup.Blob, full.Backup.Blob)
	}
	if full.Writer.NewChunks != 0 || full.Writer.NewNodes != 0 {
		t.Errorf("the full scan after it stored %d chunks and %d nodes more", full.Writer.NewChunks, full.Writer.NewNodes)
	}
	h.checkReads(t, scan, nil, full.Backup)
	if h.parent == nil {
		h.checkReads(t, v, nil, incr.Backup)
	} else {
		h.checkReads(t, v, h.parent, incr.Backup)
	}
	h.checkRestore(t, incr.Backup)
	h.parent = incr.Backup
}

// checkRestore reads the backup, whole and now and then through a restore on top of an earlier one.
func (h *history) checkRestore(t *testing.T, b *chunkstore.Backup) {
	t.Helper()
	got := make([]byte, b.Blob.Size)
	if len(got) > 0 {
		if _, err := h.repo.OpenBlob(b.Blob).ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, h.now) {
		t.Fatalf("backup differs from the image at %d", firstDifference(got, h.now))
	}
	if h.rng.IntN(3) > 0 {
		return // restoring waits for the disk
	}
	o := engine.RestoreOptions{Overwrite: h.held != nil, Holds: h.held, Verify: true}
	if h.rng.IntN(3) == 0 {
		o.Holds = nil
	}
	h.held = b
	if _, err := engine.Restore(t.Context(), h.repo, b, h.target, o); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(h.target)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, h.now) {
		t.Fatalf("restored file differs from the image at %d", firstDifference(got, h.now))
	}
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// checkReads holds the reads of a backup against what they may be: each byte at most once, no holes, and only what
// the blocks that may have changed, the chunks that they touch, the chunks that are new or gone, and one chunk before each run hold.
func (h *history) checkReads(t *testing.T, v *volume, before, after *chunkstore.Backup) {
	t.Helper()
	kinds := blockKinds(v)
	allowed := make([]bool, len(kinds))
	allow := func(off, end int64) {
		for b := off / block; b*block < min(end, v.Size()); b++ {
			allowed[b] = true
		}
	}
	for b, k := range kinds {
		allowed[b] = k == dataBlock
	}
	dirty := int64(-1)
	if before != nil {
		var old, cur = h.chunks(t, before), h.chunks(t, after)
		had, has := map[chunkstore.Chunk]bool{}, map[chunkstore.Chunk]bool{}
		for _, c := range old {
			had[c] = true
		}
		for _, c := range cur {
			has[c] = true
		}
		touched := func(c chunkstore.Chunk) bool {
			for b := c.Off / block; b*block < min(c.End(), v.Size()); b++ {
				if kinds[b] != equalBlock {
					return true
				}
			}
			return false
		}
		for _, c := range old {
			next := c.End() / block
			startsRun := c.End()%block == 0 && next < int64(len(kinds)) && kinds[next] != equalBlock && c.End()%spanBytes != 0
			if !has[c] || touched(c) || startsRun {
				allow(c.Off, c.End())
			}
		}
		for _, c := range cur {
			if !had[c] || touched(c) {
				allow(c.Off, c.End())
			}
		}
		if end := min(before.Blob.Size, v.Size()); before.Blob.Size != v.Size() && end%spanBytes != 0 {
			dirty = end / spanBytes // cut anew where the end moved
			allow(dirty*spanBytes, (dirty+1)*spanBytes)
		}
	}
	read := make([]bool, len(kinds))
	for _, r := range v.reads {
		if r.Off < 0 || r.Len <= 0 || r.End() > v.Size() || r.Off%block != 0 || r.End()%block != 0 && r.End() != v.Size() {
			t.Errorf("read %d bytes at %d of %d", r.Len, r.Off, v.Size())
			continue
		}
		for b := r.Off / block; b*block < r.End(); b++ {
			switch {
			case !allowed[b]:
				t.Errorf("read block %d, which no changed chunk and no neighbour has; changed %v", b, v.changed)
			case read[b]:
				t.Errorf("read block %d twice; changed %v", b, v.changed)
			case kinds[b] == holeBlock && b/(spanBytes/block) != dirty:
				t.Errorf("read block %d, which is told to be a hole", b)
			}
			read[b] = true
		}
	}
}

func (h *history) chunks(t *testing.T, b *chunkstore.Backup) (out []chunkstore.Chunk) {
	t.Helper()
	for c, err := range h.repo.OpenBlob(b.Blob).Chunks(t.Context(), 0, b.Blob.Size) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

const (
	equalBlock = iota
	holeBlock
	dataBlock
)

// blockKinds says of every block what the volume's extents tell: whether any of it may be data, or one extent says that all of
// it is a hole.
func blockKinds(v *volume) []int {
	size := v.Size()
	kinds := make([]int, (size+block-1)/block)
	extents := v.full
	if v.base {
		extents = v.changed
	}
	for _, e := range extents {
		for b := e.Off / block; b*block < e.End(); b++ {
			if e.Hole && e.Off <= b*block && e.End() >= min((b+1)*block, size) {
				kinds[b] = holeBlock
			} else {
				kinds[b] = dataBlock
			}
		}
	}
	return kinds
}

var _ source.Opener = (*volume)(nil)
