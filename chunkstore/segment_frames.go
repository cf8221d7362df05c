package chunkstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// frameState is which frames of a segment are present, and whose its memory is. A frame is present when this process has verified it:
// against the record's ID when it came from the backend, against the cache file's sum when it is looked at for the first time.
type frameState struct {
	ok      []atomic.Uint64 // a bit for each frame
	refs    atomic.Int32    // the index's list of segments has one, each snapshot and fetch another; without any the memory goes
	mapping []byte          // to be undone then; nil: data is on the heap
	path    string          // of the cache file that mapping shows; empty: there is none
	sums    []byte          // part of mapping, 8 bytes for each frame; nil: there is no file
	table   *packTable      // of the object: where to fetch frames; nil: none can be missing

	filling ioLock // held, also during I/O, by who fetches all that is missing

	mu      sync.Mutex // guards all below
	busy    map[int]chan struct{}
	asked   int              // frames fetched one by one
	private bool             // frames do not get into the file any more: its disk is full
	own     map[int]struct{} // frames that are in memory instead
}

func (f *frameState) init(frames int) {
	f.ok = make([]atomic.Uint64, (frames+63)/64)
	f.refs.Store(1)
	f.filling = newIOLock()
}

func (f *frameState) setPresent(i int) { f.ok[i/64].Or(1 << (i % 64)) }

// frameSum is never 0, which stands in a cache file for a frame that is not there.
func frameSum(b []byte) uint64 { return max(xxhash.Sum64(b), 1) }

// present reports whether frame i is there. It reads it when nobody has in this process.
func (s *segment) present(i int) bool {
	if s.ok[i/64].Load()&(1<<(i%64)) != 0 {
		return true
	}
	there, good := s.inFile(i)
	if !there || !good {
		return false
	}
	s.setPresent(i)
	return true
}

// inFile reports whether the cache file has frame i, and whether it is what was written.
func (s *segment) inFile(i int) (there, good bool) {
	if s.sums == nil {
		return false, false
	}
	from, to := s.frame(i)
	sum := binary.LittleEndian.Uint64(s.sums[8*i:])
	return sum != 0, sum == frameSum(s.data[from:to])
}

// recheck reads all frames of the cache file again and forgets those that have gone bad. Returns whether there were any.
func (s *segment) recheck() (bad bool) {
	if s.sums == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.frames() {
		if _, own := s.own[i]; own {
			continue
		}
		there, good := s.inFile(i)
		known := s.ok[i/64].And(^uint64(1<<(i%64)))&(1<<(i%64)) != 0
		if there && good {
			s.setPresent(i)
		}
		bad = bad || (there || known) && !good
	}
	return bad
}

// missing returns the frames that are not present, ascending.
func (s *segment) missing() (frames []int) {
	for i := range s.frames() {
		if !s.present(i) {
			frames = append(frames, i)
		}
	}
	return frames
}

// local is how many plain bytes are at hand, as far as is known without reading them.
func (s *segment) local() (n int64) {
	for i := range s.frames() {
		if s.ok[i/64].Load()&(1<<(i%64)) != 0 || s.sums != nil && binary.LittleEndian.Uint64(s.sums[8*i:]) != 0 {
			from, to := s.frame(i)
			n += int64(to - from)
		}
	}
	return n
}

// adopt makes frame i present; b has been verified. It goes into the cache file, which other processes may be filling too, with the
// same bytes.
func (s *segment) adopt(i int, b []byte) {
	from, to := s.frame(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path != "" && !s.private && s.writeFrame(i, from, b) != nil {
		s.private = true
	}
	if s.path == "" || s.private || !bytes.Equal(s.data[from:to], b) {
		copy(s.data[from:to], b) // the mapping is our own copy where it is written to
		if s.own == nil {
			s.own = map[int]struct{}{}
		}
		s.own[i] = struct{}{}
	}
	s.setPresent(i)
}

// writeFrame writes the frame first, its sum after it. Nothing is synced: what a power cut leaves is found bad, and fetched again.
func (s *segment) writeFrame(i, from int, b []byte) (err error) {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(b, int64(from)); err != nil {
		return err
	}
	_, err = f.WriteAt(binary.LittleEndian.AppendUint64(nil, frameSum(b)), int64(s.size()+8*i))
	return err
}

// release gives up one reference.
func (s *segment) release() error {
	if s.refs.Add(-1) > 0 || s.mapping == nil {
		return nil
	}
	return unix.Munmap(s.mapping)
}

// releaseAll gives up references to segments. What cannot be unmapped stays until the process ends.
func releaseAll(segs []*segment) {
	for _, s := range segs {
		_ = s.release()
	}
}

// newSparseSegment makes a segment without frames in memory that is taken as far as it is filled.
func newSparseSegment(name string, h segmentHead, first []byte, t *packTable) (*segment, error) {
	data, err := unix.Mmap(-1, 0, h.size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	s := newSegment(name, h, first, data)
	s.mapping, s.table = data, t
	return s, nil
}
