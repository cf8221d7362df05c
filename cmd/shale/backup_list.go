package main

import (
	"cmp"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// listedBackup is a backup in JSON answers: its record and its URL.
type listedBackup struct {
	URL string `json:"url"`
	*chunkstore.Backup
}

func newBackupListCommand(a *app) *cobra.Command {
	var volume string
	cmd := &cobra.Command{
		Use:   "list URL",
		Short: "List the backups in a repository",
		Long: `List the backups in a repository, the oldest first. The URL of a backup lists those of its volume.

    SIZE    of the volume
    IN USE  of these, not holes
    READ    from the source for this backup
    STORED  in the repository for this backup

The text shows IDs; --json has the URLs, too. Exit code 3: some backup records cannot be read; the others are listed.`,
		Example: `  shale backup list /srv/backups --volume-name db
  shale backup list /srv/backups --json | jq -r '.[-1].url'`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, l, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			list, bad, err := listBackups(cmd, r, cmp.Or(volume, l.Volume))
			if err != nil {
				return err
			}
			if err := a.printBackups(l, list); err != nil {
				return err
			}
			for _, err := range bad {
				fmt.Fprintf(a.stderr, "shale: cannot be read: %v\n", err)
			}
			if len(bad) > 0 {
				return fmt.Errorf("%w: %d backup record(s) cannot be read", errDamage, len(bad))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&volume, "volume-name", "", "only the backups of the volume `NAME`")
	return cmd
}

// listBackups returns the records by time, and what went wrong with those that cannot be read.
func listBackups(cmd *cobra.Command, r *chunkstore.Repository, volume string) (list []*chunkstore.Backup, bad []error, err error) {
	err = r.WalkBackups(cmd.Context(), volume, func(_ string, b *chunkstore.Backup, err error) error {
		if err != nil {
			bad = append(bad, err)
		} else {
			list = append(list, b)
		}
		return nil
	})
	slices.SortStableFunc(list, func(x, y *chunkstore.Backup) int { return x.Time.Compare(y.Time) })
	return list, bad, err
}

func (a *app) printBackups(l engine.Location, list []*chunkstore.Backup) error {
	if a.json {
		out := make([]listedBackup, len(list))
		for i, b := range list {
			out[i] = listedBackup{l.Of(b).String(), b}
		}
		return a.printJSON(out)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tTIME\tSIZE\tIN USE\tREAD\tSTORED\tBACKUP")
	for _, b := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", b.Volume, b.Time.Local().Format(time.DateTime),
			size(b.Blob.Size), size(b.Blob.Data), size(b.Counts.Read), size(b.Counts.Stored), b.ID)
	}
	return w.Flush()
}
