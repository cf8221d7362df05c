package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCommand writes the manual pages, for those who package shale.
func newManCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "internal-man DIR",
		Hidden: true,
		Short:  "Write a manual page for each command",
		Long: `Write a manual page for each command to DIR, which is made if need be. $SOURCE_DATE_EPOCH, in seconds, dates them, so that
builds can be repeated.`,
		Example: `  shale internal-man /usr/local/share/man/man1`,
		Args:    exactArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			header := doc.GenManHeader{Section: "1", Source: "shale " + buildVersion().Version, Manual: "shale"}
			if err := doc.GenManTree(root, &header, args[0]); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			_, err := fmt.Fprintln(a.stdout, args[0])
			return err
		},
	}
}
