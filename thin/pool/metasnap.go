package pool

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrLost: the metadata snapshot did not last until Release. What was read at its root is not to be trusted.
var ErrLost = errors.New("metadata snapshot was released by another program")

// heldPoll is how often Reserve looks whether another program has released its metadata snapshot.
const heldPoll = 500 * time.Millisecond

// Reservation is a metadata snapshot that this process holds: as long as it lasts, the pool overwrites no block that is
// reachable from Root, so that the metadata device can be read while the pool is in use. A pool has at most one, and it
// costs metadata space while the pool changes: hold it for as long as mappings are read, not for as long as data is.
type Reservation struct {
	Root  uint64 // metadata block of the copied superblock, to be given to package thin
	pool  Pool
	host  *Host
	claim *claim
}

// Reserve reserves the pool's metadata snapshot. Snapshots taken before are in it, later ones are not. Another shale that
// holds it is waited for; another program for Config.HeldWait, then the error is ErrHeld. A metadata snapshot that was left by
// a shale that died is released first. Pools that take no messages give Status.MessageErr's errors; the metadata of one that is
// read-only can be read without a reservation, because nobody writes it.
func (h *Host) Reserve(ctx context.Context, p Pool) (*Reservation, error) {
	c, err := h.takeClaim(ctx, claimReserve, p.ID(), true)
	if err != nil {
		return nil, fmt.Errorf("reserve metadata of pool %s: %w", p.Name, err)
	}
	root, err := h.reserve(ctx, p, c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reserve metadata of pool %s: %w", p.Name, err), c.abandon())
	}
	return &Reservation{Root: root, pool: p, host: h, claim: c}, nil
}

// reserve leaves in the claim what has to be undone.
func (h *Host) reserve(ctx context.Context, p Pool, c *claim) (root uint64, err error) {
	if _, err := h.releaseLeft(ctx, p, c); err != nil {
		return 0, err
	}
	deadline := time.Now().Add(h.conf.HeldWait)
	for {
		st, err := h.Status(ctx, p)
		if err == nil {
			err = st.MessageErr()
		}
		if err != nil {
			return 0, errors.Join(err, c.drop())
		}
		if st.HeldRoot == 0 {
			root, err := h.reserveFree(ctx, p, c)
			if !errors.Is(err, ErrBusy) { // else: another program was faster
				return root, err
			}
		}
		if time.Now().After(deadline) {
			return 0, errors.Join(fmt.Errorf("%w (held root %d)", ErrHeld, st.HeldRoot), c.drop())
		}
		if err := sleep(ctx, heldPoll); err != nil {
			return 0, errors.Join(err, c.drop())
		}
	}
}

// reserveFree reserves when none is held. ErrBusy: somebody holds one now; the claim is then empty again.
func (h *Host) reserveFree(ctx context.Context, p Pool, c *claim) (root uint64, err error) {
	rec := record{Pool: p}
	if err := c.write(rec); err != nil {
		return 0, err
	}
	ctx = context.WithoutCancel(ctx) // what is reserved is to be recorded
	if err := h.message(ctx, p.Name, "reserve_metadata_snap"); err != nil {
		if answered(err) { // nothing of ours is reserved: leave no claim on another's
			err = errors.Join(err, c.clear())
		}
		return 0, err
	}
	st, err := h.Status(ctx, p)
	if err == nil && st.HeldRoot == 0 {
		err = ErrLost
	}
	if err == nil {
		rec.Root = st.HeldRoot
		err = c.write(rec)
	}
	if err != nil {
		return 0, errors.Join(err, h.message(ctx, p.Name, "release_metadata_snap"))
	}
	return st.HeldRoot, nil
}

// Release gives the metadata snapshot back, also when ctx is cancelled already. ErrLost: it had not lasted.
func (r *Reservation) Release(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := func() error {
		st, err := r.host.Status(ctx, r.pool)
		if err != nil {
			return err
		}
		if st.HeldRoot != r.Root {
			return errors.Join(ErrLost, r.claim.drop())
		}
		if err := r.host.message(ctx, r.pool.Name, "release_metadata_snap"); err != nil {
			return err
		}
		return r.claim.drop()
	}()
	if err != nil {
		return errors.Join(fmt.Errorf("release metadata of pool %s: %w", r.pool.Name, err), r.claim.abandon())
	}
	return nil
}

// releaseLeft releases what the dead owner of a claim had reserved. A held root other than the recorded one is somebody
// else's. With none recorded, the owner died between reserving and looking: one that is held now is taken for its.
func (h *Host) releaseLeft(ctx context.Context, p Pool, c *claim) (released bool, err error) {
	rec, ok, err := c.leftRecord()
	if err != nil || !ok {
		return false, err
	}
	st, err := h.Status(ctx, p)
	if err != nil {
		return false, err
	}
	if st.HeldRoot != 0 && (rec.Root == 0 || rec.Root == st.HeldRoot) {
		if err := h.message(ctx, p.Name, "release_metadata_snap"); err != nil {
			return false, err
		}
		released = true
	}
	return released, c.clear()
}
