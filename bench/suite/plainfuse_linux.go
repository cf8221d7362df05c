package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	plainFuseArg  = "plain-fuse"
	plainFuseFile = "image"
)

// plainFile shows one file of this machine.
type plainFile struct {
	fs.Inode
	file *os.File
	size uint64
}

var (
	_ fs.NodeGetattrer = (*plainFile)(nil)
	_ fs.NodeOpener    = (*plainFile)(nil)
	_ fs.NodeReader    = (*plainFile)(nil)
)

func (p *plainFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o444, p.size
	return 0
}

func (p *plainFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (p *plainFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := p.file.ReadAt(dest, off)
	if n == 0 && err != nil && uint64(off) < p.size {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// plainFuseMain is the process that shows a file below a folder until it is unmounted.
func plainFuseMain(_ context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("plain-fuse: expects a file and a folder")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	root := &fs.Inode{}
	server, err := fs.Mount(args[1], root, &fs.Options{
		MountOptions: fuse.MountOptions{MaxReadAhead: 1 << 20, MaxWrite: 1 << 20, FsName: "plain", Name: "plain"},
		OnAdd: func(ctx context.Context) {
			child := root.NewPersistentInode(ctx, &plainFile{file: f, size: uint64(st.Size())}, fs.StableAttr{Mode: syscall.S_IFREG})
			root.AddChild(plainFuseFile, child, false)
		},
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", args[1], err)
	}
	server.Wait()
	return nil
}

func unmapFile(b []byte) { _ = unix.Munmap(b) }
