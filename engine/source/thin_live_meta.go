package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/pool"
)

// liveMeta reads the metadata of an active pool: for the length of a call at a reserved metadata snapshot, or, once a call has
// asked for it, at one that is held until close.
type liveMeta struct {
	host livePool
	pool pool.Pool

	// unwritten: the pool is read-only. It takes no reservation, and needs none, because its metadata is not written.
	unwritten bool

	mu   sync.Mutex // guards all below. It is held while metadata is read: there can be no second reservation anyway
	r    *thin.Reader
	file *os.File // what r reads, when r does not close it
	held liveReservation

	blocks int64 // metadata blocks read by readers that are closed
}

// use calls fn with a reader. When fn returns hold, the reader stays for later calls.
func (m *liveMeta) use(ctx context.Context, fn func(r *thin.Reader) (hold bool, err error)) error {
	m.mu.Lock()
	if r := m.r; r != nil {
		m.mu.Unlock() // a reader serves many goroutines
		_, err := fn(r)
		return err
	}
	defer m.mu.Unlock()
	if err := m.open(ctx); err != nil {
		return errors.Join(err, m.shut(ctx))
	}
	hold, err := fn(m.r)
	if err == nil && hold {
		return nil
	}
	if err == nil {
		err = m.r.Recheck() // before what was read is relied on, and while the reservation should still be there
	}
	return errors.Join(err, m.shut(ctx))
}

// open is called with mu held.
func (m *liveMeta) open(ctx context.Context) (err error) {
	if m.unwritten {
		m.r, m.file, err = openUnwritten(m.pool.Metadata)
		return err
	}
	if m.held, err = m.host.Reserve(ctx, m.pool); err != nil {
		m.held = nil
		return err
	}
	if m.r, err = thin.Open(m.pool.Metadata, thin.Options{MetadataSnapshot: true}); err != nil {
		m.r = nil
		return err
	}
	if root := m.r.Superblock().HeldRoot; root != m.held.HeldRoot() {
		return fmt.Errorf("held root of pool %s is block %d, reserved was %d: %w", m.pool.Name, root, m.held.HeldRoot(), thin.ErrChanged)
	}
	return nil
}

// shut is called with mu held. The reservation is released in any case.
func (m *liveMeta) shut(ctx context.Context) (err error) {
	if m.r != nil {
		m.blocks += int64(m.r.Stats().BlocksRead)
		err = m.r.Close()
		m.r = nil
	}
	if m.file != nil {
		err = errors.Join(err, m.file.Close())
		m.file = nil
	}
	if m.held != nil {
		err = errors.Join(err, m.held.Release(ctx))
		m.held = nil
	}
	return err
}

// close ends a reader that was held.
func (m *liveMeta) close(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shut(ctx)
}

// read counts the metadata blocks read so far.
func (m *liveMeta) read() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.blocks
	if m.r != nil {
		n += int64(m.r.Stats().BlocksRead)
	}
	return n
}

// runs is a runLoader.
func (m *liveMeta) runs(device uint32) runLoader {
	return func(ctx context.Context, o thin.RunOptions) (runs []thin.Run, err error) {
		err = m.use(ctx, func(r *thin.Reader) (bool, error) {
			runs, err = readerRuns(r, device)(ctx, o)
			return false, err
		})
		return runs, err
	}
}

// openUnwritten opens the main trees of a pool that is active and read-only. thin.Open would refuse that: it cannot know.
// A pool that is marked needs_check has gone back to what it committed last, which is what is on the disk.
func openUnwritten(path string) (*thin.Reader, *os.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	flags := os.O_RDONLY
	if !st.Mode().IsRegular() {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	r, err := thin.NewReader(f, size, thin.Options{AllowNeedsCheck: true})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return r, f, nil
}
