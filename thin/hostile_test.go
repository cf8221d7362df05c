package thin_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/thintest"
)

// rawNode gives access to the fields of a B-tree node that has values of 8 bytes.
type rawNode []byte

var le = binary.LittleEndian

func (n rawNode) entries() int              { return int(le.Uint32(n[16:])) }
func (n rawNode) leaf() bool                { return le.Uint32(n[4:]) == 2 }
func (n rawNode) key(i int) []byte          { return n[32+8*i:][:8] }
func (n rawNode) value(i int) []byte        { return n[32+8*int(le.Uint32(n[20:]))+8*i:][:8] }
func (n rawNode) child(i int) uint64        { return le.Uint64(n.value(i)) }
func blockOf(img []byte, nr uint64) rawNode { return rawNode(img[nr*thin.BlockSize:][:thin.BlockSize]) }

// smallTree names blocks of device 1 of smallPool.
type smallTree struct {
	top, details        uint64 // mapping tree's upper level, details tree
	root, inner, inner2 uint64 // root and its first two children
	leaf, leaf2         uint64 // the first two children of inner
	last                uint64 // the last leaf
}

func (s *smallTree) find(t *testing.T, img []byte) {
	t.Helper()
	r := newReader(t, img, thin.Options{})
	s.top, s.details = r.Superblock().MappingRoot, r.Superblock().DetailsRoot
	var err error
	if s.root, err = r.MappingRoot(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	s.inner, s.inner2 = blockOf(img, s.root).child(0), blockOf(img, s.root).child(1)
	s.leaf, s.leaf2 = blockOf(img, s.inner).child(0), blockOf(img, s.inner).child(1)
	for s.last = s.root; !blockOf(img, s.last).leaf(); {
		n := blockOf(img, s.last)
		s.last = n.child(n.entries() - 1)
	}
	if !blockOf(img, s.leaf).leaf() {
		t.Fatal("the tree has not three levels")
	}
}

// TestHostileMetadata changes one thing and mends the checksum: only what the fields say can give it away.
func TestHostileMetadata(t *testing.T) {
	put := func(field []byte, v uint64) { le.PutUint64(field, v) }
	cases := []struct {
		name   string
		block  func(s smallTree) uint64
		change func(b rawNode, s smallTree)
		is     error
		says   string
	}{
		{"root is its own second child", func(s smallTree) uint64 { return s.root }, func(b rawNode, s smallTree) { put(b.value(1), s.root) }, thin.ErrDamaged, "its own ancestor"},
		{"inner node leads back to the root", func(s smallTree) uint64 { return s.inner }, func(b rawNode, s smallTree) { put(b.value(0), s.root) }, thin.ErrDamaged, "ancestor"},
		{"one child twice", func(s smallTree) uint64 { return s.root }, func(b rawNode, s smallTree) { put(b.value(1), s.inner) }, thin.ErrDamaged, "lies before"},
		{"one leaf twice", func(s smallTree) uint64 { return s.inner }, func(b rawNode, s smallTree) { put(b.value(1), s.leaf) }, thin.ErrDamaged, "lies before"},
		{"leaf above its place", func(s smallTree) uint64 { return s.root }, func(b rawNode, s smallTree) { put(b.value(0), s.leaf) }, thin.ErrDamaged, "where the leaves are"},
		{"leaf above the others", func(s smallTree) uint64 { return s.root }, func(b rawNode, s smallTree) { put(b.value(1), s.leaf2) }, thin.ErrDamaged, "lies"},
		{"children exchanged", func(s smallTree) uint64 { return s.inner }, func(b rawNode, s smallTree) { put(b.value(0), s.leaf2); put(b.value(1), s.leaf) }, thin.ErrDamaged, "lies after"},
		{"child is the superblock", func(s smallTree) uint64 { return s.inner }, func(b rawNode, _ smallTree) { put(b.value(0), 0) }, thin.ErrDamaged, "child 0 is block 0"},
		{"child outside the device", func(s smallTree) uint64 { return s.inner }, func(b rawNode, _ smallTree) { put(b.value(1), 1<<40) }, thin.ErrDamaged, "child 1 is block 1099511627776"},
		{"child offset overflows", func(s smallTree) uint64 { return s.inner }, func(b rawNode, _ smallTree) { put(b.value(1), 1<<63+7) }, thin.ErrDamaged, "child 1 is block"},
		{"child is a leaf of the details tree", func(s smallTree) uint64 { return s.inner }, func(b rawNode, s smallTree) { put(b.value(0), s.details) }, thin.ErrDamaged, "values of 24 bytes"},
		{"leaf without entries", func(s smallTree) uint64 { return s.leaf2 }, func(b rawNode, _ smallTree) { le.PutUint32(b[16:], 0) }, thin.ErrDamaged, "no entries"},
		{"leaf with an entry less", func(s smallTree) uint64 { return s.leaf2 }, func(b rawNode, _ smallTree) { le.PutUint32(b[16:], uint32(b.entries()-1)) }, thin.ErrDamaged, "details count"},
		{"root without entries", func(s smallTree) uint64 { return s.root }, func(b rawNode, _ smallTree) { le.PutUint32(b[16:], 0) }, thin.ErrDamaged, "no entries"},
		{"more entries than room", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { le.PutUint32(b[16:], 7) }, thin.ErrDamaged, "has 7 entries, it is for 6"},
		{"room for more than a block", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { le.PutUint32(b[20:], 255) }, thin.ErrDamaged, "is for 255 entries"},
		{"room overflows", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { le.PutUint32(b[20:], 1<<31) }, thin.ErrDamaged, "is for 2147483648 entries"},
		{"values of no bytes", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { le.PutUint32(b[24:], 0) }, thin.ErrDamaged, "values of 0 bytes"},
		{"neither leaf nor internal", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { le.PutUint32(b[4:], 0) }, thin.ErrDamaged, "neither"},
		{"leaf and internal", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { le.PutUint32(b[4:], 3) }, thin.ErrDamaged, "neither"},
		{"leaf says it is internal", func(s smallTree) uint64 { return s.leaf2 }, func(b rawNode, _ smallTree) { le.PutUint32(b[4:], 1) }, thin.ErrDamaged, "where the leaves are"},
		{"one key twice", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { copy(b.key(1), b.key(0)) }, thin.ErrDamaged, "not ascending"},
		{"key behind the next leaf", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { put(b.key(b.entries()-1), 170) }, thin.ErrDamaged, "lies after"},
		{"key before its parent's", func(s smallTree) uint64 { return s.leaf2 }, func(b rawNode, _ smallTree) { put(b.key(0), 1) }, thin.ErrDamaged, "lies before"},
		{"key of a tree moved up", func(s smallTree) uint64 { return s.inner }, func(b rawNode, _ smallTree) { put(b.key(1), le.Uint64(b.key(1))+1) }, thin.ErrDamaged, "lies before"},
		{"data block is the first outside", func(s smallTree) uint64 { return s.leaf }, func(b rawNode, _ smallTree) { put(b.value(0), 1000<<24) }, thin.ErrDamaged, "data block 1000, the data device has 1000"},
		{"thin block beyond any device", func(s smallTree) uint64 { return s.last }, func(b rawNode, _ smallTree) { put(b.key(b.entries()-1), 1<<47) }, thin.ErrDamaged, "thin block 140737488355328 lies beyond any device"},
		{"device ID of 25 bits", func(s smallTree) uint64 { return s.top }, func(b rawNode, _ smallTree) { put(b.key(b.entries()-1), 1<<24) }, thin.ErrDamaged, "24 bits"},
		{"device's tree outside", func(s smallTree) uint64 { return s.top }, func(b rawNode, _ smallTree) { put(b.value(0), 1<<30) }, thin.ErrDamaged, "tree of entry 0 is block"},
		{"device's tree is the tree of devices", func(s smallTree) uint64 { return s.top }, func(b rawNode, s smallTree) { put(b.value(0), s.top) }, thin.ErrDamaged, ""},
		{"device without tree", func(s smallTree) uint64 { return s.top }, func(b rawNode, _ smallTree) { put(b.key(1), 7) }, thin.ErrDamaged, "device 2 has details and no mapping tree"},
		{"details count another number", func(s smallTree) uint64 { return s.details }, func(b rawNode, _ smallTree) { put(b[32+8*126:], 61) }, thin.ErrDamaged, "details count 61"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			img := smallPool(t)
			var s smallTree
			s.find(t, img)
			thintest.Patch(img, c.block(s), func(b []byte) { c.change(b, s) })
			_, err := answers(t, img, thin.Options{})
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %q", err, c.says)
			}
		})
	}
}

// TestHostileSuperblock changes a field of the superblock and mends the checksum.
func TestHostileSuperblock(t *testing.T) {
	cases := []struct {
		name string
		opts thin.Options
		off  int
		v    uint64
		size int
		is   error
		says string
	}{
		{"block number", thin.Options{}, 8, 5, 8, thin.ErrDamaged, "says it is block 5"},
		{"version 1", thin.Options{}, 40, 1, 4, thin.ErrUnsupported, "version 1"},
		{"incompatible feature", thin.Options{}, 360, 4, 4, thin.ErrUnsupported, "feature flags 0x4"},
		{"block size 0", thin.Options{}, 336, 0, 4, thin.ErrDamaged, "data block size is 0"},
		{"block size odd", thin.Options{}, 336, 129, 4, thin.ErrDamaged, "data block size is 129"},
		{"block size huge", thin.Options{}, 336, 1<<32 - 128, 4, thin.ErrDamaged, "data block size is"},
		{"metadata block size", thin.Options{}, 340, 16, 4, thin.ErrDamaged, "metadata block size is 16"},
		{"metadata block size overflows", thin.Options{}, 340, 1<<23 + 8, 4, thin.ErrDamaged, "metadata block size is"},
		{"more metadata than the device", thin.Options{}, 344, 1 << 50, 8, thin.ErrDamaged, "truncated"},
		{"data device beyond 40 bits", thin.Options{}, 64, 1<<40 + 1, 8, thin.ErrDamaged, "impossibly large"},
		{"data device of 0 blocks", thin.Options{}, 64, 0, 8, thin.ErrDamaged, "data device has 0"},
		{"more used than there is", thin.Options{}, 72, 1001, 8, thin.ErrDamaged, "1001 of 1000"},
		{"mapping root 0", thin.Options{}, 320, 0, 8, thin.ErrDamaged, "mapping tree root is block 0"},
		{"details root outside", thin.Options{}, 328, 1 << 60, 8, thin.ErrDamaged, "details tree root is block"},
		{"held root is a node", thin.Options{MetadataSnapshot: true}, 56, 1, 8, thin.ErrDamaged, "metadata block 1: superblock checksum"},
		{"held root is the superblock", thin.Options{MetadataSnapshot: true}, 56, 0, 8, thin.ErrNoMetadataSnapshot, "held root is 0"},
		{"held root outside", thin.Options{MetadataSnapshot: true}, 56, 1 << 55, 8, thin.ErrDamaged, "held root is block"},
		{"mapping root is a leaf of mappings", thin.Options{}, 320, 1, 8, thin.ErrDamaged, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			img := smallPool(t)
			thintest.Patch(img, 0, func(b []byte) {
				if c.size == 4 {
					le.PutUint32(b[c.off:], uint32(c.v))
				} else {
					le.PutUint64(b[c.off:], c.v)
				}
			})
			_, err := answers(t, img, c.opts)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %q", err, c.says)
			}
		})
	}
}

// TestDeepChain: internal nodes that each lead to one more are not followed without end.
func TestDeepChain(t *testing.T) {
	img := smallPool(t)
	var s smallTree
	s.find(t, img)
	end := uint64(len(img) / thin.BlockSize)
	const chain = 30
	for i := range uint64(chain) {
		b := append(rawNode(nil), blockOf(img, s.root)...)
		le.PutUint64(b[8:], end+i)
		le.PutUint32(b[16:], 1)
		le.PutUint64(b.value(0), end+i+1)
		img = append(img, b...)
		thintest.Seal(blockOf(img, end+i))
	}
	thintest.Patch(img, 0, func(b []byte) { le.PutUint64(b[344:], uint64(len(img)/thin.BlockSize)) })
	thintest.Patch(img, s.root, func(b []byte) { le.PutUint64(rawNode(b).value(0), end) })
	_, err := answers(t, img, thin.Options{})
	if !errors.Is(err, thin.ErrDamaged) || !strings.Contains(err.Error(), "deeper than") {
		t.Fatalf("got %v", err)
	}
}

// TestSharedOutOfPlace: a subtree that both devices have, but one of them where it does not belong, is not skipped.
func TestSharedOutOfPlace(t *testing.T) {
	img := smallPool(t)
	var s smallTree
	s.find(t, img)
	r := newReader(t, img, thin.Options{})
	root, err := r.MappingRoot(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	b := blockOf(img, root)
	last := b.child(b.entries() - 1)
	thintest.Patch(img, root, func(b []byte) { le.PutUint64(rawNode(b).value(0), last) })
	for _, unchanged := range []bool{false, true} {
		for _, ids := range [][2]uint32{{1, 2}, {2, 1}} {
			_, err := collect(r.Diff(t.Context(), ids[0], ids[1], thin.DiffOptions{Unchanged: unchanged}))
			var damage *thin.DamageError
			if !errors.As(err, &damage) || damage.Block != last {
				t.Errorf("%v, unchanged %v: got %v, want damage of block %d", ids, unchanged, err, last)
			}
		}
	}
}
