package thin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/shalebackup/shale/thin/thintest"
)

// fuzzPool is a small pool with shared trees of several levels and a metadata snapshot.
func fuzzPool(t testing.TB) []byte {
	t.Helper()
	var img thintest.Memory
	p := thintest.New(&img, thintest.Config{DataBlocks: 500, Fill: 3})
	err := errors.Join(
		p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
			for b := uint64(0); b < 20 && yield(thintest.Mapping{Thin: 5 * b, Data: 2 * b}); b++ {
			}
		}),
		p.Snapshot(2, 1), p.Map(1, 7, 100), p.Hold(), p.Map(2, 50, 101), p.Unmap(1, 95), p.Commit(),
	)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func FuzzSuperblock(f *testing.F) {
	img := fuzzPool(f)
	f.Add(bytes.TrimRight(img[:BlockSize], "\x00"), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, nr uint64) {
		b = append(b, make([]byte, BlockSize)...)[:BlockSize]
		binary.LittleEndian.PutUint32(b, checksum(b, superblockSalt))
		sb, err := decodeSuperblock(b, nr)
		if err != nil {
			return
		}
		if sb.BlockSize == 0 || sb.BlockSize%(minBlockSectors*sectorSize) != 0 || sb.NrDataBlocks*sb.BlockSize/sb.BlockSize != sb.NrDataBlocks ||
			sb.Version != superblockVersion || sb.IncompatFlags != 0 {
			t.Fatalf("accepted %+v", sb)
		}
	})
}

func FuzzNode(f *testing.F) {
	img := fuzzPool(f)
	for off := BlockSize; off < len(img); off += BlockSize {
		f.Add(bytes.TrimRight(img[off:off+BlockSize], "\x00"), uint64(off/BlockSize), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, nr uint64, details bool) {
		b = append(b, make([]byte, BlockSize)...)[:BlockSize]
		binary.LittleEndian.PutUint32(b, checksum(b, nodeSalt))
		size := 8
		if details {
			size = detailsSize
		}
		n, err := decodeNode(b, nr, size)
		if err != nil {
			var damage *DamageError
			if !errors.As(err, &damage) || damage.Block != nr {
				t.Fatalf("error does not name block %d: %v", nr, err)
			}
			return
		}
		for i := range n.n {
			if i > 0 && n.key(i) <= n.key(i-1) {
				t.Fatalf("key %d is %d after %d", i, n.key(i), n.key(i-1))
			}
			if k := n.search(n.key(i)); k != i {
				t.Fatalf("key %d was found at %d", i, k)
			}
		}
		if !n.leaf {
			size = childSize
		}
		if len(n.values) != n.n*size {
			t.Fatalf("%d values in %d bytes", n.n, len(n.values))
		}
	})
}

// FuzzReader changes a few 32-bit words of a pool, mends the checksums and reads everything. The answers need not make
// sense, but they end, are in order, and what is refused is refused with the name of a block.
func FuzzReader(f *testing.F) {
	clean := fuzzPool(f)
	words := uint32(len(clean) / 4)
	f.Add([]byte{}, false)
	for nr := range uint32(len(clean) / BlockSize) {
		for _, at := range []uint32{4, 16, 20, 32, 44, 48} { // flags, entries, room, keys, values
			edit := binary.LittleEndian.AppendUint32(nil, nr*BlockSize/4+at/4)
			f.Add(binary.LittleEndian.AppendUint32(edit, nr), at%8 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, edits []byte, held bool) {
		img := bytes.Clone(clean)
		for ; len(edits) >= 8; edits = edits[8:] {
			word := binary.LittleEndian.Uint32(edits) % words
			off := word * 4 % BlockSize
			thintest.Patch(img, uint64(word*4/BlockSize), func(b []byte) { copy(b[off:], edits[4:8]) })
		}
		r, err := NewReader(bytes.NewReader(img), int64(len(img)), Options{MetadataSnapshot: held, AllowNeedsCheck: true})
		if err == nil {
			err = readAll(t, r)
		}
		known := []error{ErrDamaged, ErrNotMetadata, ErrUnsupported, ErrNoMetadataSnapshot, ErrNoDevice}
		for _, k := range known {
			if errors.Is(err, k) {
				return
			}
		}
		if err != nil {
			t.Fatalf("unexpected kind of error: %v", err)
		}
	})
}

// readAll reads all that a pool has and returns the first error. A walk that read more blocks than there are would not end.
func readAll(t *testing.T, r *Reader) (first error) {
	limit := func(what string, walks uint64, before Stats) {
		t.Helper()
		if read := r.Stats().BlocksRead - before.BlocksRead; read > walks*2*r.blocks {
			t.Fatalf("%s: %d blocks read of %d", what, read, r.blocks)
		}
	}
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	ids := []uint32{1, 2}
	for d, err := range r.Devices(t.Context()) {
		keep(err)
		if err == nil && len(ids) < 5 {
			ids = append(ids, d.ID)
		}
	}
	mapped := map[uint32]map[uint64]uint64{} // of the devices that are whole
	for _, id := range ids {
		before, next, blocks, whole := r.Stats(), uint64(0), map[uint64]uint64{}, true
		for run, err := range r.Runs(t.Context(), id) {
			keep(err)
			if whole = err == nil; !whole {
				break
			}
			if run.Len == 0 || run.Thin < next || run.Data+run.Len > r.sb.NrDataBlocks {
				t.Fatalf("run %+v behind block %d, data device of %d", run, next, r.sb.NrDataBlocks)
			}
			for i := range run.Len {
				blocks[run.Thin+i] = run.Data + i
			}
			next = run.Thin + run.Len
		}
		limit("runs", 4, before)
		if whole {
			mapped[id] = blocks
		}
	}
	for _, from := range ids {
		for _, to := range ids {
			before := r.Stats()
			keep(checkDiff(t, r, from, to, mapped[from], mapped[to]))
			limit("difference", 6, before)
		}
	}
	return first
}

// checkDiff compares a difference with the mappings of both devices, when both could be read.
func checkDiff(t *testing.T, r *Reader, from, to uint32, a, b map[uint64]uint64) error {
	next, differ := uint64(0), 0
	for c, err := range r.Diff(t.Context(), from, to, DiffOptions{Unchanged: from < to}) {
		if err != nil {
			if a != nil && b != nil {
				t.Fatalf("both devices can be read, their difference not: %v", err)
			}
			return err
		}
		if c.Len == 0 || c.Thin < next {
			t.Fatalf("change %+v behind block %d", c, next)
		}
		for i := range c.Len {
			dataA, inA := a[c.Thin+i]
			dataB, inB := b[c.Thin+i]
			want := map[ChangeKind]bool{
				Removed: inA && !inB, Added: !inA && inB, Changed: inA && inB && dataA != dataB, Unchanged: inA && inB && dataA == dataB,
			}
			if a != nil && b != nil && !want[c.Kind] {
				t.Fatalf("block %d of %+v: mapped to %d %v and %d %v", c.Thin+i, c, dataA, inA, dataB, inB)
			}
			if c.Kind != Unchanged {
				differ++
			}
		}
		next = c.Thin + c.Len
	}
	if a == nil || b == nil {
		return nil
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			differ--
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			differ--
		}
	}
	if differ != 0 {
		t.Fatalf("the difference of %d and %d is wrong by %d blocks", from, to, differ)
	}
	return nil
}
