package file

import (
	"errors"
	"os"
	"sync"
	"syscall"
)

// maxKnown bounds the memory for folders that are known to exist; past it all are forgotten and looked at again.
const maxKnown = 1 << 16

// folders remembers which folders exist and are durable, so that a Put need not make them nor sync their parents again.
type folders struct {
	mu    sync.Mutex // guards known
	known map[string]struct{}
}

func (s *folders) has(folder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.known[folder]
	return ok
}

func (s *folders) add(folder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= maxKnown {
		s.known = map[string]struct{}{}
	}
	s.known[folder] = struct{}{}
}

func (s *folders) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = nil
}

// ensure makes the folder of that name, and those above it, if they are absent. The root is never made: when it is missing, a
// file system is not mounted.
func (b *Backend) ensure(folder string) error {
	if folder == "" || b.folders.has(folder) {
		return nil
	}
	parent := folderOf(folder)
	if err := b.ensure(parent); err != nil {
		return err
	}
	err := os.Mkdir(b.path(folder), 0o700)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err == nil && b.folderMode != 0o700 {
		if err := os.Chmod(b.path(folder), b.folderMode); err != nil {
			return err
		}
	}
	// Also when it existed: whoever made it may have died before this.
	if err := b.sync(parent); err != nil {
		return err
	}
	b.folders.add(folder)
	return nil
}

// sync makes the entries of the folder of that name durable.
func (b *Backend) sync(folder string) error {
	if b.noSync {
		return nil
	}
	return retryStale(func() error { return syncFolder(b.path(folder), b.sys.sync) })
}

func syncFolder(path string, sync func(*os.File) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = sync(f)
	// Some network and FUSE file systems do not sync folders, and say so.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil
	}
	return errors.Join(err, f.Close())
}
