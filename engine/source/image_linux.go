package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is how long, at most, the clock of file times stands still: a tick at HZ=100, twice over.
const clockTick = 20 * time.Millisecond

// imageFile is an open image. Its fields do not change.
type imageFile struct {
	path     string // as recorded: absolute, without symbolic links
	f        *os.File
	id       imageID // of the time of opening
	realtime bool    // XFS: its extents lie on the second device
}

// openImage opens the image or device to back up, and makes sure that whoever writes it from now on changes its times.
func openImage(ctx context.Context, path string) (*imageFile, error) {
	img, err := open(path, unix.S_IFREG, unix.S_IFBLK)
	if err != nil {
		return nil, err
	}
	if !img.id.Device {
		if err := img.settle(ctx); err != nil {
			return nil, errors.Join(err, img.Close())
		}
		img.id.Quiet = !hasWriters(img.f)
	}
	// A hint: an error costs read-ahead, no more.
	_ = unix.Fadvise(int(img.f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	return img, nil
}

// open opens a file of one of the types and takes down what it is.
func open(path string, types ...uint32) (*imageFile, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", path, err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, err
	}
	// Asked twice: opening a device or a pipe may do things, and a name may change hands between the two.
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: real, Err: err}
	}
	if err := checkType(real, st.Mode, types); err != nil {
		return nil, err
	}
	fd, err := unix.Open(real, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: real, Err: err}
	}
	if err := unix.SetNonblock(fd, false); err != nil { // was for names that turned into pipes meanwhile
		return nil, errors.Join(&fs.PathError{Op: "open", Path: real, Err: err}, unix.Close(fd))
	}
	img := &imageFile{path: real, f: os.NewFile(uintptr(fd), real)}
	if err := img.identify(types); err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return img, nil
}

func checkType(path string, mode uint32, types []uint32) error {
	for _, t := range types {
		if mode&unix.S_IFMT == t {
			return nil
		}
	}
	if len(types) == 1 {
		return fmt.Errorf("%s is not a regular file", path)
	}
	return fmt.Errorf("%s is neither a regular file nor a block device", path)
}

// identify fills in id.
func (img *imageFile) identify(types []uint32) error {
	fd := int(img.f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: img.path, Err: err}
	}
	if err := checkType(img.path, st.Mode, types); err != nil {
		return err
	}
	img.id = imageID{Kind: imageKind, Path: img.path}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		size, err := unix.Seek(fd, 0, unix.SEEK_END)
		if err != nil {
			return &fs.PathError{Op: "size of", Path: img.path, Err: err}
		}
		img.id.Device, img.id.Size = true, size
		return nil
	}
	img.id.Dev, img.id.Inode = st.Dev, st.Ino
	img.id.setTimes(&st)
	img.id.BirthNS = birthNS(fd)
	img.id.Boot = bootID()
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return &fs.PathError{Op: "file system of", Path: img.path, Err: err}
	}
	img.id.FSType = fsType(int64(sfs.Type))
	img.id.FSID, img.id.Subvol = fsIdentity(fd, img.id.FSType)
	if img.id.FSType == fsXFS {
		img.realtime = isRealtime(fd)
	}
	return nil
}

func (id *imageID) setTimes(st *unix.Stat_t) {
	id.Size = st.Size
	id.MtimeNS, id.CtimeNS = st.Mtim.Nano(), st.Ctim.Nano()
}

// settle writes the file out, so that pages written through a mapping are clean and the next such write is noticed, and waits until
// the clock has left the time of the last change, so that no later write can bear the same time.
func (img *imageFile) settle(ctx context.Context) error {
	const tries = 5
	for range tries {
		err := img.f.Sync()
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EROFS) { // those two: nothing to write out here
			return fmt.Errorf("write out %s: %w", img.path, err)
		}
		before := time.Now()
		var st unix.Stat_t
		if err := unix.Fstat(int(img.f.Fd()), &st); err != nil {
			return &fs.PathError{Op: "stat", Path: img.path, Err: err}
		}
		img.id.setTimes(&st)
		changed := time.Unix(0, max(img.id.MtimeNS, img.id.CtimeNS))
		age := before.Sub(changed)
		// Of the future: the clock was set back, and will hardly meet the same nanosecond again. That is judged by the time after Fstat,
		// before which this process may have been held up.
		if age > clockTick || time.Until(changed) > clockTick {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(clockTick - max(age, -clockTick) + time.Millisecond):
		}
	}
	return fmt.Errorf("%s is being written all the time: %w", img.path, ErrChanged)
}

// unchanged returns an error that wraps ErrChanged when the file was written since it was opened. Devices cannot tell.
func (img *imageFile) unchanged() error {
	if img.id.Device {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(img.f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: img.path, Err: err}
	}
	var now imageID
	now.setTimes(&st)
	switch {
	case now.Size != img.id.Size:
		return fmt.Errorf("%s had %d bytes and has %d now: %w", img.path, img.id.Size, now.Size, ErrChanged)
	case !now.sameTimes(img.id):
		return fmt.Errorf("%s: %w", img.path, ErrChanged)
	}
	return nil
}

// nextData returns the first range at or behind off that may hold data. Both are the file's size when there is none.
func (img *imageFile) nextData(off int64) (data, end int64, err error) {
	size := img.id.Size
	if img.id.Device {
		return off, size, nil
	}
	fd := int(img.f.Fd())
	data, err = unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // a file system that does not know its holes
		return off, size, nil
	case err != nil:
		return 0, 0, &fs.PathError{Op: "seek data of", Path: img.path, Err: err}
	}
	end, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, &fs.PathError{Op: "seek hole of", Path: img.path, Err: err}
	}
	if data < off || end <= data {
		return 0, 0, fmt.Errorf("%s: asked for data from %d on, the file system answers %d to %d", img.path, off, data, end)
	}
	return min(data, size), min(end, size), nil
}

// isSame reports whether both are open on one file.
func (img *imageFile) isSame(o *imageFile) bool {
	return img.id.Dev == o.id.Dev && img.id.Inode == o.id.Inode
}

func (img *imageFile) Close() error { return img.f.Close() }

// openFile opens a base, which is always a file.
func openFile(path string) (*imageFile, error) { return open(path, unix.S_IFREG) }

// hasWriters reports whether somebody may have f open for writing. The kernel grants a read lease, which is given back at once, only
// when nobody has; where it grants none for another reason, the answer is yes.
func hasWriters(f *os.File) bool {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return true
	}
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	return err != nil
}

// birthNS is when the file was made, 0 when unknown.
func birthNS(fd int) int64 {
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &stx); err != nil || stx.Mask&unix.STATX_BTIME == 0 {
		return 0
	}
	if stx.Btime.Sec > math.MaxInt64/int64(time.Second) || stx.Btime.Sec < 0 {
		return 0
	}
	return stx.Btime.Sec*int64(time.Second) + int64(stx.Btime.Nsec)
}

// bootID names this run of the kernel; empty when unknown.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
