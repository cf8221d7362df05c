package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/thin"
)

// usageError is a command line that cannot be understood; exit code 2.
type usageError struct {
	err     error
	command string // the path of the command whose help says more
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
		switch {
		case len(args) == len(names):
			return nil
		case len(names) == 0:
			return usagef(cmd, "expects no arguments, got %d", len(args))
		}
		return usagef(cmd, "expects %s, got %d argument(s)", strings.Join(names, " "), len(args))
	}
}

// errDamage marks a command that did its work and found damage; exit code 3.
var errDamage = errors.New("damage found")

// damaged says whether err comes of stored bytes that are not what they were: of a repository or of thin metadata.
func damaged(err error) bool {
	var missing *chunkstore.NotFoundError
	switch {
	case errors.Is(err, errDamage), errors.Is(err, chunkstore.ErrCorrupt), errors.Is(err, thin.ErrDamaged):
		return true
	case errors.As(err, &missing): // what a listed backup refers to must be there
		return missing.What != "backup" && missing.What != "volume" && missing.What != "key"
	}
	return false
}

// interruptedError is an interrupted command that says what it leaves behind.
type interruptedError struct {
	kept string
	err  error
}

// interrupted makes one of err, when ctx has ended.
func interrupted(ctx context.Context, err error, kept string) error {
	if err == nil || ctx.Err() == nil || damaged(err) {
		return err
	}
	return &interruptedError{kept, err}
}

func (e *interruptedError) Error() string {
	s := "interrupted: " + e.kept
	if !onlyCancelled(e.err) {
		s += "; also: " + e.err.Error()
	}
	return s
}

func (e *interruptedError) Unwrap() error { return e.err }

// onlyCancelled says whether err tells nothing but that the context ended.
func onlyCancelled(err error) bool {
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		return u.Unwrap() != nil && onlyCancelled(u.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range u.Unwrap() {
			if !onlyCancelled(err) {
				return false
			}
		}
		return true
	}
	return err == context.Canceled || err == context.DeadlineExceeded
}

// exitCode is the one place where errors become exit codes.
func exitCode(ctx context.Context, err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), errors.Is(err, engine.ErrURL):
		return 2
	case damaged(err):
		return 3
	case ctx.Err() != nil:
		return 130
	default:
		return 1
	}
}

// failure is a command's failure in JSON.
type failure struct {
	Error  string `json:"error"`
	Advice string `json:"advice,omitempty"` // what can be done about it
}

// printError tells the failure of cmd, which ends with that exit code.
func (a *app) printError(cmd *cobra.Command, err error, code int) {
	f := failure{Error: err.Error(), Advice: a.advice(cmd, err)}
	if code == 130 && onlyCancelled(err) {
		var known *interruptedError
		if !errors.As(err, &known) {
			f.Error = "interrupted"
		}
	}
	if a.json && !a.answered { // a report of damage is an answer, and says it all
		_ = a.printJSON(f)
	}
	fmt.Fprintf(a.stderr, "shale: %s\n", f.Error)
	if f.Advice != "" {
		fmt.Fprintf(a.stderr, "%s\n", f.Advice)
	}
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(a.stderr, "See '%s --help'.\n", usage.command)
	case code == 2:
		fmt.Fprintf(a.stderr, "See '%s --help'.\n", cmd.CommandPath())
	}
}
