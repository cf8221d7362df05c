package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// image is one row over the image: how a tool's run is set up, and what is looked at when it is over.
type imageRow struct {
	action  action
	title   string
	note    string
	metrics []metric
	before  func(ctx context.Context, s *suite, b *bed) error
	after   func(s *suite, t tool, b *bed, r sample) error
}

var runMetrics = []metric{mCPU, mWall, mPeak, mRead}

// imageRows are in the order in which each round runs them.
func imageRows() []imageRow {
	show := func(second bool) func(context.Context, *suite, *bed) error {
		return func(_ context.Context, s *suite, b *bed) error {
			b.source = s.w.source
			if second {
				return s.w.show(s.w.v2)
			}
			return s.w.show(s.w.v1)
		}
	}
	return []imageRow{
		{actFirst, "First backup", "", append(runMetrics[:4:4], mStored, mFiles), show(false), afterBackup},
		{actAgain, "Backup of the changed image, nothing known of the change", "Stored is what this backup added.", append(runMetrics[:4:4], mStored), show(true), afterBackup},
		{actVerify, "Verify all that is stored", "", runMetrics, nil, nil},
		{actRestore, "Restore to a file", "On disk is what the file takes; holes that are not made again cost here.", append(runMetrics[:4:4], mOnDisk), emptyOut, afterRestore},
		{actOnto, "Restore onto a file that holds the first backup", "", runMetrics, olderState, afterOnto},
	}
}

// afterBackup records how much the store has grown.
func afterBackup(_ *suite, t tool, b *bed, r sample) error {
	bytes, files, err := stored(t.store(b))
	if err != nil {
		return err
	}
	r[mStored], r[mFiles] = toMiB(bytes-b.stored), float64(files)
	b.stored = bytes
	return nil
}

func emptyOut(_ context.Context, s *suite, b *bed) error {
	b.out = filepath.Join(s.dir, "out")
	if err := os.RemoveAll(b.out); err != nil {
		return err
	}
	return os.Mkdir(b.out, 0o755)
}

// afterRestore compares what was restored, and removes it.
func afterRestore(s *suite, t tool, b *bed, r sample) error {
	path := t.restored(b)
	if err := sameContent(path, s.w.v2); err != nil {
		return err
	}
	n, err := allocated(path)
	if err != nil {
		return err
	}
	r[mOnDisk] = toMiB(n)
	return os.RemoveAll(b.out)
}

// olderState makes the file that an earlier restore has left, below a folder under its own absolute path: some tools want it so.
func olderState(ctx context.Context, s *suite, b *bed) error {
	b.onto = filepath.Join(s.dir, "onto") + b.source
	return copySparse(ctx, s.w.v1, b.onto)
}

func afterOnto(s *suite, _ tool, b *bed, _ sample) error {
	if err := sameContent(b.onto, s.w.v2); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.dir, "onto"))
}

// images runs every round: each row by every tool before the next row, so that a change of the machine's mood hits all.
func (s *suite) images(ctx context.Context) error {
	for round := range s.o.rounds {
		tools := rotated(s.tools, round)
		beds, err := s.beds(ctx, tools)
		if err != nil {
			return err
		}
		for _, r := range imageRows() {
			run := func(t tool, b *bed) error { return s.imageRow(ctx, r, t, b) }
			if err := s.each(ctx, string(r.action), tools, beds, run); err != nil {
				return err
			}
		}
		if err := s.each(ctx, "mount", tools, beds, func(t tool, b *bed) error { return s.mountRow(ctx, t, b) }); err != nil {
			return err
		}
		if err := s.each(ctx, "prune", tools, beds, func(t tool, b *bed) error { return s.pruneRow(ctx, t, b) }); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(s.dir, "beds")); err != nil {
			return err
		}
	}
	return nil
}

// each lets every tool run. A peer that fails is noted and left out from there on; a failure of ours ends the suite.
func (s *suite) each(ctx context.Context, what string, tools []tool, beds []*bed, run func(tool, *bed) error) error {
	for i, t := range tools {
		if beds[i].failed {
			continue
		}
		err := run(t, beds[i])
		if err != nil && (isShale(t.name()) || ctx.Err() != nil) {
			return fmt.Errorf("%s, %s: %w", t.name(), what, err)
		}
		if err != nil {
			beds[i].failed = true
			s.note("%s failed at %s: %v", t.name(), what, err)
		}
	}
	return nil
}

func rotated[T any](v []T, by int) []T {
	by %= len(v)
	return append(append([]T{}, v[by:]...), v[:by]...)
}

// beds gives each tool a fresh repository.
func (s *suite) beds(ctx context.Context, tools []tool) ([]*bed, error) {
	var beds []*bed
	for _, t := range tools {
		b := &bed{dir: filepath.Join(s.dir, "beds", t.name())}
		if err := os.MkdirAll(b.dir, 0o755); err != nil {
			return nil, err
		}
		if err := t.prepare(ctx, b); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", t.name(), err)
		}
		var err error
		if b.stored, _, err = stored(t.store(b)); err != nil {
			return nil, err
		}
		beds = append(beds, b)
	}
	return beds, nil
}

// imageRow runs one row by one tool.
func (s *suite) imageRow(ctx context.Context, r imageRow, t tool, b *bed) error {
	if r.before != nil {
		if err := r.before(ctx, s, b); err != nil {
			return err
		}
	}
	to := s.res.row(string(r.action))
	to.title, to.note, to.metrics = r.title, r.note, r.metrics
	got, err := s.act(ctx, r.action, t, b, to)
	if err != nil || got == nil {
		return err
	}
	if r.after != nil {
		if err := r.after(s, t, b, got); err != nil {
			return err
		}
	}
	to.add(t.name(), got)
	s.log.Printf("%-12s %-10s CPU %6.2f s, wall %6.2f s, peak %4.0f MiB, stored %6.1f MiB", t.name(), r.action, got[mCPU], got[mWall], got[mPeak], got[mStored])
	return nil
}

// act measures what the tool does for an action; nil where it cannot.
func (s *suite) act(ctx context.Context, a action, t tool, b *bed, to *row) (sample, error) {
	commands := t.commands(a, b)
	if len(commands) == 0 {
		return nil, nil
	}
	var total cost
	var answer []byte
	for _, c := range commands {
		out, used, err := measure(ctx, c)
		if err != nil {
			return nil, err
		}
		total.Wall += used.Wall
		total.CPU += used.CPU
		total.Read += used.Read
		total.Others += used.Others
		total.PeakKiB = max(total.PeakKiB, used.PeakKiB)
		answer = out
		to.commands[t.name()] = s.readable(c)
	}
	return sampleOf(total), t.observe(ctx, a, b, answer)
}

// pruneRow removes the first backup and gives its space back.
func (s *suite) pruneRow(ctx context.Context, t tool, b *bed) error {
	to := s.res.row("prune")
	to.title, to.metrics = "Remove the first backup and give its space back", append(runMetrics[:4:4], mStored)
	to.note = "Stored is what was given back."
	if len(t.commands(actPrune, b)) == 0 {
		return nil
	}
	drop, err := s.act(ctx, actDrop, t, b, to)
	if err != nil {
		return err
	}
	dropped := to.commands[t.name()]
	got, err := s.act(ctx, actPrune, t, b, to)
	if err != nil {
		return err
	}
	to.commands[t.name()] = dropped + " && " + to.commands[t.name()]
	for _, m := range []metric{mCPU, mWall, mRead, mOthers} {
		got[m] += drop[m]
	}
	got[mPeak] = max(got[mPeak], drop[mPeak])
	now, _, err := stored(t.store(b))
	if err != nil {
		return err
	}
	got[mStored] = toMiB(b.stored - now)
	to.add(t.name(), got)
	return nil
}
