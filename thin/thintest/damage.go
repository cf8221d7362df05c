package thintest

import (
	"encoding/binary"
	"errors"
	"io"
)

// Memory is a Storage that grows as it is written.
type Memory []byte

// ReadAt implements io.ReaderAt.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(*m)) {
		return 0, io.EOF
	}
	n := copy(p, (*m)[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if grow := off + int64(len(p)) - int64(len(*m)); grow > 0 {
		*m = append(*m, make([]byte, grow)...)
	}
	return copy((*m)[off:], p), nil
}

// Patch changes a metadata block and mends its checksum, when it had a valid one before.
func Patch(img []byte, nr uint64, change func(block []byte)) {
	b := img[nr*BlockSize : (nr+1)*BlockSize]
	stored := binary.LittleEndian.Uint32(b)
	salts := []uint32{superblockSalt, nodeSalt}
	for _, salt := range salts {
		if stored == checksum(b, salt) {
			change(b)
			seal(b, salt)
			return
		}
	}
	change(b)
}

// Seal gives a block that is to be a B-tree node its checksum.
func Seal(block []byte) { seal(block, nodeSalt) }
