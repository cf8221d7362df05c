package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

func newRepoReindexCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reindex URL",
		Short: "Make the index anew from the packs alone",
		Long: `Make the index anew from the packs alone, whatever state it is in. Of each pack its table is read, not its data. Backups may run
meanwhile.

Exit code 3: some packs could not be read; what they hold is not in the index.`,
		Example: `  shale repo reindex /srv/backups`,
		Args:    exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			l, err := a.parseLocation(args[0])
			if err != nil {
				return err
			}
			o, err := a.repositoryOptions()
			if err != nil {
				return err
			}
			bar := a.newProgress("packs")
			bar.unit = unitNumber
			r, rep, err := engine.ReindexRepository(cmd.Context(), l, a.backendOptions(), o, func(done, total int) { bar.set(int64(done), int64(total)) })
			bar.done()
			if err != nil {
				return interrupted(cmd.Context(), err, "the index is as it was, or has new segments beside the old; give the same command again")
			}
			defer closeInto(&err, r)
			a.note("%s", a.transferred(0))
			if a.json {
				err = a.printJSON(struct {
					*chunkstore.ReindexReport
					Transfer transfer `json:"transfer"`
				}{rep, a.transferred(0)})
			} else {
				for _, d := range rep.Damage {
					fmt.Fprintf(a.stdout, "damaged: %s at byte %d: %s\n", d.Object, d.Off, d.Error)
				}
				if rep.Kept > 0 {
					fmt.Fprintf(a.stdout, "%d chunks of damaged packs kept: the old index knew where they are\n", rep.Kept)
				}
				_, err = fmt.Fprintf(a.stdout, "%d packs, %d chunks, %d segments written, %d removed\n", rep.Packs, rep.Chunks, rep.Segments, rep.Removed)
			}
			if err == nil && len(rep.Damage) > 0 {
				err = fmt.Errorf("%w in %d pack(s)", errDamage, len(rep.Damage))
			}
			return err
		},
	}
}
