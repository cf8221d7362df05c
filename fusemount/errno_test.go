package fusemount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shalebackup/shale/chunkstore"
)

func TestErrno(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{context.Canceled, syscall.EINTR},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), syscall.EINTR},
		{errNoName, syscall.ENOENT},
		{chunkstore.ErrNotFound, syscall.EIO}, // a chunk: the file is there
		{syscall.ENOENT, syscall.EIO},         // an object of the store
		{&chunkstore.CorruptError{Object: "x"}, syscall.EIO},
		{fmt.Errorf("get: %w", syscall.EACCES), syscall.EACCES},
		{syscall.ENOMEM, syscall.ENOMEM},
		{errors.New("anything"), syscall.EIO},
	} {
		if got := errno(tc.err); got != tc.want {
			t.Errorf("errno(%v) = %v, want %v", tc.err, got, tc.want)
		}
	}
}

// TestFaultsAreLoggedOnce: a place once a minute, other places for themselves, interrupted reads never.
func TestFaultsAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuilder
		f := &faults{log: slog.New(slog.NewTextHandler(&log, nil)), seen: make(map[fault]time.Time)}
		lines := func() int { return strings.Count(log.String(), "\n") }
		damage := func(off int64) error {
			return fmt.Errorf("read: %w", &chunkstore.CorruptError{Object: "pack", Off: off, Err: errors.New("sum")})
		}
		for at := range int64(10) {
			f.report("file", at*4096, damage(1))
		}
		if lines() != 1 {
			t.Errorf("one damage makes %d lines", lines())
		}
		f.report("other", 0, damage(1))
		f.report("file", 0, damage(2))
		if lines() != 2 {
			t.Errorf("two places make %d lines", lines())
		}
		f.report("file", 0, context.Canceled)
		f.report("file", 0, errNoName)
		f.report("file", 0, nil)
		if lines() != 2 {
			t.Errorf("what is no fault was logged:\n%s", log.String())
		}
		time.Sleep(faultPause + time.Second)
		f.report("file", 0, damage(1))
		if lines() != 3 {
			t.Errorf("after a pause: %d lines", lines())
		}
		for off := range int64(5 * maxFaults) {
			f.report("file", 0, damage(off))
		}
		if len(f.seen) > maxFaults {
			t.Errorf("%d faults are remembered", len(f.seen))
		}
	})
}

// TestInterruptGrace: an interrupted request goes on for the grace, and no longer.
func TestInterruptGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mount, stop := context.WithCancel(t.Context())
		kernel, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		r := newRequest(mount, kernel)
		done := r.Done()
		interrupt()
		time.Sleep(interruptGrace - time.Millisecond)
		synctest.Wait()
		if r.Err() != nil {
			t.Error("ended before the grace")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("goes on after the grace")
		}
		if r.Err() != context.Canceled {
			t.Errorf("Err is %v", r.Err())
		}
		r.end()

		idle := newRequest(mount, t.Context())
		busy := newRequest(mount, t.Context())
		waiting := busy.Done()
		if idle.Err() != nil || busy.Err() != nil {
			t.Error("ended before anything happened")
		}
		stop()
		<-waiting
		if idle.Err() != context.Canceled || busy.Err() != context.Canceled {
			t.Errorf("the mount ended, the requests did not: %v, %v", idle.Err(), busy.Err())
		}
		busy.end()
		idle.end()
	})
}
