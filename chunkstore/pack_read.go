package chunkstore

import (
	"context"
	"errors"
	"fmt"
)

// firstTail is how much of a pack's end is read at first: the tables of most packs fit.
const firstTail = 64 << 10

// readPackTable reads a data or tree pack's table and checks that the object is what its name says. It also returns the
// object's length.
func (r *Repository) readPackTable(ctx context.Context, object string) (*packTable, int64, error) {
	id, kind, ok := parsePackObject(object)
	if !ok {
		return nil, 0, &CorruptError{Object: object, Err: errors.New("not the name of a pack")}
	}
	st, err := r.be.Stat(ctx, object)
	if err != nil {
		return nil, 0, err
	}
	if st.Size < packHeaderLen+trailerLen || st.Size > maxPackLen {
		return nil, 0, &CorruptError{Object: object, Err: fmt.Errorf("%d bytes cannot be a pack", st.Size)}
	}
	header := make([]byte, packHeaderLen)
	if err := r.be.ReadAt(ctx, object, header, 0); err != nil {
		return nil, 0, err
	}
	if err := r.learnEpoch(ctx, header); err != nil {
		return nil, 0, err
	}
	t, err := r.readPackTail(ctx, object, header, st.Size)
	if err != nil {
		return nil, 0, err
	}
	if t.id != id || t.header.kind != kind {
		return nil, 0, &CorruptError{Object: object, Err: errors.New("content is not what the name says")}
	}
	return t, st.Size, nil
}

func (r *Repository) readPackTail(ctx context.Context, object string, header []byte, size int64) (*packTable, error) {
	for n := min(size, firstTail); ; {
		tail := make([]byte, n)
		if err := r.be.ReadAt(ctx, object, tail, size-n); err != nil {
			return nil, err
		}
		t, err := decodePackTail(r.sealer, header, tail, uint64(size))
		var short *errShortTail
		if errors.As(err, &short) && int64(short.need) > n {
			n = int64(short.need)
			continue
		}
		if err != nil {
			return nil, &CorruptError{Object: object, Off: size - n, Err: err}
		}
		return t, nil
	}
}
