package source

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers that golang.org/x/sys does not have.
const (
	ioctlFiemap       = 0xc020660b // FS_IOC_FIEMAP, linux/fs.h
	ioctlFSUUID       = 0x80111500 // FS_IOC_GETFSUUID, linux/fs.h; from Linux 6.9 on
	ioctlFSXattr      = 0x801c581f // FS_IOC_FSGETXATTR, linux/fs.h
	ioctlXFSGeometry  = 0x80705864 // XFS_IOC_FSGEOMETRY_V1, xfs_fs.h
	ioctlBtrfsInfo    = 0x8400941f // BTRFS_IOC_FS_INFO, linux/btrfs.h
	ioctlBtrfsInoPath = 0xd0009412 // BTRFS_IOC_INO_LOOKUP, linux/btrfs.h

	xflagRealtime    = 0x00000001 // FS_XFLAG_REALTIME
	btrfsFirstFileID = 256        // BTRFS_FIRST_FREE_OBJECTID
)

// File systems by the names that mount knows.
const (
	fsXFS   = "xfs"
	fsBtrfs = "btrfs"
)

// ioctl hands b, which must be as large as the request says, to the kernel.
func ioctl(fd int, request uintptr, b []byte) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&b[0])))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

// fiemapper is the extentMapper of an open file. It is for one goroutine.
type fiemapper struct {
	f   *os.File
	buf []byte
}

func newFiemapper(f *os.File) *fiemapper { return &fiemapper{f: f} }

// mapExtents implements extentMapper.
func (m *fiemapper) mapExtents(dst []physExtent, off, length int64) ([]physExtent, error) {
	n := fiemapHeaderLen + (cap(dst)-len(dst))*fiemapExtentLen
	if len(m.buf) != n {
		m.buf = make([]byte, n)
	}
	fiemapRequest(m.buf, off, length)
	err := ioctl(int(m.f.Fd()), ioctlFiemap, m.buf)
	runtime.KeepAlive(m.f)
	if err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
			return dst, fmt.Errorf("the file system does not tell where its extents lie: %w", err)
		}
		return dst, fmt.Errorf("ask for the extents of %s: %w", m.f.Name(), err)
	}
	return fiemapDecode(dst, m.buf)
}

// fsType names a file system by its magic number; linux/magic.h.
func fsType(magic int64) string {
	switch uint32(magic) {
	case unix.XFS_SUPER_MAGIC:
		return fsXFS
	case unix.BTRFS_SUPER_MAGIC:
		return fsBtrfs
	case unix.EXT4_SUPER_MAGIC:
		return "ext4" // or ext2, ext3
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	}
	return fmt.Sprintf("type %#x", uint32(magic))
}

// fsIdentity returns the UUID of the file system that fd lies on, empty when it tells none, and on btrfs the subvolume's ID.
func fsIdentity(fd int, fsType string) (uuid string, subvol uint64) {
	switch fsType {
	case fsBtrfs:
		b := make([]byte, 1024) // struct btrfs_ioctl_fs_info_args: max_id, num_devices, fsid[16], ...
		if ioctl(fd, ioctlBtrfsInfo, b) == nil {
			uuid = hex.EncodeToString(b[16:32])
		}
		b = make([]byte, 4096) // struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name; treeid 0 asks for that of fd
		binary.NativeEndian.PutUint64(b[8:], btrfsFirstFileID)
		if ioctl(fd, ioctlBtrfsInoPath, b) == nil {
			subvol = binary.NativeEndian.Uint64(b)
		}
		return uuid, subvol
	case fsXFS:
		b := make([]byte, 112) // struct xfs_fsop_geom_v1: the UUID follows eight u32 and four u64
		if ioctl(fd, ioctlXFSGeometry, b) == nil {
			return hex.EncodeToString(b[64:80]), 0
		}
	}
	b := make([]byte, 17) // struct fsuuid2: len, uuid[16]
	if ioctl(fd, ioctlFSUUID, b) == nil && b[0] <= 16 {
		return hex.EncodeToString(b[1 : 1+b[0]]), 0
	}
	return "", 0
}

// isRealtime reports whether an XFS file lies on the realtime device, whose addresses start from zero again.
func isRealtime(fd int) bool {
	b := make([]byte, 28) // struct fsxattr: xflags, extsize, nextents, projid, cowextsize, pad
	return ioctl(fd, ioctlFSXattr, b) == nil && binary.NativeEndian.Uint32(b)&xflagRealtime != 0
}
