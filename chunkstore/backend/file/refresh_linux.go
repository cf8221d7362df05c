package file

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// refresh has a network file system ask its server whether the folder at path has changed. What was remembered of names in it
// is then forgotten, if it has.
func refresh(path string) error {
	var st unix.Statx_t
	return ignoringEINTR(func() error {
		return unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, unix.STATX_CTIME|unix.STATX_MTIME, &st)
	})
}

// changeTime is when the file was last written, renamed or linked.
func changeTime(info os.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix())
	}
	return info.ModTime()
}
