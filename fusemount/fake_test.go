package fusemount

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/shalebackup/shale/chunkstore"
	"golang.org/x/sync/errgroup"
)

// fakeRepo is a repository in memory whose chunks are compressed, so that reading has the cost that it has in a real one.
type fakeRepo struct {
	enc *zstd.Encoder
	dec *zstd.Decoder

	mu      sync.Mutex
	volumes map[string][]*fakeBackup // guarded by mu
	stored  map[ID][]byte            // compressed; guarded by mu
	plain   map[ID]int               // length; guarded by mu
	bad     map[ID]bool              // damaged; guarded by mu

	records, lists, reads atomic.Int64 // records read, chunk lists begun, chunks read
	gate                  atomic.Pointer[func(context.Context) error]
}

type fakeBackup struct {
	Entry
	repo   *fakeRepo
	image  []byte
	chunks []Chunk
	data   int64
}

type fakeRecord struct {
	Volume string `json:"volume"`
	ID     string `json:"id"`
	Size   int    `json:"size"`
}

func newFakeRepo(t testing.TB) *fakeRepo {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dec.Close)
	return &fakeRepo{
		enc: enc, dec: dec, volumes: make(map[string][]*fakeBackup), stored: make(map[ID][]byte),
		plain: make(map[ID]int), bad: make(map[ID]bool),
	}
}

// add backs image up as the newest of volume. rng decides where chunks end.
func (r *fakeRepo) add(volume string, image []byte, rng *rand.Rand) *fakeBackup {
	const block = 4096
	var chunks []Chunk
	data := int64(0)
	for off := 0; off < len(image); {
		end := min(off+block, len(image))
		if isZero(image[off:end]) {
			off = end
			continue
		}
		stop := min(off+(1+rng.IntN(31))*block, len(image))
		for end < stop && !isZero(image[end:min(end+block, stop)]) {
			end = min(end+block, stop)
		}
		id := ID(sha256.Sum256(image[off:end]))
		r.mu.Lock()
		if r.stored[id] == nil {
			r.stored[id] = r.enc.EncodeAll(image[off:end], nil)
			r.plain[id] = end - off
		}
		r.mu.Unlock()
		chunks = append(chunks, Chunk{Off: int64(off), Len: end - off, ID: id})
		data += int64(end - off)
		off = end
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.volumes[volume])
	b := &fakeBackup{
		Entry: Entry{ID: fmt.Sprintf("backup-%016x", 1000+n), Time: time.Unix(1_700_000_000+int64(n), 0)},
		repo:  r, image: image, chunks: chunks, data: data,
	}
	r.volumes[volume] = append(r.volumes[volume], b)
	return b
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

func (r *fakeRepo) Volumes(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name := range r.volumes {
		names = append(names, name)
	}
	return names, nil
}

func (r *fakeRepo) Backups(_ context.Context, volume string) ([]Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Entry
	for _, b := range r.volumes[volume] {
		list = append(list, b.Entry)
	}
	return list, nil
}

func (r *fakeRepo) Backup(_ context.Context, volume, id string) (*Backup, error) {
	r.records.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.volumes[volume] {
		if b.ID == id {
			return &Backup{
				Time: b.Time, Record: fakeRecord{volume, id, len(b.image)}, Image: b, Size: int64(len(b.image)), Data: b.data,
			}, nil
		}
	}
	return nil, fmt.Errorf("backup %s: %w", id, chunkstore.ErrNotFound)
}

func (b *fakeBackup) Chunks(ctx context.Context, off, end int64) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		b.repo.lists.Add(1)
		i, _ := slices.BinarySearchFunc(b.chunks, off, func(c Chunk, off int64) int {
			if c.Off+int64(c.Len) <= off {
				return -1
			}
			return 1
		})
		for ; i < len(b.chunks) && b.chunks[i].Off < end; i++ {
			if err := ctx.Err(); err != nil {
				yield(Chunk{}, err)
				return
			}
			if !yield(b.chunks[i], nil) {
				return
			}
		}
	}
}

func (r *fakeRepo) ReadChunk(ctx context.Context, id ID, dst []byte) ([]byte, error) {
	r.reads.Add(1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if gate := r.gate.Load(); gate != nil {
		if err := (*gate)(ctx); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	stored, plain, bad := r.stored[id], r.plain[id], r.bad[id]
	r.mu.Unlock()
	if stored == nil {
		return nil, fmt.Errorf("chunk %x: %w", id, chunkstore.ErrNotFound)
	}
	if bad {
		return nil, &chunkstore.CorruptError{Object: "data/fake", Off: 4711, Err: errors.New("record checksum does not match")}
	}
	if cap(dst) < plain {
		dst = make([]byte, 0, plain)
	}
	return r.dec.DecodeAll(stored, dst[:0])
}

func (r *fakeRepo) FillChunks(ctx context.Context, chunks []Chunk, dst func(i int) []byte, done func(i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, ch := range chunks {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			to := dst(i)
			data, err := r.ReadChunk(ctx, ch.ID, to[:0])
			if err != nil {
				return err
			}
			copy(to, data)
			return done(i)
		})
	}
	return g.Wait()
}

// damage makes the chunk of b at byte off unreadable, and returns it.
func (b *fakeBackup) damage(t testing.TB, off int64) Chunk {
	t.Helper()
	b.repo.mu.Lock()
	defer b.repo.mu.Unlock()
	for _, c := range b.chunks {
		if c.Off <= off && off < c.Off+int64(c.Len) {
			b.repo.bad[c.ID] = true
			return c
		}
	}
	t.Fatalf("no chunk at byte %d", off)
	return Chunk{}
}

// randomImage has size bytes: runs of holes and of data that compresses about 2 to 1.
func randomImage(rng *rand.Rand, size int) []byte {
	image := make([]byte, size)
	for off := 0; off < size; {
		n := min((1+rng.IntN(64))*4096, size-off)
		if rng.IntN(4) > 0 {
			fillText(rng, image[off:off+n])
		}
		off += n
	}
	return image
}

// fillText fills b with lines of words and a random number each: it compresses about 2 to 1, and no two pages are the same.
func fillText(rng *rand.Rand, b []byte) {
	for len(b) > 0 {
		var line [32]byte
		copy(line[:], lines[rng.IntN(len(lines))])
		binary.LittleEndian.PutUint64(line[24:], rng.Uint64()|1)
		b = b[copy(b, line[:]):]
	}
}

var lines = []string{
	"volume, snapshot, backup", "chunk record pack index ", "segment of the index and", "what is known of a pack\n",
	"0000000000000000 000 000", "the sum of all that fell", "backup of the volume and", "no hole, but its edges.\n",
}

// seeded returns a random source, and prints its seed if the test fails.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}
