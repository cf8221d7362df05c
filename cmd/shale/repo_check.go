package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
)

func newRepoCheckCommand(a *app) *cobra.Command {
	var stored, data bool
	cmd := &cobra.Command{
		Use:   "check URL",
		Short: "Look for damage",
		Long: `Look for damage in a repository, and say which backups and byte ranges it touches.

Without flags the structure is checked: records, trees, the index, and that every pack is there in its full length. That takes seconds
and does for every day. --stored also reads every stored byte and compares checksums: for every month. --data also decompresses
every chunk and compares it with its ID, as a restore does.

Nothing is changed, and backups may run meanwhile. Exit code 3: damage was found.`,
		Example: `  shale repo check /srv/backups --stored`,
		Args:    exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			bar := a.newProgress("check")
			o := chunkstore.CheckOptions{Progress: func(done, total int64) { bar.set(done, total) }}
			switch {
			case data:
				o.Level = chunkstore.CheckData
			case stored:
				o.Level = chunkstore.CheckStored
			}
			rep, err := r.Check(cmd.Context(), o)
			bar.done()
			if err != nil {
				return interrupted(cmd.Context(), err, "nothing was changed")
			}
			a.note("%s", a.transferred(0))
			if err := a.printCheck(rep); err != nil {
				return err
			}
			if n := len(rep.Damage); n > 0 {
				return fmt.Errorf("%w in %d place(s)", errDamage, n)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&stored, "stored", false, "also compare the checksum of every stored byte")
	cmd.Flags().BoolVar(&data, "data", false, "also read every chunk and compare it with its ID")
	return cmd
}

func (a *app) printCheck(rep *chunkstore.CheckReport) error {
	if a.json {
		return a.printJSON(struct {
			*chunkstore.CheckReport
			Transfer transfer `json:"transfer"`
		}{rep, a.transferred(0)})
	}
	for _, d := range rep.Damage {
		fmt.Fprintf(a.stdout, "damaged: %s at byte %d: %s\n", d.Object, d.Off, d.Error)
		for _, t := range d.Touches {
			fmt.Fprintf(a.stdout, "  lost: volume %s backup %s, %d bytes at %d\n", t.Volume, t.Backup, t.Len, t.Off)
		}
	}
	_, err := fmt.Fprintf(a.stdout, "%d backups, %d packs, %d index segments, %d chunks, %s read; %d chunks unused, %d packs not indexed; %d places damaged\n",
		rep.Backups, rep.Packs, rep.Segments, rep.Chunks, size(rep.BytesRead), rep.Unused, rep.Unindexed, len(rep.Damage))
	return err
}
