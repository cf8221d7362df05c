package source

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/shalebackup/shale/thin/pool"
)

// ErrWritable: a volume that is to be backed up as it is could be written meanwhile.
var ErrWritable = errors.New("volume can be written to")

// ThinLiveOptions are choices for a volume of an active thin pool; the zero value works.
type ThinLiveOptions struct {
	// AsIs reads the volume itself instead of a snapshot of it. It must be a snapshot that nobody writes to: it is refused with
	// ErrWritable while it is active, unless read-only. This works in a pool that is read-only or out of space, too.
	AsIs bool

	// Host is the device-mapper to work with. Default: pool.New(pool.Config{}).
	Host *pool.Host

	// Note is told, in plain words, what earlier runs had left behind and what could not be tidied up. It is called from Open and
	// Close. May be nil.
	Note func(format string, args ...any)
}

// ThinVolume returns an Opener of a volume in an active thin pool: a device-mapper device or an LVM volume, by any of the
// names that pool.Host.Resolve takes.
//
// # What happens
//
// Open undoes what runs that were killed have left behind, takes a snapshot, and reads from the pool's metadata what the
// snapshot has mapped, or where it differs from the base. Data is read from the pool's data device, past the page cache.
//
// The base is the snapshot that an earlier backup kept, as long as it is in the pool unchanged. Close, once the backup is
// complete, keeps the new snapshot for the next one and deletes the base, and older snapshots of earlier backups of this
// repository should any have been left. So one snapshot of a volume stays for each repository that it is backed up to. When
// there is no new backup, the new snapshot is deleted and the old one stays. A snapshot that a backup copied from another repository was
// made of (Parent.Elsewhere) may be the base, and is never deleted.
//
// # The metadata snapshot
//
// Mappings are read at a reserved metadata snapshot, of which a pool has only one. While it is reserved the pool can free nothing,
// and another backup from the pool waits (as long as its context lets it). So the mappings that will be needed are first read into
// memory, up to 16 MiB of them, and the reservation is released before data is read. When they are more, it is held to the end.
// A mapping that is needed unforeseen is read under a reservation of its own.
//
// The snapshot's blocks cannot change while it exists; that it still does is checked, under a reservation, before the backup record is
// written.
//
// # External origins
//
// A volume that shows another device where it has no data of its own is read whole, through a device that is activated for the
// time: the pool's metadata does not know the other device. It is no base.
//
// # Refused
//
// Without AsIs, a pool that takes no snapshots: pool.ErrReadOnly, ErrNeedsCheck, ErrOutOfSpace. A failed pool: pool.ErrFailed.
func ThinVolume(name string, o ThinLiveOptions) Opener {
	t := newThinLive(o)
	t.find = func(ctx context.Context) (pool.Volume, error) { return t.host.Resolve(ctx, name) }
	return t
}

// ThinDevice is ThinVolume for a volume that is known already, or that has no name on this host because it is not active.
func ThinDevice(v pool.Volume, o ThinLiveOptions) Opener {
	t := newThinLive(o)
	t.find = func(context.Context) (pool.Volume, error) { return v, nil }
	return t
}

type thinLiveOpener struct {
	host livePool
	find func(ctx context.Context) (pool.Volume, error)
	asIs bool
	note func(format string, args ...any)
	most int // mappings and extents kept in memory
}

func newThinLive(o ThinLiveOptions) *thinLiveOpener {
	t := &thinLiveOpener{asIs: o.AsIs, note: o.Note, most: maxLoaded}
	if t.note == nil {
		t.note = func(string, ...any) {}
	}
	if o.Host == nil {
		o.Host = pool.New(pool.Config{})
	}
	t.host = livePools{o.Host}
	return t
}

// Open implements Opener.
func (t *thinLiveOpener) Open(ctx context.Context, parents iter.Seq2[Parent, error]) (_ Source, _ Base, err error) {
	vol, err := t.find(ctx)
	if err != nil {
		return nil, Base{}, err
	}
	t.tidy(ctx)
	status, err := t.host.Status(ctx, vol.Pool)
	if err == nil {
		err = status.ReadErr()
	}
	if err != nil {
		return nil, Base{}, fmt.Errorf("thin volume %s: %w", vol.Name, err)
	}
	v := &thinLive{opener: t, vol: vol}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close(context.WithoutCancel(ctx), false))
		}
	}()
	if err := v.freeze(ctx, status); err != nil {
		return nil, Base{}, err
	}
	if vol.ExternalOrigin != "" {
		return openWhole(ctx, v)
	}
	if v.data, err = openData(vol.Pool.Data); err != nil {
		return nil, Base{}, err
	}
	base, err := v.plan(ctx, parents)
	if err != nil {
		return nil, Base{}, fmt.Errorf("thin volume %s: %w", vol.Name, err)
	}
	return v, base, nil
}

// tidy undoes what killed runs have left. What cannot be undone now does not stand in the way of a backup.
func (t *thinLiveOpener) tidy(ctx context.Context) {
	left, err := t.host.Recover(ctx)
	for _, l := range []struct {
		what  string
		names []string
	}{
		{"volumes left frozen, resumed", left.Resumed},
		{"metadata snapshots left reserved, released", left.Released},
		{"devices left active, deactivated", left.Deactivated},
		{"snapshots left, deleted", left.Deleted},
		{"snapshots that may exist and may be somebody's, left alone", left.Unsure},
	} {
		if len(l.names) > 0 {
			t.note("an earlier run was killed: %s: %s", l.what, strings.Join(l.names, ", "))
		}
	}
	if err != nil {
		t.note("what killed runs left behind could not all be undone: %v", err)
	}
}
