package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
)

// Device is a thin device that this process activated, read-only.
type Device struct {
	Name  string // device-mapper's; begins with "shale-"
	Path  string
	host  *Host
	claim *claim
}

// Activate makes a block device of a thin device of the pool, read-only, whatever else it is active as. sizeBytes is the
// volume's size, externalOrigin that of Volume. ErrNotFound: the pool has no such device. One that is left by a process that
// died is removed by Recover.
func (h *Host) Activate(ctx context.Context, p Pool, deviceID uint32, sizeBytes int64, externalOrigin string) (*Device, error) {
	d, err := h.activate(ctx, p, deviceID, sizeBytes, externalOrigin)
	if err != nil {
		return nil, fmt.Errorf("activate device %d of pool %s: %w", deviceID, p.Name, err)
	}
	return d, nil
}

func (h *Host) activate(ctx context.Context, p Pool, deviceID uint32, sizeBytes int64, externalOrigin string) (*Device, error) {
	if sizeBytes <= 0 || sizeBytes%sectorSize != 0 {
		return nil, fmt.Errorf("size %d is no multiple of %d: %w", sizeBytes, sectorSize, ErrUnsupported)
	}
	name := fmt.Sprintf("shale-%d-%08x", deviceID, rand.Uint32())
	c, err := h.takeClaim(ctx, claimActive, name, false)
	if err != nil {
		return nil, err
	}
	if err := c.write(record{Pool: p, Device: name}); err != nil {
		return nil, errors.Join(err, c.drop())
	}
	table := fmt.Sprintf("0 %d thin %s %d", sizeBytes/sectorSize, p.Dev, deviceID)
	if externalOrigin != "" {
		table += " " + externalOrigin
	}
	d := &Device{Name: name, host: h, claim: c}
	if _, err := h.dmsetup(ctx, "create", "--readonly", "--table", table, "--", name); err != nil {
		return nil, errors.Join(err, d.Close(ctx)) // a command that was killed may have created it
	}
	info, err := h.infoByName(ctx, name)
	if err == nil {
		d.Path, err = h.node(info.dev)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close(ctx))
	}
	return d, nil
}

// Close deactivates the device, also when ctx is cancelled already. ErrBusy: it is still open somewhere; Recover tries again
// once this process has ended.
func (d *Device) Close(ctx context.Context) error {
	if err := d.host.deactivate(context.WithoutCancel(ctx), d.Name); err != nil {
		return errors.Join(fmt.Errorf("deactivate %s: %w", d.Name, err), d.claim.abandon())
	}
	return d.claim.drop()
}

// deactivate removes a device; --retry, because udev may be looking at it for a moment.
func (h *Host) deactivate(ctx context.Context, name string) error {
	if _, err := h.dmsetup(ctx, "remove", "--retry", "--", name); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}
