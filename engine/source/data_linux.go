package source

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directAlign is the alignment of memory, offset and length that satisfies O_DIRECT on every device.
const directAlign = 4096

// openData opens a pool's data, an image or a block device. A block device is read with O_DIRECT: what a pool writes to it
// passes by its page cache, which may be stale.
func openData(path string) (dataReader, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case st.Mode().IsRegular():
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		return dataFile{f}, nil
	case st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice:
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return nil, err
		}
		return directFile{f}, nil
	}
	return nil, fmt.Errorf("%s: pool data must be a file or a block device", path)
}

// dataFile is an image; its end is the data device's end.
type dataFile struct{ f *os.File }

func (d dataFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(p, off)
	return n, notEOF(d.f, err)
}

func (d dataFile) Close() error { return d.f.Close() }

// notEOF: the metadata says that there is data behind the end, which is damage, not an end.
func notEOF(f *os.File, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s is shorter than the pool's metadata says: %w", f.Name(), io.ErrUnexpectedEOF)
	}
	return err
}

// directFile is a block device opened with O_DIRECT.
type directFile struct{ f *os.File }

func (d directFile) Close() error { return d.f.Close() }

func (d directFile) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if uintptr(unsafe.Pointer(unsafe.SliceData(p)))%directAlign == 0 && off%directAlign == 0 && len(p)%directAlign == 0 {
		n, err := d.f.ReadAt(p, off)
		return n, notEOF(d.f, err)
	}
	from := off / directAlign * directAlign
	end := (off + int64(len(p)) + directAlign - 1) / directAlign * directAlign
	buf := alignedBuffer(int(end - from))
	n, err := d.f.ReadAt(buf, from)
	got := max(0, min(len(p), n-int(off-from)))
	copy(p[:got], buf[off-from:])
	if got == len(p) {
		return got, nil // what is missing lies behind what was asked for
	}
	return got, notEOF(d.f, err)
}

// alignedBuffer returns n bytes that begin at a multiple of directAlign.
func alignedBuffer(n int) []byte {
	buf := make([]byte, n+directAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))) & (directAlign - 1)
	return buf[skip : skip+n : skip+n]
}
