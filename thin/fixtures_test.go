package thin_test

import (
	"bytes"
	"encoding/json"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/shalebackup/shale/thin"
)

// The folders of testdata are pools written by the dm-thin target of Linux 6.1; expected.json and the XML were recorded
// there and from thin-provisioning-tools 0.9.0. live-metasnap was copied from an active pool and is read at its held root.
var pools = []string{"basic-ext4", "odd-block-size", "live-metasnap", "lvm-xfs"}

// expectation is a pool's expected.json.
type expectation struct {
	BlockSize     uint64 `json:"block_size_bytes"`
	TransactionID uint64 `json:"transaction_id"`
	Time          uint32 `json:"time"`
	Devices       []struct {
		ID           uint32 `json:"id"`
		Size         uint64 `json:"size_bytes"`
		SHA256       string `json:"sha256"`
		Mapped       uint64 `json:"mapped_blocks"`
		Transaction  uint64 `json:"transaction"`
		CreationTime uint32 `json:"creation_time"`
		SnapTime     uint32 `json:"snap_time"`
	} `json:"devices"`
	Deltas []struct {
		From    uint32   `json:"from"`
		To      uint32   `json:"to"`
		Changed [][3]any `json:"changed"`
	} `json:"deltas"`
}

func loadExpectation(t *testing.T, pool string) (e expectation) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", pool, "expected.json"))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// unzstd decompresses a file of testdata.
func unzstd(t testing.TB, elem ...string) []byte {
	t.Helper()
	r := openZstd(t, elem...)
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openZstd(t testing.TB, elem ...string) io.Reader {
	t.Helper()
	f, err := os.Open(filepath.Join(append([]string{"testdata"}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(1<<27), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); f.Close() })
	return d
}

// openPool opens a pool of testdata the way it has to be read.
func openPool(t testing.TB, pool string) *thin.Reader {
	t.Helper()
	return newReader(t, unzstd(t, pool, "meta.img.zst"), thin.Options{MetadataSnapshot: pool == "live-metasnap"})
}

func newReader(t testing.TB, img []byte, opts thin.Options) *thin.Reader {
	t.Helper()
	r, err := thin.NewReader(bytes.NewReader(img), int64(len(img)), opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// collect takes all that an iterator yields, and the error that ended it.
func collect[V any](seq iter.Seq2[V, error]) (out []V, err error) {
	for v, err := range seq {
		if err != nil {
			return out, err
		}
		out = append(out, v)
	}
	return out, nil
}

func mustCollect[V any](t testing.TB, seq iter.Seq2[V, error]) []V {
	t.Helper()
	out, err := collect(seq)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func diffText(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s: line %d is\n%s\nwant\n%s", what, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s: %d lines, want %d", what, len(g), len(w))
}
