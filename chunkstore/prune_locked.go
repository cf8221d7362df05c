package chunkstore

import (
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// A prune leaves alone what an object lock keeps: where the place has versions, to delete it would only hide it, and give back nothing; and
// who locked it wants it found. It is looked at again by the next prune.

// unlocked returns the packs that no lock keeps, and reports the others.
func (p *prune) unlocked(ctx context.Context, packs []*prunedPack) ([]*prunedPack, error) {
	if p.locker == nil || len(packs) == 0 {
		return packs, nil
	}
	free := make([]bool, len(packs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lockRequests)
	for i, pack := range packs {
		g.Go(func() error {
			err := retained(gctx, p.locker, pack.object())
			if errors.Is(err, backend.ErrRetained) {
				p.held(pack)
				return nil
			}
			free[i] = err == nil
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []*prunedPack
	for i, pack := range packs {
		if free[i] {
			out = append(out, pack)
		}
	}
	return out, nil
}

// unlockedDue takes out of due the packs that a lock keeps.
func (p *prune) unlockedDue(ctx context.Context, due map[packID]struct{}) error {
	if p.locker == nil || len(due) == 0 {
		return nil
	}
	var packs []*prunedPack
	for id := range maps.Keys(due) {
		packs = append(packs, p.packs[id])
	}
	free, err := p.unlocked(ctx, packs)
	if err != nil {
		return err
	}
	for _, pack := range packs {
		if !slices.Contains(free, pack) {
			delete(due, pack.id)
		}
	}
	return nil
}

// held reports a pack that a lock keeps.
func (p *prune) held(pack *prunedPack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Locked.add(pack.size)
}
