package thin_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/thintest"
)

// answers is all that a reader says of a pool, or the error that ended it.
func answers(t testing.TB, img []byte, opts thin.Options) (string, error) {
	t.Helper()
	r, err := thin.NewReader(bytes.NewReader(img), int64(len(img)), opts)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := r.WriteDumpXML(t.Context(), &out); err != nil {
		return "", err
	}
	devs, err := collect(r.Devices(t.Context()))
	if err != nil {
		return "", err
	}
	for i := 1; i < len(devs); i++ {
		if err := r.WriteDeltaXML(t.Context(), &out, devs[i-1].ID, devs[i].ID, true); err != nil {
			return "", err
		}
	}
	return out.String(), nil
}

// damaged lists what is wrong with each recorded image and where: in the words of the error that must come.
var damaged = map[string]struct {
	is   error
	says string
	open bool // refused when opened
}{
	"leaf-flipped-byte":       {thin.ErrDamaged, "metadata block 497: B-tree node checksum", false},
	"superblock-bad-checksum": {thin.ErrDamaged, "metadata block 0: superblock checksum", true},
	"superblock-bad-content":  {thin.ErrDamaged, "metadata block 0: superblock checksum", true},
	"superblock-bad-magic":    {thin.ErrNotMetadata, "metadata block 0: superblock magic is 0", true},
	"superblock-zero":         {thin.ErrNotMetadata, "metadata block 0: all zero", true},
	"truncated-mid":           {thin.ErrDamaged, "metadata block 497: the device ends here", true},
	"truncated-1block":        {thin.ErrDamaged, "metadata block 1: the device ends here", true},
	"empty":                   {thin.ErrNotMetadata, "metadata block 0: the device has 0 bytes", true},
	"node-zeroed":             {thin.ErrDamaged, "metadata block 504: B-tree node is all zero", false},
	"top-node-zeroed":         {thin.ErrDamaged, "metadata block 605: B-tree node is all zero", false},
	"wrong-blocknr":           {thin.ErrDamaged, "metadata block 497: B-tree node says it is block 498", false},
	"nr-entries-huge":         {thin.ErrDamaged, "metadata block 497: B-tree node has 100000 entries", false},
	"node-loop":               {thin.ErrDamaged, "metadata block 504: child 0 is block 504, which is its own ancestor", false},
	"keys-unsorted":           {thin.ErrDamaged, "metadata block 497: B-tree keys are not ascending", false},
	"data-block-out-of-range": {thin.ErrDamaged, "metadata block 497: thin block 0 is mapped to data block 549755813888, the data device has 3072", false},
	"needs-check":             {thin.ErrNeedsCheck, "metadata block 0: superblock flags 0x1", true},
	"version-99":              {thin.ErrUnsupported, "metadata block 0: version 99", true},
}

func TestRecordedDamage(t *testing.T) {
	b, err := os.ReadFile("testdata/damaged/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var recorded struct {
		Cases []struct{ Name string }
	}
	if err := json.Unmarshal(b, &recorded); err != nil {
		t.Fatal(err)
	}
	if len(recorded.Cases) != len(damaged) {
		t.Errorf("%d recorded cases, %d expected", len(recorded.Cases), len(damaged))
	}
	for _, c := range recorded.Cases {
		t.Run(c.Name, func(t *testing.T) { checkDamaged(t, c.Name) })
	}
}

func checkDamaged(t *testing.T, name string) {
	want, ok := damaged[name]
	if !ok {
		t.Fatal("not in the table")
	}
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, want.is) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v, want %q", what, err, want.says)
		}
		var damage *thin.DamageError
		if errors.As(err, &damage) != (want.is == thin.ErrDamaged) {
			t.Errorf("%s: %T, a DamageError only for damage", what, err)
		}
	}
	img := unzstd(t, "damaged", name+".img.zst")
	_, err := answers(t, img, thin.Options{})
	check("whole", err)
	r, err := thin.NewReader(bytes.NewReader(img), int64(len(img)), thin.Options{})
	if want.open {
		check("open", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = collect(r.Diff(t.Context(), 2, 3, thin.DiffOptions{}))
	check("difference 2-3", err)
	_, err = collect(r.Diff(t.Context(), 3, 4, thin.DiffOptions{}))
	check("difference 3-4", err)
	_, err = collect(r.Runs(t.Context(), 3))
	check("runs of 3", err)
	if name == "top-node-zeroed" {
		return
	}
	if _, err := collect(r.Runs(t.Context(), 2)); err != nil { // its tree is whole
		t.Errorf("runs of 2: %v", err)
	}
}

func TestNeedsCheckAllowed(t *testing.T) {
	marked := unzstd(t, "damaged", "needs-check.img.zst")
	got, err := answers(t, marked, thin.Options{AllowNeedsCheck: true})
	if err != nil {
		t.Fatal(err)
	}
	want, err := answers(t, unzstd(t, "basic-ext4", "meta.img.zst"), thin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	diffText(t, "answers", []byte(got), []byte(strings.ReplaceAll(want, `flags="0"`, `flags="1"`)))

	held := unzstd(t, "live-metasnap", "meta.img.zst")
	thintest.Patch(held, 0, func(b []byte) { b[4] |= 1 })
	if _, err := answers(t, held, thin.Options{MetadataSnapshot: true}); err != nil {
		t.Errorf("marked needs_check, at the held root: %v", err)
	}
}

// smallPool has two related devices in trees of three levels, a metadata snapshot, and fits into few blocks.
func smallPool(t testing.TB) []byte {
	t.Helper()
	var img thintest.Memory
	p := thintest.New(&img, thintest.Config{DataBlocks: 1000, Fill: 6})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		for i := range uint64(60) {
			if !yield(thintest.Mapping{Thin: i * 3, Data: 100 + i}) {
				return
			}
		}
	}))
	must(p.Snapshot(2, 1))
	must(p.Hold())
	must(p.Map(1, 30, 500))
	must(p.Map(1, 31, 501))
	must(p.Unmap(1, 90))
	must(p.Commit())
	return img
}

// TestEveryBitCounts flips bits all over a pool: each flip is refused, or does not matter to any answer.
func TestEveryBitCounts(t *testing.T) {
	t.Parallel()
	img := smallPool(t)
	for _, opts := range []thin.Options{{}, {MetadataSnapshot: true}} {
		want, err := answers(t, img, opts)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for off := 0; off < len(img); off += 61 {
			img[off] ^= 1 << (off % 8)
			got, err := answers(t, img, opts)
			switch {
			case err != nil:
				refused++
			case got != want:
				t.Fatalf("%+v: byte %d (block %d) flipped: another answer and no error", opts, off, off/thin.BlockSize)
			}
			img[off] ^= 1 << (off % 8)
		}
		if refused < 300 {
			t.Errorf("%+v: only %d flips were refused", opts, refused)
		}
	}
}

// TestTruncatedAnywhere cuts a pool off at each block, also when the superblock admits to the new length.
func TestTruncatedAnywhere(t *testing.T) {
	whole := smallPool(t)
	want, err := answers(t, whole, thin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n += thin.BlockSize / 2 {
		if _, err := answers(t, whole[:n], thin.Options{}); err == nil {
			t.Errorf("cut off at byte %d: no error", n)
		}
		if n < thin.BlockSize {
			continue
		}
		img := bytes.Clone(whole[:n])
		thintest.Patch(img, 0, func(b []byte) { binary.LittleEndian.PutUint64(b[344:], uint64(n/thin.BlockSize)) })
		got, err := answers(t, img, thin.Options{})
		if err == nil && got != want {
			t.Errorf("cut off at byte %d: another answer and no error", n)
		}
	}
}
