package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

// Ref names a snapshot for later runs; backup records keep it. A device ID may be used again after its device was deleted:
// compare the device's details in the metadata with those of the time of the backup before relying on it.
type Ref struct {
	Pool     string `json:"pool"`         // Pool.ID
	DeviceID uint32 `json:"device_id"`    // inside the pool
	LV       string `json:"lv,omitempty"` // LVM's name inside the volume group; empty when LVM does not manage the pool
}

// Snapshot is a snapshot that this process took and has not yet decided about: end with Keep or Delete. One that is left
// without either (the process died) is deleted by Recover.
type Snapshot struct {
	Ref
	Volume Volume // of which it is a snapshot
	host   *Host
	claim  *claim
}

// Snapshot takes a snapshot of a volume. An active volume is frozen meanwhile, with the file system mounted from it, so
// that the snapshot needs no journal replay: see Config.MaxFreeze. What sits between (encryption, LVM on LVM, a guest's disk)
// is not frozen; its snapshot is what a power cut would leave.
//
// Errors: ErrBusy when somebody else has the volume suspended, ErrOutOfSpace, ErrReadOnly, ErrNeedsCheck, ErrFailed by the
// pool's state, ErrFreezeExpired. After an error there is no snapshot, and the volume is not frozen.
func (h *Host) Snapshot(ctx context.Context, v Volume) (*Snapshot, error) {
	s, err := h.snapshot(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", v.Name, err)
	}
	return s, nil
}

func (h *Host) snapshot(ctx context.Context, v Volume) (*Snapshot, error) {
	st, err := h.Status(ctx, v.Pool)
	if err != nil {
		return nil, err
	}
	if err := st.WriteErr(); err != nil {
		return nil, err
	}
	switch {
	case v.LV != "":
		return h.snapshotLVM(ctx, v)
	case v.Pool.LVM():
		return nil, fmt.Errorf("its pool is LVM's, but LVM does not know the volume: %w", ErrUnsupported)
	case v.Device == "":
		return nil, ErrInactive
	}
	for range 8 { // IDs are drawn from eight million: a second draw is rare, a third next to impossible
		s, err := h.snapshotThin(ctx, v, newDeviceID())
		if !errors.Is(err, ErrExists) {
			return s, err
		}
	}
	return nil, fmt.Errorf("no free device ID found: %w", ErrExists)
}

// newDeviceID draws an ID in the upper half of the range, at random: the kernel refuses one that exists, so nothing needs
// to be known of the others; programs that count upwards from 0 are not met; and an ID is as good as never used again.
func newDeviceID() uint32 { return maxDeviceID/2 + 1 + rand.Uint32N(maxDeviceID/2) }

// snapshotThin takes a snapshot by messages, with a given device ID. ErrExists: the ID is taken.
//
// All claims are written before the volume is suspended: the state folder may be on the very volume.
func (h *Host) snapshotThin(ctx context.Context, v Volume, id uint32) (_ *Snapshot, err error) {
	freeze, err := h.claimFreeze(ctx, v)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, freeze.abandon()) }() // after drop it only closes once more

	c, err := h.takeClaim(ctx, claimSnapshot, fmt.Sprintf("%s-%d", v.Pool.ID(), id), false)
	if err != nil {
		return nil, err
	}
	rec := record{Pool: v.Pool, DeviceID: id}
	if err := c.write(rec); err != nil {
		return nil, errors.Join(err, c.drop())
	}
	made, err := h.createFrozen(ctx, v, freeze, id)
	if err == nil {
		rec.Made = true
		err = c.write(rec)
	}
	if err == nil {
		ref := Ref{Pool: v.Pool.ID(), DeviceID: id}
		return &Snapshot{Ref: ref, Volume: v, host: h, claim: c}, nil
	}
	switch made {
	case madeNo:
		return nil, errors.Join(err, c.drop())
	case madeUnknown:
		return nil, errors.Join(err, c.abandon())
	}
	s := Snapshot{Ref: Ref{DeviceID: id}, Volume: v, host: h, claim: c}
	return nil, errors.Join(err, s.Delete(ctx))
}

// claimFreeze takes the claim on freezing a volume, undoes what a dead owner left, and checks that nobody else froze it.
func (h *Host) claimFreeze(ctx context.Context, v Volume) (*claim, error) {
	c, err := h.takeClaim(ctx, claimFreeze, v.Device, true)
	if err != nil {
		return nil, err
	}
	err = func() error {
		if len(c.left) > 0 {
			if err := h.resume(ctx, v.Device); err != nil {
				return err
			}
		}
		info, err := h.infoByName(ctx, v.Device)
		if err != nil {
			return err
		}
		if info.suspended {
			return fmt.Errorf("the volume is suspended already: %w", ErrBusy)
		}
		h.syncMounted(ctx, info.dev)
		return c.write(record{Pool: v.Pool, Device: v.Device})
	}()
	if err != nil {
		return nil, errors.Join(err, c.drop())
	}
	return c, nil
}

// made tells what became of a snapshot's creation.
type made int

const (
	madeNo made = iota
	madeYes
	madeUnknown // the command did not come back
)

// createFrozen suspends the volume, creates the snapshot and resumes the volume: that always, and if need be by the watchdog.
// Suspending without --nolockfs makes the kernel freeze the file system first.
func (h *Host) createFrozen(ctx context.Context, v Volume, freeze *claim, id uint32) (made, error) {
	g, err := h.guard(ctx, v.Device, h.conf.MaxFreeze)
	if err != nil {
		return madeNo, errors.Join(fmt.Errorf("watchdog: %w", err), freeze.drop())
	}
	m, err := h.createSuspended(ctx, v, g.inherited(), id)
	rerr := h.resume(context.WithoutCancel(ctx), v.Device)
	switch {
	case rerr != nil:
		g.abandon() // it goes on trying; so does Recover
		err = errors.Join(err, fmt.Errorf("resume: %w", rerr))
	case errors.Is(err, errStuck):
		g.abandon() // the volume may become suspended still; the watchdog waits for the command's end, and resumes then
	default:
		err = errors.Join(err, g.done(), freeze.drop())
	}
	return m, err
}

func (h *Host) createSuspended(ctx context.Context, v Volume, inherited *os.File, id uint32) (made, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.conf.MaxFreeze, ErrFreezeExpired)
	defer cancel()
	_, err := h.cmd.run(ctx, command{name: "dmsetup", args: []string{"suspend", "--", v.Device}, inherit: inherited}.withTimeout(h.conf.MaxFreeze))
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrFreezeExpired) {
			err = fmt.Errorf("%w: %w", ErrFreezeExpired, err)
		}
		return madeNo, err
	}
	if err := ctx.Err(); err != nil {
		return madeNo, err
	}
	// From here on the few milliseconds are not cancelled: a message that is cut short might have been carried out or not.
	// It holds the watchdog's pipe open, too, so that the volume stays frozen until it has ended, should we die meanwhile.
	ctx = context.WithoutCancel(ctx)
	_, err = h.cmd.run(ctx, command{name: "dmsetup", inherit: inherited,
		args: []string{"message", "--", v.Pool.Name, "0", fmt.Sprintf("create_snap %d %d", id, v.DeviceID)}})
	if err != nil {
		if answered(err) {
			return madeNo, err
		}
		return madeUnknown, err
	}
	info, err := h.infoByName(ctx, v.Device)
	if err != nil {
		return madeYes, err
	}
	if !info.suspended { // the watchdog found that it took too long: writes went on while the snapshot was created
		return madeYes, ErrFreezeExpired
	}
	return madeYes, nil
}

// resumeTries and resumePause: how often, and with what pause, resuming is tried by the process that suspended.
const (
	resumeTries = 5
	resumePause = 200 * time.Millisecond
)

// resume resumes a device; for one that is not suspended that does nothing. A device that is gone needs no resuming.
func (h *Host) resume(ctx context.Context, device string) error {
	var err error
	for range resumeTries {
		if _, err = h.dmsetup(ctx, "resume", "--", device); err == nil || errors.Is(err, ErrNotFound) {
			return nil
		}
		if serr := sleep(ctx, resumePause); serr != nil {
			return errors.Join(err, serr)
		}
	}
	return err
}

// snapshotLVM has lvcreate take the snapshot.
func (h *Host) snapshotLVM(ctx context.Context, v Volume) (_ *Snapshot, err error) {
	name := snapshotName(v.LV, fmt.Sprintf("%08x", rand.Uint32()))
	var freeze *claim // on what lvcreate does, should it be killed half way
	if v.Device != "" {
		if freeze, err = h.claimFreeze(ctx, v); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, freeze.drop()) }()
	}
	c, err := h.takeClaim(ctx, claimSnapshot, v.VG+"-"+name, false)
	if err != nil {
		return nil, err
	}
	rec := record{Pool: v.Pool, LV: name}
	if err := c.write(rec); err != nil {
		return nil, errors.Join(err, c.drop())
	}
	l, err := h.createLV(ctx, v.VG, v.LV, name)
	if err != nil {
		if v.Device != "" {
			if rerr := h.resume(context.WithoutCancel(ctx), v.Device); rerr != nil {
				err = errors.Join(err, fmt.Errorf("resume: %w", rerr), freeze.abandon())
			}
		}
		return nil, errors.Join(err, h.undoLV(ctx, v.VG, name, c))
	}
	s := &Snapshot{Ref: Ref{Pool: v.Pool.ID(), DeviceID: l.deviceID, LV: name}, Volume: v, host: h, claim: c}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, s.Delete(ctx))
	}
	return s, nil
}

// undoLV removes what a failed lvcreate may have left.
func (h *Host) undoLV(ctx context.Context, vg, name string, c *claim) error {
	if err := h.removeLV(context.WithoutCancel(ctx), vg, name); err != nil && !errors.Is(err, ErrNotFound) {
		return errors.Join(err, c.abandon())
	}
	return c.drop()
}

// Keep leaves the snapshot where it is, as the base of a later backup. Call it when what refers to it is stored.
func (s *Snapshot) Keep() error { return s.claim.drop() }

// Delete removes the snapshot, also when ctx is cancelled already.
func (s *Snapshot) Delete(ctx context.Context) error {
	if err := s.host.Delete(ctx, s.Volume.Pool, s.Ref); err != nil && !errors.Is(err, ErrNotFound) {
		return errors.Join(err, s.claim.abandon())
	}
	return s.claim.drop()
}

// Delete removes a snapshot that an earlier run kept. The caller has made sure that the device is that snapshot (see Ref).
// Errors: ErrNotFound, ErrBusy while it is active, those of the pool's state. It is carried out even when ctx is cancelled.
func (h *Host) Delete(ctx context.Context, p Pool, r Ref) error {
	ctx = context.WithoutCancel(ctx)
	if r.LV != "" {
		l, err := h.lvs(ctx, p.VG, r.LV)
		if err == nil && l.deviceID != r.DeviceID {
			err = fmt.Errorf("it is device %d now: %w", l.deviceID, ErrNotFound)
		}
		if err == nil {
			err = h.removeLV(ctx, p.VG, r.LV)
		}
		if err != nil {
			return fmt.Errorf("delete snapshot %s/%s: %w", p.VG, r.LV, err)
		}
		return nil
	}
	if err := h.message(ctx, p.Name, fmt.Sprintf("delete %d", r.DeviceID)); err != nil {
		return fmt.Errorf("delete snapshot %d in pool %s: %w", r.DeviceID, p.Name, err)
	}
	return nil
}
