package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine/source"
)

// countedRepository is a repository in memory whose secret is always the same, and so all that is stored, byte for byte, but for
// the names of backups.
type countedRepository struct {
	*chunkstore.Repository
	be *backendtest.Counting
}

func newCountedRepository(ctx context.Context, o chunkstore.InitOptions) (*countedRepository, error) {
	store := mem.New()
	if _, err := chunkstore.Init(ctx, store, o); err != nil {
		return nil, err
	}
	if err := fixSecret(ctx, store); err != nil {
		return nil, err
	}
	be := backendtest.NewCounting(store)
	r, err := chunkstore.Open(ctx, be, chunkstore.Options{Parallel: 1})
	if err != nil {
		return nil, err
	}
	be.Reset()
	return &countedRepository{r, be}, nil
}

// fixSecret replaces what Init draws by chance. docs/format.md describes the object: a line of JSON, and a line with its xxHash64.
func fixSecret(ctx context.Context, be backend.Backend) error {
	const object = "config"
	b, err := backend.ReadAll(ctx, be, object)
	if err != nil {
		return err
	}
	var c chunkstore.Config
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&c); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	c.ID, c.Secret = strings.Repeat("0f", 16), strings.Repeat("5a", 32)
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return be.Put(ctx, object, fmt.Appendf(line, "\n%016x\n", xxhash.Sum64(line)))
}

// requests returns the calls since the last time, by what they do, and the bytes they read and wrote.
func (r *countedRepository) requests() (reads, writes, lists, readBytes, writtenBytes int64) {
	be := r.be
	reads, readBytes = be.Calls(backendtest.ReadAt)+be.Calls(backendtest.Stat), be.Bytes(backendtest.ReadAt)
	writes = be.Calls(backendtest.Put) + be.Calls(backendtest.PutIfAbsent) + be.Calls(backendtest.Delete)
	writtenBytes = be.Bytes(backendtest.Put) + be.Bytes(backendtest.PutIfAbsent)
	lists = be.Calls(backendtest.List)
	be.Reset()
	return reads, writes, lists, readBytes, writtenBytes
}

// memorySource is an image in memory, of which no base is known.
type memorySource struct {
	img  []byte
	read int64 // one worker: no lock is needed
}

func (s *memorySource) Open(context.Context, iter.Seq2[source.Parent, error]) (source.Source, source.Base, error) {
	s.read = 0
	return s, source.Base{Reason: "nothing is known"}, nil
}

func (s *memorySource) Size() int64 { return int64(len(s.img)) }

func (s *memorySource) Extents(context.Context) iter.Seq2[source.Extent, error] {
	return func(yield func(source.Extent, error) bool) { yield(source.Extent{Len: s.Size()}, nil) }
}

func (s *memorySource) ReadAt(_ context.Context, p []byte, off int64) error {
	s.read += int64(copy(p, s.img[off:]))
	return nil
}

func (s *memorySource) State() json.RawMessage { return nil }

func (s *memorySource) Stats() source.Stats { return source.Stats{BytesRead: s.read} }

func (s *memorySource) Close(context.Context, bool) error { return nil }

// imageBytes is an image in memory as an io.WriterAt.
type imageBytes []byte

func (b imageBytes) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }
