package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newBackupDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete BACKUP-URL",
		Short: "Delete a backup",
		Long: `Delete a backup, and print its URL: its record is removed, and it can no longer be restored. Other backups lose nothing.
The space of chunks that no backup needs any more is given back by 'shale repo prune'.`,
		Example: `  shale backup delete 'vfs:///srv/backups?backup=backup-1a1fdc69ab53f7ad&volume=db'`,
		Args:    exactArgs("BACKUP-URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			l, err := a.backupLocation(args[0])
			if err != nil {
				return err
			}
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			if err := r.DeleteBackup(cmd.Context(), l.Volume, l.Backup); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"deleted": l.String()})
			}
			_, err = fmt.Fprintln(a.stdout, l)
			return err
		},
	}
}
