package main

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin"
)

// TestGenerated: what is generated differs in what generate says, and whole trees are larger than what the difference reads.
func TestGenerated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta")
	blocks, want, err := generate(path, options{changed: 20, fill: 126, seed: 7}, 50_000)
	if err != nil {
		t.Fatal(err)
	}
	r, err := thin.Open(path, thin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []blockRange
	for c, err := range r.Diff(t.Context(), 2, 1, thin.DiffOptions{}) {
		if err != nil || c.Kind != thin.Changed {
			t.Fatalf("%+v, %v", c, err)
		}
		got = join(got, blockRange{c.Thin, c.Len})
	}
	if !slices.Equal(got, want) || len(want) < 10 {
		t.Errorf("got %v, want %v", got, want)
	}
	if read := r.Stats().BlocksRead; read > blocks/4 {
		t.Errorf("%d of %d blocks read for 20 changes", read, blocks)
	}
	for _, id := range []uint32{1, 2} {
		d, err := r.Device(t.Context(), id)
		if err != nil || d.MappedBlocks != 50_000 {
			t.Errorf("%+v, %v", d, err)
		}
	}
}

func TestReadAnswers(t *testing.T) {
	want := []blockRange{{3, 2}, {9, 1}}
	got, err := readXML(strings.NewReader(`<superblock><diff left="2" right="1"><same begin="0" length="3"/>
		<different begin="3" length="1"/><different begin="4" length="1"/><same begin="5" length="4"/><different begin="9" length="1"/></diff></superblock>`))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("xml: %v, %v", got, err)
	}
	if _, err := readXML(strings.NewReader(`<diff><left_only begin="0" length="3"/></diff>`)); err == nil {
		t.Error("xml with another kind of difference: no error")
	}
	got, err = readRanges(strings.NewReader("changed 3 1\nchanged 4 1\nchanged 9 1\n"))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("lines: %v, %v", got, err)
	}
	if _, err := readRanges(strings.NewReader("added 3 1\n")); err == nil {
		t.Error("lines with another kind of difference: no error")
	}
}
