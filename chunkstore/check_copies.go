package chunkstore

import (
	"context"
	"slices"
)

// unreadable reports whether a record cannot be read, because no place of it is good, and by which damage.
func (c *check) unreadable(k *key) (damage int, unreadable bool) {
	if damage, unreadable = c.lost[*k]; unreadable || (len(c.bad) == 0 && len(c.short) == 0) {
		return damage, unreadable
	}
	for _, l := range c.r.index.places(k) {
		n, bad := c.badAt(k, &l)
		if !bad {
			return 0, false
		}
		if n >= 0 {
			damage, unreadable = n, true
		}
	}
	return damage, unreadable
}

// badAt reports whether the place of a record is bad, and by which damage; -1: a prune has removed the pack.
func (c *check) badAt(k *key, l *location) (damage int, bad bool) {
	if _, gone := c.gone[l.pack.id]; gone {
		return -1, true
	}
	if s, ok := c.short[l.pack.id]; ok && int64(l.off)+int64(l.stored) > s.size {
		return s.damage, true
	}
	for _, p := range c.bad[*k] {
		if p.pack == l.pack.id && p.off == l.off {
			return p.damage, true
		}
	}
	return 0, false
}

// copies counts the records that are damaged in one place and sound in another.
func (c *check) copies(ctx context.Context) error {
	if len(c.bad) == 0 && len(c.short) == 0 {
		return nil
	}
	for _, s := range c.segs {
		for i := range s.count {
			if i%4096 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			l, err := s.locationAt(i)
			if err != nil {
				continue
			}
			k := s.entryAt(i).key
			n, bad := c.badAt(&k, &l)
			if !bad || n < 0 {
				continue
			}
			if _, lost := c.unreadable(&k); !lost {
				c.report.Damage[n].Copies++
			}
		}
	}
	return nil
}

// repaired takes back the damage of packs that a repair has condemned, where no backup loses by it.
func (c *check) repaired(context.Context) error {
	c.report.Damage = slices.DeleteFunc(c.report.Damage, func(d Damage) bool {
		id, _, ok := parsePackObject(d.Object)
		return ok && len(d.Touches) == 0 && c.trash.damaged(id)
	})
	return nil
}

// unused counts the entries that no backup refers to.
func (c *check) unused(context.Context) error {
	for i, s := range c.segs {
		for j := range s.count {
			if c.seen[i][j/64].Load()&(1<<(j%64)) == 0 {
				c.report.Unused++
			}
		}
	}
	return nil
}
