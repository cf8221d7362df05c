package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"sync/atomic"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/pool"
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

	Snapshot *pool.Ref `json:"snapshot,omitempty"` // a snapshot taken for this backup: removed when a later one replaces it
	NoBase   string    `json:"no_base,omitempty"`  // why it cannot be a base, in plain words
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
	return s, s.NoBase
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
	meta   *thin.Reader
	maps   mapper
	data   dataReader
	state  thinState
	base   *uint32 // device that Extents compares with
	parent int64   // bytes, the volume's size at the base's backup
	size   int64   // bytes
	read   atomic.Int64
}

// mapper finds the mapped runs in [start, end), in pool blocks, cut to it.
type mapper interface {
	runs(ctx context.Context, start, end uint64) ([]thin.Run, error)
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
func (v *thinVolume) Recheck(context.Context) error {
	if err := v.meta.Recheck(); err != nil {
		return fmt.Errorf("thin metadata changed while it was read: %w", err)
	}
	return nil
}

func (v *thinVolume) Close(context.Context, bool) error {
	return errors.Join(v.data.Close(), v.meta.Close())
}

// Extents yields the mapped runs, or the difference to the base.
func (v *thinVolume) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	if v.base == nil {
		return v.mapped(ctx, 0)
	}
	return v.difference(ctx)
}

// extent is a run of blocks clipped to the volume: whole blocks are mapped, and may reach behind its end.
func (v *thinVolume) extent(block, n uint64, hole bool) (e Extent, ok bool) {
	bs := v.state.BlockSize
	if block >= (uint64(v.size)+bs-1)/bs {
		return Extent{}, false
	}
	off := int64(block * bs)
	return Extent{Off: off, Len: min(int64(n*bs), v.size-off), Hole: hole}, true
}

// mapped yields the mapped runs from a block on.
func (v *thinVolume) mapped(ctx context.Context, from uint64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for r, err := range v.meta.RunsOf(ctx, v.state.Device, thin.RunOptions{Start: from}) {
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if e, ok := v.extent(r.Thin, r.Len, false); ok && !yield(e, nil) {
				return
			}
		}
	}
}

// difference yields what differs from the base. Of what the base maps behind the end that the volume had then, the backup has
// nothing: from there on, whatever is mapped may differ. So does the block in which that end lies, mapped or not.
func (v *thinVolume) difference(ctx context.Context) iter.Seq2[Extent, error] {
	bs := v.state.BlockSize
	end, rest := uint64(v.parent)/bs, (uint64(v.parent)+bs-1)/bs // blocks wholly before the end, and before what is behind it
	if v.parent >= v.size {
		end, rest = math.MaxUint64, math.MaxUint64
	}
	return func(yield func(Extent, error) bool) {
		for c, err := range v.meta.Diff(ctx, *v.base, v.state.Device, thin.DiffOptions{}) {
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if c.Thin >= end {
				break
			}
			e, ok := v.extent(c.Thin, min(c.Len, end-c.Thin), c.Kind == thin.Removed)
			if ok && !yield(e, nil) {
				return
			}
		}
		if end < rest {
			if e, ok := v.extent(end, 1, false); ok && !yield(e, nil) {
				return
			}
		}
		if rest == math.MaxUint64 {
			return
		}
		for e, err := range v.mapped(ctx, rest) {
			if !yield(e, err) {
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
