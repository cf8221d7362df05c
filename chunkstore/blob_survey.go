package chunkstore

import (
	"context"
	"errors"
	"strings"
)

// Survey calls chunks with the chunks of every span that has some, ascending, and lost with the range of every subtree that cannot be
// read, and why. Each damaged node costs two attempts, however large what it stands for is. What the two return ends it; other errors
// are of reading at all.
func (b *Blob) Survey(ctx context.Context, chunks func([]Chunk) error, lost func(Range, error) error) error {
	s := survey{b, chunks, lost}
	return s.subtree(ctx, b.ref.Root, b.level, 0)
}

type survey struct {
	b      *Blob
	chunks func([]Chunk) error
	lost   func(Range, error) error
}

func (s *survey) subtree(ctx context.Context, id ID, level int, first int64) error {
	if err := ctx.Err(); err != nil || id.IsZero() || first >= s.b.r.spans(s.b.ref.Size) {
		return err
	}
	if level == 0 {
		chunks, err := twice(func() ([]Chunk, error) { return s.b.r.loadLeaf(ctx, id, s.b.spanLen(first)) })
		if err != nil {
			return s.damage(err, level, first)
		}
		at := make([]Chunk, len(chunks))
		for i, c := range chunks {
			c.Off += first * int64(s.b.r.cfg.SpanBytes)
			at[i] = c
		}
		return s.chunks(at)
	}
	n, err := twice(func() (*node, error) { return s.b.r.loadNode(ctx, id, level) })
	if err != nil {
		return s.damage(err, level, first)
	}
	for slot := range nodeFanout {
		if err := s.subtree(ctx, n.children[slot], level-1, first+int64(slot)<<(nodeFanoutLog*(level-1))); err != nil {
			return err
		}
	}
	return nil
}

// twice tries again what met damage: it may have been one of reading.
func twice[T any](load func() (T, error)) (T, error) {
	v, err := load()
	if errors.Is(err, ErrCorrupt) {
		v, err = load()
	}
	return v, err
}

// damage tells of the subtree at level that begins with span first, if err is one of damage.
func (s *survey) damage(err error, level int, first int64) error {
	var c *CorruptError
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFound) || errors.As(err, &c) && strings.HasPrefix(c.Object, prefixIndex) {
		return err
	}
	n := int64(s.b.r.cfg.SpanBytes)
	spans := min(int64(1)<<(nodeFanoutLog*level), s.b.r.spans(s.b.ref.Size)-first)
	return s.lost(Range{Off: first * n, Len: min(spans*n, s.b.ref.Size-first*n)}, err)
}
