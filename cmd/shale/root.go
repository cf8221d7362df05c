package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// app is what every command shares: the streams and the global flags.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	json     bool   // --json
	quiet    bool   // --quiet
	cacheDir string // --cache-dir
	parallel int    // --parallel
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := newRootCommand(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		a.printError(err)
	}
	return exitCode(ctx, err)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "shale",
		Short:         "Back up block volumes: read what changed, store it once, browse it as files",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print the answer, or the failure, as JSON")
	root.PersistentFlags().BoolVar(&a.quiet, "quiet", false, "no progress and no notes on stderr")
	root.PersistentFlags().StringVar(&a.cacheDir, "cache-dir", "", "where copies of repositories' indexes are kept (default: $"+cacheEnv+", else /var/cache/shale for root, else ~/.cache/shale)")
	root.PersistentFlags().IntVar(&a.parallel, "parallel", 0, "how many spans are worked on, and objects read, at once (default: the number of CPUs)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, command: cmd.CommandPath()}
	})
	asGroup(root)
	root.AddCommand(newRepoCommand(a), newBackupCommand(a), newThinCommand(a), newResumeCommand())
	return root
}

// asGroup makes a command that only has sub-commands refuse unknown ones; cobra would print help and succeed.
func asGroup(cmd *cobra.Command) {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		err := fmt.Errorf("unknown command %q", args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))
		}
		return &usageError{err: err, command: cmd.CommandPath()}
	}
	cmd.SuggestionsMinimumDistance = 2
}

// usageError is a command line that cannot be understood; exit code 2.
type usageError struct {
	err     error
	command string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef makes a usageError for cmd.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), command: cmd.CommandPath()}
}

// exactArgs is cobra.ExactArgs with the arguments' names in the error.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usagef(cmd, "expects %s, got %d argument(s)", strings.Join(names, " "), len(args))
		}
		return nil
	}
}

// errDamage marks a command that did its work and found damage; exit code 3.
var errDamage = errors.New("damage found")

func exitCode(ctx context.Context, err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.Is(err, errDamage):
		return 3
	case ctx.Err() != nil:
		return 130
	default:
		return 1
	}
}

func (a *app) printError(err error) {
	if a.json {
		_ = a.printJSON(map[string]string{"error": err.Error()})
	}
	fmt.Fprintf(a.stderr, "shale: %v\n", err)
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(a.stderr, "See '%s --help'.\n", usage.command)
	}
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// note tells the user something that is neither the answer nor a failure.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}
