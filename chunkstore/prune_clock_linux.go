package chunkstore

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is a clock that only goes forward, also while the host sleeps.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil { // only for a kernel older than 2.6.39
		return 0
	}
	return time.Duration(ts.Nano())
}
