package fusemount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/shalebackup/shale/chunkstore"
)

// tree is what all nodes of a mount share.
type tree struct {
	repo    Repository
	pool    *pool
	ahead   *readAhead
	faults  *faults
	log     *slog.Logger
	ctx     context.Context // the mount's; FUSE requests carry none that outlives the kernel's patience
	refresh time.Duration
	flags   uint32 // of every open image.raw
	started time.Time
	uid     uint32
	gid     uint32
}

// Contents of a backup never change, so the kernel may believe what it saw for as long as it likes.
const forever = 365 * 24 * time.Hour

const (
	imageName  = "image.raw"
	recordName = "backup.json"
)

// dirAttr fills the attributes of a folder that last changed at mtime.
func (t *tree) dirAttr(out *fuse.Attr, mtime time.Time) {
	out.Mode = syscall.S_IFDIR | 0o555
	out.Nlink = 2
	t.own(out, mtime)
}

func (t *tree) own(out *fuse.Attr, mtime time.Time) {
	if mtime.IsZero() || mtime.Unix() < 0 {
		mtime = t.started
	}
	out.SetTimes(&mtime, &mtime, &mtime)
	out.Uid, out.Gid = t.uid, t.gid
}

// errno is the package's errno while the mount lives. After that an interrupted read must not look as if it could be tried
// again.
func (t *tree) errno(err error) syscall.Errno {
	if err != nil && t.ctx.Err() != nil {
		return syscall.ENOTCONN
	}
	return errno(err)
}

// rootNode is the mount point: a folder of volumes.
type rootNode struct {
	fs.Inode
	tree  *tree
	names *remembered[map[string]bool]
}

func newRoot(t *tree) *rootNode {
	return &rootNode{tree: t, names: remember(t.refresh, t.volumeNames)}
}

func (n *rootNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.tree.dirAttr(&out.Attr, n.tree.started)
	out.SetTimeout(n.tree.refresh) // short, so that a stat of the mount point soon shows that the server has died
	return 0
}

func (n *rootNode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, maxName
	return 0
}

func (n *rootNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	req := newRequest(n.tree.ctx, ctx)
	defer req.end()
	names, err := n.names.get(req)
	if err == nil && !names[name] {
		err = errNoName
	}
	if err != nil {
		n.tree.faults.report(name, 0, err)
		return nil, n.tree.errno(err)
	}
	n.tree.dirAttr(&out.Attr, n.tree.started)
	out.SetEntryTimeout(n.tree.refresh)
	out.SetAttrTimeout(forever)
	if child := n.GetChild(name); child != nil {
		return child, 0
	}
	return n.NewInode(ctx, newVolume(n.tree, name), fs.StableAttr{Mode: syscall.S_IFDIR}), 0
}

func (n *rootNode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	req := newRequest(n.tree.ctx, ctx)
	defer req.end()
	names, err := n.names.get(req)
	if err != nil {
		n.tree.faults.report(".", 0, err)
		return nil, n.tree.errno(err)
	}
	list := make([]fuse.DirEntry, 0, len(names))
	for name := range names {
		list = append(list, fuse.DirEntry{Name: name, Mode: syscall.S_IFDIR})
	}
	return sorted(list), 0
}

func sorted(list []fuse.DirEntry) fs.DirStream {
	slices.SortFunc(list, func(a, b fuse.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return fs.NewListDirStream(list)
}

// volumeNode is the folder of one volume's backups, and latest.
type volumeNode struct {
	fs.Inode
	tree *tree
	name string
	list *remembered[backupList]
}

func newVolume(t *tree, name string) *volumeNode {
	ask := func(ctx context.Context) (backupList, error) { return t.backups(ctx, name) }
	return &volumeNode{tree: t, name: name, list: remember(t.refresh, ask)}
}

func (n *volumeNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.tree.dirAttr(&out.Attr, n.tree.started)
	out.SetTimeout(forever)
	return 0
}

func (n *volumeNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	req := newRequest(n.tree.ctx, ctx)
	defer req.end()
	list, err := n.list.get(req)
	entry, ok := list.byID[name]
	if name == latestName {
		entry, ok = list.newest, list.newest.ID != ""
	}
	if err == nil && !ok {
		err = errNoName
	}
	if err != nil {
		n.tree.faults.report(n.name+"/"+name, 0, err)
		return nil, n.tree.errno(err)
	}
	out.SetEntryTimeout(n.tree.refresh)
	child := n.GetChild(name)
	if name == latestName {
		latestAttr(n.tree, entry, &out.Attr)
		out.SetAttrTimeout(n.tree.refresh)
		if child == nil {
			child = n.NewInode(ctx, &latestNode{volume: n}, fs.StableAttr{Mode: syscall.S_IFLNK})
		}
		return child, 0
	}
	n.tree.dirAttr(&out.Attr, entry.Time)
	out.SetAttrTimeout(forever)
	if child == nil {
		child = n.NewInode(ctx, newBackup(n.tree, n.name, entry), fs.StableAttr{Mode: syscall.S_IFDIR})
	}
	return child, 0
}

func (n *volumeNode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	req := newRequest(n.tree.ctx, ctx)
	defer req.end()
	known, err := n.list.get(req)
	if err != nil {
		n.tree.faults.report(n.name, 0, err)
		return nil, n.tree.errno(err)
	}
	list := make([]fuse.DirEntry, 0, len(known.byID)+1)
	for id := range known.byID {
		list = append(list, fuse.DirEntry{Name: id, Mode: syscall.S_IFDIR})
	}
	if known.newest.ID != "" {
		list = append(list, fuse.DirEntry{Name: latestName, Mode: syscall.S_IFLNK})
	}
	return sorted(list), 0
}

// latestNode is a symlink to whatever backup is the newest when it is followed.
type latestNode struct {
	fs.Inode
	volume *volumeNode
}

func latestAttr(t *tree, newest Entry, out *fuse.Attr) {
	out.Mode = syscall.S_IFLNK | 0o777
	out.Nlink = 1
	out.Size = uint64(len(newest.ID))
	t.own(out, newest.Time)
}

func (n *latestNode) newest(ctx context.Context) (Entry, syscall.Errno) {
	req := newRequest(n.volume.tree.ctx, ctx)
	defer req.end()
	list, err := n.volume.list.get(req)
	if err == nil && list.newest.ID == "" {
		err = errNoName
	}
	n.volume.tree.faults.report(n.volume.name+"/"+latestName, 0, err)
	return list.newest, n.volume.tree.errno(err)
}

func (n *latestNode) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	newest, e := n.newest(ctx)
	latestAttr(n.volume.tree, newest, &out.Attr)
	out.SetTimeout(n.volume.tree.refresh)
	return e
}

func (n *latestNode) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	newest, e := n.newest(ctx)
	return []byte(newest.ID), e
}

// backupNode is the folder of one backup. Its record is read when somebody looks into the folder.
type backupNode struct {
	fs.Inode
	tree   *tree
	volume string
	entry  Entry
	record *remembered[contents]
}

// contents is a backup record, made ready to be shown.
type contents struct {
	*Backup
	json []byte
}

func newBackup(t *tree, volume string, entry Entry) *backupNode {
	n := &backupNode{tree: t, volume: volume, entry: entry}
	n.record = remember(-1, n.load)
	return n
}

func (n *backupNode) path() string { return n.volume + "/" + n.entry.ID }

func (n *backupNode) load(ctx context.Context) (contents, error) {
	b, err := n.tree.repo.Backup(ctx, n.volume, n.entry.ID)
	if errors.Is(err, chunkstore.ErrNotFound) {
		return contents{}, errNoName // forgotten since it was listed
	}
	if err != nil {
		return contents{}, err
	}
	if b.Size < 0 || b.Data < 0 {
		return contents{}, fmt.Errorf("record of %s has a negative size: %w", n.path(), errBadList)
	}
	text, err := json.MarshalIndent(b.Record, "", "  ")
	if err != nil {
		return contents{}, fmt.Errorf("show record of %s: %w", n.path(), err)
	}
	return contents{Backup: b, json: append(text, '\n')}, nil
}

func (n *backupNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.tree.dirAttr(&out.Attr, n.entry.Time)
	out.SetTimeout(forever)
	return 0
}

func (n *backupNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if name != imageName && name != recordName {
		return nil, syscall.ENOENT // the record need not be read for that
	}
	c, e := n.contents(ctx)
	if e != 0 {
		return nil, e
	}
	var node fs.InodeEmbedder
	switch {
	case name == recordName:
		r := &recordNode{tree: n.tree, text: c.json, time: c.Time}
		r.attr(&out.Attr)
		node = r
	case c.Image != nil:
		img := &image{pool: n.tree.pool, blob: c.Image, size: c.Size, name: n.path() + "/" + imageName}
		i := &imageNode{tree: n.tree, image: img, data: c.Data, time: c.Time}
		i.attr(&out.Attr)
		node = i
	default:
		return nil, syscall.ENOENT
	}
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	if child := n.GetChild(name); child != nil {
		return child, 0
	}
	return n.NewInode(ctx, node, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

func (n *backupNode) contents(ctx context.Context) (contents, syscall.Errno) {
	req := newRequest(n.tree.ctx, ctx)
	defer req.end()
	c, err := n.record.get(req)
	n.tree.faults.report(n.path(), 0, err)
	return c, n.tree.errno(err)
}

func (n *backupNode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	c, e := n.contents(ctx)
	if e != 0 {
		return nil, e
	}
	list := []fuse.DirEntry{{Name: recordName, Mode: syscall.S_IFREG}}
	if c.Image != nil {
		list = append(list, fuse.DirEntry{Name: imageName, Mode: syscall.S_IFREG})
	}
	return sorted(list), 0
}
