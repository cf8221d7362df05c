package thintest

import (
	"fmt"
	"slices"
)

// put writes a node into a new block.
func (p *Pool) put(n *node) (uint64, error) {
	nr := p.next
	p.next++
	p.fresh[nr] = true
	n.most = p.most
	n.encode(p.buf[:], nr)
	return nr, p.write(nr)
}

// update writes a changed node: in place when nothing can share it, else into a new block.
func (p *Pool) update(nr uint64, n *node) (uint64, error) {
	if !p.fresh[nr] {
		return p.put(n)
	}
	n.encode(p.buf[:], nr)
	return nr, p.write(nr)
}

func (p *Pool) get(nr uint64) (*node, error) {
	if _, err := p.s.ReadAt(p.buf[:], int64(nr)*BlockSize); err != nil {
		return nil, fmt.Errorf("read back metadata block %d: %w", nr, err)
	}
	return decodeNode(p.buf[:]), nil
}

// insert returns the tree's new root, and whether the key is new.
func (p *Pool) insert(root, key, value uint64) (uint64, bool, error) {
	nr, right, added, err := p.insertAt(root, key, value)
	if err != nil || right == nil {
		return nr, added, err
	}
	left, err := p.get(nr)
	if err != nil {
		return 0, false, err
	}
	nr, err = p.put(&node{keys: []uint64{left.keys[0], right.key}, vals: []uint64{nr, right.block}})
	return nr, added, err
}

// sibling is the upper half of a node that was split.
type sibling struct{ key, block uint64 }

func (p *Pool) insertAt(nr, key, value uint64) (uint64, *sibling, bool, error) {
	n, err := p.get(nr)
	if err != nil {
		return 0, nil, false, err
	}
	i, found := slices.BinarySearch(n.keys, key)
	added := !found
	switch {
	case n.leaf && found:
		n.vals[i] = value
	case n.leaf:
		n.keys, n.vals = slices.Insert(n.keys, i, key), slices.Insert(n.vals, i, value)
	default:
		if !found {
			i = max(i-1, 0)
		}
		var right *sibling
		if n.vals[i], right, added, err = p.insertAt(n.vals[i], key, value); err != nil {
			return 0, nil, false, err
		}
		n.keys[i] = min(n.keys[i], key)
		if right != nil {
			n.keys, n.vals = slices.Insert(n.keys, i+1, right.key), slices.Insert(n.vals, i+1, right.block)
		}
	}
	var right *sibling
	if len(n.keys) > p.most {
		half := len(n.keys) / 2
		upper := &node{leaf: n.leaf, keys: n.keys[half:], vals: n.vals[half:]}
		block, err := p.put(upper)
		if err != nil {
			return 0, nil, false, err
		}
		right = &sibling{upper.keys[0], block}
		n.keys, n.vals = n.keys[:half], n.vals[:half]
	}
	nr, err = p.update(nr, n)
	return nr, right, added, err
}

// remove returns the tree's new root, and whether the key was there.
func (p *Pool) remove(root, key uint64) (uint64, bool, error) {
	nr, removed, err := p.removeAt(root, key)
	if err != nil || !removed {
		return root, false, err
	}
	if nr == 0 {
		nr, err = p.put(&node{leaf: true})
		return nr, true, err
	}
	for {
		n, err := p.get(nr)
		if err != nil {
			return 0, false, err
		}
		if n.leaf || len(n.keys) > 1 {
			return nr, true, nil
		}
		nr = n.vals[0] // a root with one child is no use
	}
}

// removeAt returns block 0 for a node that became empty. Nodes are not merged.
func (p *Pool) removeAt(nr, key uint64) (uint64, bool, error) {
	n, err := p.get(nr)
	if err != nil {
		return 0, false, err
	}
	i, found := slices.BinarySearch(n.keys, key)
	if !n.leaf && !found {
		i--
	}
	if i < 0 || n.leaf && !found {
		return nr, false, nil
	}
	child := uint64(0)
	if !n.leaf {
		var removed bool
		if child, removed, err = p.removeAt(n.vals[i], key); err != nil || !removed {
			return nr, false, err
		}
	}
	if child != 0 {
		n.vals[i] = child
	} else {
		n.keys, n.vals = slices.Delete(n.keys, i, i+1), slices.Delete(n.vals, i, i+1)
	}
	if len(n.keys) == 0 {
		return 0, true, nil
	}
	nr, err = p.update(nr, n)
	return nr, true, err
}
