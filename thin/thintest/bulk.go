package thintest

import (
	"fmt"
	"iter"
)

// AddDevice makes a device with the given mappings, in ascending order of thin blocks. It needs memory for one path.
func (p *Pool) AddDevice(id uint32, mappings iter.Seq[Mapping]) error {
	if p.devices[id] != nil {
		return fmt.Errorf("device %d exists", id)
	}
	b := p.bulk()
	var n uint64
	for m := range mappings {
		if err := b.add(m.Thin, m.value()); err != nil {
			return fmt.Errorf("device %d: %w", id, err)
		}
		n++
	}
	root, err := b.finish()
	if err != nil {
		return fmt.Errorf("device %d: %w", id, err)
	}
	p.devices[id] = &device{root: root, mapped: n, transaction: p.trans, created: p.time, snapped: p.time}
	return nil
}

// bulk builds a tree from ascending entries, all levels at once. A level holds back up to two nodes' entries, so that its
// last nodes are not nearly empty, which thin_delta refuses.
type bulk struct {
	p      *Pool
	levels []*node // what is not written yet, leaves first
}

func (p *Pool) bulk() *bulk { return &bulk{p: p, levels: []*node{{leaf: true}}} }

func (b *bulk) add(key, value uint64) error { return b.addAt(0, key, value) }

func (b *bulk) addAt(level int, key, value uint64) error {
	if level == len(b.levels) {
		b.levels = append(b.levels, &node{})
	}
	n := b.levels[level]
	if l := len(n.keys); l > 0 && n.keys[l-1] >= key {
		return fmt.Errorf("key %d after %d", key, n.keys[l-1])
	}
	n.keys = append(n.keys, key)
	n.vals = append(n.vals, value)
	if len(n.keys) < 2*b.p.cfg.Fill {
		return nil
	}
	return b.flush(level, b.p.cfg.Fill)
}

// flush writes the first entries of a level as a node and names it to the level above.
func (b *bulk) flush(level, entries int) error {
	n := b.levels[level]
	first := n.keys[0]
	nr, err := b.p.put(&node{leaf: n.leaf, keys: n.keys[:entries], vals: n.vals[:entries]})
	if err != nil {
		return err
	}
	n.keys = n.keys[:copy(n.keys, n.keys[entries:])]
	n.vals = n.vals[:copy(n.vals, n.vals[entries:])]
	return b.addAt(level+1, first, nr)
}

func (b *bulk) finish() (root uint64, err error) {
	for level := 0; ; level++ {
		rest := len(b.levels[level].keys)
		if level+1 == len(b.levels) && rest <= b.p.most {
			return b.p.put(b.levels[level])
		}
		if rest > b.p.most {
			if err := b.flush(level, rest/2); err != nil {
				return 0, err
			}
		}
		if err := b.flush(level, len(b.levels[level].keys)); err != nil {
			return 0, err
		}
	}
}
