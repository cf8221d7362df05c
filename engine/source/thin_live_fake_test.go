package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shalebackup/shale/thin/pool"
	"github.com/shalebackup/shale/thin/thintest"
)

const fakeBlock = 64 << 10

// fakePool is a livePool over metadata and data in files, with one volume of device ID 1. As in a kernel, nothing is to be read of
// metadata that is not reserved.
type fakePool struct {
	t        *testing.T
	vol      pool.Volume
	metaFile *os.File
	data     *os.File
	thin     *thintest.Pool
	next     uint64            // first data block never used
	images   map[uint32][]byte // what each device reads as

	status   pool.Status
	held     bool
	heldRuns int // reservations so far
	kept     map[uint32]bool
	active   int
	calls    []string
	fail     func(call string) error
}

func newFakePool(t *testing.T, sizeBytes int64) *fakePool {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	f := &fakePool{t: t, metaFile: open("meta"), data: open("data"), kept: map[uint32]bool{}}
	f.images = map[uint32][]byte{1: make([]byte, sizeBytes)}
	f.thin = thintest.New(f.metaFile, thintest.Config{DataBlocks: 1 << 20, Fill: 6})
	f.vol = pool.Volume{Name: "vol", Device: "vol", DeviceID: 1, SizeBytes: sizeBytes, Pool: pool.Pool{
		Name: "pool", BlockSize: fakeBlock, Metadata: f.metaFile.Name(), Data: f.data.Name()}}
	f.status = pool.Status{Mode: pool.ModeWritable}
	f.must(f.thin.AddDevice(1, func(func(thintest.Mapping) bool) {}))
	f.must(f.thin.Commit())
	return f
}

func (f *fakePool) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// write fills n blocks of the volume with one random letter each.
func (f *fakePool) write(r *rand.Rand, block uint64, n int) {
	f.t.Helper()
	for b := block; b < block+uint64(n) && int64(b)*fakeBlock < f.vol.SizeBytes; b++ {
		p := bytes.Repeat([]byte{byte(1 + r.IntN(255))}, fakeBlock)
		copy(f.images[1][b*fakeBlock:], p)
		f.must(f.thin.Map(1, b, f.next))
		_, err := f.data.WriteAt(p, int64(f.next)*fakeBlock)
		f.must(err)
		f.next++
	}
	f.must(f.thin.Commit())
}

func (f *fakePool) discard(block uint64, n int) {
	f.t.Helper()
	for b := block; b < block+uint64(n) && int64(b+1)*fakeBlock <= f.vol.SizeBytes; b++ {
		clear(f.images[1][b*fakeBlock : (b+1)*fakeBlock])
		f.must(f.thin.Unmap(1, b))
	}
	f.must(f.thin.Commit())
}

// snapshots are the devices but the volume.
func (f *fakePool) snapshots() (ids []uint32) {
	for id := range f.images {
		if id != 1 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (f *fakePool) call(ctx context.Context, format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	f.calls = append(f.calls, call)
	if f.fail != nil {
		if err := f.fail(call); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *fakePool) Resolve(ctx context.Context, name string) (pool.Volume, error) {
	return f.vol, f.call(ctx, "resolve %s", name)
}

func (f *fakePool) Recover(ctx context.Context) (pool.Recovered, error) {
	err := f.call(ctx, "recover")
	var r pool.Recovered
	for _, id := range f.snapshots() {
		if !f.kept[id] {
			f.remove(id)
			r.Deleted = append(r.Deleted, fmt.Sprint(id))
		}
	}
	return r, err
}

func (f *fakePool) remove(id uint32) {
	f.thin.Delete(id)
	delete(f.images, id)
	delete(f.kept, id)
	f.must(f.thin.Commit())
}

func (f *fakePool) Status(ctx context.Context, _ pool.Pool) (pool.Status, error) {
	return f.status, f.call(ctx, "status")
}

func (f *fakePool) Snapshot(ctx context.Context, v pool.Volume) (liveSnapshot, error) {
	if err := f.call(ctx, "snapshot"); err != nil {
		return nil, err
	}
	if err := f.status.WriteErr(); err != nil {
		return nil, err
	}
	id := 1<<23 + rand.Uint32N(1<<23)
	f.must(f.thin.Snapshot(id, v.DeviceID))
	f.must(f.thin.Commit())
	f.images[id] = bytes.Clone(f.images[v.DeviceID])
	return &fakeSnapshot{f, id}, nil
}

func (f *fakePool) Delete(ctx context.Context, _ pool.Pool, r pool.Ref) error {
	if err := f.call(ctx, "delete"); err != nil {
		return err
	}
	if f.images[r.DeviceID] == nil {
		return pool.ErrNotFound
	}
	f.remove(r.DeviceID)
	return nil
}

type fakeSnapshot struct {
	f  *fakePool
	id uint32
}

func (s *fakeSnapshot) Name() pool.Ref { return pool.Ref{Pool: s.f.vol.Pool.ID(), DeviceID: s.id} }

func (s *fakeSnapshot) Keep() error {
	if err := s.f.call(context.Background(), "keep"); err != nil {
		return err
	}
	s.f.kept[s.id] = true
	return nil
}

func (s *fakeSnapshot) Delete(context.Context) error {
	if err := s.f.call(context.Background(), "drop"); err != nil {
		return err
	}
	s.f.remove(s.id)
	return nil
}

func (f *fakePool) Reserve(ctx context.Context, _ pool.Pool) (liveReservation, error) {
	if err := f.call(ctx, "reserve"); err != nil {
		return nil, err
	}
	if err := f.status.MessageErr(); err != nil {
		return nil, err
	}
	if f.held {
		f.t.Error("two reservations at once")
	}
	f.must(f.thin.Hold())
	f.must(f.thin.Commit())
	f.held = true
	f.heldRuns++
	return &fakeReservation{f, f.heldRoot()}, nil
}

// heldRootAt is where the superblock has the held root.
const heldRootAt = 56

func (f *fakePool) heldRoot() uint64 {
	b := make([]byte, 8)
	_, err := f.metaFile.ReadAt(b, heldRootAt)
	f.must(err)
	return binary.LittleEndian.Uint64(b)
}

// Activate writes the device's image to a file.
func (f *fakePool) Activate(ctx context.Context, _ pool.Volume, id uint32) (liveDevice, error) {
	if err := f.call(ctx, "activate"); err != nil {
		return nil, err
	}
	path := filepath.Join(f.t.TempDir(), "active")
	f.must(os.WriteFile(path, f.images[id], 0o600))
	f.active++
	return &fakeDevice{f, path}, nil
}

type fakeDevice struct {
	f    *fakePool
	path string
}

func (d *fakeDevice) Node() string { return d.path }

func (d *fakeDevice) Close(context.Context) error {
	d.f.active--
	return d.f.call(context.Background(), "deactivate")
}

type fakeReservation struct {
	f    *fakePool
	root uint64
}

func (r *fakeReservation) HeldRoot() uint64 { return r.root }

// Release lets the kernel use the copy of the superblock for something else.
func (r *fakeReservation) Release(context.Context) error {
	err := r.f.call(context.Background(), "release")
	r.f.held = false
	sb := make([]byte, thintest.BlockSize)
	_, rerr := r.f.metaFile.ReadAt(sb, 0)
	thintest.Patch(sb, 0, func(b []byte) { binary.LittleEndian.PutUint64(b[heldRootAt:], 0) })
	_, werr := r.f.metaFile.WriteAt(sb, 0)
	_, serr := r.f.metaFile.WriteAt(make([]byte, thintest.BlockSize), int64(r.root)*thintest.BlockSize)
	r.f.must(errors.Join(rerr, werr, serr))
	return err
}
