package thin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"sync/atomic"
)

// Options say how metadata is opened. The zero value reads the main trees of an inactive pool.
type Options struct {
	// MetadataSnapshot reads the state that the pool's metadata snapshot (held root) froze, of an active pool or of a copy.
	MetadataSnapshot bool
	// AllowNeedsCheck reads the main trees of a pool that is marked needs_check. They may be of before the failure.
	// At the held root the mark does not matter: the snapshot was made by a commit that succeeded.
	AllowNeedsCheck bool
	// Direct opens with O_DIRECT; block devices always are. A file system may refuse it.
	Direct bool
}

// Reader reads one pool's metadata. It may be used from many goroutines; Close it when no iterator runs any more.
type Reader struct {
	src    io.ReaderAt
	closer io.Closer // nil when the caller owns src
	blocks uint64    // whole blocks of src that the pool may use
	held   bool      // read at the held root
	main   [BlockSize]byte
	root   [BlockSize]byte // the held root's block, or main again
	sb     Superblock
	rawNr  uint64 // nr_data_blocks as the root says it: 0 in a metadata snapshot

	bufs sync.Pool // of *[]byte, BlockSize each and aligned to it
	read atomic.Uint64
}

// Stats count what a Reader did since it was opened.
type Stats struct {
	BlocksRead uint64 // metadata blocks of BlockSize bytes
}

// Stats may be called while iterators run.
func (r *Reader) Stats() Stats { return Stats{BlocksRead: r.read.Load()} }

// Superblock answers from the root that is read. NrDataBlocks is always the main superblock's: the copy does not tell it.
func (r *Reader) Superblock() Superblock { return r.sb }

// Close closes what Open opened.
func (r *Reader) Close() error {
	if r.closer == nil {
		return nil
	}
	return r.closer.Close()
}

// NewReader reads metadata from src, which holds size bytes and stays the caller's. It reads the superblock (twice when
// it looks torn) and, when asked for, the metadata snapshot's copy; a file or device is opened with [Open].
//
// Errors: [ErrNotMetadata], [ErrUnsupported], [ErrNeedsCheck], [ErrNoMetadataSnapshot], [DamageError], or src's.
func NewReader(src io.ReaderAt, size int64, opts Options) (*Reader, error) {
	r := &Reader{src: src, held: opts.MetadataSnapshot}
	r.bufs.New = func() any { b := alignedBlock(); return &b }
	if size < BlockSize {
		return nil, fmt.Errorf("metadata block 0: the device has %d bytes, too few for a superblock: %w", size, ErrNotMetadata)
	}
	r.blocks = uint64(size) / BlockSize
	sb, err := r.readSuperblock(0, &r.main)
	if err != nil {
		return nil, err
	}
	if sb.NrMetaBlocks > r.blocks {
		return nil, damagef(r.blocks, "the device ends here, the superblock counts %d blocks: truncated", sb.NrMetaBlocks)
	}
	r.root, r.sb, r.rawNr = r.main, sb, sb.NrDataBlocks
	if opts.MetadataSnapshot {
		if err := r.openHeld(sb); err != nil {
			return nil, err
		}
	} else if sb.NeedsCheck() && !opts.AllowNeedsCheck {
		return nil, fmt.Errorf("metadata block 0: superblock flags %#x: %w", sb.Flags, ErrNeedsCheck)
	}
	if err := r.checkChild(r.sbBlock(), "mapping tree root", r.sb.MappingRoot); err != nil {
		return nil, err
	}
	return r, r.checkChild(r.sbBlock(), "details tree root", r.sb.DetailsRoot)
}

func (r *Reader) openHeld(main Superblock) error {
	if main.HeldRoot == 0 {
		return fmt.Errorf("metadata block 0: held root is 0: %w", ErrNoMetadataSnapshot)
	}
	if err := r.checkChild(0, "held root", main.HeldRoot); err != nil {
		return err
	}
	held, err := r.readSuperblock(main.HeldRoot, &r.root)
	if err != nil {
		return err
	}
	if held.BlockSize != main.BlockSize {
		return damagef(main.HeldRoot, "held root has data blocks of %d bytes, the superblock %d", held.BlockSize, main.BlockSize)
	}
	r.rawNr = held.NrDataBlocks
	held.NrDataBlocks, held.NrMetaBlocks, held.HeldRoot = main.NrDataBlocks, main.NrMetaBlocks, main.HeldRoot
	r.sb = held
	return nil
}

func (r *Reader) sbBlock() uint64 {
	if r.held {
		return r.sb.HeldRoot
	}
	return 0
}

// tornReads bounds how often a superblock that looks torn is read again; each time its bytes must have changed.
const tornReads = 5

// readSuperblock reads again while the bytes change: the kernel may be writing them.
func (r *Reader) readSuperblock(nr uint64, into *[BlockSize]byte) (Superblock, error) {
	buf := r.block()
	defer r.free(buf)
	for n := 0; ; n++ {
		if err := r.readBlock(nr, *buf); err != nil {
			return Superblock{}, err
		}
		same := n > 0 && bytes.Equal(*buf, into[:])
		copy(into[:], *buf)
		sb, err := decodeSuperblock(*buf, nr)
		if err == nil || same || n == tornReads || !errors.Is(err, ErrDamaged) {
			return sb, err
		}
	}
}

// Recheck reads the superblock (and the held root's copy) again and returns [ErrChanged] when the state that this Reader
// reads is no longer the pool's: the metadata snapshot was released or renewed, or an inactive pool was activated.
// Call it after walks of live metadata, before their answers are relied on.
func (r *Reader) Recheck() error {
	var now [BlockSize]byte
	sb, err := r.readSuperblock(0, &now)
	if err != nil {
		return err
	}
	if !r.held {
		if now != r.main {
			return fmt.Errorf("superblock: %w", ErrChanged)
		}
		return nil
	}
	if sb.HeldRoot != r.sb.HeldRoot {
		return fmt.Errorf("held root was block %d, is %d: %w", r.sb.HeldRoot, sb.HeldRoot, ErrChanged)
	}
	if _, err := r.readSuperblock(r.sb.HeldRoot, &now); err != nil {
		return err
	}
	if now != r.root {
		return fmt.Errorf("metadata block %d, the held root: %w", r.sb.HeldRoot, ErrChanged)
	}
	return nil
}

// limit is the number of metadata blocks that may be referred to.
func (r *Reader) limit() uint64 {
	if n := r.sb.NrMetaBlocks; n > 0 && n < r.blocks {
		return n
	}
	return r.blocks
}

// checkChild checks that a block number found in block parent can be one of a tree's.
func (r *Reader) checkChild(parent uint64, what string, child uint64) error {
	if child == 0 || child >= r.limit() {
		return damagef(parent, "%s is block %d, not in 1..%d", what, child, r.limit()-1)
	}
	return nil
}

func (r *Reader) readBlock(nr uint64, buf []byte) error {
	r.read.Add(1)
	n, err := r.src.ReadAt(buf, int64(nr)*BlockSize)
	if n == BlockSize {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return damagef(nr, "the device ends in or before this block")
	}
	return fmt.Errorf("read metadata block %d: %w", nr, err)
}

func (r *Reader) block() *[]byte   { return r.bufs.Get().(*[]byte) }
func (r *Reader) free(buf *[]byte) { r.bufs.Put(buf) }

// alignedBlock makes a buffer that O_DIRECT accepts. The heap does not move what it holds.
func alignedBlock() []byte {
	b := make([]byte, 2*BlockSize)
	skip := -int(reflect.ValueOf(b).Pointer()) & (BlockSize - 1)
	return b[skip : skip+BlockSize : skip+BlockSize]
}
