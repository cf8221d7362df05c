package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// An index of millions of chunks is made from chunks of 8 bytes: what is in them does not matter to a look-up. Making and asking are
// processes of their own, so that the memory measured is that of asking.

const (
	lookupArg   = "lookup"
	lookupBuild = "build"
	lookupAsk   = "ask"
	lookupEvery = 1000 // chunks between two looks at the context

	lookupCompact = 1 << 19 // chunks of one backup, as it were: each merges the index when it is complete
)

// lookupAnswer is what asking found.
type lookupAnswer struct {
	OpenMS   float64 `json:"open_ms"`
	Known    float64 `json:"known_ns"` // to find that a chunk is known: hashing its 8 bytes, and the look-up
	Read     float64 `json:"read_ns"`  // to read such a chunk: the look-up, and a read of its record
	Segments int     `json:"segments"`
}

// lookupMain is the process: build or ask, the folder, the number of chunks.
func lookupMain(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("lookup: expects build or ask, a folder and a number")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	l, err := engine.ParseLocation(filepath.Join(args[1], "repo"))
	if err != nil {
		return err
	}
	o := chunkstore.Options{CacheDir: filepath.Join(args[1], "cache")}
	if args[0] == lookupBuild {
		if _, err := engine.InitRepository(ctx, l, engine.BackendOptions{}, chunkstore.InitOptions{Compression: "none", PackBytes: 1 << 20}); err != nil {
			return err
		}
		return buildIndex(ctx, l, o, n)
	}
	return askIndex(ctx, l, o, n)
}

func tinyChunk(b []byte, i int) { binary.LittleEndian.PutUint64(b, uint64(i)*0x9e3779b97f4a7c15) }

func buildIndex(ctx context.Context, l engine.Location, o chunkstore.Options, n int) (err error) {
	r, err := engine.OpenRepository(ctx, l, engine.BackendOptions{}, o)
	if err != nil {
		return err
	}
	defer func() { err = closing(err, r) }()
	w, err := r.NewWriter(ctx, chunkstore.WriterOptions{})
	if err != nil {
		return err
	}
	defer func() { err = closing(err, w) }()
	p := make([]byte, 8)
	for i := range n {
		tinyChunk(p, i)
		if _, err := w.PutChunk(ctx, p); err != nil {
			return err
		}
		if (i+1)%lookupCompact == 0 || i == n-1 {
			if err := w.Flush(ctx); err != nil {
				return err
			}
			if err := r.CompactIndex(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func askIndex(ctx context.Context, l engine.Location, o chunkstore.Options, n int) (err error) {
	var a lookupAnswer
	begin := time.Now()
	r, err := engine.OpenRepository(ctx, l, engine.BackendOptions{}, o)
	if err != nil {
		return err
	}
	defer func() { err = closing(err, r) }()
	a.OpenMS = millis(time.Since(begin))
	w, err := r.NewWriter(ctx, chunkstore.WriterOptions{})
	if err != nil {
		return err
	}
	defer func() { err = closing(err, w) }()
	d, p, dst := newDice(1, 8), make([]byte, 8), make([]byte, 8)
	if a.Known, err = perCall(ctx, func() error {
		tinyChunk(p, d.n(n))
		_, err := w.PutChunk(ctx, p)
		return err
	}); err != nil {
		return err
	}
	if fresh := w.Stats().NewChunks; fresh != 0 {
		return fmt.Errorf("%d chunks of the index were not found", fresh)
	}
	if a.Read, err = perCall(ctx, func() error {
		tinyChunk(p, d.n(n))
		_, err := r.ReadChunk(ctx, r.ChunkID(p), dst)
		return err
	}); err != nil {
		return err
	}
	s, err := r.Stats(ctx)
	if err != nil {
		return err
	}
	a.Segments = s.Index.Objects
	return json.NewEncoder(os.Stdout).Encode(a)
}

// perCall calls fn for two seconds and returns the mean nanoseconds of CPU time of a call.
func perCall(ctx context.Context, fn func() error) (float64, error) {
	calls := 0
	begin, cpu := time.Now(), ownCPU()
	for time.Since(begin) < 2*time.Second {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		for range lookupEvery {
			if err := fn(); err != nil {
				return 0, err
			}
		}
		calls += lookupEvery
	}
	return float64((ownCPU() - cpu).Nanoseconds()) / float64(calls), nil
}

// index measures look-ups in an index of millions of chunks.
func (s *suite) index(ctx context.Context) error {
	dir := filepath.Join(s.dir, "index")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	n := strconv.Itoa(s.o.chunks)
	_, used, err := measure(ctx, command{argv: []string{self, lookupArg, lookupBuild, dir, n}})
	if err != nil {
		return err
	}
	s.log.Printf("index of %s chunks made in %.1f s, %.1f CPU s", n, used.Wall.Seconds(), used.CPU.Seconds())
	to := s.res.row("index")
	to.title, to.metrics = fmt.Sprintf("An index of %s chunks", n), []metric{mOpenMS, mNanos, mRead1, mSegments, mPeak}
	to.note = "ns is CPU time to find that a chunk is known, hashing its 8 bytes included; read is to find and read its record. Memory includes the pages of the mapped index that were touched."
	for range s.o.rounds {
		out, used, err := measure(ctx, command{argv: []string{self, lookupArg, lookupAsk, dir, n}})
		if err != nil {
			return err
		}
		var a lookupAnswer
		if err := json.Unmarshal(out, &a); err != nil {
			return err
		}
		to.add("shale", sample{mOpenMS: a.OpenMS, mNanos: a.Known, mRead1: a.Read, mSegments: float64(a.Segments), mPeak: float64(used.PeakKiB) / 1024})
	}
	return nil
}
