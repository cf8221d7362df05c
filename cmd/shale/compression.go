package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// codecs are the values of --compression.
var codecs = []string{"none", "s2", "zstd", "zstd:1", "zstd:2", "zstd:3", "zstd:4"}

// checkCompression refuses what no repository knows; empty is the default.
func checkCompression(cmd *cobra.Command, c string) error {
	if c != "" && !slices.Contains(codecs, c) {
		return usagef(cmd, "--compression %q: it is one of %s", c, strings.Join(codecs, ", "))
	}
	return nil
}

// completeCompression lets the shell complete --compression.
func completeCompression(cmd *cobra.Command) {
	if err := cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions(codecs, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // no flag of that name: our own mistake
	}
}
