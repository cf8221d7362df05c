package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/engine"
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
	priority priority
	traffic  traffic
	s3       s3Flags
	begun    time.Time // when the command began to work

	answered bool // printJSON was called

	progressEvery time.Duration   // between lines of progress where there is no terminal
	secrets       secrets         // of encrypted repositories
	location      engine.Location // the repository that was named, for advice
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return (&app{stdin: stdin, stdout: stdout, stderr: stderr, progressEvery: 10 * time.Second}).run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := newRootCommand(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	code := exitCode(ctx, err)
	if err != nil {
		a.json = a.json || wantsJSON(args)
		a.printError(cmd, err, code)
	}
	return code
}

// wantsJSON finds --json in a command line that could not be parsed to its end.
func wantsJSON(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json")
}

func newRootCommand(a *app) *cobra.Command {
	var showVersion bool
	root := &cobra.Command{
		Use:   "shale",
		Short: "Back up block volumes: read what changed, store it once, browse it as files",
		Long: `Back up block volumes: read what changed, store it once, browse it as files.

A repository is a folder, local or on NFS, or lies in an S3 bucket. It is named by a path or a URL: /srv/backups, vfs:///srv/backups,
s3://bucket@region/prefix ('shale repo --help' says more). A backup is named by the URL that 'backup create' prints:
REPOSITORY?backup=ID&volume=NAME. Quote it for the shell.

A command that moves much says in the end what it moved, and how fast. --limit-upload and --limit-download bound that, as --limit-read of
'backup create' bounds what is read of the volume: the bytes of all that runs at once together, evenly. --nice and --ionice are for the
whole process and what it starts, also the freezing of a live volume for its snapshot.

The answer goes to stdout, progress and notes to stderr. With --json the answer is JSON, and so is a failure: {"error": ...}.

Exit codes:

    0    done
    1    failed
    2    the command line cannot be understood
    3    damage was found, in a repository or in thin metadata
    130  interrupted (SIGINT, SIGTERM); what was kept is said. A second signal ends shale at once

Environment:

    SHALE_CACHE_DIR  where copies of repositories' indexes are kept, and what an interrupted backup had stored is noted. It may be
                     deleted while no shale runs; what is needed is fetched again. It remembers which repositories are
                     encrypted, so that none is replaced unnoticed. --cache-dir goes before it.
    SHALE_S3_ENDPOINT, SHALE_S3_CA_FILE, SHALE_S3_ADDRESSING
                     what --s3-endpoint, --s3-ca-file and --s3-addressing say. AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and
                     AWS_CA_BUNDLE are known too.
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION, ...
                     credentials and region for S3.
    SHALE_PASSWORD, SHALE_PASSWORD_FILE, SHALE_IDENTITY_FILE
                     the password of an encrypted repository, a file with it, a file of private keys. --password-file,
                     --password-command and --identity-file go before them. With none of all these a password is asked for, on a terminal.`,
		Example: `  shale repo init /srv/backups
  shale backup create vg0/db --dest /srv/backups --volume db
  shale backup mount /srv/backups /mnt/backups
  shale backup restore 'vfs:///srv/backups?backup=backup-1a1fdc69ab53f7ad&volume=db' db.raw`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if a.parallel < 0 {
				return usagef(cmd, "--parallel is %d, want 1 or more, or 0 for the default", a.parallel)
			}
			a.begun = time.Now()
			a.secrets.stop = cmd.Context().Done()
			return a.priority.apply(cmd)
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print the answer, or the failure, as JSON")
	f.BoolVar(&a.quiet, "quiet", false, "no progress and no notes on stderr")
	f.StringVar(&a.cacheDir, "cache-dir", "", "`DIR` for copies of repositories' indexes (default: $"+cacheEnv+", else /var/cache/shale for root, else ~/.cache/shale)")
	f.IntVar(&a.parallel, "parallel", 0, "work on `N` spans at once, and read and write N objects at most (default: as many spans as CPUs)")
	f.Var(&a.traffic.upload, "limit-upload", "write at most `RATE` bytes per second to the repository: 500K, 10M, 1G (default: no limit)")
	f.Var(&a.traffic.download, "limit-download", "read at most `RATE` bytes per second from the repository (default: no limit)")
	a.s3.register(f)
	f.IntVar(&a.priority.nice, "nice", 0, "run at niceness `N`, from 19, behind everybody, to -20 (default: as it was started)")
	f.StringVar(&a.priority.ionice, "ionice", "", "use disks in `CLASS[:LEVEL]`: idle, best-effort:0 to best-effort:7, realtime:... (default: as it was started)")
	a.secrets.addFlags(f)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, command: cmd.CommandPath()}
	})
	asGroup(root)
	group := root.RunE
	root.Flags().BoolVar(&showVersion, "version", false, "say which shale this is")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if showVersion && len(args) == 0 {
			return a.printVersion()
		}
		return group(cmd, args)
	}
	root.AddCommand(newRepoCommand(a), newBackupCommand(a), newThinCommand(a), newVersionCommand(a), newResumeCommand(), newManCommand(a))
	root.SetHelpCommand(newHelpCommand())
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			asGroup(c)
		}
	}
	return root
}

// newHelpCommand is cobra's, but an unknown topic is an error.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Explain a command",
		Long:              `Explain a command, as its --help does.`,
		Example:           `  shale help backup create`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return &usageError{err: err, command: cmd.Root().Name()}
			}
			if len(rest) > 0 {
				return unknownCommand(about, rest[0])
			}
			about.InitDefaultHelpFlag() // shown among the flags
			return about.Help()
		},
	}
}

// asGroup makes a command that only has sub-commands refuse unknown ones; cobra would print help and succeed.
func asGroup(cmd *cobra.Command) {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.SuggestionsMinimumDistance = 2
}

func unknownCommand(cmd *cobra.Command, name string) error {
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return usagef(cmd, "unknown command %q; did you mean %s?", name, strings.Join(near, " or "))
	}
	return usagef(cmd, "unknown command %q", name)
}

// printJSON prints the answer; a command has one at most.
func (a *app) printJSON(v any) error {
	a.answered = true
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
