package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// thinFixture unpacks a file of thin's testdata.
func thinFixture(t *testing.T, elem ...string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(append([]string{"..", "..", "thin", "testdata"}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(1<<27))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func thinMeta(t *testing.T, elem ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meta.img")
	if err := os.WriteFile(path, thinFixture(t, elem...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// runThin runs one command line and checks its exit code.
func runThin(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, talk bytes.Buffer
	if got := run(t.Context(), append([]string{"thin"}, args...), strings.NewReader(""), &out, &talk); got != code {
		t.Fatalf("shale thin %s: exit code %d, want %d: %s", strings.Join(args, " "), got, code, talk.String())
	}
	return out.String(), talk.String()
}

func TestThinXML(t *testing.T) {
	basic, live := thinMeta(t, "basic-ext4", "meta.img.zst"), thinMeta(t, "live-metasnap", "meta.img.zst")
	for _, c := range []struct {
		want []string
		args []string
	}{
		{[]string{"basic-ext4", "dump.xml.zst"}, []string{"mappings", "--format", "xml", basic}},
		{[]string{"live-metasnap", "dump.xml.zst"}, []string{"mappings", "-f", "xml", "-m", live}},
		{[]string{"basic-ext4", "deltas", "2-3.xml.zst"}, []string{"delta", "--thin1", "2", "--thin2", "3", "-f", "xml", basic}},
		{[]string{"live-metasnap", "deltas", "11-12.verbose.xml.zst"}, []string{"delta", "--metadata-snap", "--thin1", "11", "--thin2", "12", "--verbose", "-f", "xml", live}},
	} {
		got, _ := runThin(t, 0, c.args...)
		if want := string(thinFixture(t, c.want...)); got != want {
			t.Errorf("%v differs from the recorded %v", c.args, c.want)
		}
	}
}

func TestThinDevices(t *testing.T) {
	meta := thinMeta(t, "live-metasnap", "meta.img.zst")
	text, _ := runThin(t, 0, "devices", "-m", meta)
	if lines := strings.Split(strings.TrimSpace(text), "\n"); len(lines) != 4 || !reflect.DeepEqual(strings.Fields(lines[2]), []string{"11", "581", "38076416", "1", "1", "1"}) {
		t.Errorf("text is\n%s", text)
	}
	out, _ := runThin(t, 0, "devices", "-m", "--json", meta)
	var got thinDevicesJSON
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	want := thinDevicesJSON{
		Pool: thinPoolJSON{BlockSize: 65536, NrDataBlocks: 3072, TransactionID: 3, Time: 2, MetadataSnap: 445, ReadAtSnapshot: true},
		Devices: []thinDeviceJSON{
			{ID: 10, MappedBlocks: 585, SnappedTime: 2},
			{ID: 11, MappedBlocks: 581, TransactionID: 1, CreationTime: 1, SnappedTime: 1},
			{ID: 12, MappedBlocks: 585, TransactionID: 2, CreationTime: 2, SnappedTime: 2},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestThinDeltaAndMappingsJSON(t *testing.T) {
	meta := thinMeta(t, "odd-block-size", "meta.img.zst")
	var delta struct {
		From, To uint32
		Pool     thinPoolJSON
		Changes  []thinChangeJSON
	}
	out, _ := runThin(t, 0, "delta", "--thin1", "2", "--thin2", "3", "--format", "json", meta)
	if err := json.Unmarshal([]byte(out), &delta); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	want := []thinChangeJSON{{Kind: "changed", Thin: 3, Len: 1}, {Kind: "changed", Thin: 7, Len: 1}, {Kind: "changed", Thin: 10, Len: 2}, {Kind: "added", Thin: 266, Len: 6}}
	if !reflect.DeepEqual(delta.Changes, want) || delta.From != 2 || delta.To != 3 || delta.Pool.BlockSize != 196608 {
		t.Errorf("got %+v, want %+v", delta, want)
	}
	text, _ := runThin(t, 0, "delta", "--thin1", "2", "--thin2", "3", "--verbose", meta)
	wantText := "kind\tthin\tlen\tfrom_data\tto_data\nchanged\t3\t1\t3\t67\nchanged\t7\t1\t7\t68\nchanged\t10\t2\t10\t75\nadded\t266\t6\t-\t69\n"
	if text != wantText {
		t.Errorf("got\n%swant\n%s", text, wantText)
	}
	text, _ = runThin(t, 0, "delta", "--thin1", "3", "--thin2", "4", "--unchanged", meta)
	if wantText = "kind\tthin\tlen\nunchanged\t0\t48\nunchanged\t160\t16\nunchanged\t266\t6\nunchanged\t364\t1\n"; text != wantText {
		t.Errorf("got\n%swant\n%s", text, wantText)
	}

	var mappings struct {
		Devices []struct {
			Device   thinDeviceJSON
			Mappings []thinRunJSON
		}
	}
	out, _ = runThin(t, 0, "mappings", "--dev", "5", "--dev", "2", "--json", meta)
	if err := json.Unmarshal([]byte(out), &mappings); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(mappings.Devices) != 2 || mappings.Devices[0].Device.ID != 5 || !reflect.DeepEqual(mappings.Devices[0].Mappings, []thinRunJSON{{Thin: 0, Data: 65, Len: 2}}) {
		t.Errorf("got %+v", mappings)
	}
	text, _ = runThin(t, 0, "mappings", "--dev", "5", meta)
	if wantText = "dev\tthin\tdata\tlen\ttime\n5\t0\t65\t2\t0\n"; text != wantText {
		t.Errorf("got\n%swant\n%s", text, wantText)
	}
}

func TestThinFailures(t *testing.T) {
	basic := thinMeta(t, "basic-ext4", "meta.img.zst")
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "expects META", []string{"devices"}},
		{2, "expects --thin1 and --thin2", []string{"delta", basic, "--thin1", "1"}},
		{2, "unknown format", []string{"devices", basic, "--format", "xml"}},
		{2, "exclude each other", []string{"mappings", basic, "--format", "xml", "--json"}},
		{2, "larger than", []string{"delta", basic, "--thin1", "1", "--thin2", "16777216"}},
		{2, "unknown command", []string{"device"}},
		{1, "no such thin device", []string{"delta", basic, "--thin1", "1", "--thin2", "77"}},
		{1, "no such thin device", []string{"mappings", basic, "--dev", "77"}},
		{1, "reserve_metadata_snap", []string{"devices", basic, "-m"}},
		{1, "no such file", []string{"devices", filepath.Join(t.TempDir(), "none")}},
		{1, "--allow-needs-check", []string{"devices", thinMeta(t, "damaged", "needs-check.img.zst")}},
		{0, "", []string{"devices", "--allow-needs-check", thinMeta(t, "damaged", "needs-check.img.zst")}},
		{3, "metadata block 497", []string{"mappings", thinMeta(t, "damaged", "leaf-flipped-byte.img.zst")}},
		{3, "metadata block 504", []string{"delta", "--thin1", "2", "--thin2", "3", "-f", "xml", thinMeta(t, "damaged", "node-loop.img.zst")}},
		{3, "metadata block 0", []string{"devices", thinMeta(t, "damaged", "superblock-bad-checksum.img.zst")}},
	} {
		_, talk := runThin(t, c.code, c.args...)
		if !strings.Contains(talk, c.says) {
			t.Errorf("%v says %q, want %q in it", c.args, talk, c.says)
		}
	}
	out, _ := runThin(t, 3, "delta", "--json", "--thin1", "2", "--thin2", "3", thinMeta(t, "damaged", "node-zeroed.img.zst"))
	var failure struct{ Error string }
	if err := json.Unmarshal([]byte(out), &failure); err != nil || !strings.Contains(failure.Error, "metadata block 504: B-tree node is all zero") {
		t.Errorf("failure as JSON: %v in %s", err, out)
	}
}
