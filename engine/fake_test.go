package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/shalebackup/shale/engine/source"
)

// volume is an image in memory that opens as a source: as a full one, or, when base is set, as one that tells the difference
// to the newest backup.
type volume struct {
	image   []byte
	full    []source.Extent // what may hold data
	changed []source.Extent // what may differ from the newest backup
	base    bool

	failExtent int // this extent, counted from 1, is an error instead
	failRead   int // and this read
	onRead     func(n int)

	mu     sync.Mutex // guards all below
	reads  []source.Extent
	closed int
	kept   bool
}

var errSource = errors.New("source failed")

func (v *volume) Open(_ context.Context, parents iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	if v.base {
		for p, err := range parents {
			return v, source.Base{Parent: &p}, err
		}
	}
	return v, source.Base{Reason: "told so"}, nil
}

func (v *volume) Size() int64 { return int64(len(v.image)) }

func (v *volume) Extents(context.Context) iter.Seq2[source.Extent, error] {
	extents := v.full
	if v.base {
		extents = v.changed
	}
	return func(yield func(source.Extent, error) bool) {
		for i, e := range extents {
			if i+1 == v.failExtent {
				yield(source.Extent{}, fmt.Errorf("extent %d: %w", i, errSource))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (v *volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	v.mu.Lock()
	v.reads = append(v.reads, source.Extent{Off: off, Len: int64(len(p))})
	n := len(v.reads)
	v.mu.Unlock()
	if v.onRead != nil {
		v.onRead(n)
	}
	if n == v.failRead {
		return fmt.Errorf("read %d: %w", n, errSource)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > v.Size() {
		return fmt.Errorf("%d bytes at %d are not within %d", len(p), off, v.Size())
	}
	copy(p, v.image[off:])
	return nil
}

func (v *volume) State() json.RawMessage { return json.RawMessage(`{"kind":"fake"}`) }

func (v *volume) Stats() source.Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := source.Stats{}
	for _, r := range v.reads {
		s.BytesRead += r.Len
	}
	return s
}

func (v *volume) Close(_ context.Context, kept bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed++
	v.kept = kept
	return nil
}

// plainVolume is a full volume: everything may hold data.
func plainVolume(image []byte) *volume {
	v := &volume{image: image}
	if len(image) > 0 {
		v.full = []source.Extent{{Len: int64(len(image))}}
	}
	return v
}

// opener is a source that does not open.
type opener func() error

func (o opener) Open(context.Context, iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	return nil, source.Base{}, o()
}

// recheckedVolume finds in the end that it changed.
type recheckedVolume struct{ *volume }

func (v *recheckedVolume) Open(context.Context, iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	return v, source.Base{}, nil
}

func (v *recheckedVolume) Recheck(context.Context) error { return errSource }
