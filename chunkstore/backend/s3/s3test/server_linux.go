package s3test

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// diesWithParent: a test that is killed leaves no server behind.
func diesWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// xattrs reports whether files in dir can have the attributes in which the server keeps its metadata.
func xattrs(dir string) bool {
	path := filepath.Join(dir, "xattr")
	if os.WriteFile(path, nil, 0o600) != nil {
		return false
	}
	defer os.Remove(path)
	return unix.Setxattr(path, "user.shale", []byte("x"), 0) == nil
}
