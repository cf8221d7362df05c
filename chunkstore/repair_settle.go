package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// drop takes out of the index what nobody can read: else writers would go on to count on it. Entries of damaged packs that can be read
// stay until a prune deletes the packs: a backup that was recorded meanwhile may need them.
func (p *repair) drop(ctx context.Context) error {
	const tries = 5 // other hosts condemn packs meanwhile
	for try := 1; ; try++ {
		if err := p.r.index.refresh(ctx); err != nil {
			return err
		}
		err := p.dropOnce(ctx)
		if try == tries || !errors.Is(err, errTrashChanged) {
			return err
		}
	}
}

func (p *repair) dropOnce(ctx context.Context) error {
	x := p.r.index
	segs, _, err := x.whole(ctx)
	if err != nil {
		return err
	}
	defer releaseAll(segs)
	if err := x.changing.lock(ctx); err != nil {
		return err
	}
	defer x.changing.unlock()
	var in []*segment
	for _, s := range segs {
		if p.harmed(s) {
			in = append(in, s)
		}
	}
	if len(in) == 0 {
		return nil
	}
	_, err = x.merge(ctx, in, p.deadEnd)
	return err
}

// harmed reports whether the segment is damaged in the backend, or has an entry that nobody can read.
func (p *repair) harmed(s *segment) bool {
	if slices.ContainsFunc(p.report.Damage, func(d Damage) bool { return d.Object == s.name }) {
		return true
	}
	names := false
	for i := range s.packs {
		_, void := p.void[s.pack(i).id]
		names = names || void
	}
	for i := 0; names && i < s.count; i++ {
		if l, err := s.locationAt(i); err == nil {
			k := s.entryAt(i).key
			if p.deadEnd(&k, &l) {
				return true
			}
		}
	}
	return false
}

// deadEnd reports whether a place is one where a record cannot be read.
func (p *repair) deadEnd(k *key, l *location) bool {
	if _, void := p.void[l.pack.id]; !void {
		return false
	}
	_, lost := p.check.lost[*k]
	_, bad := p.check.badAt(k, l)
	return lost || bad
}

// sum checks what is left, and says what backups have lost.
func (p *repair) sum(ctx context.Context) error {
	if len(p.report.Damage) == 0 && len(p.report.Objects) == 0 {
		return nil
	}
	c, err := p.r.check(ctx, CheckOptions{Level: CheckStructure})
	if err != nil {
		return err
	}
	type name struct{ volume, backup string }
	lost := map[name][]Range{}
	for _, d := range c.report.Damage {
		for _, t := range d.Touches {
			n := name{t.Volume, t.Backup}
			lost[n] = append(lost[n], t.Range)
		}
		if len(d.Touches) == 0 {
			p.report.Left = append(p.report.Left, d)
		}
	}
	for n, ranges := range lost {
		b := LostBackup{Volume: n.volume, Backup: n.backup, Ranges: mergeRanges(ranges)}
		for _, r := range b.Ranges {
			b.Bytes += r.Len
		}
		p.report.Lost = append(p.report.Lost, b)
	}
	slices.SortFunc(p.report.Lost, func(a, b LostBackup) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Backup, b.Backup))
	})
	return nil
}

// mergeRanges sorts ranges and joins those that meet.
func mergeRanges(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && r.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].End(), r.End()) - out[n-1].Off
			continue
		}
		out = append(out, r)
	}
	return out
}
