package main

import (
	"github.com/spf13/cobra"
)

func newBackupInspectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect BACKUP-URL",
		Short: "Print a backup record as JSON",
		Long: `Print a backup record as JSON, also without --json: when it was made of what, from which host, with which labels, compared with which
earlier backup, and what it cost.`,
		Example: `  shale backup inspect 'vfs:///srv/backups?backup=backup-1a1fdc69ab53f7ad&volume=db'`,
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
