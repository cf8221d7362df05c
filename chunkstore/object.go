package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
)

// frameLen is how much of an object's plain bytes goes in one record; an index segment says itself where it is cut.
const frameLen = 1 << 20

// cutFrames cuts an object's plain bytes.
func cutFrames(kind packKind, data []byte) iter.Seq[[]byte] {
	h, err := decodeSegmentHead(data)
	if kind != kindIndex || err != nil || h.size() != len(data) {
		return slices.Chunk(data, frameLen)
	}
	return func(yield func([]byte) bool) {
		for i := range h.frames() {
			if from, to := h.frame(i); !yield(data[from:to]) {
				return
			}
		}
	}
}

// buildObject makes the pack that holds data, cut in frames: an index segment, a backup record, a volume's name, a trash list.
func (r *Repository) buildObject(kind packKind, data []byte) (packID, []byte, error) {
	enc, err := r.objects()
	if err != nil {
		return packID{}, nil, err
	}
	var p packBuilder
	if err := p.reset(r.sealer, kind); err != nil {
		return packID{}, nil, err
	}
	var scratch []byte
	for frame := range cutFrames(kind, data) {
		var id ID
		r.nodeIDs.id(&id, frame)
		payload, codec := compress(enc, scratch, frame)
		if codec != CodecRaw {
			scratch = payload
		}
		p.add(&id, payload, codec, len(frame))
	}
	id, b := p.finish()
	return id, b, nil
}

// readObject undoes buildObject for the object of that name.
func (r *Repository) readObject(ctx context.Context, name string, kind packKind) ([]byte, error) {
	b, err := r.readAll(ctx, name)
	if err != nil {
		return nil, err
	}
	return r.decodeObject(ctx, name, kind, b)
}

// decodeObject is readObject for an object whose bytes are at hand.
func (r *Repository) decodeObject(ctx context.Context, name string, kind packKind, b []byte) ([]byte, error) {
	header := b[:min(len(b), packHeaderLen)]
	if err := r.learnEpoch(ctx, header); err != nil {
		return nil, err
	}
	t, err := decodePackTail(r.sealer, header, b, uint64(len(b)))
	if err != nil {
		return nil, &CorruptError{Object: name, Err: err}
	}
	if t.header.kind != kind {
		return nil, &CorruptError{Object: name, Err: fmt.Errorf("pack of kind %v where %v belongs", t.header.kind, kind)}
	}
	if (kind == kindIndex && name != prefixIndex+t.id.String()) || (kind == kindTrash && name != prefixTrash+t.id.String()) {
		return nil, &CorruptError{Object: name, Err: errors.New("content is not what the name says")}
	}
	bx, err := r.box(ctx, t.header.kind, t.header.salt)
	if err != nil {
		return nil, err
	}
	var out, plain []byte
	for i := range t.entries {
		e := &t.entries[i]
		if plain, err = r.decodeFrame(plain, b[e.off:e.off+e.stored], bx, e); err != nil {
			return nil, &CorruptError{Object: name, Off: int64(e.off), Err: err}
		}
		out = append(out, plain...)
	}
	return out, nil
}

// decodeFrame is decodeRecord for a frame, which is checked against its whole ID.
func (r *Repository) decodeFrame(dst, rec []byte, bx box, e *tableEntry) ([]byte, error) {
	plain, err := r.decodeRecord(dst, rec, bx, e)
	if err != nil {
		return plain, err
	}
	var id ID
	if r.nodeIDs.id(&id, plain); id != e.id {
		return plain, errContent
	}
	return plain, nil
}

// readAll reads a whole object of at most maxPackLen.
func (r *Repository) readAll(ctx context.Context, name string) ([]byte, error) {
	obj, err := r.be.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if obj.Size > maxPackLen {
		return nil, &CorruptError{Object: name, Err: fmt.Errorf("%d bytes are more than any object has", obj.Size)}
	}
	b := make([]byte, obj.Size)
	return b, r.be.ReadAt(ctx, name, b, 0)
}

// decodeRecord opens and decompresses a record into dst's array. What it returns was checked by the record's sum and tag.
func (r *Repository) decodeRecord(dst, rec []byte, bx box, e *tableEntry) ([]byte, error) {
	if err := checkRecordSum(rec); err != nil {
		return nil, err
	}
	return r.decodeUnsummed(dst, rec, bx, e)
}

func (r *Repository) decodeUnsummed(dst, rec []byte, bx box, e *tableEntry) ([]byte, error) {
	var room []byte
	if _, plain := bx.(plainBox); !plain { // the payload of a plain record is in rec
		opened := r.bufs.get(len(rec))
		defer r.bufs.put(opened)
		room = *opened
	}
	payload, err := openUnsummed(room, rec, bx, &e.id, e.codec, int(e.raw), uint64(e.off))
	if err != nil {
		return nil, err
	}
	return r.dec.decode(dst, payload, e.codec, int(e.raw))
}

// decodeChunk is decodeRecord, checked by the whole ID of a chunk: that makes the sum of the stored bytes superfluous, which is
// looked at only to tell what is wrong.
func (r *Repository) decodeChunk(dst, rec []byte, bx box, e *tableEntry) ([]byte, error) {
	out, err := r.decodeUnsummed(dst, rec, bx, e)
	if err == nil && r.ChunkID(out) == e.id {
		return out, nil
	}
	if sum := checkRecordSum(rec); sum != nil {
		return nil, sum
	}
	if err == nil {
		err = errContent
	}
	return nil, err
}

// errContent: the stored bytes are those that were written, but what was written was not what the ID names.
var errContent = errors.New("content does not match its ID")
