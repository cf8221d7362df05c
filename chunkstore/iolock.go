package chunkstore

import "context"

// ioLock is a lock that is held during I/O: who waits for it gives up when their context ends, however long a store hangs.
type ioLock chan struct{}

func newIOLock() ioLock { return make(ioLock, 1) }

// lock returns the context's error when that ends first; the lock is then not held.
func (l ioLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l ioLock) unlock() { <-l }
