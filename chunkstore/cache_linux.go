package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// segmentCache is a folder of index segments as files, memory-mapped when opened. Files are named by their segment's pack ID, so that
// none can be stale; the folder is named by the repository's ID, so that none can be another's.
//
// A file is as long as if it were whole, and has holes where frames have not been fetched yet. Many processes may fill and read it at once.
//
//	the segment's plain bytes
//	sums    8 bytes for each frame: xxHash64 of its bytes, 1 for 0; 0 while it is not there
//	header  of the segment's object, 32 bytes
//	tail    of the segment's object: table record and trailer. With the header it hashes to the pack ID, and says where the
//	        frames are in the object
type segmentCache struct {
	dir    string
	sealer sealer
}

func openSegmentCache(dir, repoID string, s sealer) (*segmentCache, error) {
	c := &segmentCache{filepath.Join(dir, repoID, "index"), s}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	return c, nil
}

// path is where the segment of that name is kept.
func (c *segmentCache) path(name string) (string, error) {
	file := segmentFile(name)
	if file == "" {
		return "", fmt.Errorf("%s: no segment's name", name)
	}
	return filepath.Join(c.dir, file), nil
}

// open maps a cached segment. A file that is not one is removed.
func (c *segmentCache) open(name string) (*segment, error) {
	path, err := c.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := c.mapFile(name, f)
	var unknown *unknownEpochError
	if err != nil && !errors.As(err, &unknown) { // sealed under a key that is not read yet: it is opened again when it is
		_ = os.Remove(path) // what stays is found bad again
	}
	if err != nil {
		return nil, err
	}
	s.path = path
	return s, nil
}

func (c *segmentCache) mapFile(name string, f *os.File) (*segment, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	t, rest, err := c.readTail(f, st.Size())
	if err != nil {
		return nil, err
	}
	if prefixIndex+t.id.String() != name {
		return nil, errors.New("cached segment is another's")
	}
	plain := int64(0)
	for i := range t.entries {
		plain += int64(t.entries[i].raw)
	}
	if sums := 8 * int64(len(t.entries)); st.Size() != plain+sums+rest || len(t.entries) == 0 {
		return nil, fmt.Errorf("cached segment has %d bytes, not %d", st.Size(), plain+sums+rest)
	}
	// What is written to stays in memory: nothing is, unless the disk is full.
	mapping, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	s, err := openMapping(name, mapping[:plain], mapping[plain:][:8*len(t.entries)], t)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(mapping))
	}
	s.mapping = mapping
	return s, nil
}

// readTail reads header and tail of the segment's object, which end the file of that size, and returns how many bytes they are.
func (c *segmentCache) readTail(f *os.File, size int64) (t *packTable, n int64, err error) {
	if size < packHeaderLen+trailerLen || size > 1<<40 {
		return nil, 0, errors.New("cached segment has an impossible length")
	}
	trailer := make([]byte, trailerLen)
	if _, err := f.ReadAt(trailer, size-trailerLen); err != nil {
		return nil, 0, err
	}
	tableOff, tableLen := binary.LittleEndian.Uint64(trailer), int64(binary.LittleEndian.Uint32(trailer[8:]))
	n = packHeaderLen + tableLen + trailerLen
	if tableOff > maxPackLen || n > size {
		return nil, 0, errors.New("cached segment has an impossible trailer")
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, size-n); err != nil {
		return nil, 0, err
	}
	t, err = decodePackTail(c.sealer, b[:packHeaderLen], b[packHeaderLen:], tableOff+uint64(tableLen)+trailerLen)
	return t, n, err
}

// openMapping makes a segment over the plain bytes and sums of a cache file. Its first frame must be there.
func openMapping(name string, data, sums []byte, t *packTable) (*segment, error) {
	first := bytes.Clone(data[:t.entries[0].raw])
	if binary.LittleEndian.Uint64(sums) != frameSum(first) {
		return nil, errors.New("cached segment has no first frame")
	}
	h, err := decodeSegmentHead(first)
	if err == nil {
		err = h.checkTable(t)
	}
	if err != nil {
		return nil, err
	}
	s := newSegment(name, h, first, data)
	s.sums, s.table = sums, t
	s.setPresent(0)
	return s, s.checkHead(first)
}

// create makes the file of a segment of which the first frame is known; header and tail are its object's. When another process was
// quicker, its file is opened.
func (c *segmentCache) create(name string, h *segmentHead, first, header, tail []byte) (*segment, error) {
	sums := binary.LittleEndian.AppendUint64(nil, frameSum(first))
	sums = append(sums, make([]byte, 8*(h.frames()-1))...)
	return c.write(name, func(f *os.File) error {
		at := int64(0)
		for _, p := range [][]byte{first, sums, header, tail} {
			if _, err := f.WriteAt(p, at); err != nil {
				return err
			}
			if at += int64(len(p)); at == int64(len(first)) {
				at = int64(h.size())
			}
		}
		return nil
	})
}

// store makes the file of a whole segment, of which pack is the object and data the plain bytes.
func (c *segmentCache) store(name string, pack, data []byte) (*segment, error) {
	h, err := decodeSegmentHead(data)
	if err != nil {
		return nil, err
	}
	t, err := decodePackTail(c.sealer, pack[:packHeaderLen], pack, uint64(len(pack)))
	if err != nil {
		return nil, err
	}
	var sums []byte
	for i := range h.frames() {
		from, to := h.frame(i)
		sums = binary.LittleEndian.AppendUint64(sums, frameSum(data[from:to]))
	}
	return c.write(name, func(f *os.File) error {
		for _, p := range [][]byte{data, sums, pack[:packHeaderLen], pack[t.trailer.tableOff:]} {
			if _, err := f.Write(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// write makes a file, or opens the one that is there. It is not synced: what a power cut leaves is found bad and fetched again.
func (c *segmentCache) write(name string, fill func(*os.File) error) (*segment, error) {
	path, err := c.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(c.dir, ".tmp-*")
	if err != nil {
		return nil, err
	}
	err = errors.Join(fill(f), f.Close())
	if err == nil {
		if err = os.Link(f.Name(), path); errors.Is(err, os.ErrExist) {
			err = nil
		}
	}
	if err = errors.Join(err, os.Remove(f.Name())); err != nil {
		return nil, err
	}
	return c.open(name)
}

// retain removes the files of segments that are not among names. Mappings of them stay valid.
func (c *segmentCache) retain(listed map[string]struct{}) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := prefixIndex + e.Name()
		if _, ok := listed[name]; !ok && segmentFile(name) != "" {
			_ = os.Remove(filepath.Join(c.dir, e.Name())) // next time, then
		}
	}
}

// writeFileSync replaces the file at path, whole or not at all.
func writeFileSync(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
