package file

import (
	"os"

	"golang.org/x/sys/unix"
)

// startWriteback has the kernel begin to write that range. It is a hint: whether the bytes are safe is for fsync to say.
func startWriteback(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}
