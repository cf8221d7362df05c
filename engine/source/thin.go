package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/shalebackup/shale/thin"
)

// thinKind marks the state of a thin device in a backup record.
const thinKind = "thin"

// thinState is what a backup record keeps of a thin device: enough to tell whether a device of that number, in a pool met
// later, is still the one that was backed up. Writing to it, or making it anew, changes at least one field, with one
// exception: overwriting blocks that belong to the device alone leaves no trace in the metadata. Such blocks are in no
// other device, unless that is a snapshot taken of it afterwards; so a base must not have been snapshotted since, and is another
// device than the one that is compared with it.
type thinState struct {
	Kind        string `json:"kind"`
	Pool        string `json:"pool"`         // identity of the pool; empty when it has none
	Device      uint32 `json:"device"`       // device ID
	Transaction uint64 `json:"transaction"`  // the pool's when the device was made
	Created     uint32 `json:"created"`      // the pool's time then
	Snapped     uint32 `json:"snapped"`      // the pool's time when the device was last snapshotted
	Mapped      uint64 `json:"mapped"`       // pool blocks
	MappingRoot uint64 `json:"mapping_root"` // metadata block of the device's mapping tree
	BlockSize   uint64 `json:"block_size"`   // bytes of a pool block
}

// readThinState describes the device as the metadata has it now.
func readThinState(ctx context.Context, r *thin.Reader, pool string, id uint32) (thinState, error) {
	d, err := r.Device(ctx, id)
	if err != nil {
		return thinState{}, err
	}
	root, err := r.MappingRoot(ctx, id)
	if err != nil {
		return thinState{}, err
	}
	return thinState{
		Kind: thinKind, Pool: pool, Device: id, Transaction: d.TransactionID, Created: d.CreationTime, Snapped: d.SnappedTime,
		Mapped: d.MappedBlocks, MappingRoot: root, BlockSize: r.Superblock().BlockSize,
	}, nil
}

func (s thinState) encode() json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // numbers and strings always marshal
	}
	return b
}

// decodeThinState returns why, in plain words, when p was not a thin device.
func decodeThinState(p Parent) (s thinState, reason string) {
	if err := json.Unmarshal(p.State, &s); err != nil || s.Kind != thinKind {
		return s, "it was not made from a thin device"
	}
	return s, ""
}

// differs says in plain words why the device now is not provably the one backed up then; it is empty when it is.
func (s thinState) differs(now thinState) string {
	switch {
	case s.Pool != now.Pool:
		return fmt.Sprintf("it was made in pool %s, this is %s", orUnnamed(s.Pool), orUnnamed(now.Pool))
	case s.BlockSize != now.BlockSize:
		return fmt.Sprintf("it was made in a pool with blocks of %d bytes, these have %d", s.BlockSize, now.BlockSize)
	case s.Transaction != now.Transaction || s.Created != now.Created:
		return fmt.Sprintf("thin device %d was made anew since", s.Device)
	case s.Mapped != now.Mapped || s.MappingRoot != now.MappingRoot:
		return fmt.Sprintf("thin device %d was written to since", s.Device)
	case s.Snapped != now.Snapped:
		return fmt.Sprintf("thin device %d was snapshotted since, and may have been written to before that", s.Device)
	}
	return ""
}

func orUnnamed(pool string) string {
	if pool == "" {
		return "(without identity)"
	}
	return pool
}

// thinVolume is a thin device read through the pool's metadata and data device.
type thinVolume struct {
	meta    *thin.Reader
	maps    mappingWindows
	data    dataReader
	state   thinState
	base    *uint32 // device that Extents compares with
	size    int64   // bytes
	read    atomic.Int64
	release func(ctx context.Context, kept bool) error
}

// dataReader is the pool's data device.
type dataReader interface {
	ReadAt(p []byte, off int64) (int, error)
	Close() error
}

func (v *thinVolume) Size() int64            { return v.size }
func (v *thinVolume) State() json.RawMessage { return v.state.encode() }

func (v *thinVolume) Stats() Stats {
	return Stats{BytesRead: v.read.Load(), MetadataBlocks: int64(v.meta.Stats().BlocksRead)}
}

// Recheck returns an error when the metadata that was read is no longer the pool's.
func (v *thinVolume) Recheck() error {
	if err := v.meta.Recheck(); err != nil {
		return fmt.Errorf("thin metadata changed while it was read: %w", err)
	}
	return nil
}

func (v *thinVolume) Close(ctx context.Context, kept bool) error {
	err := errors.Join(v.data.Close(), v.meta.Close())
	if v.release != nil {
		err = errors.Join(err, v.release(ctx, kept && err == nil))
	}
	return err
}

// Extents yields the mapped runs, or the difference to the base, clipped to the volume: whole blocks are mapped, and may
// reach behind its end.
func (v *thinVolume) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		put := func(block, n uint64, hole bool) bool {
			bs := v.state.BlockSize
			if block >= (uint64(v.size)+bs-1)/bs {
				return true
			}
			e := Extent{Off: int64(block * bs), Hole: hole}
			e.Len = min(int64(n*bs), v.size-e.Off)
			return yield(e, nil)
		}
		if v.base == nil {
			for r, err := range v.meta.Runs(ctx, v.state.Device) {
				if err != nil {
					yield(Extent{}, err)
					return
				}
				if !put(r.Thin, r.Len, false) {
					return
				}
			}
			return
		}
		for c, err := range v.meta.Diff(ctx, *v.base, v.state.Device, thin.DiffOptions{}) {
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if !put(c.Thin, c.Len, c.Kind == thin.Removed) {
				return
			}
		}
	}
}

// ReadAt reads what is mapped; the rest is zeros.
func (v *thinVolume) ReadAt(ctx context.Context, p []byte, off int64) error {
	bs := int64(v.state.BlockSize)
	end := off + int64(len(p))
	at := off // all before is filled
	runs, err := v.maps.runs(ctx, uint64(off/bs), uint64((end+bs-1)/bs))
	if err != nil {
		return err
	}
	for _, r := range runs {
		from, to := max(int64(r.Thin)*bs, off), min(int64(r.Thin+r.Len)*bs, end)
		clear(p[at-off : from-off])
		place := int64(r.Data)*bs + from - int64(r.Thin)*bs
		if n, err := v.data.ReadAt(p[from-off:to-off], place); err != nil {
			return fmt.Errorf("read thin device %d at %d, pool data at %d (%d of %d bytes): %w", v.state.Device, from, place, n, to-from, err)
		}
		v.read.Add(to - from)
		at = to
	}
	clear(p[at-off:])
	return nil
}

// mappedEnd is the first byte behind the last mapped block.
func mappedEnd(ctx context.Context, r *thin.Reader, id uint32) (int64, error) {
	end := uint64(0)
	for run, err := range r.Runs(ctx, id) {
		if err != nil {
			return 0, err
		}
		end = run.Thin + run.Len
	}
	return int64(end * r.Superblock().BlockSize), nil
}
