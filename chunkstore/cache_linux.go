package chunkstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// segmentCache is a folder of index segments as plain files, memory-mapped when opened. Files are named by their segment's
// pack ID, so that none can be stale; the folder is named by the repository's ID, so that none can be another's.
type segmentCache struct{ dir string }

func openSegmentCache(dir, repoID string) (*segmentCache, error) {
	c := &segmentCache{dir: filepath.Join(dir, repoID, "index")}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	return c, nil
}

// open maps a cached segment.
func (c *segmentCache) open(name string) (*segment, error) {
	file := segmentFile(name)
	if file == "" {
		return nil, fmt.Errorf("%s: no segment's name", name)
	}
	f, err := os.Open(filepath.Join(c.dir, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < segmentHeaderLen+segmentSumLen || st.Size() > 1<<40 {
		return nil, errors.New("cached segment has an impossible length")
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	seg, err := openSegment(name, data)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(data))
	}
	seg.mapped = true
	return seg, nil
}

// store writes a segment to the cache and maps it.
func (c *segmentCache) store(name string, data []byte) (*segment, error) {
	file := segmentFile(name)
	if file == "" {
		return nil, fmt.Errorf("%s: no segment's name", name)
	}
	if err := writeFileSync(filepath.Join(c.dir, file), data); err != nil {
		return nil, err
	}
	return c.open(name)
}

// remove forgets a segment. A mapping of it stays valid.
func (c *segmentCache) remove(name string) {
	if file := segmentFile(name); file != "" {
		_ = os.Remove(filepath.Join(c.dir, file)) // what stays is found bad again
	}
}

// retain removes the files of segments that are no longer listed. Mappings of them stay valid.
func (c *segmentCache) retain(names []string) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if segmentFile(prefixIndex+e.Name()) == "" || slices.Contains(names, prefixIndex+e.Name()) {
			continue
		}
		_ = os.Remove(filepath.Join(c.dir, e.Name())) // next time, then
	}
}

func unmapSegment(s *segment) error {
	if !s.mapped {
		return nil
	}
	return unix.Munmap(s.data)
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
