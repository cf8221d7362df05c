package source

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/shalebackup/shale/thin"
)

// thinWhole is a volume with an external origin, read through an activated device. While that is active, nobody can delete
// the snapshot.
type thinWhole struct {
	*thinLive
	device liveDevice
}

// openWhole takes over v, which has its snapshot.
func openWhole(ctx context.Context, v *thinLive) (Source, Base, error) {
	why := fmt.Sprintf("thin volume %s shows device %s where it has no data of its own", v.vol.Name, v.vol.ExternalOrigin)
	d, err := v.opener.host.Activate(ctx, v.vol, v.state.Device)
	if err != nil {
		return nil, Base{}, err
	}
	if v.data, err = openData(d.Node()); err != nil {
		return nil, Base{}, errors.Join(err, d.Close(ctx))
	}
	v.size, v.maps = v.vol.SizeBytes, straight{}
	v.state.Kind, v.state.Pool, v.state.BlockSize, v.state.NoBase = thinKind, v.vol.Pool.ID(), uint64(v.vol.Pool.BlockSize), why
	return &thinWhole{v, d}, Base{Reason: why}, nil
}

// Extents implements Source.
func (w *thinWhole) Extents(context.Context) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if w.size > 0 {
			yield(Extent{Len: w.size}, nil)
		}
	}
}

// Recheck has nothing to ask.
func (w *thinWhole) Recheck(context.Context) error { return nil }

// Close implements Source. The snapshot is of no use to a later backup.
func (w *thinWhole) Close(ctx context.Context, kept bool) error {
	err := errors.Join(w.data.Close(), w.device.Close(ctx))
	if w.snap != nil {
		err = errors.Join(err, w.snap.Delete(ctx))
	}
	if kept && err != nil {
		w.opener.note("backup of %s is complete, but: %v", w.vol.Name, err)
		return nil
	}
	return err
}

// straight maps each block to itself.
type straight struct{}

func (straight) runs(_ context.Context, start, end uint64) ([]thin.Run, error) {
	return []thin.Run{{Thin: start, Data: start, Len: end - start}}, nil
}
