package file

import (
	"errors"
	"os"
	"sync"
)

// openFile is an object open for reading.
type openFile struct {
	name string
	file *os.File
	info os.FileInfo // as it was when opened
	size int64       // bytes

	// Guarded by openFiles.mu.
	users      int // readers at work
	kept       bool
	prev, next *openFile // in the ring of kept files
}

// openFiles keeps the objects used last open. A file that is no longer kept is closed by its last user.
type openFiles struct {
	mu         sync.Mutex // guards all below; not held while a file is opened, read or closed
	max        int
	byName     map[string]*openFile
	ring       openFile       // sentinel: ring.next was used last, ring.prev is the next to go
	generation uint64         // counts drops; tells an opener that the name may mean another file by now
	changing   map[string]int // names that are being replaced or deleted, and by how many callers: none of their files is kept
}

func (s *openFiles) init(limit int) {
	s.max = limit
	s.byName = make(map[string]*openFile, limit)
	s.changing = map[string]int{}
	s.ring.prev, s.ring.next = &s.ring, &s.ring
}

// take returns the kept file of that name to be released after use, or nil.
func (s *openFiles) take(name string) *openFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.byName[name]
	if o == nil {
		return nil
	}
	o.users++
	if s.ring.next != o {
		o.unlink()
		s.pushFront(o)
	}
	return o
}

// now returns the generation, to be asked for before a file is opened and handed to add.
func (s *openFiles) now() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// add keeps o and returns it to be released after use. When something was dropped since the given generation, o may be a file
// that was just replaced: it serves this one reader, who came before the replacement was done, and is not kept.
func (s *openFiles) add(o *openFile, generation uint64) *openFile {
	s.mu.Lock()
	o.users = 1
	var idle *openFile
	if s.generation == generation && s.byName[o.name] == nil && s.changing[o.name] == 0 {
		if len(s.byName) >= s.max {
			idle = s.remove(s.ring.prev)
		}
		s.byName[o.name] = o
		o.kept = true
		s.pushFront(o)
	}
	s.mu.Unlock()
	idle.close()
	return o
}

// release ends a use of o.
func (s *openFiles) release(o *openFile) {
	s.mu.Lock()
	o.users--
	last := o.users == 0 && !o.kept
	s.mu.Unlock()
	if last {
		o.close()
	}
}

// change forgets the file of that name, which is about to be replaced or deleted, and keeps none before done: whoever has seen
// the new file must not be given the old one again.
func (s *openFiles) change(name string) (done func()) {
	s.mu.Lock()
	s.changing[name]++
	s.mu.Unlock()
	s.drop(name)
	return func() {
		s.mu.Lock()
		if s.changing[name]--; s.changing[name] == 0 {
			delete(s.changing, name)
		}
		s.generation++ // what was opened before may be the old file
		s.mu.Unlock()
	}
}

// drop forgets the file of that name, which was replaced or deleted.
func (s *openFiles) drop(name string) {
	s.mu.Lock()
	s.generation++
	idle := s.remove(s.byName[name])
	s.mu.Unlock()
	idle.close()
}

// dropOther forgets the file of that name if it is not the one that info describes.
func (s *openFiles) dropOther(name string, info os.FileInfo) {
	s.mu.Lock()
	o := s.byName[name]
	other := o != nil && !(os.SameFile(o.info, info) && o.size == info.Size() && o.info.ModTime().Equal(info.ModTime()))
	s.mu.Unlock()
	if other {
		s.drop(name)
	}
}

// closeAll forgets every file.
func (s *openFiles) closeAll() error {
	s.mu.Lock()
	s.generation++
	var idle []*openFile
	for _, o := range s.byName {
		if o := s.remove(o); o != nil {
			idle = append(idle, o)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, o := range idle {
		errs = append(errs, o.file.Close())
	}
	return errors.Join(errs...)
}

// remove takes o out and returns it if nobody uses it, so that the caller closes it; o may be nil.
func (s *openFiles) remove(o *openFile) *openFile {
	if o == nil {
		return nil
	}
	delete(s.byName, o.name)
	o.kept = false
	o.unlink()
	if o.users > 0 {
		return nil
	}
	return o
}

func (s *openFiles) pushFront(o *openFile) {
	o.prev, o.next = &s.ring, s.ring.next
	o.prev.next, o.next.prev = o, o
}

func (o *openFile) unlink() {
	o.prev.next, o.next.prev = o.next, o.prev
	o.prev, o.next = nil, nil
}

// close closes a file that was only read: there is nothing an error could tell. o may be nil.
func (o *openFile) close() {
	if o != nil {
		_ = o.file.Close()
	}
}
