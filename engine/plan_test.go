package engine

import (
	"context"
	"errors"
	"iter"
	"reflect"
	"testing"

	"github.com/shalebackup/shale/engine/source"
)

const k = 1024

func dataAt(off, n int64) source.Extent { return source.Extent{Off: off, Len: n} }
func holeAt(off, n int64) source.Extent { return source.Extent{Off: off, Len: n, Hole: true} }

// sequence yields extents, and then err if there is one.
func sequence(extents []source.Extent, err error) iter.Seq2[source.Extent, error] {
	return func(yield func(source.Extent, error) bool) {
		for _, e := range extents {
			if !yield(e, nil) {
				return
			}
		}
		if err != nil {
			yield(source.Extent{}, err)
		}
	}
}

func TestAlignExtents(t *testing.T) {
	type extents = []source.Extent
	tests := []struct {
		name     string
		size     int64
		in, want extents
	}{
		{"none", 64 * k, nil, nil},
		{"aligned", 64 * k, extents{dataAt(4*k, 8*k), holeAt(16*k, 4*k)}, extents{dataAt(4*k, 8*k), holeAt(16*k, 4*k)}},
		{"data grows", 64 * k, extents{dataAt(5*k, 512)}, extents{dataAt(4*k, 4*k)}},
		{"data grows over a border", 64 * k, extents{dataAt(7*k, 2*k)}, extents{dataAt(4*k, 8*k)}},
		{"two in one block", 64 * k, extents{dataAt(0, 512), dataAt(1*k, 512)}, extents{dataAt(0, 4*k)}},
		{"neighbours that grow into each other", 64 * k, extents{dataAt(0, 5*k), dataAt(6*k, 4*k)}, extents{dataAt(0, 8*k), dataAt(8*k, 4*k)}},
		{"hole shrinks", 64 * k, extents{holeAt(1*k, 10*k)}, extents{dataAt(0, 4*k), holeAt(4*k, 4*k), dataAt(8*k, 4*k)}},
		{"hole inside a block", 64 * k, extents{holeAt(1*k, 512)}, extents{dataAt(0, 4*k)}},
		{"hole over a border covers no block", 64 * k, extents{holeAt(3*k, 2*k)}, extents{dataAt(0, 8*k)}},
		{"hole, then data in its last block", 64 * k, extents{holeAt(0, 5*k), dataAt(5*k, 512)}, extents{holeAt(0, 4*k), dataAt(4*k, 4*k)}},
		{"data, then a hole in its last block", 64 * k, extents{dataAt(0, 512), holeAt(512, 12*k-512)}, extents{dataAt(0, 4*k), holeAt(4*k, 8*k)}},
		{"holes with a seam", 64 * k, extents{holeAt(0, 6*k), holeAt(6*k, 6*k)}, extents{holeAt(0, 4*k), dataAt(4*k, 4*k), holeAt(8*k, 4*k)}},
		{"data to an end off the border", 9*k + 512, extents{dataAt(8*k+512, 1*k)}, extents{dataAt(8*k, k+512)}},
		{"hole to an end off the border", 9*k + 512, extents{holeAt(4*k, 5*k+512)}, extents{holeAt(4*k, 5*k+512)}},
		{"part of the last block is a hole", 9*k + 512, extents{holeAt(9*k, 512)}, extents{dataAt(8*k, k+512)}},
		{"a hole ends in the last block, not at the end", 9*k + 512, extents{holeAt(0, 9*k)}, extents{holeAt(0, 8*k), dataAt(8*k, k+512)}},
		{"behind the end", 8 * k, extents{dataAt(4*k, 8*k), holeAt(12*k, 4*k)}, extents{dataAt(4*k, 4*k)}},
		{"empty", 8 * k, extents{dataAt(4*k, 0), holeAt(4*k, 0)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got extents
			for e, err := range alignExtents(t.Context(), sequence(tt.in, nil), tt.size) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v gives\n%v, want\n%v", tt.in, got, tt.want)
			}
		})
	}
}

func TestPlanSpans(t *testing.T) {
	const span = 64 * k
	type extents = []source.Extent
	tests := []struct {
		name  string
		size  int64
		dirty int64
		in    extents
		want  []spanWork
	}{
		{"nothing", 4 * span, -1, nil, nil},
		{"a span's extents together", 4 * span, -1, extents{dataAt(span, 4*k), holeAt(span+8*k, 4*k)}, []spanWork{
			{1, extents{dataAt(span, 4*k), holeAt(span+8*k, 4*k)}},
		}},
		{"cut at spans", 4 * span, -1, extents{holeAt(span-4*k, 2*span+8*k)}, []spanWork{
			{0, extents{holeAt(span-4*k, 4*k)}},
			{1, extents{holeAt(span, span)}},
			{2, extents{holeAt(2*span, span)}},
			{3, extents{holeAt(3*span, 4*k)}},
		}},
		{"to a border and no further", 4 * span, -1, extents{dataAt(0, span)}, []spanWork{{0, extents{dataAt(0, span)}}}},
		{"dirty alone", 4 * span, 2, nil, []spanWork{{2, extents{dataAt(2*span, span)}}}},
		{"dirty and short", 2*span + 5*k, 2, nil, []spanWork{{2, extents{dataAt(2*span, 5*k)}}}},
		{"dirty before all", 4 * span, 0, extents{dataAt(span, 4*k)}, []spanWork{
			{0, extents{dataAt(0, span)}},
			{1, extents{dataAt(span, 4*k)}},
		}},
		{"dirty behind all", 4 * span, 3, extents{dataAt(span, 4*k)}, []spanWork{
			{1, extents{dataAt(span, 4*k)}},
			{3, extents{dataAt(3*span, span)}},
		}},
		{"dirty between", 4 * span, 1, extents{dataAt(0, 4*k), dataAt(3*span, 4*k)}, []spanWork{
			{0, extents{dataAt(0, 4*k)}},
			{1, extents{dataAt(span, span)}},
			{3, extents{dataAt(3*span, 4*k)}},
		}},
		{"dirty with extents", 4 * span, 1, extents{holeAt(span+4*k, 4*k), dataAt(span+16*k, 4*k)}, []spanWork{
			{1, extents{dataAt(span, span)}},
		}},
		{"an extent over the dirty span", 4 * span, 1, extents{holeAt(span-4*k, span+8*k)}, []spanWork{
			{0, extents{holeAt(span-4*k, 4*k)}},
			{1, extents{dataAt(span, span)}},
			{2, extents{holeAt(2*span, 4*k)}},
		}},
		{"an extent up to the dirty span", 4 * span, 1, extents{holeAt(0, span)}, []spanWork{
			{0, extents{holeAt(0, span)}},
			{1, extents{dataAt(span, span)}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []spanWork
			for w, err := range planSpans(t.Context(), sequence(tt.in, nil), tt.size, span, tt.dirty) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, w)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v gives\n%v, want\n%v", tt.in, got, tt.want)
			}
		})
	}
}

func TestPlanSpansStops(t *testing.T) {
	three := []source.Extent{dataAt(0, 4*k), dataAt(64*k, 4*k), dataAt(128*k, 4*k)}
	failed := errors.New("failed")
	t.Run("at the source's error", func(t *testing.T) {
		var spans []int64
		var last error
		for w, err := range planSpans(t.Context(), sequence(three, failed), 256*k, 64*k, 3) {
			if last = err; err == nil {
				spans = append(spans, w.span)
			}
		}
		// The last span may have more extents behind the error, so it is not handed out.
		if !errors.Is(last, failed) || !reflect.DeepEqual(spans, []int64{0, 1}) {
			t.Errorf("got spans %v and then %v", spans, last)
		}
	})
	t.Run("when cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for w, err := range planSpans(ctx, sequence(three, nil), 256*k, 64*k, -1) {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, %v", w, err)
			}
		}
	})
	t.Run("when no more is wanted", func(t *testing.T) {
		n := 0
		for _, err := range planSpans(t.Context(), sequence(three, failed), 256*k, 64*k, 0) {
			if n++; err != nil {
				t.Fatal(err)
			}
			break
		}
		if n != 1 {
			t.Errorf("got %d spans", n)
		}
	})
}
