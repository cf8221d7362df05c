package chunkstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Options say how this process uses a repository; the zero value is good.
type Options struct {
	// CacheDir holds copies of the index and the journals of writers, in a folder of the repository's ID. Empty: the index is
	// kept in memory, and an interrupted backup starts anew.
	CacheDir string
	// Parallel bounds the goroutines that read, decode and write objects at once; default GOMAXPROCS, and for reading on a
	// backend.Distant as many as it wants.
	Parallel int
	// Damaged is told of each damage that a read met and another copy of the record made good; from several goroutines; may be nil.
	Damaged func(err error)
	// Credentials open a sealed repository.
	Credentials Credentials
}

// Repository is an open repository.
type Repository struct {
	be       backend.Backend
	far      bool // requests take long
	atOnce   int  // goroutines that wait for the backend at once
	cfg      Config
	opts     Options
	sealer   sealer
	keys     *keyring // nil: not sealed
	chunkIDs *hasher
	nodeIDs  *hasher
	nameKey  *hasher
	cutter   Cutter
	dec      *decoder
	index    *index
	nodes    *nodeCache
	trees    *treeCache // nil: none
	bufs     buffers
	objects  func() (encoder, error) // compresses what buildObject builds; made on first use
	bootTime func() time.Duration    // bootTime; tests have another
	failures readFailures            // of packs, lately
	idMu     sync.Mutex              // guards lastID
	lastID   string                  // of the backups that this process has recorded
	off      pruneRules              // rules that tests switch off; all are on
}

// Init makes a repository at be, sealed if there are recipients. ErrRepositoryExists when there is one.
func Init(ctx context.Context, be backend.Backend, o InitOptions) (Config, error) {
	cfg, err := newConfig(o)
	if err != nil {
		return cfg, fmt.Errorf("new repository: %w", err)
	}
	b, err := cfg.encode()
	if err != nil {
		return cfg, err
	}
	if err := provePutIfAbsent(ctx, be); err != nil {
		return cfg, fmt.Errorf("%s: %w", be.Location(), err)
	}
	undo, err := initKeys(ctx, be, &cfg, o.Recipients) // first: a configuration without a key would be no use to anybody
	if err == nil {
		err = be.PutIfAbsent(ctx, objectConfig, b)
	}
	if errors.Is(err, backend.ErrExist) {
		err = fmt.Errorf("%s: %w", be.Location(), ErrRepositoryExists)
	} else if err != nil {
		err = fmt.Errorf("write the repository's configuration: %w", err)
	}
	if err != nil {
		return cfg, errors.Join(err, undo())
	}
	newPins(o.CacheDir, be.Location(), &cfg).renew(&cfg)
	if cfg.Sealed() {
		cfg.Secret = ""
	}
	return cfg, nil
}

// provePutIfAbsent finds out whether the place keeps what PutIfAbsent promises, before a repository relies on it and before it could
// replace the configuration of one: some servers pass over the condition and store.
func provePutIfAbsent(ctx context.Context, be backend.Backend) error {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	name := prefixProbe + hex.EncodeToString(b[:])
	err := be.PutIfAbsent(ctx, name, nil)
	if err == nil {
		if err = be.PutIfAbsent(ctx, name, nil); err == nil {
			err = backend.ErrNoPutIfAbsent
		} else if errors.Is(err, backend.ErrExist) {
			err = nil
		}
	}
	// Where keys may not delete, a probe of no bytes stays, which nobody minds.
	_ = be.Delete(context.WithoutCancel(ctx), name)
	if err != nil {
		return fmt.Errorf("try whether two writers are kept from creating one object: %w", err)
	}
	return nil
}

// Open opens the repository at be: it reads the configuration and lists the index, of which it fetches what the cache lacks.
// Errors: ErrNoRepository, ErrUnsupported, ErrCorrupt; ErrSealed, ErrKey, ErrNotSealed, ErrReplaced.
func Open(ctx context.Context, be backend.Backend, o Options) (*Repository, error) {
	r, err := openWithoutIndex(ctx, be, o)
	if err != nil {
		return nil, err
	}
	if err := r.index.refresh(ctx); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// openWithoutIndex is Open without looking at the index.
func openWithoutIndex(ctx context.Context, be backend.Backend, o Options) (*Repository, error) {
	cfg, err := loadConfig(ctx, be)
	if err != nil {
		return nil, err
	}
	pins := newPins(o.CacheDir, be.Location(), &cfg)
	if err := pins.checkConfig(&cfg); err != nil {
		return nil, err
	}
	if !cfg.Sealed() {
		if o.Credentials.Sealed {
			return nil, fmt.Errorf("%s: %w", be.Location(), ErrNotSealed)
		}
		return newRepository(be, cfg, nil, o)
	}
	keys, err := unlock(ctx, be, &cfg, o.Credentials)
	if err != nil {
		return nil, err
	}
	if err := pins.checkKeys(&cfg, keys.sealer.masters()); err != nil {
		return nil, err
	}
	return newRepository(be, cfg, keys, o)
}

// newRepository makes the repository of that configuration; keys are for a sealed one.
func newRepository(be backend.Backend, cfg Config, keys *keyring, o Options) (*Repository, error) {
	atOnce := o.Parallel
	distant, far := backend.As[backend.Distant](be)
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
		if atOnce = o.Parallel; far {
			atOnce = max(atOnce, distant.AtOnce())
		}
	}
	var s secret
	var seal sealer = plainSealer{}
	if keys != nil {
		s, seal = keys.sealer.masters()[0], keys.sealer
	} else if _, err := hex.Decode(s[:], []byte(cfg.Secret)); err != nil {
		return nil, err
	}
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	r := &Repository{
		be: be, far: far, atOnce: atOnce, cfg: cfg, opts: o, sealer: seal, keys: keys, dec: dec,
		chunkIDs: newHasher(s.derive(contextChunk)),
		nodeIDs:  newHasher(s.derive(contextNode)),
		nameKey:  newHasher(s.derive(contextName)),
		cutter:   Cutter{mask: 1<<cfg.CutBits - 1, max: cfg.MaxChunk},
		nodes:    newNodeCache(nodeCacheBytes),
		bootTime: bootTime,
	}
	if r.sealer.overhead() > 0 { // chunk lengths tell nothing about known content
		k := s.derive(contextCut)
		r.cutter.seed = binary.LittleEndian.Uint64(k[:]) | 1
	}
	r.objects = sync.OnceValues(func() (encoder, error) { return newEncoder("zstd:1", 1) })
	if r.index, err = newIndex(r); err != nil {
		return nil, err
	}
	r.trees = newTreeCache(o.CacheDir, cfg.ID, treeCacheBytes)
	return r, nil
}

// Close releases the memory-mapped index. Nothing of the repository may be used afterwards.
func (r *Repository) Close() error { return r.index.close() }

// Config returns the repository's constants without its secret.
func (r *Repository) Config() Config {
	c := r.cfg
	c.Secret = ""
	return c
}

// ID is the repository's identity, 32 hex digits.
func (r *Repository) ID() string { return r.cfg.ID }

// Location is where the repository is, for messages.
func (r *Repository) Location() string { return r.be.Location() }

// Parallel is how many goroutines are to work on it at once (Options.Parallel).
func (r *Repository) Parallel() int { return r.atOnce }

// SpanBytes is the length of a span.
func (r *Repository) SpanBytes() int { return r.cfg.SpanBytes }

// Cutter cuts spans as this repository wants them cut.
func (r *Repository) Cutter() *Cutter { return &r.cutter }

// ChunkID returns the ID that p has as a chunk.
func (r *Repository) ChunkID(p []byte) (id ID) {
	r.chunkIDs.id(&id, p)
	return id
}

// Refresh learns what other writers have added since Open.
func (r *Repository) Refresh(ctx context.Context) error { return r.index.refresh(ctx) }
