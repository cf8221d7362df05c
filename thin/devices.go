package thin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
)

// Device details: struct disk_device_details, the values of the details tree. Little-endian.
//
//	off len field
//	  0   8 mapped_blocks
//	  8   8 transaction_id    the pool's when the device was made
//	 16   4 creation_time
//	 20   4 snapshotted_time
const detailsSize = 24

// Device is a thin device, or a snapshot: the pool makes no difference.
type Device struct {
	ID            uint32 // 24 bits
	MappedBlocks  uint64 // pool blocks, by the pool's own count
	TransactionID uint64 // the pool's when the device was made
	CreationTime  uint32 // the pool's time then; with TransactionID it tells a device from a later one of the same ID
	SnappedTime   uint32 // the pool's time when the device was last snapshotted
}

func decodeDevice(id uint64, b []byte) Device {
	le := binary.LittleEndian
	return Device{
		ID:            uint32(id),
		MappedBlocks:  le.Uint64(b),
		TransactionID: le.Uint64(b[8:]),
		CreationTime:  le.Uint32(b[16:]),
		SnappedTime:   le.Uint32(b[20:]),
	}
}

// Devices yields the pool's devices in the order of their IDs. An error is the last it yields.
func (r *Reader) Devices(ctx context.Context) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		err := r.entries(ctx, detailsTree, r.sb.DetailsRoot, 0, func(f *frame) bool {
			return yield(f.device(), nil)
		})
		if err != nil {
			yield(Device{}, err)
		}
	}
}

func (f *frame) device() Device {
	return decodeDevice(f.key(f.i), f.values[f.i*detailsSize:(f.i+1)*detailsSize])
}

// Device looks up one device; [ErrNoDevice] when there is none of that ID.
func (r *Reader) Device(ctx context.Context, id uint32) (Device, error) {
	var d Device
	found, err := r.lookup(ctx, detailsTree, r.sb.DetailsRoot, id, func(f *frame) { d = f.device() })
	if err != nil {
		return Device{}, err
	}
	if !found {
		return Device{}, fmt.Errorf("device %d: %w", id, ErrNoDevice)
	}
	return d, nil
}

// MappingRoot gives the metadata block of the root of a device's mapping tree. Two devices of one state of the metadata
// with equal roots have equal mappings. Roots of different states (before and after a commit) cannot be compared.
func (r *Reader) MappingRoot(ctx context.Context, id uint32) (uint64, error) {
	var root uint64
	found, err := r.lookup(ctx, rootsTree, r.sb.MappingRoot, id, func(f *frame) { root = f.value(f.i) })
	if err != nil || found {
		return root, err
	}
	switch _, err := r.Device(ctx, id); {
	case err == nil:
		return 0, damagef(r.sb.MappingRoot, "device %d has details and no mapping tree", id)
	case !errors.Is(err, ErrNoDevice):
		return 0, err
	}
	return 0, fmt.Errorf("device %d: %w", id, ErrNoDevice)
}

// lookup calls found at the entry of that key, if there is one.
func (r *Reader) lookup(ctx context.Context, kind treeKind, root uint64, id uint32, found func(*frame)) (bool, error) {
	ok := false
	err := r.entries(ctx, kind, root, uint64(id), func(f *frame) bool {
		if ok = f.key(f.i) == uint64(id); ok {
			found(f)
		}
		return false
	})
	return ok, err
}

// entries calls each at the entries of a tree whose keys are at least from, until it returns false.
func (r *Reader) entries(ctx context.Context, kind treeKind, root, from uint64, each func(leaf *frame) bool) error {
	c := newCursor(r, kind, root)
	defer c.close()
	if err := c.seek(ctx, from); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	for !c.done {
		if !c.onEntry() {
			if err := c.open(ctx); err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
			continue
		}
		if !each(c.top()) {
			return nil
		}
		c.next()
	}
	return nil
}
