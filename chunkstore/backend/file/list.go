package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// folderPiece is how many entries of a folder are read between two looks at the context.
const folderPiece = 1024

// List implements backend.Backend. It reads only the folders that can hold the prefix, one at a time, and keeps the names
// of those on the path to the current object in memory.
func (b *Backend) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	folder := folderOf(prefix)
	if strings.HasPrefix(prefix, "/") || folder != "" && !backend.ValidName(folder) {
		return nil // no name begins so, and no path may leave the repository
	}
	return b.walk(ctx, folder, strings.TrimPrefix(prefix[len(folder):], "/"), fn)
}

// walk calls fn for the objects in the folder and below whose name in the folder begins with prefix.
func (b *Backend) walk(ctx context.Context, folder, prefix string, fn func(backend.Object) error) error {
	entries, err := b.entries(ctx, folder, prefix)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := strings.TrimSuffix(entry, "/")
		if folder != "" {
			name = folder + "/" + name
		}
		switch {
		case !backend.ValidName(name):
		case strings.HasSuffix(entry, "/"):
			err = b.walk(ctx, name, "", fn)
		default:
			err = b.visit(name, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// visit calls fn for one object, unless it was deleted meanwhile.
func (b *Backend) visit(name string, fn func(backend.Object) error) error {
	var info os.FileInfo
	err := retryStale(func() (err error) {
		info, err = os.Lstat(b.path(name))
		return err
	})
	switch {
	case isAbsent(err):
		return nil
	case err != nil:
		return fmt.Errorf("list %s: %w", name, err)
	case !info.Mode().IsRegular():
		return nil
	}
	return fn(backend.Object{Name: name, Size: info.Size(), ModTime: info.ModTime()})
}

// entries returns the names in a folder that begin with prefix: regular files, and folders with a slash at the end. That slash
// sorts them as their contents will: "a-b", "a.b", "a/b", "a0".
func (b *Backend) entries(ctx context.Context, folder, prefix string) ([]string, error) {
	var entries []string
	err := b.fresh(folder, func() error {
		entries = entries[:0]
		return readFolder(ctx, b.path(folder), func(e os.DirEntry) {
			switch {
			case !strings.HasPrefix(e.Name(), prefix):
			case e.IsDir():
				entries = append(entries, e.Name()+"/")
			case e.Type().IsRegular():
				entries = append(entries, e.Name())
			}
		})
	})
	switch {
	case folder != "" && isAbsent(err):
		return nil, nil
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("list folder: %w", err)
	}
	slices.Sort(entries)
	return slices.Compact(entries), nil // NFS may give a name twice when the folder changes meanwhile
}

// readFolder calls fn for each entry, in no order.
func readFolder(ctx context.Context, path string, fn func(os.DirEntry)) (err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		entries, err := f.ReadDir(folderPiece)
		for _, e := range entries {
			fn(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
