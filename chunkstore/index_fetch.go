package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// A host that has not got a segment fetches what it looks at: first the header with the fence, and the table that says where the frames
// are; then one frame of entries for each look-up, and one of packs for each that finds something. When much of a segment was
// asked for, the rest is fetched at once, so that no pattern of look-ups costs much more than having fetched all of it to begin with
// (docs/adr/0008).
const (
	// smallSegment is the size of an object that is fetched whole.
	smallSegment = 128 << 10
	// segmentFront is how much is read of an object's beginning: pack header and the first frame of the longest segments.
	segmentFront = 8 << 10
	// fetchParallel bounds requests for frames: they wait for the network, not for a processor.
	fetchParallel = 8
)

// A reader asks here and there: the rest is fetched when half was asked for. A Writer that asks for a chunk's ID asks for every chunk's: for
// it, a sixteenth.
const (
	readerFetchesAll = 2
	writerFetchesAll = 16
)

// wanted is frames that a look-up misses.
type wanted []wantedFrame

type wantedFrame struct {
	s     *segment // with a reference
	frame int
	sure  bool // the segment has the record: the frame says where
}

func (w *wanted) add(s *segment, frame int, sure bool) {
	if w != nil {
		s.refs.Add(1)
		*w = append(*w, wantedFrame{s, frame, sure})
	}
}

func (w wanted) release() {
	for i := range w {
		_ = w[i].s.release() // as in releaseAll
	}
}

// has reports whether a Writer may rely on the record: some pack has it that is not condemned.
func (x *index) has(ctx context.Context, k *key) (bool, error) {
	if known, sure := x.hasLocal(k); sure {
		return known, nil
	}
	_, found, condemned, err := x.resolve(ctx, k, writerFetchesAll)
	if found && !condemned {
		return true, nil
	}
	return false, err
}

// resolve is lookup that fetches what it takes to know. condemned says that only condemned packs have the record. The error is that of
// fetching: what is found is good all the same.
func (x *index) resolve(ctx context.Context, k *key, part int) (l location, found, condemned bool, err error) {
	for gone := 0; ; {
		var w wanted
		x.mu.RLock()
		l, found, condemned = x.find(k, &w)
		unread := len(x.unread) > 0
		begun := x.begun
		x.mu.RUnlock()
		if found && !condemned || err != nil || !unread && len(w) == 0 {
			w.release()
			return l, found, condemned, err
		}
		if unread {
			err = x.openUnread(ctx)
		} else {
			err = x.supply(ctx, w, part)
		}
		w.release()
		// A segment that is gone was merged into another by some writer: list again.
		if errors.Is(err, backend.ErrNotExist) && gone < 3 {
			gone++
			err = x.refreshAfter(ctx, begun)
		}
	}
}

// resolveAll is places, for a reader, that fetches what it takes to know. What cannot be fetched tells nothing.
func (x *index) resolveAll(ctx context.Context, k *key) []location {
	for {
		var w wanted
		x.mu.RLock()
		places := x.findAll(k, &w)
		unread := len(x.unread) > 0
		x.mu.RUnlock()
		if !unread && len(w) == 0 {
			return places
		}
		var err error
		if unread {
			err = x.openUnread(ctx)
		} else {
			err = x.fetchWanted(ctx, w, readerFetchesAll)
		}
		w.release()
		if err != nil {
			return places
		}
	}
}

// supply fetches frames: where a record is that is surely there; else, for a reader, the frame of the largest segment, if that has more than the others
// together; else all.
func (x *index) supply(ctx context.Context, w wanted, part int) error {
	for i := range w {
		if w[i].sure {
			return x.fetchFrame(ctx, w[i].s, w[i].frame, part)
		}
	}
	if part == readerFetchesAll {
		entries := 0
		for i := range w {
			entries += w[i].s.count
		}
		if best := slices.MaxFunc(w, func(a, b wantedFrame) int { return cmp.Compare(a.s.count, b.s.count) }); best.s.count > entries/2 {
			return x.fetchFrame(ctx, best.s, best.frame, part)
		}
	}
	return x.fetchWanted(ctx, w, part)
}

func (x *index) fetchWanted(ctx context.Context, w wanted, part int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for i := range w {
		g.Go(func() error { return x.fetchFrame(ctx, w[i].s, w[i].frame, part) })
	}
	return g.Wait()
}

// openUnread opens all segments that were listed and not yet looked at.
func (x *index) openUnread(ctx context.Context) error {
	if err := x.opening.lock(ctx); err != nil {
		return err
	}
	defer x.opening.unlock()
	x.mu.RLock()
	objects := slices.Clone(x.unread)
	x.mu.RUnlock()
	segs := make([]*segment, len(objects))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for i, o := range objects {
		g.Go(func() (err error) {
			segs[i], err = x.openRemote(gctx, o)
			return err
		})
	}
	err := g.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range segs {
		if s == nil {
			continue
		}
		i := slices.IndexFunc(x.unread, func(o backend.Object) bool { return o.Name == s.name })
		if i < 0 { // a refresh has found it gone, or in the cache
			_ = s.release()
			continue
		}
		x.unread = slices.Delete(slices.Clone(x.unread), i, i+1)
		x.segs = append(slices.Clone(x.segs), s)
	}
	return err
}

// openRemote opens a segment that the cache lacks: a small one whole, of another the first frame.
func (x *index) openRemote(ctx context.Context, o backend.Object) (*segment, error) {
	if o.Size <= smallSegment {
		return x.openSmall(ctx, o)
	}
	if o.Size > maxPackLen {
		return nil, &CorruptError{Object: o.Name, Err: fmt.Errorf("%d bytes are more than any object has", o.Size)}
	}
	front, tail := make([]byte, segmentFront), make([]byte, min(o.Size, firstTail/2))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.r.be.ReadAt(gctx, o.Name, front, 0) })
	g.Go(func() error { return x.r.be.ReadAt(gctx, o.Name, tail, o.Size-int64(len(tail))) })
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("read index segment: %w", err)
	}
	t, tail, err := x.tail(ctx, o, front, tail)
	if err != nil {
		return nil, err
	}
	e := &t.entries[0]
	if end := int(e.off + e.stored); end > len(front) {
		front = make([]byte, end)
		if err := x.r.be.ReadAt(ctx, o.Name, front, 0); err != nil {
			return nil, fmt.Errorf("read index segment: %w", err)
		}
	}
	s, err := x.openFirst(o.Name, t, front, tail)
	if err != nil {
		return nil, &CorruptError{Object: o.Name, Err: err}
	}
	return s, nil
}

func (x *index) openSmall(ctx context.Context, o backend.Object) (*segment, error) {
	pack := make([]byte, o.Size)
	if err := x.r.be.ReadAt(ctx, o.Name, pack, 0); err != nil {
		return nil, fmt.Errorf("read index segment: %w", err)
	}
	data, err := x.r.decodeObject(ctx, o.Name, kindIndex, pack)
	if err != nil {
		return nil, fmt.Errorf("read index segment: %w", err)
	}
	s, err := openSegment(o.Name, data)
	if err == nil {
		err = verifySegment(s)
	}
	if err != nil {
		return nil, &CorruptError{Object: o.Name, Err: err}
	}
	return x.keep(o.Name, pack, data)
}

// tail decodes the table of a segment's object, and returns the part of the object from the table on.
func (x *index) tail(ctx context.Context, o backend.Object, front, tail []byte) (*packTable, []byte, error) {
	if err := x.r.learnEpoch(ctx, front[:packHeaderLen]); err != nil {
		return nil, nil, err
	}
	t, err := decodePackTail(x.r.sealer, front[:packHeaderLen], tail, uint64(o.Size))
	var short *errShortTail
	if errors.As(err, &short) && short.need <= uint64(o.Size) {
		tail = make([]byte, short.need)
		if err := x.r.be.ReadAt(ctx, o.Name, tail, o.Size-int64(len(tail))); err != nil {
			return nil, nil, fmt.Errorf("read index segment: %w", err)
		}
		t, err = decodePackTail(x.r.sealer, front[:packHeaderLen], tail, uint64(o.Size))
	}
	switch {
	case err != nil:
	case t.header.kind != kindIndex || o.Name != prefixIndex+t.id.String():
		err = errors.New("content is not what the name says")
	case len(t.entries) == 0:
		err = errors.New("segment without frames")
	}
	if err != nil {
		return nil, nil, &CorruptError{Object: o.Name, Err: err}
	}
	return t, tail[uint64(len(tail))-(uint64(o.Size)-t.trailer.tableOff):], nil
}

// openFirst opens a segment of which only the first frame, in front, is known.
func (x *index) openFirst(name string, t *packTable, front, tail []byte) (*segment, error) {
	bx, err := x.r.sealer.box(t.header.kind, t.header.salt)
	if err != nil {
		return nil, err
	}
	e := &t.entries[0]
	first, err := x.r.decodeFrame(nil, front[e.off:e.off+e.stored], bx, e)
	if err != nil {
		return nil, err
	}
	h, err := decodeSegmentHead(first)
	if err == nil {
		err = h.checkTable(t)
	}
	if err != nil {
		return nil, err
	}
	if x.cache != nil {
		if s, err := x.cache.create(name, &h, first, front[:packHeaderLen], tail); err == nil {
			return s, nil
		} // a full cache disk costs memory
	}
	s, err := newSparseSegment(name, h, first, t)
	if err != nil {
		return nil, err
	}
	if err := s.checkHead(first); err != nil {
		return nil, errors.Join(err, s.release())
	}
	s.adopt(0, first)
	return s, nil
}

// fetchFrame fetches a frame of s that is not present, or all that are missing when one in part of them was asked for.
func (x *index) fetchFrame(ctx context.Context, s *segment, frame, part int) error {
	s.mu.Lock()
	for s.busy[frame] != nil { // somebody fetches it
		done := s.busy[frame]
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
	}
	if s.present(frame) {
		s.mu.Unlock()
		return nil
	}
	if s.busy == nil {
		s.busy = map[int]chan struct{}{}
	}
	done := make(chan struct{})
	s.busy[frame] = done
	s.asked++
	all := s.asked >= max(4, s.frames()/part)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.busy, frame)
		s.mu.Unlock()
		close(done)
	}()
	if all {
		return x.complete(ctx, s)
	}
	return x.fetchFrames(ctx, s, []int{frame})
}

// complete fetches all frames of s that are missing.
func (x *index) complete(ctx context.Context, s *segment) error {
	if err := s.filling.lock(ctx); err != nil {
		return err
	}
	defer s.filling.unlock()
	missing := s.missing()
	for len(missing) > 0 {
		n, stored := 1, s.table.entries[missing[0]].stored
		for n < len(missing) && missing[n] == missing[n-1]+1 && stored < batchMax {
			stored += s.table.entries[missing[n]].stored
			n++
		}
		if err := x.fetchFrames(ctx, s, missing[:n]); err != nil {
			return err
		}
		missing = missing[n:]
	}
	return nil
}

// fetchFrames reads frames that follow each other, verifies them and keeps them.
func (x *index) fetchFrames(ctx context.Context, s *segment, frames []int) error {
	if s.table == nil {
		return &CorruptError{Object: s.name, Err: errors.New("segment has lost a part of its memory")}
	}
	entries := s.table.entries[frames[0]:][:len(frames)]
	from, end := entries[0].off, entries[len(entries)-1].off+entries[len(entries)-1].stored
	buf, plain := x.r.bufs.get(int(end-from)), x.r.bufs.get(0)
	defer x.r.bufs.put(buf)
	defer x.r.bufs.put(plain)
	if err := x.r.be.ReadAt(ctx, s.name, *buf, int64(from)); err != nil {
		return fmt.Errorf("read index segment: %w", err)
	}
	bx, err := x.r.sealer.box(s.table.header.kind, s.table.header.salt)
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		*plain, err = x.r.decodeFrame((*plain)[:0], (*buf)[e.off-from:][:e.stored], bx, e)
		if err == nil {
			err = s.checkFrame(frames[i], *plain)
		}
		if err != nil {
			return &CorruptError{Object: s.name, Off: int64(e.off), Err: err}
		}
		s.adopt(frames[i], *plain)
	}
	return nil
}

// open returns all segments, of which frames may be missing. The caller releases them.
func (x *index) open(ctx context.Context) ([]*segment, error) {
	for gone := 0; ; gone++ {
		begun := x.refreshes()
		err := x.openUnread(ctx)
		if err == nil {
			return x.snapshot(), nil
		}
		if gone == 3 || !errors.Is(err, backend.ErrNotExist) {
			return nil, err
		}
		if err := x.refreshAfter(ctx, begun); err != nil {
			return nil, err
		}
	}
}

// whole fetches all that is missing of the index, and what has gone bad in the cache, and returns the segments, which the caller
// releases, and how many had gone bad.
func (x *index) whole(ctx context.Context) (segs []*segment, healed int, err error) {
	for gone := 0; ; gone++ {
		begun := x.refreshes()
		if segs, err = x.open(ctx); err != nil {
			return nil, 0, err
		}
		if healed, err = x.completeAll(ctx, segs); err == nil {
			return segs, healed, nil
		}
		releaseAll(segs)
		if gone == 3 || !errors.Is(err, backend.ErrNotExist) {
			return nil, 0, err
		}
		if err := x.refreshAfter(ctx, begun); err != nil {
			return nil, 0, err
		}
	}
}

// completeAll makes segments whole and verifies them. Returns how many local copies had gone bad.
func (x *index) completeAll(ctx context.Context, segs []*segment) (healed int, err error) {
	bad := make([]bool, len(segs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(x.r.opts.Parallel, fetchParallel/2))
	for i, s := range segs {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			bad[i] = s.recheck()
			if err := x.complete(gctx, s); err != nil {
				return err
			}
			if err := verifySegment(s); err != nil {
				return &CorruptError{Object: s.name, Err: err}
			}
			return nil
		})
	}
	err = g.Wait()
	for _, b := range bad {
		if b {
			healed++
		}
	}
	return healed, err
}
