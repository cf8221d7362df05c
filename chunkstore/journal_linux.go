package chunkstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// journal is a file in the cache folder that lists the packs a Writer has stored and not yet indexed, one object name a
// line. Its Writer holds an flock on it; a file without a lock is that of a Writer that died, and whoever comes next takes its
// packs over. A lost journal costs an upload, never data. A nil journal does nothing.
type journal struct {
	mu   sync.Mutex // guards all below
	dir  string
	file *os.File
	dead []string // paths of the journals taken over, to be removed when their packs are indexed
}

func openJournal(cacheDir, repoID string) (*journal, error) {
	dir := filepath.Join(cacheDir, repoID, "journal")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for {
		f, err := os.CreateTemp(dir, "packs-*")
		if err != nil {
			return nil, err
		}
		if locked, err := lockNew(f); err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
		} else if locked {
			return &journal{dir: dir, file: f}, nil
		}
		_ = f.Close() // another Writer took it for a dead one's: make a new one
	}
}

// lockNew locks the journal f, which is new; false when another Writer was quicker.
func lockNew(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	return st.Nlink > 0, err
}

// add notes that the object is stored.
func (j *journal) add(object string) error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return os.ErrClosed
	}
	_, err := j.file.WriteString(object + "\n")
	return err
}

// settle empties the journal: all it lists is indexed now.
func (j *journal) settle() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, path := range j.dead {
		removeDeadJournal(path)
	}
	j.dead = nil
	if err := j.file.Truncate(0); err != nil {
		return err
	}
	_, err := j.file.Seek(0, 0)
	return err
}

// close removes the journal if it is empty; otherwise it stays for the next Writer.
func (j *journal) close() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	st, err := j.file.Stat()
	if err == nil && st.Size() == 0 {
		err = os.Remove(j.file.Name())
	}
	return errors.Join(err, j.file.Close())
}

// takeOver locks the journals of dead Writers and returns what they list.
func (j *journal) takeOver() ([]string, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	var objects []string
	for _, e := range entries {
		path := filepath.Join(j.dir, e.Name())
		if path == j.file.Name() {
			continue
		}
		lines, err := readDeadJournal(path)
		if err != nil {
			continue // locked: its Writer lives; or gone: another took it over
		}
		objects = append(objects, lines...)
		j.dead = append(j.dead, path)
	}
	return objects, nil
}

// readDeadJournal reads a journal that nobody has locked. Two that read one at once both index its packs, which is harmless.
func readDeadJournal(path string) ([]string, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0) // writable, or NFS gives no lock
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		lines = append(lines, strings.TrimSpace(s.Text()))
	}
	return lines, s.Err()
}

// removeDeadJournal removes a journal that nobody has locked. If it stays, its packs are found indexed next time.
func removeDeadJournal(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil { // else it was new when we read it, and is in use now
		_ = os.Remove(path)
	}
}

// adopt makes the packs of dead Writers known, as if this one had just stored them.
func (w *Writer) adopt(ctx context.Context) error {
	objects, err := w.journal.takeOver()
	if err != nil {
		return err
	}
	for _, object := range objects {
		id, kind, ok := parsePackObject(object)
		if !ok {
			continue // the last line of a torn journal
		}
		t, size, err := w.r.readPackTable(ctx, object)
		if errors.Is(err, backend.ErrNotExist) || errors.Is(err, ErrCorrupt) {
			continue // it is as if it had never arrived
		}
		if err != nil {
			return fmt.Errorf("take over the interrupted backup's packs: %w", err)
		}
		known, err := w.hasAll(ctx, t.entries)
		if err != nil {
			return err
		}
		if known {
			continue // the Writer died between its index segment and the end of its journal
		}
		if err := w.journal.add(object); err != nil {
			return err
		}
		if w.r.index.addPending(packRef{id: id, salt: t.header.salt, kind: kind, size: size}, t.entries) >= maxPending {
			if err := w.flushIndex(ctx); err != nil {
				return err
			}
		}
		w.stats.adopted.Add(1)
	}
	return nil
}

// hasAll reports whether the index has all these records.
func (w *Writer) hasAll(ctx context.Context, entries []tableEntry) (bool, error) {
	for i := range entries {
		k := entries[i].id.key()
		if known, err := w.r.index.has(ctx, &k); err != nil || !known {
			return false, err
		}
	}
	return true, nil
}
