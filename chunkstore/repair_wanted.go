package chunkstore

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync/atomic"
)

// maxWanted bounds the records that are looked for at once; the next round takes those with larger keys.
const maxWanted = 1 << 20

// want is a record that some backup needs and no pack has that may stay, and where in a volume it belongs.
type want struct {
	id     ID
	level  int   // of a tree node; -1 for a chunk
	volume int   // its number
	off    int64 // bytes
	len    int   // bytes, of a chunk
	number int64 // of a node, among those of its level
	size   int64 // of the node's blob
}

// wants are what is looked for in one round.
type wants struct {
	below   uint64     // only keys that begin below; 0: all
	records map[ID]int // those that were not found yet, and their levels
	places  []want     // by offset
	volumes []string
	limit   int
}

func keyPrefix(id *ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// add notes a record that is wanted. When there are too many, those with the larger keys are left to the next round.
func (w *wants) add(at want) {
	if w.below != 0 && keyPrefix(&at.id) >= w.below {
		return
	}
	w.records[at.id] = at.level
	w.places = append(w.places, at)
	if len(w.places) <= w.limit {
		return
	}
	prefixes := make([]uint64, len(w.places))
	for i := range w.places {
		prefixes[i] = keyPrefix(&w.places[i].id)
	}
	slices.Sort(prefixes)
	if middle := prefixes[len(prefixes)/2]; middle != prefixes[0] {
		w.below = middle
	} else {
		w.limit *= 2 // one record in very many places
		return
	}
	w.places = slices.DeleteFunc(w.places, func(p want) bool { return keyPrefix(&p.id) >= w.below })
	for id := range w.records {
		if keyPrefix(&id) >= w.below {
			delete(w.records, id)
		}
	}
}

// collect walks the trees of all backups and returns what they need and have no good place for, among the keys from the given prefix
// on. next is where the next round begins; 0: there is none.
func (p *repair) collect(ctx context.Context, from uint64) (w *wants, next uint64, err error) {
	w = &wants{records: map[ID]int{}, limit: maxWanted}
	if p.limit > 0 {
		w.limit = p.limit
	}
	walk := wantWalk{p: p, w: w, from: from}
	if err := walk.begin(ctx); err != nil {
		return nil, 0, err
	}
	defer releaseAll(walk.segs)
	var done int64
	err = p.r.walkBackups(ctx, p.check.backupObjects, func(_ string, b *Backup, err error) error {
		done++
		p.o.Progress("backups", done, int64(len(p.check.backupObjects)))
		if err != nil {
			if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) {
				return nil // told by the check
			}
			return err
		}
		walk.volume = slices.Index(w.volumes, b.Volume)
		if walk.volume < 0 {
			walk.volume = len(w.volumes)
			w.volumes = append(w.volumes, b.Volume)
		}
		walk.blob = p.r.OpenBlob(b.Blob)
		return walk.subtree(ctx, b.Blob.Root, walk.blob.level, 0)
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortStableFunc(w.places, func(a, b want) int {
		switch {
		case a.off != b.off:
			return int(min(max(a.off-b.off, -1), 1))
		}
		return b.level - a.level
	})
	return w, w.below, nil
}

// wantWalk walks one backup's tree after the other. Subtrees met before are passed over.
type wantWalk struct {
	p      *repair
	w      *wants
	from   uint64
	blob   *Blob
	volume int
	segs   []*segment
	seen   [][]atomic.Uint64 // a bit for each entry of each segment: met
	new    map[key]struct{}  // nodes met that no segment has
}

func (k *wantWalk) begin(ctx context.Context) error {
	err := k.p.w.Flush(ctx)
	if err == nil {
		k.segs, _, err = k.p.r.index.whole(ctx)
	}
	if err != nil {
		return err
	}
	k.new = map[key]struct{}{}
	for _, s := range k.segs {
		k.seen = append(k.seen, make([]atomic.Uint64, (s.count+63)/64))
	}
	return nil
}

// met reports whether the record was met before, and notes that it is now.
func (k *wantWalk) met(id *ID) bool {
	key := id.key()
	for i, s := range k.segs {
		if j, ok := s.find(&key); ok {
			bit := uint64(1) << (j % 64)
			return k.seen[i][j/64].Or(bit)&bit != 0
		}
	}
	if _, ok := k.new[key]; ok {
		return true
	}
	k.new[key] = struct{}{}
	return false
}

// place notes a record, unless some pack has it that may stay.
func (k *wantWalk) place(ctx context.Context, at want) error {
	if keyPrefix(&at.id) < k.from {
		return nil
	}
	key := at.id.key()
	known, err := k.p.r.index.has(ctx, &key)
	if err == nil && !known {
		at.volume = k.volume
		k.w.add(at)
	}
	return err
}

func (k *wantWalk) subtree(ctx context.Context, id ID, level int, number int64) error {
	if err := ctx.Err(); err != nil || id.IsZero() || k.met(&id) {
		return err
	}
	spanBytes := int64(k.blob.r.cfg.SpanBytes)
	if number > math.MaxInt64/spanBytes>>(nodeFanoutLog*level) {
		return nil
	}
	off := number << (nodeFanoutLog * level) * spanBytes
	if off >= k.blob.ref.Size {
		return nil // a tree that cannot be: the check tells of it
	}
	err := k.place(ctx, want{id: id, level: level, off: off, number: number, size: k.blob.ref.Size})
	if err != nil {
		return err
	}
	if level > 0 {
		var n *node
		if n, err = k.blob.r.loadNode(ctx, id, level); err == nil {
			for s := range nodeFanout {
				if err := k.subtree(ctx, n.children[s], level-1, number<<nodeFanoutLog+int64(s)); err != nil {
					return err
				}
			}
		}
	} else {
		var chunks []Chunk
		if chunks, err = k.blob.r.loadLeaf(ctx, id, k.blob.spanLen(number)); err == nil {
			for _, c := range chunks {
				if err := k.place(ctx, want{id: c.ID, level: -1, off: off + c.Off, len: c.Len}); err != nil {
					return err
				}
			}
		}
	}
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
