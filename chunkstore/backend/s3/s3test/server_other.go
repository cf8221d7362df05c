//go:build !linux

package s3test

import "syscall"

func diesWithParent() *syscall.SysProcAttr { return nil }

func xattrs(string) bool { return false }
