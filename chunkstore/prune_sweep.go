package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// sweep deletes the packs that are due: first the index forgets them, then they go. Trash lists whose time is over go too.
func (p *prune) sweep(ctx context.Context) error {
	releaseAll(p.segs) // what replaces them is mapped too, and looked at
	p.segs, p.uses, p.seen, p.shared = nil, nil, nil, nil
	due := map[packID]struct{}{}
	for id, pack := range p.packs {
		if _, kept := p.keep[id]; pack.due && !kept {
			due[id] = struct{}{}
		}
	}
	if err := p.unlockedDue(ctx, due); err != nil {
		return err
	}
	gone, err := p.forget(ctx, due)
	if err != nil {
		return err
	}
	if !gone { // another prune condemned packs meanwhile: the next one deletes
		return nil
	}
	if err := p.remove(ctx, due); err != nil {
		return err
	}
	p.waiting()
	return p.expire(ctx, due)
}

// forget writes anew the index segments that name packs that are due, or condemned and gone, without them. It returns false when
// it could not, because of another prune.
func (p *prune) forget(ctx context.Context, due map[packID]struct{}) (bool, error) {
	x := p.r.index
	if err := x.refresh(ctx); err != nil { // to the trash list of our own
		return false, err
	}
	segs, _, err := x.whole(ctx)
	if err != nil {
		return false, err
	}
	defer releaseAll(segs)
	if err := x.changing.lock(ctx); err != nil {
		return false, err
	}
	defer x.changing.unlock()
	drop := map[packID]struct{}{}
	var in []*segment
	for _, s := range segs {
		names := false
		for i := range s.packs {
			id := s.pack(i).id
			_, isDue := due[id]
			if isDue || (p.packs[id] == nil && p.trash.condemned(id)) {
				drop[id] = struct{}{}
				names = true
			}
		}
		if names {
			in = append(in, s)
		}
	}
	if len(in) == 0 {
		return true, nil
	}
	n, err := x.merge(ctx, in, func(_ *key, l *location) bool { _, dropped := drop[l.pack.id]; return dropped })
	if errors.Is(err, errTrashChanged) {
		return false, nil
	}
	p.report.Segments += n
	return err == nil, err
}

// remove deletes packs.
func (p *prune) remove(ctx context.Context, due map[packID]struct{}) error {
	var done atomic.Int64
	var locked sync.Map // by packID
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * p.r.atOnce)
	for id := range due {
		pack := p.packs[id]
		g.Go(func() error {
			err := p.r.be.Delete(gctx, pack.object())
			if errors.Is(err, backend.ErrRetained) {
				p.held(pack)
				locked.Store(id, nil)
				return nil
			}
			if err != nil {
				return fmt.Errorf("delete pack: %w", err)
			}
			p.o.Progress("delete", done.Add(1), int64(len(due)))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for id := range due {
		if _, kept := locked.Load(id); kept {
			delete(due, id)
			continue
		}
		p.report.Freed.add(p.packs[id].size)
	}
	return nil
}

// expire removes trash lists that are old enough for nobody to write entries of their packs any more, when none of their packs is left.
func (p *prune) expire(ctx context.Context, due map[packID]struct{}) error {
	named := map[packID]bool{}
	segs, _, err := p.r.index.whole(ctx)
	if err != nil {
		return err
	}
	defer releaseAll(segs)
	for _, s := range segs {
		for i := range s.packs {
			named[s.pack(i).id] = true
		}
	}
	for name, t := range p.trash.lists {
		if t.mod.Add(p.o.Grace+trashKeep).After(p.now) && !p.r.off.tombstone {
			continue
		}
		left := false
		for _, c := range t.Packs {
			id, _, _ := parsePackObject(c.Object)
			_, deleted := due[id]
			left = left || named[id] || (p.packs[id] != nil && !deleted)
		}
		if left {
			continue
		}
		if err := p.r.be.Delete(ctx, name); err != nil && !errors.Is(err, backend.ErrNotExist) {
			return fmt.Errorf("delete trash list: %w", err)
		}
	}
	return nil
}
