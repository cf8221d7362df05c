package thintest

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Storage is where metadata is written: a file, or a [Memory].
type Storage interface {
	io.ReaderAt
	io.WriterAt
}

// Config describes a pool. Zero values give 64 KiB blocks and nodes as a kernel fills them.
type Config struct {
	DataBlocks   uint64 // size of the data device in pool blocks
	BlockSectors uint32 // of 512 bytes, default 128
	// Fill is the number of entries that AddDevice puts into a node, 3 to 252. The default is 248: what the ascending writes
	// of a volume that is filled for the first time leave on Linux 6.1. thin_restore and kernels before 5.14 leave 126.
	// With less than 126, nodes have room for no more than Fill (down to a multiple of 3): deep trees of few mappings.
	Fill int
}

// Mapping maps a thin block to a data block, at the pool's time.
type Mapping struct {
	Thin, Data uint64
	Time       uint32
}

func (m Mapping) value() uint64 { return m.Data<<24 | uint64(m.Time) }

type device struct {
	root        uint64
	mapped      uint64
	transaction uint64
	created     uint32
	snapped     uint32
}

// Pool is metadata being written. Nothing is readable before Commit. It is for one goroutine.
type Pool struct {
	s       Storage
	cfg     Config
	most    int    // entries at which nodes split
	next    uint64 // first metadata block never used
	time    uint32
	trans   uint64
	held    uint64
	devices map[uint32]*device
	fresh   map[uint64]bool // nodes written since the last snapshot: no other device can share them
	buf     [BlockSize]byte
}

// New begins a pool without devices.
func New(s Storage, cfg Config) *Pool {
	if cfg.BlockSectors == 0 {
		cfg.BlockSectors = 128
	}
	if cfg.Fill == 0 {
		cfg.Fill = 248
	}
	cfg.Fill = min(max(cfg.Fill, 3), pairEntries)
	most := pairEntries
	if cfg.Fill < pairEntries/2 {
		cfg.Fill -= cfg.Fill % 3
		most = cfg.Fill
	}
	return &Pool{s: s, cfg: cfg, most: most, next: 1, devices: map[uint32]*device{}, fresh: map[uint64]bool{}}
}

// Time is the pool's time; it advances with each snapshot.
func (p *Pool) Time() uint32 { return p.time }

// MetaBlocks is the number of metadata blocks used so far; after Commit, the length of the metadata.
func (p *Pool) MetaBlocks() uint64 { return p.next }

// Snapshot makes the device id share all of origin's mappings.
func (p *Pool) Snapshot(id, origin uint32) error {
	o, ok := p.devices[origin]
	if !ok || p.devices[id] != nil {
		return fmt.Errorf("snapshot %d of %d: no such origin, or the ID is taken", id, origin)
	}
	p.time++
	p.trans++
	o.snapped = p.time
	p.devices[id] = &device{root: o.root, mapped: o.mapped, transaction: p.trans, created: p.time, snapped: p.time}
	clear(p.fresh)
	return nil
}

// Delete forgets a device.
func (p *Pool) Delete(id uint32) { delete(p.devices, id) }

// Map maps a thin block of a device, copying the nodes that are shared.
func (p *Pool) Map(id uint32, thin, data uint64) error {
	d, ok := p.devices[id]
	if !ok {
		return fmt.Errorf("map block %d: no device %d", thin, id)
	}
	root, added, err := p.insert(d.root, thin, Mapping{Data: data, Time: p.time}.value())
	d.root = root
	if added {
		d.mapped++
	}
	return err
}

// Unmap removes a mapping, as a discard does; a block that is not mapped is no error.
func (p *Pool) Unmap(id uint32, thin uint64) error {
	d, ok := p.devices[id]
	if !ok {
		return fmt.Errorf("unmap block %d: no device %d", thin, id)
	}
	root, removed, err := p.remove(d.root, thin)
	d.root = root
	if removed {
		d.mapped--
	}
	return err
}

// Hold makes what was mapped until now the pool's metadata snapshot.
func (p *Pool) Hold() error {
	sb, err := p.roots()
	if err != nil {
		return err
	}
	p.held = p.next
	p.next++
	sb.dataBlocks, sb.usedData, sb.usedMeta = 0, 0, 0 // the kernel wipes the space maps' roots in the copy
	sb.metaBlocks = p.next
	clear(p.fresh)
	sb.encode(p.buf[:], p.held)
	return p.write(p.held)
}

// Commit writes the trees of devices and the superblock. The pool can be changed and committed again.
func (p *Pool) Commit() error {
	sb, err := p.roots()
	if err != nil {
		return err
	}
	clear(p.fresh) // what was committed stays
	sb.metaIndex = p.next
	p.next++
	encodeIndex(p.buf[:], sb.metaIndex)
	if err := p.write(sb.metaIndex); err != nil {
		return err
	}
	sb.heldRoot, sb.metaBlocks, sb.usedMeta = p.held, p.next, p.next
	sb.encode(p.buf[:], 0)
	return p.write(0)
}

// roots writes the details tree and the mapping tree's upper level.
func (p *Pool) roots() (*superblock, error) {
	ids := slices.Sorted(maps.Keys(p.devices))
	upper := p.bulk()
	for _, id := range ids {
		if err := upper.add(uint64(id), p.devices[id].root); err != nil {
			return nil, err
		}
	}
	mapping, err := upper.finish()
	if err != nil {
		return nil, err
	}
	if len(ids) > detailsMax {
		return nil, fmt.Errorf("%d devices: at most %d are written", len(ids), detailsMax)
	}
	details := p.next
	p.next++
	nodeHead(p.buf[:], details, true, len(ids), detailsMax, detailsSize)
	le := binary.LittleEndian
	for i, id := range ids {
		d := p.devices[id]
		le.PutUint64(p.buf[nodeHeader+8*i:], uint64(id))
		v := p.buf[nodeHeader+8*detailsMax+detailsSize*i:]
		le.PutUint64(v, d.mapped)
		le.PutUint64(v[8:], d.transaction)
		le.PutUint32(v[16:], d.created)
		le.PutUint32(v[20:], d.snapped)
	}
	seal(p.buf[:], nodeSalt)
	if err := p.write(details); err != nil {
		return nil, err
	}
	return &superblock{
		time: p.time, transaction: p.trans, dataBlocks: p.cfg.DataBlocks, blockSectors: p.cfg.BlockSectors,
		mappingRoot: mapping, detailsRoot: details,
	}, nil
}

// write puts p.buf into a metadata block.
func (p *Pool) write(nr uint64) error {
	_, err := p.s.WriteAt(p.buf[:], int64(nr)*BlockSize)
	return err
}
