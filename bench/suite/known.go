package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// known runs the rows in which the volume itself tells what changed: a thin pool's metadata, and extents shared on XFS. Only shale
// has them; the report sets them beside the best peer's scan of the same change.
func (s *suite) known(ctx context.Context) error {
	if err := s.thinRows(ctx); err != nil {
		return fmt.Errorf("thin: %w", err)
	}
	if os.Geteuid() != 0 {
		s.note("the rows of reflinked images are left out: mounting an XFS needs root")
		return nil
	}
	if err := onReflinks(ctx, s.w, func(v1, v2 string) error { return s.reflinkRows(ctx, v1, v2) }); err != nil {
		return fmt.Errorf("reflink: %w", err)
	}
	return nil
}

func (s *suite) thinRows(ctx context.Context) error {
	v1, err := os.Open(s.w.v1)
	if err != nil {
		return err
	}
	defer v1.Close()
	v2, err := os.Open(s.w.v2)
	if err != nil {
		return err
	}
	defer v2.Close()
	meta, data := filepath.Join(s.dir, "pool-meta"), filepath.Join(s.dir, "pool-data")
	defer os.Remove(meta)
	defer os.Remove(data)
	pool, err := makeThinPool(meta, data, s.o.seed, v1, v2, s.w.size)
	if err != nil {
		return err
	}
	return s.knownRows(ctx, "thin", "thin pool", &shaleTool{bin: s.o.shale, label: "shale", pool: pool}, s.w.source, s.w.source)
}

func (s *suite) reflinkRows(ctx context.Context, v1, v2 string) error {
	return s.knownRows(ctx, "reflink", "reflinked images on XFS", &shaleTool{bin: s.o.shale, label: "shale"}, v1, v2)
}

// knownRows measures a first and a second backup and the restore of the second, which must be what a scan would have found.
func (s *suite) knownRows(ctx context.Context, id, what string, t *shaleTool, first, second string) error {
	for range s.o.rounds {
		beds, err := s.beds(ctx, []tool{t})
		if err != nil {
			return err
		}
		b := beds[0]
		rows := []imageRow{
			{action: actFirst, title: "First backup, " + what, metrics: append(runMetrics[:4:4], mStored), after: afterBackup},
			{action: actAgain, title: "Backup of the change, " + what, metrics: append(runMetrics[:4:4], mStored), after: afterBackup},
		}
		for i, r := range rows {
			b.source = []string{first, second}[i]
			to := s.res.row(id + "-" + string(r.action))
			to.title, to.metrics = r.title, r.metrics
			got, err := s.act(ctx, r.action, t, b, to)
			if err != nil {
				return err
			}
			if err := r.after(s, t, b, got); err != nil {
				return err
			}
			to.add(t.name(), got)
			s.log.Printf("%-12s %-10s CPU %6.3f s, wall %6.3f s, peak %4.0f MiB, stored %6.1f MiB, read %6.1f MiB", t.name(), to.id, got[mCPU], got[mWall], got[mPeak], got[mStored], got[mRead])
		}
		if err := s.knownRestores(ctx, t, b); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(s.dir, "beds")); err != nil {
			return err
		}
	}
	return nil
}

// knownRestores restores the second backup and compares.
func (s *suite) knownRestores(ctx context.Context, t *shaleTool, b *bed) error {
	if err := emptyOut(ctx, s, b); err != nil {
		return err
	}
	for _, c := range t.commands(actRestore, b) {
		if _, err := output(ctx, c); err != nil {
			return err
		}
	}
	return afterRestore(s, t, b, sample{})
}
