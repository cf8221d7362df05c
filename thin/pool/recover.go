package pool

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Recovered tells what Recover found of processes that died: names for messages.
type Recovered struct {
	Resumed     []string // volumes that may have been left frozen
	Released    []string // pools whose metadata snapshot was left reserved
	Deactivated []string // devices left active
	Deleted     []string // snapshots that no backup had claimed
	Unsure      []string // snapshots that may exist or not, left alone: the process died while it created them
}

// errLater: a pool is not active, so that what was left in it cannot be undone now. The claim stays.
var errLater = errors.New("pool is not active")

// Recover undoes what processes that died have left behind, and leaves alone what living ones use. It goes on after an error,
// and returns all of them. Call it before the first backup after a start.
func (h *Host) Recover(ctx context.Context) (Recovered, error) {
	var r Recovered
	entries, err := os.ReadDir(h.conf.StateDir)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("recover: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return r, errors.Join(append(errs, err)...)
		}
		if err := h.recoverOne(ctx, e.Name(), &r); err != nil {
			errs = append(errs, fmt.Errorf("recover %s: %w", e.Name(), err))
		}
	}
	return r, errors.Join(errs...)
}

func (h *Host) recoverOne(ctx context.Context, file string, r *Recovered) error {
	kind, key, ok := strings.Cut(file, "-")
	undo, known := map[string]func(context.Context, *claim, record, *Recovered) error{
		claimFreeze:   h.recoverFreeze,
		claimReserve:  h.recoverReserve,
		claimActive:   h.recoverActive,
		claimSnapshot: h.recoverSnapshot,
	}[kind]
	if _, err := url.PathUnescape(key); !ok || !known || err != nil {
		return nil // not ours
	}
	c, err := tryClaim(filepath.Join(h.conf.StateDir, file))
	if errors.Is(err, errClaimed) {
		return nil
	}
	if err != nil {
		return err
	}
	rec, wrote, err := c.leftRecord()
	if err == nil && wrote {
		err = undo(ctx, c, rec, r)
	}
	if errors.Is(err, errLater) {
		return c.abandon()
	}
	if err != nil {
		return errors.Join(err, c.abandon())
	}
	return c.drop()
}

func (h *Host) recoverFreeze(ctx context.Context, _ *claim, rec record, r *Recovered) error {
	if err := h.resume(ctx, rec.Device); err != nil {
		return err
	}
	r.Resumed = append(r.Resumed, rec.Device)
	return nil
}

func (h *Host) recoverReserve(ctx context.Context, c *claim, rec record, r *Recovered) error {
	released, err := h.releaseLeft(ctx, rec.Pool, c)
	if errors.Is(err, ErrNotFound) {
		return errLater
	}
	if err == nil && released {
		r.Released = append(r.Released, rec.Pool.Name)
	}
	return err
}

func (h *Host) recoverActive(ctx context.Context, _ *claim, rec record, r *Recovered) error {
	if err := h.deactivate(ctx, rec.Device); err != nil {
		return err
	}
	r.Deactivated = append(r.Deactivated, rec.Device)
	return nil
}

func (h *Host) recoverSnapshot(ctx context.Context, _ *claim, rec record, r *Recovered) error {
	var err error
	name := rec.LV
	switch {
	case rec.LV != "": // the name is ours alone
		err = h.removeLV(ctx, rec.Pool.VG, rec.LV)
	case rec.Made:
		name = fmt.Sprintf("%s device %d", rec.Pool.Name, rec.DeviceID)
		err = h.message(ctx, rec.Pool.Name, fmt.Sprintf("delete %d", rec.DeviceID))
	default: // the ID may have been somebody else's
		there, err := h.exists(ctx, rec.Pool, rec.DeviceID)
		if err != nil {
			return err
		}
		if there {
			r.Unsure = append(r.Unsure, fmt.Sprintf("%s device %d", rec.Pool.Name, rec.DeviceID))
		}
		return nil
	}
	if errors.Is(err, ErrNotFound) {
		if rec.LV != "" {
			return nil // LVM knows volumes of inactive pools, too: it is gone
		}
		if _, err := h.Status(ctx, rec.Pool); errors.Is(err, ErrNotFound) {
			return errLater
		}
		return nil
	}
	if err != nil {
		return err
	}
	r.Deleted = append(r.Deleted, name)
	return nil
}

// exists tells by activating it whether a pool has a device of that ID.
func (h *Host) exists(ctx context.Context, p Pool, id uint32) (bool, error) {
	if _, err := h.Status(ctx, p); errors.Is(err, ErrNotFound) {
		return false, errLater
	}
	d, err := h.Activate(ctx, p, id, sectorSize, "")
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, d.Close(ctx)
}
