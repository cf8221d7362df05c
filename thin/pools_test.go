package thin_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin"
)

func TestSuperblockAndDevices(t *testing.T) {
	for _, pool := range pools {
		t.Run(pool, func(t *testing.T) {
			want, r := loadExpectation(t, pool), openPool(t, pool)
			sb := r.Superblock()
			if sb.BlockSize != want.BlockSize || sb.TransactionID != want.TransactionID || sb.Time != want.Time {
				t.Errorf("superblock %+v, want %+v", sb, want)
			}
			for _, d := range want.Devices {
				got, err := r.Device(t.Context(), d.ID)
				if err != nil {
					t.Fatal(err)
				}
				wantDev := thin.Device{ID: d.ID, MappedBlocks: d.Mapped, TransactionID: d.Transaction, CreationTime: d.CreationTime, SnappedTime: d.SnapTime}
				if got != wantDev {
					t.Errorf("device is %+v, want %+v", got, wantDev)
				}
			}
			if _, err := r.Device(t.Context(), 9999); !errors.Is(err, thin.ErrNoDevice) {
				t.Errorf("device 9999: %v, want ErrNoDevice", err)
			}
			if _, err := collect(r.Runs(t.Context(), 9999)); !errors.Is(err, thin.ErrNoDevice) {
				t.Errorf("runs of device 9999: %v, want ErrNoDevice", err)
			}
			if _, err := collect(r.Diff(t.Context(), want.Devices[0].ID, 9999, thin.DiffOptions{})); !errors.Is(err, thin.ErrNoDevice) {
				t.Errorf("difference to device 9999: %v, want ErrNoDevice", err)
			}
		})
	}
}

func TestDumpEqualsThinDump(t *testing.T) {
	for _, pool := range pools {
		var got bytes.Buffer
		if err := openPool(t, pool).WriteDumpXML(t.Context(), &got); err != nil {
			t.Fatal(err)
		}
		diffText(t, pool, got.Bytes(), unzstd(t, pool, "dump.xml.zst"))
	}
}

func TestDeltaEqualsThinDelta(t *testing.T) {
	compared := 0
	for _, pool := range pools {
		r := openPool(t, pool)
		files, err := filepath.Glob(filepath.Join("testdata", pool, "deltas", "*.xml.zst"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			name := strings.TrimSuffix(filepath.Base(f), ".xml.zst")
			ids, verbose := strings.CutSuffix(name, ".verbose")
			var from, to uint32
			if _, err := fmt.Sscanf(ids, "%d-%d", &from, &to); err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := r.WriteDeltaXML(t.Context(), &got, from, to, verbose); err != nil {
				t.Fatal(err)
			}
			diffText(t, pool+"/"+name, got.Bytes(), unzstd(t, pool, "deltas", name+".xml.zst"))
			compared++
		}
	}
	if compared != 32 {
		t.Errorf("compared %d recorded answers, want 32", compared)
	}
}

// TestDiffWithoutUnchanged: leaving the unchanged runs out changes nothing else.
func TestDiffWithoutUnchanged(t *testing.T) {
	for _, pool := range pools {
		r := openPool(t, pool)
		for _, d := range loadExpectation(t, pool).Deltas {
			var got [][3]any
			for _, c := range mustCollect(t, r.Diff(t.Context(), d.From, d.To, thin.DiffOptions{})) {
				if l := len(got); l > 0 && got[l-1][2] == c.Kind.DeltaName() && got[l-1][0].(float64)+got[l-1][1].(float64) == float64(c.Thin) {
					got[l-1][1] = got[l-1][1].(float64) + float64(c.Len)
					continue
				}
				got = append(got, [3]any{float64(c.Thin), float64(c.Len), c.Kind.DeltaName()})
			}
			if !reflect.DeepEqual(got, append([][3]any(nil), d.Changed...)) {
				t.Errorf("%s %d-%d: %v, want %v", pool, d.From, d.To, got, d.Changed)
			}
		}
	}
}

var allDevices = flag.Bool("all-devices", false, "rebuild all devices of the large pools too")

// TestRebuildDevices puts each device together from its runs and the data device, and compares it with what the kernel
// read from it.
func TestRebuildDevices(t *testing.T) {
	t.Parallel()
	hashed := 0
	for _, pool := range pools {
		want, r := loadExpectation(t, pool), openPool(t, pool)
		data := readBlocks(t, openZstd(t, pool, "data.img.zst"), want.BlockSize)
		budget := 2
		for _, d := range want.Devices {
			if len(d.SHA256) != 64 {
				continue // not hashed when it was recorded
			}
			if budget--; budget < 0 && d.Size > 100<<20 && !*allDevices {
				continue
			}
			runs := mustCollect(t, r.Runs(t.Context(), d.ID))
			if got := hashDevice(runs, data, want.BlockSize, d.Size); got != d.SHA256 {
				t.Errorf("%s: device %d has sha256 %s, want %s", pool, d.ID, got, d.SHA256)
			}
			hashed++
		}
	}
	if hashed < 11 {
		t.Errorf("hashed %d devices, want at least 11", hashed)
	}
}

// readBlocks keeps the pool blocks of a data device that are not all zero.
func readBlocks(t *testing.T, r io.Reader, size uint64) map[uint64][]byte {
	blocks := map[uint64][]byte{}
	zero := make([]byte, size)
	buf := make([]byte, size)
	for nr := uint64(0); ; nr++ {
		n, err := io.ReadFull(r, buf)
		if err == io.EOF {
			return blocks
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		if clear(buf[n:]); !bytes.Equal(buf, zero) {
			blocks[nr] = bytes.Clone(buf)
		}
	}
}

func hashDevice(runs []thin.Run, data map[uint64][]byte, blockSize, size uint64) string {
	h := sha256.New()
	zero := make([]byte, blockSize)
	var at uint64 // next thin block
	put := func(b []byte) {
		h.Write(b[:min(blockSize, size-at*blockSize)]) // whole blocks are mapped, also beyond the device's end
		at++
	}
	for _, run := range runs {
		for at < run.Thin {
			put(zero)
		}
		for i := range run.Len {
			b := data[run.Data+i]
			if b == nil {
				b = zero
			}
			put(b)
		}
	}
	for at*blockSize < size {
		put(zero)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestHeldRoot: the metadata snapshot answers as of its making, the main trees as of now.
func TestHeldRoot(t *testing.T) {
	img := unzstd(t, "live-metasnap", "meta.img.zst")
	held, now := newReader(t, img, thin.Options{MetadataSnapshot: true}), newReader(t, img, thin.Options{})
	ids := func(r *thin.Reader) (out []uint32) {
		for _, d := range mustCollect(t, r.Devices(t.Context())) {
			out = append(out, d.ID)
		}
		return out
	}
	if got := ids(held); !reflect.DeepEqual(got, []uint32{10, 11, 12}) {
		t.Errorf("held root has devices %v", got)
	}
	if got := ids(now); !reflect.DeepEqual(got, []uint32{10, 12, 13}) {
		t.Errorf("main root has devices %v", got)
	}
	if sb := held.Superblock(); sb.NrDataBlocks != 3072 || sb.HeldRoot != 445 {
		t.Errorf("superblock at the held root: %+v", sb)
	}
	img = unzstd(t, "basic-ext4", "meta.img.zst")
	_, err := thin.NewReader(bytes.NewReader(img), int64(len(img)), thin.Options{MetadataSnapshot: true})
	if !errors.Is(err, thin.ErrNoMetadataSnapshot) {
		t.Errorf("pool without a metadata snapshot: %v", err)
	}
}
