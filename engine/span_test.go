package engine

import (
	"reflect"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine/source"
)

// newSpanCut is a span of 64 KiB at 64 KiB, whose old chunks are given by their offsets and lengths from the span's beginning.
func newSpanCut(t *testing.T, maxChunk int, old ...[2]int) *spanCut {
	t.Helper()
	be := mem.New()
	if _, err := chunkstore.Init(t.Context(), be, chunkstore.InitOptions{MaxChunk: maxChunk}); err != nil {
		t.Fatal(err)
	}
	r, err := chunkstore.Open(t.Context(), be, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &spanCut{p: &pipeline{cutter: r.Cutter()}, off: 64 * k, data: make([]byte, 64*k)}
	for _, o := range old {
		c.old = append(c.old, chunkstore.Chunk{Off: c.off + int64(o[0]), Len: o[1]})
	}
	return c
}

// Where cutting begins again for a change: at the last border before it that the change cannot have moved.
func TestSpanCutRestart(t *testing.T) {
	const longest = 16 * k
	tests := []struct {
		name    string
		old     [][2]int
		pos, at int
		want    int
	}{
		{"no base", nil, 0, 8 * k, 8 * k},
		{"at the beginning", [][2]int{{0, 8 * k}}, 0, 0, 0},
		{"inside a chunk", [][2]int{{0, 8 * k}, {8 * k, 12 * k}}, 0, 12 * k, 8 * k},
		{"between chunks", [][2]int{{0, 8 * k}, {8 * k, 12 * k}}, 0, 8 * k, 8 * k},
		{"behind a chunk that a hole ended", [][2]int{{4 * k, 8 * k}, {20 * k, 8 * k}}, 0, 12 * k, 4 * k},
		{"behind a chunk that had its full length", [][2]int{{4 * k, longest}, {24 * k, 8 * k}}, 0, 20 * k, 20 * k},
		{"behind the last chunk", [][2]int{{4 * k, 8 * k}}, 0, 12 * k, 4 * k},
		{"in a hole", [][2]int{{4 * k, 8 * k}, {24 * k, 8 * k}}, 0, 16 * k, 16 * k},
		{"at a chunk behind a hole", [][2]int{{4 * k, 8 * k}, {24 * k, 8 * k}}, 0, 24 * k, 24 * k},
		{"where the last cut stopped", [][2]int{{0, 8 * k}, {8 * k, 8 * k}}, 8 * k, 8 * k, 8 * k},
		{"before where the last cut stopped", [][2]int{{0, 8 * k}}, 12 * k, 8 * k, 12 * k},
		{"not before where the last cut stopped", [][2]int{{0, 4 * k}, {4 * k, 12 * k}}, 4 * k, 8 * k, 4 * k},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newSpanCut(t, longest, tt.old...)
			if got := c.restart(tt.pos, tt.at); got != tt.want {
				t.Errorf("restart(%d, %d) with old chunks %v is %d, want %d", tt.pos, tt.at, tt.old, got, tt.want)
			}
		})
	}
}

// Where the content comes from: the source for changes and old chunks, nothing for the rest.
func TestSpanCutKnown(t *testing.T) {
	c := newSpanCut(t, 64*k, [2]int{8 * k, 24 * k}, [2]int{32 * k, 8 * k})
	for _, e := range []source.Extent{dataAt(0, 4*k), holeAt(12*k, 4*k), holeAt(48*k, 16*k)} {
		e.Off += c.off
		c.changed = append(c.changed, e)
	}
	type answer struct {
		end  int
		zero bool
	}
	tests := []struct {
		name string
		pos  int
		want answer
	}{
		{"changed", 0, answer{4 * k, false}},
		{"a hole, up to an old chunk", 4 * k, answer{8 * k, true}},
		{"an old chunk, up to a change", 8 * k, answer{12 * k, false}},
		{"changed to a hole", 12 * k, answer{16 * k, true}},
		{"the rest of an old chunk", 16 * k, answer{32 * k, false}},
		{"the next old chunk", 36 * k, answer{40 * k, false}},
		{"a hole, up to a change", 40 * k, answer{48 * k, true}},
		{"the end", 60 * k, answer{64 * k, true}},
	}
	for _, tt := range tests {
		end, zero := c.known(tt.pos)
		if got := (answer{end, zero}); got != tt.want {
			t.Errorf("%s: known(%d) is %v, want %v", tt.name, tt.pos, got, tt.want)
		}
	}
}

func TestSpanCutBorders(t *testing.T) {
	c := newSpanCut(t, 64*k, [2]int{8 * k, 8 * k}, [2]int{16 * k, 8 * k}, [2]int{32 * k, 8 * k})
	for pos, want := range map[int]bool{0: true, 8 * k: true, 12 * k: false, 16 * k: true, 20 * k: false, 24 * k: true, 28 * k: true, 40 * k: true} {
		if got := c.oldBorder(pos); got != want {
			t.Errorf("oldBorder(%d) is %v", pos, got)
		}
	}
	c.keep(8*k, 32*k)
	if want := c.old[:2]; !reflect.DeepEqual(c.chunks, want) {
		t.Errorf("kept %v, want %v", c.chunks, want)
	}
}
