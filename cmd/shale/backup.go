package main

import (
	"github.com/spf13/cobra"
)

func newBackupCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Make, list, browse, restore and verify backups",
		Long: `Make, list, browse, restore and verify backups.

A backup is named by the URL that 'backup create' prints: REPOSITORY?backup=ID&volume=NAME. Quote it for the shell. Every backup stands
alone: any of them may be restored or deleted, in any order.`,
	}
	asGroup(cmd)
	cmd.AddCommand(newBackupCreateCommand(a), newBackupListCommand(a), newBackupInspectCommand(a), newBackupDeleteCommand(a), newBackupForgetCommand(a),
		newBackupMountCommand(a), newBackupRestoreCommand(a), newBackupVerifyCommand(a), newBackupDiffCommand(a),
		newBackupCopyCommand(a))
	return cmd
}
