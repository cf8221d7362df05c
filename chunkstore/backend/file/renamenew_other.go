//go:build !linux

package file

import "syscall"

// renameNew is not there: PutIfAbsent needs hard links.
func renameNew(_, _ string) error { return syscall.ENOSYS }
