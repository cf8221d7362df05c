package fusemount

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fileAttr fills the attributes of a read-only file.
func (t *tree) fileAttr(out *fuse.Attr, size, data int64, mtime time.Time) {
	out.Mode = syscall.S_IFREG | 0o444
	out.Nlink = 1
	out.Size = uint64(size)
	out.Blocks = uint64(data+511) / 512
	out.Blksize = 4096
	t.own(out, mtime)
}

// readOnly refuses to open for writing.
func readOnly(flags uint32) syscall.Errno {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0 {
		return syscall.EROFS
	}
	return 0
}

// recordNode is backup.json.
type recordNode struct {
	fs.Inode
	tree *tree
	text []byte
	time time.Time
}

func (n *recordNode) attr(out *fuse.Attr) {
	n.tree.fileAttr(out, int64(len(n.text)), int64(len(n.text)), n.time)
}

func (n *recordNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	out.SetTimeout(forever)
	return 0
}

func (n *recordNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH, readOnly(flags)
}

func (n *recordNode) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	off = min(off, int64(len(n.text)))
	end := min(off+int64(len(dest)), int64(len(n.text)))
	return fuse.ReadResultData(n.text[off:end]), 0
}

// imageNode is image.raw.
type imageNode struct {
	fs.Inode
	tree  *tree
	image *image
	data  int64 // bytes that are not holes
	time  time.Time
}

func (n *imageNode) attr(out *fuse.Attr) { n.tree.fileAttr(out, n.image.size, n.data, n.time) }

func (n *imageNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	out.SetTimeout(forever)
	return 0
}

// Open reads nothing.
func (n *imageNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if e := readOnly(flags); e != 0 {
		return nil, 0, e
	}
	return &imageFile{node: n, stream: stream{ahead: n.tree.ahead, image: n.image}}, n.tree.flags, 0
}

// imageFile is one open image.raw.
type imageFile struct {
	node   *imageNode
	stream stream
}

// maxSlices bounds a reply made of many small chunks and holes: writev takes 1024 pieces (IOV_MAX), and headers are some.
const maxSlices = 1000

func (f *imageFile) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	m := f.node.image
	n := min(int64(len(dest)), m.size-off, maxView)
	if n <= 0 || off < 0 {
		return fuse.ReadResultData(nil), 0
	}
	t := f.node.tree
	f.stream.read(t.ctx, off, n)
	req := newRequest(t.ctx, ctx)
	defer req.end()
	v, err := m.view(req, off, int(n))
	if err != nil {
		t.faults.report(m.name, off, err)
		return nil, t.errno(err)
	}
	if len(v.slices) > maxSlices {
		data, _ := v.Bytes(dest)
		v.Release()
		return fuse.ReadResultData(data), 0
	}
	return v, 0
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the rest itself.
func (f *imageFile) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	req := newRequest(f.node.tree.ctx, ctx)
	defer req.end()
	m := f.node.image
	if off >= uint64(m.size) {
		return 0, syscall.ENXIO
	}
	var at int64
	var err error
	switch whence {
	case unix.SEEK_DATA:
		at, err = m.SeekData(req, int64(off))
	case unix.SEEK_HOLE:
		at, err = m.SeekHole(req, int64(off))
	default:
		return 0, syscall.EINVAL
	}
	if errors.Is(err, io.EOF) {
		return 0, syscall.ENXIO
	}
	f.node.tree.faults.report(m.name, int64(off), err)
	return uint64(at), f.node.tree.errno(err)
}

// Release ends what the file had under way.
func (f *imageFile) Release(context.Context) syscall.Errno {
	f.stream.close()
	return 0
}
