package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/thin/pool"
)

// newResumeCommand is the process that watches over a suspended volume (see thin/pool). Nobody but shale calls it.
func newResumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:                pool.WatchdogCommand,
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return pool.RunWatchdog(args, os.Stdin, os.Stdout)
		},
	}
}
