package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	_ "time/tzdata" // --timezone works where the system has no time zones, as in a small container

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// forgetFlags are the flags of backup forget as they were given.
type forgetFlags struct {
	o                  engine.ForgetOptions
	within, timezone   string
	keepLabels, labels []string
	prune              bool
}

// forgetAnswer is the answer of backup forget.
type forgetAnswer struct {
	DryRun     bool                    `json:"dry_run"`
	Timezone   string                  `json:"timezone"` // where days begin
	Keep       []decidedBackup         `json:"keep"`
	Forget     []decidedBackup         `json:"forget"`
	Unreadable []string                `json:"unreadable"` // records that were left
	Prune      *chunkstore.PruneReport `json:"prune,omitempty"`
}

// decidedBackup is a backup and the rules that keep it.
type decidedBackup struct {
	Reasons []string `json:"reasons"` // [] for one that is forgotten
	listedBackup
}

func newBackupForgetCommand(a *app) *cobra.Command {
	var o forgetFlags
	cmd := &cobra.Command{
		Use:   "forget URL --keep-...",
		Short: "Delete the backups that a retention policy does not keep",
		Long: `Delete the backups that a retention policy does not keep: of each volume by itself, whichever host made them. It is said of every backup
which rules keep it. --dry-run shows that and deletes nothing. The URL of a backup stands for all those of its volume.

A backup stays when any --keep-... rule keeps it:

    --keep-last N       the newest N
    --keep-hourly N     the newest of each of the last N hours in which there are any; so for days, weeks (from Monday),
                        months and years. -1 is without limit. While there are fewer than N, the oldest of all stays, too
    --keep-within 1y6m  all that are at most so much older than the newest; y, m, d and h as in 2h, 7d, 1y2m3d4h
    --keep-label K=V    all that have the label; K alone: with any value

Hours and days begin by --timezone, which is this host's unless given: name one where hosts of several zones forget.

Backups whose time is yet to come (some clock was wrong) stay and count for no rule. The newest backup of a volume always stays: the next
one is compared with it ('shale backup delete' deletes it). Backups that are locked (--lock-for) stay until the lock is over.

With --label only backups that have it are counted, and forgotten. Exit code 3: some backup records cannot be read; they stay, and count
for no rule.

The space of chunks that no backup needs any more is given back by 'shale repo prune', or by --prune at once, whose deletions come a
day later (see there).`,
		Example: `  shale backup forget /srv/backups --keep-last 3 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run
  shale backup forget /srv/backups --volume db --keep-within 30d --keep-label keep --prune`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.backupForget(cmd, args[0], o) },
	}
	f := cmd.Flags()
	r := &o.o.Retention
	f.IntVar(&r.Last, "keep-last", 0, "keep the newest `N`")
	f.IntVar(&r.Hourly, "keep-hourly", 0, "keep one an hour for `N` hours")
	f.IntVar(&r.Daily, "keep-daily", 0, "keep one a day for `N` days")
	f.IntVar(&r.Weekly, "keep-weekly", 0, "keep one a week for `N` weeks")
	f.IntVar(&r.Monthly, "keep-monthly", 0, "keep one a month for `N` months")
	f.IntVar(&r.Yearly, "keep-yearly", 0, "keep one a year for `N` years")
	f.StringVar(&o.within, "keep-within", "", "keep all of the last `PERIOD`, as 2h, 7d, 3m, 1y6m, up to the newest backup")
	f.StringArrayVar(&o.keepLabels, "keep-label", nil, "keep all with the label `KEY[=VALUE]`; may be repeated")
	f.StringVar(&o.o.Volume, "volume", "", "only the backups of the volume `NAME`")
	f.StringArrayVar(&o.labels, "label", nil, "only backups with the label `KEY[=VALUE]`; may be repeated: all of them")
	f.StringVar(&o.timezone, "timezone", "Local", "`ZONE` in which days begin: Local, UTC, or a name like Europe/Berlin")
	f.BoolVar(&o.o.DryRun, "dry-run", false, "delete nothing; say what would be done")
	f.BoolVar(&o.prune, "prune", false, "prune afterwards, as 'shale repo prune' does")
	return cmd
}

// options turns the flags into options.
func (o *forgetFlags) options(cmd *cobra.Command) (opts engine.ForgetOptions, err error) {
	opts = o.o
	r := &opts.Retention
	if o.within != "" {
		if r.Within, err = engine.ParsePeriod(o.within); err != nil {
			return opts, usagef(cmd, "--keep-within %w", err)
		}
	}
	if r.Labels, err = parseLabelFilter(cmd, "--keep-label", o.keepLabels); err != nil {
		return opts, err
	}
	if opts.Labels, err = parseLabelFilter(cmd, "--label", o.labels); err != nil {
		return opts, err
	}
	if r.Zone, err = time.LoadLocation(o.timezone); err != nil || o.timezone == "" {
		return opts, usagef(cmd, "--timezone %q: Local, UTC, or a name like Europe/Berlin is expected", o.timezone)
	}
	if err = r.Validate(); errors.Is(err, engine.ErrNoRetention) {
		return opts, usagef(cmd, "%w: at least one --keep-... must keep something", err)
	} else if err != nil {
		return opts, usagef(cmd, "%w", err)
	}
	if o.prune && opts.DryRun {
		return opts, usagef(cmd, "--prune and --dry-run exclude each other: what a prune gives back is known when the backups are forgotten")
	}
	return opts, nil
}

func parseLabelFilter(cmd *cobra.Command, flag string, texts []string) (labels []engine.Label, err error) {
	for _, s := range texts {
		l, err := engine.ParseLabel(s)
		if err != nil {
			return nil, usagef(cmd, "%s: %w", flag, err)
		}
		labels = append(labels, l)
	}
	return labels, nil
}

func (a *app) backupForget(cmd *cobra.Command, url string, flags forgetFlags) (err error) {
	ctx := cmd.Context()
	o, err := flags.options(cmd)
	if err != nil {
		return err
	}
	r, l, err := a.openRepository(ctx, url)
	if err != nil {
		return err
	}
	defer closeInto(&err, r)
	o.Volume = cmp.Or(o.Volume, l.Volume)
	bar := a.newProgress("forget")
	bar.unit = unitNumber
	o.Progress = bar
	rep, err := engine.Forget(ctx, r, o)
	bar.done()
	if err != nil && rep != nil {
		return withDone(ctx, err, fmt.Sprintf("%d backup(s) were forgotten; give the same command again to go on", rep.Forgotten))
	}
	if err != nil {
		return err
	}
	answer := newForgetAnswer(l, rep, o)
	if flags.prune {
		bars := newPhases(a)
		answer.Prune, err = r.Prune(ctx, chunkstore.PruneOptions{Grace: chunkstore.DefaultGrace, MaxUnused: chunkstore.DefaultMaxUnused, Progress: bars.set})
		bars.done()
		if err != nil {
			return withDone(ctx, fmt.Errorf("prune: %w", err), fmt.Sprintf("%d backup(s) were forgotten", rep.Forgotten))
		}
	}
	if err := a.printForget(answer, rep.Decisions); err != nil {
		return err
	}
	for _, err := range rep.Damage {
		fmt.Fprintf(a.stderr, "shale: cannot be read, and was left: %v\n", err)
	}
	if n := len(rep.Damage); n > 0 {
		return fmt.Errorf("%w: %d backup record(s) cannot be read", errDamage, n)
	}
	if answer.Prune != nil && len(answer.Prune.Damage) > 0 {
		return fmt.Errorf("%w in %d pack(s), which were left", errDamage, len(answer.Prune.Damage))
	}
	return nil
}

// withDone adds to err what was done before it.
func withDone(ctx context.Context, err error, done string) error {
	if ctx.Err() != nil && !damaged(err) {
		return interrupted(ctx, err, done)
	}
	return fmt.Errorf("%w; %s", err, done)
}

func newForgetAnswer(l engine.Location, rep *engine.ForgetReport, o engine.ForgetOptions) *forgetAnswer {
	answer := &forgetAnswer{
		DryRun: o.DryRun, Timezone: o.Retention.Zone.String(),
		Keep: []decidedBackup{}, Forget: []decidedBackup{}, Unreadable: []string{},
	}
	for _, d := range rep.Decisions {
		b := decidedBackup{d.Reasons, listedBackup{l.Of(d.Backup).String(), d.Backup}}
		if d.Kept() {
			answer.Keep = append(answer.Keep, b)
		} else {
			b.Reasons = []string{}
			answer.Forget = append(answer.Forget, b)
		}
	}
	for _, err := range rep.Damage {
		answer.Unreadable = append(answer.Unreadable, err.Error())
	}
	return answer
}

func (a *app) printForget(answer *forgetAnswer, decisions []engine.Decision) error {
	if a.json {
		return a.printJSON(answer)
	}
	gone := "forgotten"
	if answer.DryRun {
		gone = "would be forgotten"
	}
	zone, err := time.LoadLocation(answer.Timezone)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	if len(decisions) > 0 {
		fmt.Fprintln(w, "VOLUME\tTIME\tBACKUP\tKEPT BY")
	}
	for _, d := range decisions {
		why := gone
		if d.Kept() {
			why = strings.Join(d.Reasons, ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", d.Backup.Volume, d.Backup.Time.In(zone).Format(time.DateTime), d.Backup.ID, why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(a.stdout, "%d kept, %d %s\n", len(answer.Keep), len(answer.Forget), gone); err != nil || answer.Prune == nil {
		return err
	}
	return a.printPrune(answer.Prune)
}
