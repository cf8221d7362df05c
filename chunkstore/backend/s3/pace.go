package s3

import (
	"bytes"
	"context"
	"io"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// SetPace implements backend.Pacer.
func (b *Backend) SetPace(up, down backend.Pace) { b.up, b.down = up, down }

// body is what a request uploads.
func (b *Backend) body(ctx context.Context, data []byte) io.Reader {
	if b.up == nil {
		return bytes.NewReader(data)
	}
	return &pacedBody{data: bytes.NewReader(data), ctx: ctx, pace: b.up}
}

// pacedBody gives data in pieces, each when it may go. The client library seeks back to its beginning before it sends.
type pacedBody struct {
	data *bytes.Reader
	ctx  context.Context // of the request that reads it
	pace backend.Pace
}

func (p *pacedBody) Read(b []byte) (int, error) {
	b = b[:min(len(b), backend.PaceBytes)]
	n := min(len(b), p.data.Len())
	if n > 0 {
		if err := p.pace(p.ctx, n); err != nil {
			return 0, err
		}
	}
	return p.data.Read(b)
}

func (p *pacedBody) Seek(off int64, whence int) (int64, error) { return p.data.Seek(off, whence) }

// readFull is io.ReadFull at the pace that is set.
func (b *Backend) readFull(ctx context.Context, r io.Reader, p []byte) (n int, err error) {
	if b.down == nil {
		return io.ReadFull(r, p)
	}
	for n < len(p) {
		piece := p[n:min(len(p), n+backend.PaceBytes)]
		if err := b.down(ctx, len(piece)); err != nil {
			return n, err
		}
		m, err := io.ReadFull(r, piece)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
