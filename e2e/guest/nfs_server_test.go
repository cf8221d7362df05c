package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// NFS is the kernel's NFS server in this guest. It serves file systems of the guest's to the guest: their clients are mounts of their
// own, with caches of their own.
type NFS struct {
	t       *testing.T
	root    string   // the folder that NFSv4 clients see as /
	exports []string // folders where file systems are mounted
	clients []string // mount points
}

// nfsThreads is where the kernel is told how many threads serve; 0 stops the server.
const nfsThreads = "/proc/fs/nfsd/threads"

// StartNFS runs the server until the end of the test.
func StartNFS(t *testing.T) *NFS {
	t.Helper()
	s := &NFS{t: t, root: filepath.Join(t.TempDir(), "exports")}
	Run(t, "modprobe", "nfsd")
	state := "/var/lib/nfs"
	for _, m := range [][]string{{"nfsd", "/proc/fs/nfsd"}, {"tmpfs", state}, {"tmpfs", s.root}} {
		s.must(os.MkdirAll(m[1], 0o755))
		Run(t, "mount", "-t", m[0], m[0], m[1])
		t.Cleanup(func() { Run(t, "umount", m[1]) })
	}
	for _, f := range []string{"etab", "rmtab", "state"} {
		s.must(os.WriteFile(filepath.Join(state, f), nil, 0o600))
	}
	s.must(os.Mkdir(filepath.Join(state, "v4recovery"), 0o755))
	s.must(os.Mkdir(filepath.Join(state, "nfsdcltrack"), 0o755)) // clients that may reclaim after a restart
	s.daemon("rpcbind", "-f")
	eventually(t, "rpcbind answers", func() bool { _, err := os.Stat("/run/rpcbind.sock"); return err == nil })
	s.export("", "fsid=0,crossmnt")
	t.Cleanup(func() { Run(t, "exportfs", "-ua") })
	s.daemon("rpc.mountd", "-F", "-p", "20048")
	for _, name := range []string{"nfsv4leasetime", "nfsv4gracetime"} {
		s.must(os.WriteFile("/proc/fs/nfsd/"+name, []byte("10"), 0)) // the least that the kernel takes
	}
	s.Up()
	s.must(os.WriteFile("/proc/fs/nfsd/v4_end_grace", []byte("Y"), 0)) // nobody has anything to reclaim
	t.Cleanup(s.end)
	return s
}

// end unmounts the clients while they still have a server, then what the server holds.
func (s *NFS) end() {
	for _, dir := range s.clients {
		if _, err := Try("umount", dir); err != nil {
			s.t.Error(err)
			_, _ = Try("umount", "-l", dir)
		}
	}
	s.Down()
	for _, dir := range s.exports {
		Run(s.t, "umount", dir)
	}
}

func (s *NFS) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// daemon runs a program in the foreground until the end of the test.
func (s *NFS) daemon(name string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	s.must(cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
}

// Down stops the server: clients get no answer.
func (s *NFS) Down() {
	s.t.Helper()
	s.must(os.WriteFile(nfsThreads, []byte("0"), 0))
}

// Up starts it.
func (s *NFS) Up() {
	s.t.Helper()
	s.must(os.WriteFile(nfsThreads, []byte("4"), 0))
}

func (s *NFS) export(name, options string) {
	s.t.Helper()
	Run(s.t, "exportfs", "-o", "rw,insecure,no_subtree_check,"+options, "127.0.0.1:"+filepath.Join(s.root, name))
}

// Export makes an ext4 file system and serves it under that name. It returns the folder where the server has it. options are those of
// exports(5), with fsid, and of mount(8).
func (s *NFS) Export(name string, sizeMiB int64, options, mountOptions string) string {
	s.t.Helper()
	dir := filepath.Join(s.root, name)
	s.must(os.Mkdir(dir, 0o755))
	s.Swap(name, Disk(s.t, sizeMiB), mountOptions)
	s.export(name, options)
	s.exports = append(s.exports, dir)
	return dir
}

// Swap makes an ext4 file system on the device and mounts it where the export of that name is.
func (s *NFS) Swap(name, dev, mountOptions string) {
	s.t.Helper()
	Run(s.t, "mkfs.ext4", "-q", "-m", "0", "-O", "quota", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", dev)
	Run(s.t, "mount", "-o", "noatime,"+mountOptions, dev, filepath.Join(s.root, name))
}

// Client mounts an export, with caches that it shares with no other mount. version is 3 or 4.2.
func (s *NFS) Client(name, version, options string) string {
	s.t.Helper()
	dir := s.t.TempDir()
	s.mountAt(dir, name, version, options)
	s.clients = append(s.clients, dir)
	return dir
}

func (s *NFS) mountAt(dir, name, version, options string) {
	s.t.Helper()
	from := "/" + name
	all := []string{"vers=" + version, "nosharecache"}
	if version == "3" {
		from = filepath.Join(s.root, name)
		all = append(all, "nolock", "port=2049", "mountport=20048", "mountproto=tcp")
	}
	if options != "" {
		all = append(all, options)
	}
	Run(s.t, "mount", "-t", "nfs", "-o", strings.Join(all, ","), "127.0.0.1:"+from, dir)
}
