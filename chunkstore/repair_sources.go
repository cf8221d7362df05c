package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"
)

// RepairSource is a place where lost content may be found: a repository, one backup in it, or Content.
type RepairSource struct {
	Name       string
	Repository *Repository
	Backup     *Backup // of Repository; nil: all
	Content    RepairContent
}

// RepairContent is a volume's content as somebody else has it: an image, a device. It need not be a volume's whole or exact content:
// whatever is in it is compared with the IDs of what is lost.
type RepairContent interface {
	Size() int64
	// ReadAt fills p with the bytes from off on, all of which lie within Size.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// NextData returns the first range at or behind off that may hold data; off at Size: there is none. All else reads as zeros.
	NextData(ctx context.Context, off int64) (from, end int64, err error)
}

// fill stores what is wanted and can be had: from the repository's own damaged packs, then from the sources.
func (p *repair) fill(ctx context.Context, w *wants) error {
	if len(w.records) == 0 {
		return nil
	}
	if err := p.salvage(ctx, w); err != nil {
		return err
	}
	for i := range p.o.From {
		s := &p.o.From[i]
		if len(w.records) == 0 {
			return nil
		}
		var err error
		switch {
		case s.Content != nil:
			err = p.fromContent(ctx, w, s, s.Content, -1, true)
		case s.Repository.sameIDs(p.r):
			err = p.fromTwin(ctx, w, s)
		default:
			err = p.fromRepository(ctx, w, s)
		}
		if err != nil {
			return fmt.Errorf("look for lost content in %s: %w", s.Name, err)
		}
	}
	return nil
}

// sameIDs reports whether the same content has the same IDs in both.
func (r *Repository) sameIDs(o *Repository) bool {
	probe := []byte("probe")
	var a, b ID
	r.nodeIDs.id(&a, probe)
	o.nodeIDs.id(&b, probe)
	return a == b && r.ChunkID(probe) == o.ChunkID(probe)
}

// each calls fn for every wanted record, several at a time, and takes those off the list for which it returns true.
func (p *repair) each(ctx context.Context, w *wants, what string, fn func(ctx context.Context, id ID, level int) (bool, error)) error {
	ids := make([]ID, 0, len(w.records))
	for id := range w.records {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b ID) int { return slices.Compare(a[:], b[:]) })
	found := make([]bool, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.r.opts.Parallel)
	for i := range ids {
		level := w.records[ids[i]]
		g.Go(func() (err error) {
			found[i], err = fn(gctx, ids[i], level)
			p.o.Progress(what, int64(i), int64(len(ids)))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range ids {
		if found[i] {
			w.found(ids[i])
		}
	}
	return nil
}

func (w *wants) found(id ID) { delete(w.records, id) }

// unreadable says whether err means that this source does not have it, and not that it cannot be asked.
func unreadable(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) }

// salvage stores anew what can be read in damaged packs, when it has its whole ID.
func (p *repair) salvage(ctx context.Context, w *wants) error {
	return p.each(ctx, w, "salvage", func(ctx context.Context, id ID, level int) (bool, error) {
		k := id.key()
		if _, bad := p.check.unreadable(&k); bad {
			return false, nil
		}
		return p.take(ctx, p.r, id, level, &p.report.Salvaged)
	})
}

// fromTwin asks a repository in which the same content has the same IDs.
func (p *repair) fromTwin(ctx context.Context, w *wants, s *RepairSource) error {
	return p.each(ctx, w, "look in "+s.Name, func(ctx context.Context, id ID, level int) (bool, error) {
		return p.take(ctx, s.Repository, id, level, &p.tried[s].Salvage)
	})
}

// take stores the record of id as from has it.
func (p *repair) take(ctx context.Context, from *Repository, id ID, level int, count *Salvage) (bool, error) {
	if level >= 0 {
		b, err := from.readNode(ctx, &id)
		if err != nil {
			return false, notThere(err)
		}
		_, err = p.w.putNode(ctx, b)
		p.count(count, 0, 1, len(b))
		return true, err
	}
	b, err := from.ReadChunk(ctx, id, nil)
	if err != nil {
		return false, notThere(err)
	}
	if p.r.ChunkID(b) != id {
		return false, nil
	}
	_, err = p.w.PutChunk(ctx, b)
	p.count(count, 1, 0, len(b))
	return true, err
}

func notThere(err error) error {
	if unreadable(err) {
		return nil
	}
	return err
}

func (p *repair) count(s *Salvage, chunks, nodes int64, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Chunks += chunks
	s.Nodes += nodes
	s.Bytes += int64(bytes)
}

// fromRepository asks the backups of a repository of other IDs: the one that is named, or all of the volumes that have lost something.
// They are read where something is lost; one that is named is also read whole.
func (p *repair) fromRepository(ctx context.Context, w *wants, s *RepairSource) error {
	if s.Backup != nil {
		return p.fromContent(ctx, w, s, &blobContent{s.Repository.OpenBlob(s.Backup.Blob)}, -1, true)
	}
	for volume, name := range w.volumes {
		if !w.wantsOf(volume) {
			continue
		}
		var all []*Backup
		err := s.Repository.WalkBackups(ctx, name, func(_ string, b *Backup, err error) error {
			if err == nil {
				all = append(all, b)
			}
			return notThere(err)
		})
		if err != nil {
			return err
		}
		for _, b := range all {
			if err := p.fromContent(ctx, w, s, &blobContent{s.Repository.OpenBlob(b.Blob)}, volume, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// wantsOf reports whether something of the volume is wanted.
func (w *wants) wantsOf(volume int) bool {
	return slices.ContainsFunc(w.places, func(at want) bool {
		_, ok := w.records[at.id]
		return ok && at.volume == volume
	})
}

// fromContent looks for what is wanted of the volume, -1 for any: tree nodes and chunks in their own places, and chunks anywhere when all
// of it is to be read.
func (p *repair) fromContent(ctx context.Context, w *wants, s *RepairSource, c RepairContent, volume int, whole bool) error {
	for i := range w.places {
		at := &w.places[i]
		if _, ok := w.records[at.id]; !ok || (volume >= 0 && at.volume != volume) {
			continue
		}
		p.o.Progress("look in "+s.Name, int64(i), int64(len(w.places)))
		found, err := p.inPlace(ctx, s, c, at)
		if err != nil && !unreadable(err) {
			return err
		}
		if found {
			w.found(at.id)
		}
	}
	if !whole || !w.wantsChunks() {
		return nil
	}
	return p.scan(ctx, w, s, c)
}

func (w *wants) wantsChunks() bool {
	for _, level := range w.records {
		if level < 0 {
			return true
		}
	}
	return false
}

// inPlace stores the record if the content has it in its own place.
func (p *repair) inPlace(ctx context.Context, s *RepairSource, c RepairContent, at *want) (bool, error) {
	if at.level >= 0 {
		b := rebuilder{p: p, c: c, size: at.size}
		if id, err := b.subtree(ctx, at.level, at.number); err != nil || id != at.id {
			return false, err
		}
		b.found = &p.tried[s].Salvage
		_, err := b.subtree(ctx, at.level, at.number)
		return err == nil, err
	}
	if at.off+int64(at.len) > c.Size() {
		return false, nil
	}
	buf := p.r.bufs.get(at.len)
	defer p.r.bufs.put(buf)
	if err := c.ReadAt(ctx, *buf, at.off); err != nil || p.r.ChunkID(*buf) != at.id {
		return false, err
	}
	_, err := p.w.PutChunk(ctx, *buf)
	p.count(&p.tried[s].Salvage, 1, 0, at.len)
	return true, err
}

// scan cuts all of the content as this repository does, and stores the chunks that are wanted.
func (p *repair) scan(ctx context.Context, w *wants, s *RepairSource, c RepairContent) error {
	spanBytes := int64(p.r.cfg.SpanBytes)
	found := make(chan ID)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.r.opts.Parallel + 1)
	done := make(chan struct{})
	got := map[ID]struct{}{}
	go func() {
		defer close(done)
		for id := range found {
			got[id] = struct{}{}
		}
	}()
	var err error
	for off := int64(0); off < c.Size(); {
		var from int64
		if from, _, err = c.NextData(gctx, off); err != nil || from >= c.Size() {
			break
		}
		at := from / spanBytes * spanBytes
		g.Go(func() error { return p.scanSpan(gctx, w, s, c, at, found) })
		p.o.Progress("read "+s.Name, at, c.Size())
		off = at + spanBytes
	}
	err = errors.Join(g.Wait(), notThere(err))
	close(found)
	<-done
	for id := range got {
		w.found(id)
	}
	return err
}

// scanSpan cuts one span. w is not changed meanwhile.
func (p *repair) scanSpan(ctx context.Context, w *wants, s *RepairSource, c RepairContent, at int64, found chan<- ID) error {
	buf := p.r.bufs.get(int(min(int64(p.r.cfg.SpanBytes), c.Size()-at)))
	defer p.r.bufs.put(buf)
	if err := c.ReadAt(ctx, *buf, at); err != nil {
		return notThere(err) // another source's own damage
	}
	return p.r.cut(*buf, func(piece []byte, _ int) error {
		id := p.r.ChunkID(piece)
		if level, ok := w.records[id]; !ok || level >= 0 {
			return nil
		}
		before, err := p.w.known(ctx, &id)
		if err == nil {
			_, err = p.w.PutChunk(ctx, piece)
		}
		if err == nil && !before {
			p.count(&p.tried[s].Salvage, 1, 0, len(piece))
		}
		found <- id
		return err
	})
}

// cut calls fn for each chunk of a span, and where in it that begins.
func (r *Repository) cut(span []byte, fn func(piece []byte, pos int) error) error {
	for pos := 0; pos < len(span); {
		end, hole, err := r.cutter.Next(span, pos, nil)
		if err == nil && !hole {
			err = fn(span[pos:end], pos)
		}
		if err != nil {
			return err
		}
		pos = end
	}
	return nil
}

// rebuilder makes tree nodes from content: a node is a function of it.
type rebuilder struct {
	p     *repair
	c     RepairContent
	size  int64    // of the blob
	found *Salvage // nil: nothing is stored yet
	buf   []byte
}

// subtree returns the ID that the subtree has over this content, zero when that is all holes.
func (b *rebuilder) subtree(ctx context.Context, level int, number int64) (id ID, err error) {
	spanBytes := int64(b.p.r.cfg.SpanBytes)
	off := number << (nodeFanoutLog * level) * spanBytes
	if off >= b.size {
		return id, nil
	}
	end := b.size
	if width := spanBytes << (nodeFanoutLog * level); width > 0 && width < b.size-off {
		end = off + width
	}
	if off >= b.c.Size() {
		return id, nil
	}
	from, _, err := b.c.NextData(ctx, off)
	if err != nil || from >= end {
		return id, err
	}
	if level == 0 {
		return b.leaf(ctx, off, int(end-off))
	}
	n := node{level: level}
	for s := range nodeFanout {
		if n.children[s], err = b.subtree(ctx, level-1, number<<nodeFanoutLog+int64(s)); err != nil {
			return id, err
		}
	}
	if n.empty() {
		return id, nil
	}
	return b.put(ctx, n.append(nil))
}

func (b *rebuilder) leaf(ctx context.Context, off int64, n int) (id ID, err error) {
	if b.buf == nil {
		b.buf = make([]byte, b.p.r.cfg.SpanBytes)
	}
	p := b.buf[:n]
	clear(p)
	if err := b.c.ReadAt(ctx, p[:min(int64(n), b.c.Size()-off)], off); err != nil {
		return id, err
	}
	var chunks []Chunk
	err = b.p.r.cut(p, func(piece []byte, pos int) error {
		c := Chunk{Off: off + int64(pos), Len: len(piece), ID: b.p.r.ChunkID(piece)}
		chunks = append(chunks, c)
		if b.found == nil {
			return nil
		}
		if known, err := b.p.w.known(ctx, &c.ID); err != nil || known {
			return err
		}
		b.p.count(b.found, 1, 0, len(piece))
		_, err := b.p.w.PutChunk(ctx, piece)
		return err
	})
	if err != nil || len(chunks) == 0 {
		return id, err
	}
	return b.put(ctx, appendLeaf(nil, off, chunks))
}

// put returns the node's ID, and stores it when it is found to be what is wanted.
func (b *rebuilder) put(ctx context.Context, enc []byte) (id ID, err error) {
	b.p.r.nodeIDs.id(&id, enc)
	if b.found == nil {
		return id, nil
	}
	if known, err := b.p.w.known(ctx, &id); err != nil || known {
		return id, err
	}
	b.p.count(b.found, 0, 1, len(enc))
	return b.p.w.putNode(ctx, enc)
}

// known reports whether the record is stored where it may stay, or about to be.
func (w *Writer) known(ctx context.Context, id *ID) (bool, error) {
	k := id.key()
	w.mu.Lock()
	_, inflight := w.inflight[k]
	w.mu.Unlock()
	if inflight {
		return true, nil
	}
	return w.r.index.has(ctx, &k)
}

// blobContent is the content of a blob.
type blobContent struct{ b *Blob }

func (c *blobContent) Size() int64 { return c.b.Size() }

func (c *blobContent) ReadAt(ctx context.Context, p []byte, off int64) error {
	_, err := c.b.ReadAt(ctx, p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

func (c *blobContent) NextData(ctx context.Context, off int64) (from, end int64, err error) {
	n := int64(c.b.r.cfg.SpanBytes)
	span, _, ok, err := c.b.nextSpan(ctx, off/n)
	if err != nil || !ok {
		return c.b.Size(), c.b.Size(), err
	}
	return max(off, span*n), min((span+1)*n, c.b.Size()), nil
}
