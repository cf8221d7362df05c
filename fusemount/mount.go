package fusemount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Options of a mount. The zero value works.
type Options struct {
	// Source is what mountinfo and df show as the source, for every user of the machine to see: the repository's location,
	// without secrets. Default "shale".
	Source string
	// AllowOther lets other users look into the mount. Without root it needs user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// CacheBytes bounds the memory for decoded chunks; at least MinCacheBytes. Default 48 MiB.
	CacheBytes int64
	// Parallel is how many pieces are loaded ahead at the same time, for all readers together; 1 to 256. Default: the
	// number of CPUs, but at least 4, since a remote store answers slowly however few the CPUs.
	Parallel int
	// Refresh is how long a listing of volumes or of backups is believed: a new backup is seen no later. Default 2 s.
	Refresh time.Duration
	// DirectIO bypasses the kernel's page cache for every reader, as O_DIRECT does for one. It costs less CPU for readers
	// that ask for much at once and far more for those that ask for little; see the package's comment.
	DirectIO bool
	// BusyGrace is how long a mount that is still in use is waited for when it is to go, before it is detached. Default 5 s.
	BusyGrace time.Duration
	// Log gets damage, stale mounts and the like. Default: nothing is logged.
	Log *slog.Logger
	// SameProcess is for a process that itself reads what it mounts, as tests do: it makes sure that Go's poller does not
	// wait for the server that it keeps from running. It has a price: a process that is killed while it waits for its own
	// mount cannot die until somebody runs umount -f. Mapping such a file in the same process can still stop it for good.
	SameProcess bool
	// Debug logs every FUSE request at debug level.
	Debug bool
}

// MinCacheBytes is the least memory that a mount works with: a few of the kernel's requests and the chunks around them.
const MinCacheBytes = 4 << 20

// check fills in the defaults and refuses bad values by name.
func (o *Options) check() error {
	if o.Source == "" {
		o.Source = "shale"
	}
	if strings.ContainsFunc(o.Source, func(r rune) bool { return r < ' ' }) {
		return fmt.Errorf("mount: Source %q has control characters", o.Source)
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 48 << 20
	}
	if o.CacheBytes < MinCacheBytes || o.CacheBytes > 1<<40 {
		return fmt.Errorf("mount: CacheBytes is %d, want %d or more", o.CacheBytes, MinCacheBytes)
	}
	if o.Parallel == 0 {
		o.Parallel = max(4, runtime.NumCPU())
	}
	if o.Parallel < 1 || o.Parallel > 256 {
		return fmt.Errorf("mount: Parallel is %d, want 1 to 256", o.Parallel)
	}
	if o.Refresh == 0 {
		o.Refresh = 2 * time.Second
	}
	if o.BusyGrace == 0 {
		o.BusyGrace = 5 * time.Second
	}
	if o.Refresh < 0 || o.BusyGrace < 0 {
		return errors.New("mount: Refresh and BusyGrace cannot be negative")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Mounted is a mounted tree. Its server runs until it is unmounted, by whomever.
type Mounted struct {
	dir    string
	dev    uint64 // of the file system, so that only our own mount is ever unmounted
	opts   Options
	tree   *tree
	memory []byte
	stop   context.CancelFunc // ends reads and read-ahead

	unmounting sync.Mutex
	served     chan struct{} // closed when the server has ended
	detached   chan struct{} // closed when the mount was detached while in use
}

// Mount mounts repo at dir, an empty folder, and returns when it can be read. When ctx ends it is unmounted. A
// mount that a killed server left at dir is replaced; any other mount there is an error.
func Mount(ctx context.Context, dir string, repo Repository, opts Options) (*Mounted, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	dir, err := prepare(dir, opts.Log)
	if err != nil {
		return nil, err
	}
	memory, err := newMemory(opts.CacheBytes)
	if err != nil {
		return nil, err
	}
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	m := &Mounted{
		dir: dir, opts: opts, memory: memory, stop: stop,
		served: make(chan struct{}), detached: make(chan struct{}),
	}
	m.tree = newTree(inner, repo, memory, opts)
	server, err := m.attach()
	if err != nil {
		stop()
		m.tree.ahead.wait()
		return nil, errors.Join(fmt.Errorf("mount at %s: %w", dir, err), freeMemory(memory))
	}
	go m.serve(server)
	go func() {
		select {
		case <-ctx.Done():
			m.leave()
		case <-m.served:
		case <-m.detached:
		}
	}()
	return m, nil
}

func newTree(ctx context.Context, repo Repository, memory []byte, opts Options) *tree {
	p := newPool(repo, memory)
	t := &tree{
		repo: repo, pool: p, ahead: newReadAhead(ctx, p, opts.Parallel),
		faults: &faults{log: opts.Log, seen: make(map[fault]time.Time)},
		log:    opts.Log, ctx: ctx, refresh: opts.Refresh, started: time.Now(),
		uid: uint32(os.Getuid()), gid: uint32(os.Getgid()),
		flags: fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH,
	}
	if opts.DirectIO {
		t.flags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	}
	return t
}

// fsName is what follows "fuse." in the type that mountinfo shows.
const fsName = "shale"

// attach mounts and starts to serve.
func (m *Mounted) attach() (*fuse.Server, error) {
	direct := os.Geteuid() == 0
	if err := checkTools(direct); err != nil {
		return nil, err
	}
	level := slog.LevelWarn
	if m.opts.Debug {
		level = slog.LevelDebug
	}
	raw := fs.NewNodeFS(newRoot(m.tree), &fs.Options{NullPermissions: true})
	server, err := fuse.NewServer(raw, m.dir, &fuse.MountOptions{
		Name: fsName, FsName: m.opts.Source, AllowOther: m.opts.AllowOther,
		Options:          []string{"ro", "default_permissions"},
		DirectMount:      direct, // with fusermount3 to fall back to
		DirectMountFlags: directFlags,
		MaxWrite:         maxView, // of a read, too
		MaxBackground:    32,
		DisableXAttrs:    true,
		// Mapped memory works with direct I/O, too, from Linux 6.6 on.
		ExtraCapabilities: fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		Debug:             m.opts.Debug,
		Logger:            slog.NewLogLogger(m.opts.Log.Handler(), level),
	})
	if err != nil {
		return nil, explain(err, direct)
	}
	go server.Serve()
	if m.opts.SameProcess {
		err = server.WaitMount()
	}
	if err == nil {
		m.dev, err = device(m.dir)
	}
	if err != nil {
		return nil, errors.Join(err, detach(m.dir))
	}
	if err := raiseReadAhead(m.dev); err != nil {
		m.opts.Log.Debug("kernel read-ahead stays as it is", "err", err)
	}
	return server, nil
}

// serve waits for the server's end and gives back what it used.
func (m *Mounted) serve(server *fuse.Server) {
	server.Wait()
	m.stop()
	m.tree.ahead.wait()
	if !m.tree.pool.idle() {
		m.opts.Log.Warn("cache not freed: a reader still holds chunks")
	} else if err := freeMemory(m.memory); err != nil {
		m.opts.Log.Warn("cache not freed", "err", err)
	}
	close(m.served)
}

// leave unmounts because ctx ended.
func (m *Mounted) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), m.opts.BusyGrace)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		m.opts.Log.Error("not unmounted", "dir", m.dir, "err", err)
	}
}

// Wait returns when the tree is not mounted any more: because ctx ended, Unmount was called, or somebody ran umount.
func (m *Mounted) Wait() {
	select {
	case <-m.served:
	case <-m.detached:
	}
}

// Dir is the mount point, absolute and without symlinks.
func (m *Mounted) Dir() string { return m.dir }

// Unmount takes the tree away. While files in it are open or it is somebody's working directory it tries again, until ctx
// ends; then it detaches the mount: nobody finds it any more, and those who still hold files get errors, at the latest when
// the process ends.
func (m *Mounted) Unmount(ctx context.Context) error {
	m.unmounting.Lock()
	defer m.unmounting.Unlock()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := unmount(m.dir, m.dev)
		if err == nil {
			m.Wait() // the server ends with the mount
			return nil
		}
		if !errors.Is(err, errBusy) {
			return err
		}
		select {
		case <-m.served:
			return nil
		case <-time.After(pause):
			continue
		case <-ctx.Done():
		}
		m.opts.Log.Warn("mount point still in use, detached", "dir", m.dir)
		if err := detach(m.dir); err != nil {
			return err
		}
		m.stop()
		close(m.detached)
		return nil
	}
}
