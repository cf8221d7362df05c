package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
)

// diffAnswer is the answer of backup diff.
type diffAnswer struct {
	Ranges []chunkstore.Range `json:"ranges"`
	Bytes  int64              `json:"bytes"` // their sum
}

func newBackupDiffCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "diff BACKUP-URL BACKUP-URL",
		Short: "List the byte ranges in which two backups differ",
		Long: `List the byte ranges in which two backups of one repository differ: a line each, with offset and length in bytes. They are
compared by their chunks, so a range may begin before and end after what differs in it. The cost follows the difference, not the size.

Where one backup is longer, the other is taken to go on with zeros.`,
		Example: `  shale backup diff "$MONDAY" "$TUESDAY"
  shale backup diff "$MONDAY" "$TUESDAY" --json | jq .bytes`,
		Args: exactArgs("BACKUP-URL", "BACKUP-URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, l, old, err := a.openBackup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			m, err := a.backupLocation(args[1])
			if err != nil {
				return err
			}
			if !m.SameRepository(l) {
				return usagef(cmd, "both must be backups in one repository, not in %s and %s", l.Repository(), m.Repository())
			}
			b, err := r.Backup(cmd.Context(), m.Volume, m.Backup)
			if err != nil {
				return err
			}
			answer := diffAnswer{Ranges: []chunkstore.Range{}}
			for rg, err := range r.OpenBlob(b.Blob).Diff(cmd.Context(), r.OpenBlob(old.Blob)) {
				if err != nil {
					return err
				}
				answer.Bytes += rg.Len
				if a.json {
					answer.Ranges = append(answer.Ranges, rg)
				} else if _, err := fmt.Fprintf(a.stdout, "%d %d\n", rg.Off, rg.Len); err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(answer)
			}
			a.note("%s differ", size(answer.Bytes))
			return nil
		},
	}
}
