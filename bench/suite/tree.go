package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// tree measures the peers on a folder of many small files; shale backs up images and devices only.
func (s *suite) tree(ctx context.Context) error {
	dir := filepath.Join(s.dir, "tree")
	defer os.RemoveAll(dir)
	for round := range s.o.rounds {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := makeTree(dir, s.o.seed, s.o.files); err != nil {
			return err
		}
		tools := rotated(treeTools(s.tools), round)
		beds, err := s.beds(ctx, tools)
		if err != nil {
			return err
		}
		for _, a := range []action{actFirst, actAgain} {
			if a == actAgain {
				if err := changeTree(dir, s.o.seed, s.o.files); err != nil {
					return err
				}
			}
			r := imageRow{action: a, metrics: append(runMetrics[:4:4], mStored)}
			to := s.res.row("tree-" + string(a))
			to.title, to.metrics = fmt.Sprintf("A folder of %d files: backup %s", s.o.files, map[action]string{actFirst: "of all", actAgain: "of 1 % changed"}[a]), r.metrics
			to.note = "shale has no source for folders: it is not in this table."
			for i, t := range tools {
				beds[i].source = dir + "/." // kopia is given the folder of a source
				if _, ok := t.(*kopiaTool); !ok {
					beds[i].source = dir
				}
				got, err := s.act(ctx, a, t, beds[i], to)
				if err != nil {
					return err
				}
				if err := afterBackup(s, t, beds[i], got); err != nil {
					return err
				}
				to.add(t.name(), got)
			}
		}
		if err := os.RemoveAll(filepath.Join(s.dir, "beds")); err != nil {
			return err
		}
	}
	return nil
}

// treeTools are those whose backup command takes a folder too.
func treeTools(tools []tool) (out []tool) {
	for _, t := range tools {
		switch t.(type) {
		case *resticTool, *borgTool, *kopiaTool:
			out = append(out, t)
		}
	}
	return out
}
