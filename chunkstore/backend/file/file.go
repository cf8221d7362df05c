package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Options are the settings of a Backend. The zero value is right for production.
type Options struct {
	// NoSync leaves out every fsync: objects then survive a crash of the process but not of the machine. For tests and benchmarks.
	NoSync bool

	// OpenFiles is the number of objects kept open for ReadAt: 1 or more; 0 means 64.
	OpenFiles int
}

const defaultOpenFiles = 64

// Backend holds objects as files of a folder. Use Create or Open.
type Backend struct {
	root       string // absolute
	noSync     bool
	fileMode   os.FileMode
	folderMode os.FileMode
	open       openFiles
	folders    folders
	sys        system
	up, down   backend.Pace // nil: as fast as it goes
}

// system is the part of the operating system that tests replace, to answer as NFS does on a bad day.
type system struct {
	open   func(path string, flag int, mode os.FileMode) (*os.File, error)
	sync   func(f *os.File) error
	link   func(from, to string) error
	rename func(from, to string) error
	// renameNew is rename that fails with EEXIST when to is taken.
	renameNew func(from, to string) error
}

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.StaleRemover = (*Backend)(nil)
	_ backend.Pacer        = (*Backend)(nil)
)

// Create makes the folder dir if it is absent, but not its parents, and opens it. What is in it stays.
func Create(dir string) (*Backend, error) { return Options{}.Create(dir) }

// Open opens the folder dir, which must exist.
func Open(dir string) (*Backend, error) { return Options{}.Open(dir) }

// Create is the function Create with options.
func (o Options) Create(dir string) (*Backend, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("create repository folder %s: %w", dir, err)
	}
	err = os.Mkdir(abs, 0o700)
	switch {
	case errors.Is(err, os.ErrExist):
	case err != nil:
		return nil, fmt.Errorf("create repository folder: %w", err)
	case !o.NoSync:
		if err := syncFolder(filepath.Dir(abs), (*os.File).Sync); err != nil {
			return nil, fmt.Errorf("create repository folder %s: %w", dir, err)
		}
	}
	return o.Open(abs)
}

// Open is the function Open with options.
func (o Options) Open(dir string) (*Backend, error) {
	if o.OpenFiles < 0 {
		return nil, fmt.Errorf("option OpenFiles is %d, must not be negative", o.OpenFiles)
	}
	if o.OpenFiles == 0 {
		o.OpenFiles = defaultOpenFiles
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository folder %s: %w", dir, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, fmt.Errorf("open repository folder: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open repository folder %s: %w", dir, syscall.ENOTDIR)
	}
	group := info.Mode() & 0o070
	b := &Backend{
		root:       abs,
		noSync:     o.NoSync,
		fileMode:   0o600 | group&0o060,
		folderMode: 0o700 | group | info.Mode()&os.ModeSetgid,
		sys:        system{open: os.OpenFile, sync: (*os.File).Sync, link: os.Link, rename: os.Rename, renameNew: renameNew},
	}
	b.open.init(o.OpenFiles)
	return b, nil
}

// Close closes the files kept open for ReadAt, once running reads are done with them. The backend stays usable.
func (b *Backend) Close() error { return b.open.closeAll() }

// SetPace implements backend.Pacer.
func (b *Backend) SetPace(up, down backend.Pace) { b.up, b.down = up, down }

// nextPiece waits until pace lets a piece of the n bytes left be moved, and returns its length.
func nextPiece(ctx context.Context, pace backend.Pace, n int) (int, error) {
	if pace == nil {
		return min(n, ioPiece), ctx.Err()
	}
	n = min(n, backend.PaceBytes)
	return n, pace(ctx, n)
}

// Location implements backend.Backend: the absolute path of the folder.
func (b *Backend) Location() string { return b.root }

// Stat implements backend.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (backend.Object, error) {
	if err := backend.Begin(ctx, "stat", name); err != nil {
		return backend.Object{}, err
	}
	var info os.FileInfo
	err := b.fresh(name, func() (err error) {
		info, err = os.Lstat(b.path(name))
		return err
	})
	if err == nil && !info.Mode().IsRegular() || isAbsent(err) {
		err = backend.ErrNotExist
	}
	if err != nil {
		if errors.Is(err, backend.ErrNotExist) {
			b.open.drop(name)
		}
		return backend.Object{}, fmt.Errorf("stat %s: %w", name, err)
	}
	b.open.dropOther(name, info)
	return backend.Object{Name: name, Size: info.Size(), ModTime: info.ModTime()}, nil
}

// Delete implements backend.Backend. Folders stay, also empty ones: another host may be about to put something there.
func (b *Backend) Delete(ctx context.Context, name string) error {
	if err := backend.Begin(ctx, "delete", name); err != nil {
		return err
	}
	defer b.open.change(name)()
	// Not os.Remove, which would remove an empty folder.
	err := b.fresh(name, func() error { return ignoringEINTR(func() error { return syscall.Unlink(b.path(name)) }) })
	switch {
	case isAbsent(err), errors.Is(err, syscall.EISDIR):
		return nil
	case err != nil:
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if err := b.sync(folderOf(name)); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// path returns where the object or folder of that valid name is; "" is the root.
func (b *Backend) path(name string) string {
	if name == "" {
		return b.root
	}
	return b.root + "/" + name
}

// folderOf returns the name up to its last slash, without it; "" when there is none.
func folderOf(name string) string {
	return name[:max(0, strings.LastIndexByte(name, '/'))]
}

// isAbsent reports whether err says that there is no such file; a parent that is a file says so too.
func isAbsent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR)
}

// staleTries bounds how often a call is repeated that NFS answers with ESTALE: once is enough unless the folder is being replaced
// all the time.
const staleTries = 4

func retryStale(call func() error) error {
	var err error
	for range staleTries {
		if err = call(); !errors.Is(err, syscall.ESTALE) {
			break
		}
	}
	return err
}

// fresh makes a call about the object of that name, and where it says that there is none, once more with fresh eyes: an NFS client
// remembers for half a minute that a name was absent, though another host has put the object there since.
func (b *Backend) fresh(name string, call func() error) error {
	err := retryStale(call)
	if !errors.Is(err, syscall.ENOENT) || !b.refreshed(folderOf(name)) {
		return err
	}
	return retryStale(call)
}

// refreshed reports whether there is a folder of that name, after a look with fresh eyes at it and at those above it.
func (b *Backend) refreshed(folder string) bool {
	err := refresh(b.path(folder))
	if errors.Is(err, syscall.ENOENT) && folder != "" && b.refreshed(folderOf(folder)) {
		err = refresh(b.path(folder))
	}
	return err == nil
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
