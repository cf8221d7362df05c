package fusemount

import (
	"context"
	"sync"
	"time"
)

// interruptGrace is how long a read goes on after its reader got a signal. The kernel interrupts requests for any signal
// that has a handler (timers, children, Go's own preemption), and few programs expect EINTR from a file; within the grace
// almost every read has its answer. A reader that is to die waits no longer than this.
const interruptGrace = time.Second

// request is the context of one FUSE request: the mount's context, cancelled also a grace after the kernel interrupts the
// request. Nothing is started until somebody asks for Done, so that a read that finds everything in memory pays nothing.
type request struct {
	context.Context // the mount's
	interrupt       <-chan struct{}

	mu     sync.Mutex
	ctx    context.Context // guarded by mu; nil until Done is asked for
	cancel context.CancelFunc
}

func newRequest(mount, fuse context.Context) *request {
	return &request{Context: mount, interrupt: fuse.Done()}
}

// Done is part of context.Context.
func (r *request) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil {
		r.ctx, r.cancel = context.WithCancel(r.Context)
		go r.watch(r.ctx, r.cancel)
	}
	return r.ctx.Done()
}

// Err is part of context.Context.
func (r *request) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx != nil {
		return r.ctx.Err()
	}
	return r.Context.Err()
}

// watch ends when the request does.
func (r *request) watch(ctx context.Context, cancel context.CancelFunc) {
	select {
	case <-r.interrupt:
	case <-ctx.Done():
		return
	}
	grace := time.NewTimer(interruptGrace)
	defer grace.Stop()
	select {
	case <-grace.C:
		cancel()
	case <-ctx.Done():
	}
}

// end releases what Done started.
func (r *request) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		r.cancel()
	}
}
