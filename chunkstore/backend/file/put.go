package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/shalebackup/shale/chunkstore/backend"
)

const (
	tempPrefix = ".tmp-"
	// ioPiece is how many bytes are read or written between two looks at the context, when no pace is set.
	ioPiece = 4 << 20
)

// temporary is a file that holds all bytes of an object, durable, under a name that nobody lists.
type temporary struct {
	path string
	info os.FileInfo // to recognise the file under another name
}

// Put implements backend.Backend.
func (b *Backend) Put(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, b.replace)
}

// PutIfAbsent implements backend.Backend.
func (b *Backend) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	if err := backend.Begin(ctx, "put", name); err != nil {
		return err
	}
	// A look first saves writing the bytes only to find that the name is taken.
	if info, err := os.Lstat(b.path(name)); err == nil && info.Mode().IsRegular() {
		return b.taken(name)
	}
	return b.put(ctx, name, data, b.claim)
}

// taken is the answer for a name that holds an object. Its bytes are durable, but perhaps not yet its name: the writer may have
// died in between.
func (b *Backend) taken(name string) error {
	if err := b.sync(folderOf(name)); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return fmt.Errorf("put %s: %w", name, backend.ErrExist)
}

// put writes a temporary and has place give it the object's path; place says whether the temporary's own name is gone.
func (b *Backend) put(ctx context.Context, name string, data []byte, place func(temporary, string) (bool, error)) error {
	if err := backend.Begin(ctx, "put", name); err != nil {
		return err
	}
	defer b.open.change(name)()
	var err error
	for range staleTries {
		err = b.putOnce(ctx, name, data, place)
		// A folder that was removed or replaced behind our back is made again.
		if !errors.Is(err, syscall.ESTALE) && !errors.Is(err, syscall.ENOENT) {
			break
		}
		b.folders.forget()
	}
	if err == nil {
		// Not tried again: a second claim would lose to the first.
		err = b.sync(folderOf(name))
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, backend.ErrExist):
		return b.taken(name)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("put %s: %w: the name clashes with a folder or a foreign file: %w", name, backend.ErrName, err)
	}
	return fmt.Errorf("put %s: %w", name, err)
}

func (b *Backend) putOnce(ctx context.Context, name string, data []byte, place func(temporary, string) (bool, error)) error {
	folder := folderOf(name)
	if err := b.ensure(folder); err != nil {
		return err
	}
	tmp, err := b.writeTemporary(ctx, b.path(folder), data)
	if err != nil {
		return err
	}
	gone, err := place(tmp, b.path(name))
	if !gone {
		// The object is stored or the error is told; a temporary that cannot be removed is left to RemoveStale.
		_ = os.Remove(tmp.path)
	}
	return err
}

// writeTemporary writes data to a new temporary in folder, a path. No temporary is left after an error.
func (b *Backend) writeTemporary(ctx context.Context, folder string, data []byte) (temporary, error) {
	tmp := temporary{path: folder + "/" + tempPrefix + rand.Text()}
	f, err := b.sys.open(tmp.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return temporary{}, err
	}
	tmp.info, err = b.fill(ctx, f, data)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		_ = f.Truncate(0) // an NFS client would keep the file, and its room, until it has tried to send the rest
	}
	// NFS and quotas may tell of a write that failed as late as here.
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return temporary{}, errors.Join(err, os.Remove(tmp.path))
	}
	return tmp, nil
}

// fill gives f its mode and bytes and makes them durable.
func (b *Backend) fill(ctx context.Context, f *os.File, data []byte) (os.FileInfo, error) {
	if b.fileMode != 0o600 { // set apart from open, so that the umask has no say
		if err := f.Chmod(b.fileMode); err != nil {
			return nil, err
		}
	}
	for off := int64(0); len(data) > 0; {
		n, err := nextPiece(ctx, b.up, len(data))
		if err != nil {
			return nil, err
		}
		if n, err = f.Write(data[:n]); err != nil { // repeats short and interrupted writes
			return nil, err
		}
		if b.up != nil { // else the kernel would keep it all for the fsync, and send it as fast as it can
			startWriteback(f, off, int64(n))
		}
		data, off = data[n:], off+int64(n)
	}
	if !b.noSync {
		if err := b.sys.sync(f); err != nil {
			return nil, err
		}
	}
	return f.Stat()
}

// replace renames the temporary to path, over what is there.
func (b *Backend) replace(tmp temporary, path string) (bool, error) {
	err := b.sys.rename(tmp.path, path)
	// A request that NFS repeats because its answer was lost finds the temporary gone.
	if err == nil || tmp.is(path) {
		return true, nil
	}
	if errors.Is(err, syscall.EEXIST) { // os.Rename's word for a folder in the way
		err = syscall.EISDIR
	}
	return false, err
}

// claim gives the temporary the name path if nobody has it.
func (b *Backend) claim(tmp temporary, path string) (bool, error) {
	err := b.sys.link(tmp.path, path)
	if err == nil || tmp.is(path) { // the latter as in replace; without it a lost answer would make us lose to ourselves
		return false, nil
	}
	switch {
	case errors.Is(err, syscall.EEXIST):
		return false, occupied(path)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EOPNOTSUPP):
		return b.claimByRename(tmp, path)
	}
	return false, err
}

// claimByRename is claim for file systems without links.
func (b *Backend) claimByRename(tmp temporary, path string) (bool, error) {
	err := b.sys.renameNew(tmp.path, path)
	switch {
	case err == nil || tmp.is(path):
		return true, nil
	case errors.Is(err, syscall.EEXIST):
		return false, occupied(path)
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EOPNOTSUPP):
		return false, fmt.Errorf("the file system has neither hard links nor renames that do not replace: %w", err)
	}
	return false, err
}

// occupied tells what an EEXIST for path means.
func occupied(path string) error {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return syscall.EISDIR
	}
	return backend.ErrExist
}

// is reports whether path, in the temporary's folder, names the same file as the temporary was. The call that should have made it so
// failed, so what is remembered of the name may be old.
func (t temporary) is(path string) bool {
	if refresh(filepath.Dir(path)) != nil {
		return false
	}
	var info os.FileInfo
	err := retryStale(func() (err error) {
		info, err = os.Lstat(path)
		return err
	})
	return err == nil && os.SameFile(info, t.info)
}
