package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/file"
)

const dataPacks = "packs/data/"

// counting counts the requests that S3 would count, and keeps packs of chunks compressed.
type counting struct {
	backend.Backend
	enc *zstd.Encoder
	dec *zstd.Decoder

	requests, deletes, read, written, data atomic.Int64

	mu    sync.Mutex       // guards all below
	sizes map[string]int64 // of packs of chunks
	last  string           // the pack read last, and its bytes
	bytes []byte
}

func openStore(o options) (*counting, error) {
	be, err := file.Create(o.path("repo"))
	if err != nil {
		return nil, err
	}
	c := &counting{Backend: be, sizes: map[string]int64{}}
	if c.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(1<<17)); err != nil {
		return nil, err
	}
	if c.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1)); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(o.path("sizes.json"))
	if os.IsNotExist(err) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	return c, json.Unmarshal(b, &c.sizes)
}

// save keeps the packs' sizes for the next process.
func (c *counting) save(o options) error {
	b, err := json.Marshal(c.sizes)
	if err != nil {
		return err
	}
	return os.WriteFile(o.path("sizes.json"), b, 0o600)
}

func (c *counting) reset() {
	for _, n := range []*atomic.Int64{&c.requests, &c.deletes, &c.read, &c.written, &c.data} {
		n.Store(0)
	}
}

func (c *counting) step() step {
	return step{Requests: c.requests.Load(), Deletes: c.deletes.Load(), Read: c.read.Load(), Written: c.written.Load(), Data: c.data.Load()}
}

func (c *counting) wrote(n int) {
	c.requests.Add(1)
	c.written.Add(int64(n))
}

// Put implements backend.Backend.
func (c *counting) Put(ctx context.Context, name string, data []byte) error {
	if !strings.HasPrefix(name, dataPacks) {
		c.wrote(len(data))
		return c.Backend.Put(ctx, name, data)
	}
	c.data.Add(int64(len(data)))
	c.mu.Lock()
	c.sizes[name] = int64(len(data))
	c.mu.Unlock()
	return c.Backend.Put(ctx, name, c.enc.EncodeAll(data, nil))
}

// PutIfAbsent implements backend.Backend.
func (c *counting) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	c.wrote(len(data))
	return c.Backend.PutIfAbsent(ctx, name, data)
}

// ReadAt implements backend.Backend.
func (c *counting) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if !strings.HasPrefix(name, dataPacks) {
		c.requests.Add(1)
		c.read.Add(int64(len(p)))
		return c.Backend.ReadAt(ctx, name, p, off)
	}
	c.data.Add(int64(len(p)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != name {
		b, err := backend.ReadAll(ctx, c.Backend, name)
		if err != nil {
			return err
		}
		if c.bytes, err = c.dec.DecodeAll(b, c.bytes[:0]); err != nil {
			return err
		}
		c.last = name
	}
	if off < 0 || off > int64(len(c.bytes)) || copy(p, c.bytes[off:]) < len(p) {
		return fmt.Errorf("read %s: %w", name, backend.ErrShort)
	}
	return nil
}

// List implements backend.Backend: a request for each 1,000 names.
func (c *counting) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	n := int64(0)
	err := c.Backend.List(ctx, prefix, func(o backend.Object) error {
		n++
		o.Size = c.size(o)
		return fn(o)
	})
	c.requests.Add(max(1, (n+999)/1000))
	return err
}

func (c *counting) size(o backend.Object) int64 {
	if !strings.HasPrefix(o.Name, dataPacks) {
		return o.Size
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sizes[o.Name]
}

// Stat implements backend.Backend.
func (c *counting) Stat(ctx context.Context, name string) (backend.Object, error) {
	c.requests.Add(1)
	o, err := c.Backend.Stat(ctx, name)
	o.Size = c.size(o)
	return o, err
}

// Delete implements backend.Backend.
func (c *counting) Delete(ctx context.Context, name string) error {
	c.requests.Add(1)
	c.deletes.Add(1)
	return c.Backend.Delete(ctx, name)
}
