package main

import (
	"github.com/spf13/cobra"
)

func newBackupInspectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "inspect BACKUP-URL",
		Short:   "Print a backup record as JSON",
		Example: `  shale backup inspect '/srv/backups?backup=backup-019a6e0f1c2d3e4f&volume=db'`,
		Args:    exactArgs("BACKUP-URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, l, b, err := a.openBackup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			return a.printJSON(listedBackup{l.String(), b})
		},
	}
}
