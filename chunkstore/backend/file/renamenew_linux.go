package file

import (
	"os"

	"golang.org/x/sys/unix"
)

// renameNew is rename(2), except that it fails with EEXIST when to is taken.
func renameNew(from, to string) error {
	err := ignoringEINTR(func() error {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	})
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
