package source

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"

	"github.com/shalebackup/shale/thin"
)

// MaxThinDevice is the largest device ID of a thin pool.
const MaxThinDevice = thin.MaxDeviceID

// ThinPoolOptions name a thin device of a pool that no kernel has open, or of a captured copy of one.
type ThinPoolOptions struct {
	Metadata         string  // the pool's metadata: image or block device
	Data             string  // the pool's data: image or block device
	Device           uint32  // device ID to back up
	Base             *uint32 // device ID to compare with; nil: the device of an earlier backup, if the pool has a UUID to know it by
	Size             int64   // bytes; the metadata does not know it. 0: to the last mapped block, or the parent's size if that is larger
	MetadataSnapshot bool    // read at the held root
	AllowNeedsCheck  bool    // read also a pool that is marked needs_check
}

// ThinPool opens a thin device through metadata and data alone.
func ThinPool(o ThinPoolOptions) Opener { return &thinPoolOpener{o} }

type thinPoolOpener struct{ o ThinPoolOptions }

func (t *thinPoolOpener) Open(ctx context.Context, parents iter.Seq2[Parent, error]) (_ Source, _ Base, err error) {
	meta, err := thin.Open(t.o.Metadata, thin.Options{MetadataSnapshot: t.o.MetadataSnapshot, AllowNeedsCheck: t.o.AllowNeedsCheck})
	if err != nil {
		return nil, Base{}, err
	}
	v := &thinVolume{meta: meta, maps: &mappingWindows{load: readerRuns(meta, t.o.Device)}, size: t.o.Size}
	defer func() {
		if err != nil {
			err = errors.Join(err, meta.Close())
			if v.data != nil {
				err = errors.Join(err, v.data.Close())
			}
		}
	}()
	if v.state, err = readThinState(ctx, meta, poolUUID(meta), t.o.Device); err != nil {
		return nil, Base{}, err
	}
	if v.data, err = openData(t.o.Data); err != nil {
		return nil, Base{}, err
	}
	base, err := t.chooseBase(ctx, v, parents)
	if err != nil {
		return nil, Base{}, err
	}
	if v.size == 0 {
		if v.size, err = mappedEnd(ctx, meta, t.o.Device); err != nil {
			return nil, Base{}, err
		}
		if base.Parent != nil {
			v.size = max(v.size, base.Parent.Size)
		}
	}
	if v.size < 0 || v.size%512 != 0 {
		return nil, Base{}, fmt.Errorf("volume size of %d bytes: not a multiple of 512", v.size)
	}
	return v, base, nil
}

// poolUUID is the pool's identity as its metadata has it; empty in most pools.
func poolUUID(r *thin.Reader) string {
	uuid := r.Superblock().UUID
	if uuid == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(uuid[:])
}

// chooseBase finds the newest parent whose device is still in the pool as it was.
func (t *thinPoolOpener) chooseBase(ctx context.Context, v *thinVolume, parents iter.Seq2[Parent, error]) (Base, error) {
	if t.o.Base == nil && v.state.Pool == "" {
		for _, err := range parents {
			return Base{Reason: "the pool has no UUID to know an earlier backup's device by; --thin-base names one"}, err
		}
		return Base{Reason: noParent}, nil
	}
	return chooseThinBase(ctx, v, t.o.Base, parents)
}

const noParent = "there is no earlier backup of this volume"

// chooseThinBase takes the newest parent whose device is in v's metadata as it was; want, where given, is the only device allowed.
// It sets v.base.
func chooseThinBase(ctx context.Context, v *thinVolume, want *uint32, parents iter.Seq2[Parent, error]) (Base, error) {
	reason := noParent
	newest := true
	for p, err := range parents {
		if err != nil {
			return Base{}, err
		}
		then, why := decodeThinState(p)
		if why == "" && want != nil && then.Device != *want {
			why = fmt.Sprintf("it was made from thin device %d, not %d", then.Device, *want)
		}
		if why == "" && then.Device == v.state.Device {
			why = fmt.Sprintf("it was made from thin device %d too, which may have been written to since without a trace", then.Device)
		}
		if why == "" {
			now, err := readThinState(ctx, v.meta, v.state.Pool, then.Device)
			switch {
			case errors.Is(err, thin.ErrNoDevice):
				why = fmt.Sprintf("thin device %d is gone", then.Device)
			case err != nil:
				return Base{}, err
			default:
				why = then.differs(now)
			}
		}
		if why == "" {
			v.base, v.parent = &then.Device, p.Size
			return Base{Parent: &p}, nil
		}
		if newest {
			reason, newest = fmt.Sprintf("backup %s is no base: %s", p.ID, why), false
		}
	}
	return Base{Reason: reason}, nil
}
