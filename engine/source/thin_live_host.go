package source

import (
	"context"

	"github.com/shalebackup/shale/thin/pool"
)

// livePool is what a live source asks of device-mapper: a pool.Host, but for tests.
type livePool interface {
	Resolve(ctx context.Context, name string) (pool.Volume, error)
	Recover(ctx context.Context) (pool.Recovered, error)
	Status(ctx context.Context, p pool.Pool) (pool.Status, error)
	Snapshot(ctx context.Context, v pool.Volume) (liveSnapshot, error)
	Reserve(ctx context.Context, p pool.Pool) (liveReservation, error)
	Activate(ctx context.Context, v pool.Volume, deviceID uint32) (liveDevice, error)
	Delete(ctx context.Context, p pool.Pool, r pool.Ref) error
}

type liveSnapshot interface {
	Name() pool.Ref
	Keep() error
	Delete(ctx context.Context) error
}

type liveReservation interface {
	HeldRoot() uint64
	Release(ctx context.Context) error
}

type liveDevice interface {
	Node() string
	Close(ctx context.Context) error
}

// livePools is the real livePool.
type livePools struct{ *pool.Host }

func (h livePools) Snapshot(ctx context.Context, v pool.Volume) (liveSnapshot, error) {
	s, err := h.Host.Snapshot(ctx, v)
	if err != nil {
		return nil, err
	}
	return namedSnapshot{s}, nil
}

func (h livePools) Reserve(ctx context.Context, p pool.Pool) (liveReservation, error) {
	r, err := h.Host.Reserve(ctx, p)
	if err != nil {
		return nil, err
	}
	return rootedReservation{r}, nil
}

// Activate makes a block device that reads as v would, were it that device of the pool.
func (h livePools) Activate(ctx context.Context, v pool.Volume, deviceID uint32) (liveDevice, error) {
	d, err := h.Host.Activate(ctx, v.Pool, deviceID, v.SizeBytes, v.ExternalOrigin)
	if err != nil {
		return nil, err
	}
	return activeDevice{d}, nil
}

type namedSnapshot struct{ *pool.Snapshot }

func (s namedSnapshot) Name() pool.Ref { return s.Ref }

type rootedReservation struct{ *pool.Reservation }

func (r rootedReservation) HeldRoot() uint64 { return r.Root }

type activeDevice struct{ *pool.Device }

func (d activeDevice) Node() string { return d.Path }
