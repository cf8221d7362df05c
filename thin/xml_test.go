package thin_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/thintest"
)

func TestDumpOfOneDevice(t *testing.T) {
	r := openPool(t, "basic-ext4")
	var got bytes.Buffer
	if err := r.WriteDumpXML(t.Context(), &got, 3); err != nil {
		t.Fatal(err)
	}
	whole := string(unzstd(t, "basic-ext4", "dump.xml.zst"))
	head, _, _ := strings.Cut(whole, "  <device")
	begin, end := strings.Index(whole, `  <device dev_id="3"`), strings.Index(whole, `  <device dev_id="4"`)
	diffText(t, "dump of device 3", got.Bytes(), []byte(head+whole[begin:end]+"</superblock>\n"))
	if err := r.WriteDumpXML(t.Context(), &got, 99); !errors.Is(err, thin.ErrNoDevice) {
		t.Errorf("dump of device 99: %v", err)
	}
}

func TestDumpOfEmptyPool(t *testing.T) {
	var img thintest.Memory
	p := thintest.New(&img, thintest.Config{DataBlocks: 7})
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := newReader(t, img, thin.Options{}).WriteDumpXML(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	want := `<superblock uuid="" time="0" transaction="0" flags="0" version="2" data_block_size="128" nr_data_blocks="7">` + "\n</superblock>\n"
	diffText(t, "dump", got.Bytes(), []byte(want))
}

// TestUUIDIsEscaped: what stands in the superblock cannot write XML.
func TestUUIDIsEscaped(t *testing.T) {
	img := smallPool(t)
	thintest.Patch(img, 0, func(b []byte) { copy(b[16:32], `"/><x a="`) })
	var got bytes.Buffer
	if err := newReader(t, img, thin.Options{}).WriteDeltaXML(t.Context(), &got, 1, 2, false); err != nil {
		t.Fatal(err)
	}
	if line, _, _ := strings.Cut(got.String(), "\n"); !strings.HasPrefix(line, `<superblock uuid="&#34;/&gt;&lt;x a=&#34;" time=`) {
		t.Errorf("first line is %s", line)
	}
}

var errFull = errors.New("no space left")

// fullAfter takes so many bytes and then no more.
type fullAfter int

func (f *fullAfter) Write(p []byte) (int, error) {
	if len(p) > int(*f) {
		return 0, errFull
	}
	*f -= fullAfter(len(p))
	return len(p), nil
}

func TestXMLWriteFails(t *testing.T) {
	var img thintest.Memory
	p := thintest.New(&img, thintest.Config{DataBlocks: 1 << 20})
	err := p.AddDevice(1, func(yield func(thintest.Mapping) bool) {
		for b := uint64(0); b < 9000 && yield(thintest.Mapping{Thin: 2 * b, Data: b}); b++ {
		}
	})
	if err := errors.Join(err, p.Snapshot(2, 1), p.Map(1, 3, 9999), p.Commit()); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, img, thin.Options{})
	for _, room := range []fullAfter{0, 100_000, 400_000} { // the answers have more
		for name, write := range map[string]func(w *fullAfter) error{
			"dump":          func(w *fullAfter) error { return r.WriteDumpXML(t.Context(), w) },
			"delta":         func(w *fullAfter) error { return r.WriteDeltaXML(t.Context(), w, 1, 2, false) },
			"verbose delta": func(w *fullAfter) error { return r.WriteDeltaXML(t.Context(), w, 1, 2, true) },
		} {
			left := room
			before := r.Stats().BlocksRead
			if name == "delta" && room > 300_000 {
				continue
			}
			if err := write(&left); !errors.Is(err, errFull) {
				t.Errorf("%s into %d bytes: %v", name, room, err)
			}
			if read := r.Stats().BlocksRead - before; room == 0 && read > 30 {
				t.Errorf("%s: %d blocks read for a full disk", name, read)
			}
		}
	}
}
