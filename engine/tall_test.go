package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"iter"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
)

// tallVolume has a block of data in each of many spans; in later versions every third is another.
type tallVolume struct {
	spans   int64
	version uint64
	base    bool  // tell what differs from the version before
	had     int64 // spans of that
}

func (v *tallVolume) Open(_ context.Context, parents iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	if v.base {
		for p, err := range parents {
			return v, source.Base{Parent: &p}, err
		}
	}
	return v, source.Base{Reason: "told so"}, nil
}

func (v *tallVolume) Size() int64                       { return v.spans * spanBytes }
func (v *tallVolume) State() json.RawMessage            { return json.RawMessage(`{}`) }
func (v *tallVolume) Stats() source.Stats               { return source.Stats{} }
func (v *tallVolume) Close(context.Context, bool) error { return nil }

func (v *tallVolume) Extents(context.Context) iter.Seq2[source.Extent, error] {
	return func(yield func(source.Extent, error) bool) {
		for s := range v.spans {
			if (!v.base || s%3 == 0 || s >= v.had) && !yield(source.Extent{Off: s * spanBytes, Len: block}, nil) {
				return
			}
		}
	}
}

// block is the data of a span.
func (v *tallVolume) block(span int64) []byte {
	n := uint64(span)
	if span%3 == 0 {
		n |= v.version << 32
	}
	return bytes.Repeat(binary.LittleEndian.AppendUint64([]byte("tall vol"), n), block/16)
}

func (v *tallVolume) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	for s := off / spanBytes; s*spanBytes < off+int64(len(p)); s++ {
		from := s*spanBytes - off
		b := v.block(s)
		if from < 0 {
			b = b[min(-from, block):]
			from = 0
		}
		copy(p[from:], b)
	}
	return nil
}

// Of a volume of many spans, the tree is closed behind the workers while they go on.
func TestManySpans(t *testing.T) {
	r := openRepoWith(t, mem.New(), chunkstore.InitOptions{SpanBytes: spanBytes, PackBytes: 1 << 20})
	const spans = 1700
	var last *chunkstore.Backup
	for version := range uint64(3) {
		v := &tallVolume{spans: spans + int64(version)*100, version: version, base: version > 0, had: spans + int64(version)*100 - 100}
		p := &progress{}
		incr := backup(t, r, v, engine.BackupOptions{Volume: "vol", Workers: 4, Progress: p}).Backup
		full := backup(t, r, &tallVolume{spans: v.spans, version: version}, engine.BackupOptions{Volume: "scan", Workers: 3}).Backup
		if version == 0 {
			last = incr
		}
		if incr.Blob.Size != v.Size() || p.done.Load() != p.total.Load() || p.done.Load() == 0 {
			t.Errorf("version %d: %+v, progress %d of %d", version, incr.Blob, p.done.Load(), p.total.Load())
		}
		if incr.Blob != full.Blob {
			t.Errorf("version %d: %+v, full scan %+v", version, incr.Blob, full.Blob)
		}
		got := make([]byte, block)
		for s := range v.spans {
			if _, err := r.OpenBlob(incr.Blob).ReadAt(t.Context(), got, s*spanBytes); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, v.block(s)) {
				t.Fatalf("version %d, span %d: got %x...", version, s, got[:16])
			}
		}
	}
	rep, err := engine.Verify(t.Context(), r, last, nil)
	if err != nil || len(rep.Damage) > 0 || rep.Read != spans*block {
		t.Errorf("the first version: %+v, %v", rep, err)
	}
}
