package fusemount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/shalebackup/shale/chunkstore"
)

// errBadList is a chunk list that contradicts itself or the chunks.
var errBadList = fmt.Errorf("chunk list does not fit: %w", chunkstore.ErrCorrupt)

// errno is where errors become what the kernel tells a program. Only a name that is not there is ENOENT: whatever else
// keeps bytes from being read, a missing chunk included, is an I/O error.
func errno(err error) syscall.Errno {
	var sys syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return syscall.EINTR
	case errors.Is(err, errNoName):
		return syscall.ENOENT
	case errors.As(err, &sys) && (sys == syscall.EACCES || sys == syscall.EPERM || sys == syscall.ENOMEM):
		return sys
	default:
		return syscall.EIO
	}
}

// errNoName is a look-up of a volume, backup or file that is not there.
var errNoName = errors.New("no such name")

// faults logs what readers only see as EIO. The same fault is logged once in faultPause, since a reader that tries again
// page by page would write a line a page.
type faults struct {
	log *slog.Logger

	mu   sync.Mutex
	seen map[fault]time.Time // when it was logged; guarded by mu
}

// fault tells one damage from another.
type fault struct {
	object string
	off    int64
}

const (
	faultPause = time.Minute
	maxFaults  = 1024 // remembered at once
)

// report logs err unless it is no damage or was just logged. file is the path inside the mount, off where it was read.
func (f *faults) report(file string, off int64, err error) {
	if err == nil || errno(err) == syscall.EINTR || errors.Is(err, errNoName) {
		return
	}
	attrs := []any{"file", file, "at", off}
	key := fault{object: file, off: off}
	msg := "read failed"
	var damage *chunkstore.CorruptError
	if errors.As(err, &damage) {
		msg = "damaged object"
		key = fault{object: damage.Object, off: damage.Off}
		attrs = append(attrs, "object", damage.Object, "offset", damage.Off)
	}
	if f.first(key, time.Now()) {
		f.log.Error(msg, append(attrs, "err", err)...)
	}
}

// first reports whether key was not seen for a while, and remembers it.
func (f *faults) first(key fault, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.seen[key]; ok && now.Sub(at) < faultPause {
		return false
	}
	if len(f.seen) >= maxFaults {
		clear(f.seen) // a store this broken may repeat itself
	}
	f.seen[key] = now
	return true
}
