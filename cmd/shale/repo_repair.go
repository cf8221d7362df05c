package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

func newRepoRepairCommand(a *app) *cobra.Command {
	o := chunkstore.RepairOptions{Level: chunkstore.CheckStored}
	var from []string
	var structure, data bool
	cmd := &cobra.Command{
		Use:   "repair URL",
		Short: "Mend what is damaged, as far as its content can be had",
		Long: `Mend what is damaged, as far as its content can be had. A repair looks for damage as 'repo check --stored' does, and mends

  - the index, from the packs;
  - chunks and tree nodes of damaged packs, from second copies and from what is sound in them;
  - what is lost otherwise, from the sources that --from names: an image, a block device, a repository, or a backup in one. They need
    not be exact: what has the same content is found by its ID. Best are the volume itself (a snapshot of it) and a copy of the
    repository. A source that is a copy of this repository, object by object, also gives back damaged records.

Damaged packs are condemned: 'repo prune' deletes them when the grace is over. What is lost is listed, backup by backup, and taken out of
the index, so that a backup of a volume that still has it stores it again: give 'shale backup create --full' for it. Old backups are whole
then, too. No backup is deleted: one that has lost something is still listed, and can be read where it is whole; no prune runs until such
backups are mended, or deleted.

Backups may run meanwhile, on any host; one that counted on what is lost may fail, and the next one stores it. Interrupted, a repair goes
on the next time. Exit code 3: something could not be mended.`,
		Example: `  shale repo repair /srv/backups --dry-run
  shale repo repair /srv/backups --from /dev/vg0/db --from s3://mirror/backups`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			switch {
			case structure && data:
				return usagef(cmd, "--structure and --data: one of the two")
			case structure:
				o.Level = chunkstore.CheckStructure
			case data:
				o.Level = chunkstore.CheckData
			}
			return a.repoRepair(cmd.Context(), args[0], from, o)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&from, "from", nil, "look for lost content in `SOURCE`: an image, a block device, the URL of a repository or of a backup; may be repeated")
	f.BoolVar(&o.DryRun, "dry-run", false, "change nothing; say what would be done")
	f.BoolVar(&structure, "structure", false, "look for damage as 'repo check' does, without reading all packs")
	f.BoolVar(&data, "data", false, "look for damage as 'repo check --data' does")
	f.BoolVar(&o.Force, "force", false, "go on although a large part of all packs is missing or damaged")
	f.BoolVar(&o.Alone, "alone", false, "no backup is running on any host: lists of condemned packs that cannot be read may be removed")
	f.BoolVar(&o.BreakLock, "break-lock", false, "do not mind a prune that seems to be running")
	return cmd
}

func (a *app) repoRepair(ctx context.Context, url string, from []string, ro chunkstore.RepairOptions) (err error) {
	for _, s := range from {
		source, closer, err := a.repairSource(ctx, s)
		if err != nil {
			return err
		}
		defer closeInto(&err, closer)
		ro.From = append(ro.From, source)
	}
	l, err := a.parseLocation(url)
	if err != nil {
		return err
	}
	o, err := a.repositoryOptions()
	if err != nil {
		return err
	}
	bars := newPhases(a)
	ro.Progress = bars.set
	rep, err := engine.RepairRepository(ctx, l, a.backendOptions(), o, ro)
	bars.done()
	if err != nil {
		return interrupted(ctx, err, "nothing more is lost than was; give the same command again to go on")
	}
	a.note("%s", a.transferred(0))
	if err := a.printRepair(rep); err != nil {
		return err
	}
	switch {
	case len(rep.Lost)+len(rep.Left) > 0:
		return fmt.Errorf("%w that could not be mended: %d backup(s) have lost something, %d other place(s)", errDamage, len(rep.Lost), len(rep.Left))
	case rep.DryRun && len(rep.Damage) > 0:
		return fmt.Errorf("%w in %d place(s), which can be mended", errDamage, len(rep.Damage))
	}
	return nil
}

// repairSource opens what --from names.
func (a *app) repairSource(ctx context.Context, s string) (chunkstore.RepairSource, io.Closer, error) {
	out := chunkstore.RepairSource{Name: s}
	if st, err := os.Stat(s); err == nil && !st.IsDir() {
		c, err := engine.RepairContent(s)
		out.Content = c
		return out, c, err
	} else if errors.Is(err, os.ErrNotExist) && !strings.ContainsAny(s, "?:") {
		return out, nil, err
	}
	r, l, err := a.openRepository(ctx, s)
	if err != nil {
		return out, nil, fmt.Errorf("--from %s: %w", s, err)
	}
	out.Repository, out.Name = r, l.String()
	if l.Backup != "" {
		if out.Backup, err = r.Backup(ctx, l.Volume, l.Backup); err != nil {
			return out, nil, errors.Join(fmt.Errorf("--from %s: %w", s, err), r.Close())
		}
	}
	return out, r, nil
}

func (a *app) printRepair(rep *chunkstore.RepairReport) error {
	if a.json {
		return a.printJSON(struct {
			*chunkstore.RepairReport
			Transfer transfer `json:"transfer"`
		}{rep, a.transferred(0)})
	}
	would := ""
	if rep.DryRun {
		would = "would be "
	}
	for _, d := range rep.Damage {
		fmt.Fprintf(a.stdout, "damaged: %s at byte %d: %s\n", d.Object, d.Off, d.Error)
	}
	if rep.Reindexed {
		fmt.Fprintf(a.stdout, "the index could not be read: %smade anew from the packs\n", would)
	}
	if rep.Indexed > 0 {
		fmt.Fprintf(a.stdout, "%d packs were missing in the index: %sput there again\n", rep.Indexed, would)
	}
	for _, object := range rep.Objects {
		fmt.Fprintf(a.stdout, "%swritten anew, or removed: %s\n", would, object)
	}
	found := func(where string, s chunkstore.Salvage) {
		if s != (chunkstore.Salvage{}) {
			fmt.Fprintf(a.stdout, "%sstored anew: %d chunks and %d tree nodes, %s, %s\n", would, s.Chunks, s.Nodes, size(s.Bytes), where)
		}
	}
	found("out of damaged packs", rep.Salvaged)
	for _, f := range rep.Found {
		found("found in "+f.Source, f.Salvage)
	}
	for _, d := range rep.Left {
		fmt.Fprintf(a.stdout, "still damaged: %s at byte %d: %s\n", d.Object, d.Off, d.Error)
	}
	for _, b := range rep.Lost {
		fmt.Fprintf(a.stdout, "lost: volume %s backup %s: %s in %d range(s)\n", b.Volume, b.Backup, size(b.Bytes), len(b.Ranges))
		for _, r := range b.Ranges {
			fmt.Fprintf(a.stdout, "  %d bytes at %d\n", r.Len, r.Off)
		}
	}
	_, err := fmt.Fprintf(a.stdout, "%d backups, %d packs; %d places damaged; %scondemned: %d packs; %d backups have lost something\n",
		rep.Backups, rep.Packs, len(rep.Damage), would, rep.Condemned.Objects, len(rep.Lost))
	return err
}
