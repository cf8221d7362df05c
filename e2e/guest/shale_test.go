package guest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/pool"
)

// shaleEnv names the binary under test.
const shaleEnv = "SHALE_BINARY"

// shaleCommand is the real command, not yet started.
func shaleCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if os.Getenv(shaleEnv) == "" {
		t.Fatal(shaleEnv + " is not set: package e2e builds the command")
	}
	return exec.Command(os.Getenv(shaleEnv), args...)
}

// shale runs the command.
func shale(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := shaleCommand(t, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("shale %s: %w: %s", strings.Join(args, " "), err, e.String())
	}
	return o.String(), e.String(), err
}

func mustShale(t *testing.T, args ...string) (stdout string) {
	t.Helper()
	out, _, err := shale(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// repository is one that is checked down to its data at the end of the test.
type repository struct {
	t   *testing.T
	URL string
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	r := &repository{t, filepath.Join(t.TempDir(), "repo")}
	mustShale(t, "repo", "init", r.URL, "--pack-size", "1")
	t.Cleanup(func() {
		if _, _, err := shale(t, "repo", "check", r.URL, "--data"); err != nil {
			t.Error(err)
		}
	})
	return r
}

// created is what `backup create --json` prints.
type created struct {
	URL    string                 `json:"url"`
	Reason string                 `json:"reason"`
	Backup *chunkstore.Backup     `json:"backup"`
	Writer chunkstore.WriterStats `json:"writer"`
	Notes  string                 `json:"-"` // what it said
}

// snapshot is what the backup kept in the pool.
func (c *created) snapshot(t *testing.T) pool.Ref {
	t.Helper()
	var s struct{ Snapshot pool.Ref }
	if err := json.Unmarshal(c.Backup.Source, &s); err != nil || s.Snapshot.DeviceID == 0 {
		t.Fatalf("no snapshot in the backup record: %s (%v)", c.Backup.Source, err)
	}
	return s.Snapshot
}

func (r *repository) create(source string, args ...string) (*created, error) {
	r.t.Helper()
	out, notes, err := shale(r.t, append([]string{"backup", "create", source, "--dest", r.URL, "--volume", "vol", "--json"}, args...)...)
	if err != nil {
		return nil, err
	}
	c := &created{Notes: notes}
	if err := json.Unmarshal([]byte(out), c); err != nil {
		return nil, fmt.Errorf("%w in %q", err, out)
	}
	b := c.Backup.Counts
	r.t.Logf("%s: read %d KiB, %d metadata blocks, new %d KiB, stored %d KiB, %.2f s; parent %q %s", source, b.Read>>10, b.MetadataBlocks,
		b.New>>10, c.Writer.Stored>>10, b.Seconds, c.Backup.Parent, c.Reason)
	return c, nil
}

func (r *repository) mustCreate(source string, args ...string) *created {
	r.t.Helper()
	c, err := r.create(source, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// restored is the sum of a backup that is restored to a file, which is then removed.
func (r *repository) restored(c *created) string {
	r.t.Helper()
	target := filepath.Join(r.t.TempDir(), "restored")
	mustShale(r.t, "backup", "restore", c.URL, target)
	defer os.Remove(target)
	return sum(r.t, target)
}

// sum is the SHA-256 of a file or device.
func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// kernelSum is the SHA-256 of a thin device as the kernel reads it, activated read-only for that.
func kernelSum(t *testing.T, poolName string, deviceID uint32, sizeBytes int64) string {
	t.Helper()
	Run(t, "dmsetup", "create", "kernelsum", "--readonly", "--table", fmt.Sprintf("0 %d thin /dev/mapper/%s %d", sizeBytes/512, poolName, deviceID))
	defer Run(t, "dmsetup", "remove", "--retry", "kernelsum")
	return sum(t, "/dev/mapper/kernelsum")
}

// write makes a file of random bytes, on the disk when write returns.
func write(t *testing.T, path string, kib int, seed uint64) {
	t.Helper()
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	f, err := os.Create(path)
	if err == nil {
		_, err = io.CopyN(f, r, int64(kib)<<10)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// devices counts the pool's thin devices, active or not.
func devices(t *testing.T, h *pool.Host, v pool.Volume) (n int) {
	t.Helper()
	r, err := h.Reserve(t.Context(), v.Pool)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := thin.Open(v.Pool.Metadata, thin.Options{MetadataSnapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range meta.Devices(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if err := meta.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// atRest fails the test unless the volume runs, nothing is reserved, and the pool has so many devices.
func atRest(t *testing.T, h *pool.Host, v pool.Volume, wantDevices int) {
	t.Helper()
	if v.Device != "" && suspended(t, v.Device) {
		t.Error("the volume is left frozen")
	}
	if st := mustStatus(t, h, v.Pool); st.HeldRoot != 0 {
		t.Errorf("held root %d is left", st.HeldRoot)
	}
	if n := devices(t, h, v); n != wantDevices {
		t.Errorf("the pool has %d devices, want %d", n, wantDevices)
	}
	if left, err := filepath.Glob("/var/lib/shale/pool/*"); err != nil || len(left) > 0 {
		t.Errorf("claims left: %v %v", left, err)
	}
}
