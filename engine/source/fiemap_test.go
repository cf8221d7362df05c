package source

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"
)

// fiemapAnswer is what the kernel would answer into a request of room extents.
func fiemapAnswer(room int, exts ...physExtent) []byte {
	b := make([]byte, fiemapHeaderLen+room*fiemapExtentLen)
	fiemapRequest(b, 4096, 8192)
	binary.NativeEndian.PutUint32(b[20:], uint32(len(exts)))
	for i, e := range exts[:min(room, len(exts))] {
		x := b[fiemapHeaderLen+i*fiemapExtentLen:]
		binary.NativeEndian.PutUint64(x[0:], uint64(e.off))
		binary.NativeEndian.PutUint64(x[8:], e.phys)
		binary.NativeEndian.PutUint64(x[16:], uint64(e.len))
		binary.NativeEndian.PutUint32(x[40:], e.flags)
	}
	return b
}

func TestFiemapRequest(t *testing.T) {
	b := make([]byte, fiemapHeaderLen+3*fiemapExtentLen+7)
	for i := range b {
		b[i] = 0xff
	}
	fiemapRequest(b, 1<<40, 4096)
	ne := binary.NativeEndian
	if ne.Uint64(b) != 1<<40 || ne.Uint64(b[8:]) != 4096 || ne.Uint32(b[16:]) != 1 || ne.Uint32(b[20:]) != 0 || ne.Uint32(b[24:]) != 3 {
		t.Errorf("request % x", b[:fiemapHeaderLen])
	}
	if i := slices.IndexFunc(b[28:], func(c byte) bool { return c != 0 }); i >= 0 {
		t.Errorf("byte %d was left over from the last answer", 28+i)
	}
}

func TestFiemapDecode(t *testing.T) {
	a := physExtent{off: 4096, len: 4096, phys: 1 << 50, flags: fiemapShared}
	b := physExtent{off: 8192, len: math.MaxInt64 - 8192, phys: math.MaxUint64, flags: fiemapLast | fiemapUnwritten}
	tests := []struct {
		name string
		in   []byte
		want []physExtent
		err  string
	}{
		{name: "none", in: fiemapAnswer(2)},
		{name: "two", in: fiemapAnswer(2, a, b), want: []physExtent{a, b}},
		{name: "nothing at all", in: nil, err: "no header"},
		{name: "short header", in: make([]byte, fiemapHeaderLen-1), err: "no header"},
		{name: "more than there is room for", in: fiemapAnswer(1, a, b), err: "claims 2 extents"},
		{name: "far too many", in: slices.Replace(fiemapAnswer(1, a), 20, 24, 0xff, 0xff, 0xff, 0xff), err: "claims 4294967295 extents"},
		{name: "negative offset", in: fiemapAnswer(1, physExtent{off: -4096, len: 1}), err: "ends past any file"},
		{name: "negative length", in: fiemapAnswer(1, physExtent{off: 4096, len: -1}), err: "ends past any file"},
		{name: "sum overflows", in: fiemapAnswer(1, physExtent{off: 4096, len: math.MaxInt64 - 4095}), err: "ends past any file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := fiemapDecode(nil, tt.in)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if tt.err == "" && !slices.Equal(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzFiemapDecode(f *testing.F) {
	f.Add(fiemapAnswer(2, physExtent{off: 0, len: 4096, phys: 8192}, physExtent{off: 8192, len: 1, flags: 0x8}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		exts, err := fiemapDecode(nil, b)
		if err != nil {
			return
		}
		for _, e := range exts {
			if e.off < 0 || e.len < 0 || e.end() < e.off {
				t.Fatalf("extent %+v", e)
			}
		}
		again, err := fiemapDecode(nil, fiemapAnswer(len(exts), exts...))
		if err != nil || !slices.Equal(again, exts) {
			t.Fatalf("%+v encodes and decodes to %+v, %v", exts, again, err)
		}
	})
}
