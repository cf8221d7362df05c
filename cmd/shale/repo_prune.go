package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
)

func newRepoPruneCommand(a *app) *cobra.Command {
	o := chunkstore.PruneOptions{Grace: chunkstore.DefaultGrace}
	var unused string
	cmd := &cobra.Command{
		Use:   "prune URL",
		Short: "Give back the space of deleted backups",
		Long: `Give back the space of deleted backups and of interrupted ones, in two phases: a prune condemns what no backup needs, and a prune that
comes after the grace deletes it. So give the command every day. Backups may run meanwhile, on any host; one that takes longer than the grace
may have to store some of its data again. Interrupted, it goes on the next time.

--grace 0 deletes at once: only when nobody else writes to the repository.

Bytes that are not needed stay in packs that are in use while they are less than --max-unused of the repository: giving them back means
copying the rest of their packs.`,
		Example: `  shale repo prune /srv/backups --dry-run
  shale repo prune /srv/backups --grace 0 --max-unused 0`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.MaxUnused, err = parsePart(unused); err != nil {
				return usagef(cmd, "--max-unused %v", err)
			}
			if o.Grace < 0 {
				return usagef(cmd, "--grace %v: it cannot be negative", o.Grace)
			}
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			bars := newPhases(a)
			o.Progress = bars.set
			rep, err := r.Prune(cmd.Context(), o)
			bars.done()
			if err != nil {
				return interrupted(cmd.Context(), err, "no backup has lost anything; give the same command again to go on")
			}
			a.note("%s", a.transferred(0))
			if err := a.printPrune(rep); err != nil {
				return err
			}
			if n := len(rep.Damage); n > 0 {
				return fmt.Errorf("%w in %d pack(s), which were left", errDamage, n)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&o.Grace, "grace", o.Grace, "delete only what was condemned at least so long ago, by the store's clock")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "change nothing; say what would be done")
	cmd.Flags().StringVar(&unused, "max-unused", "10%", "part of the repository that may stay unused in packs that are in use")
	cmd.Flags().BoolVar(&o.BreakLock, "break-lock", false, "do not mind another prune that seems to be running")
	return cmd
}

// parsePart reads "10%", or "0".
func parsePart(s string) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(v >= 0 && v <= 100) || (v != 0 && !strings.HasSuffix(s, "%")) {
		return 0, fmt.Errorf("is %q, not 0%% to 100%%", s)
	}
	return v / 100, nil
}

func (a *app) printPrune(rep *chunkstore.PruneReport) error {
	if a.json {
		return a.printJSON(struct {
			*chunkstore.PruneReport
			Transfer transfer `json:"transfer"`
		}{rep, a.transferred(0)})
	}
	would, line := "", func(what string, u chunkstore.Usage) {
		if u.Objects > 0 {
			fmt.Fprintf(a.stdout, "%s: %d packs, %s\n", what, u.Objects, size(u.Bytes))
		}
	}
	if rep.DryRun {
		would = "would be "
	}
	for _, d := range rep.Damage {
		fmt.Fprintf(a.stdout, "damaged, and left: %s at byte %d: %s\n", d.Object, d.Off, d.Error)
	}
	line(would+"condemned now", rep.Condemned)
	line("condemned before, grace not over", rep.Waiting)
	line("not needed, but young enough to be a running backup's", rep.Young)
	line("not needed, but locked", rep.Locked)
	if rep.Repacked.Objects > 0 {
		fmt.Fprintf(a.stdout, "%srepacked: %d packs, %s, of which %s copied\n", would, rep.Repacked.Objects, size(rep.Repacked.Bytes), size(rep.Copied))
	}
	if rep.Rescued > 0 {
		fmt.Fprintf(a.stdout, "%srescued, because a backup came to need it: %s\n", would, size(rep.Rescued))
	}
	if rep.Stale.Objects > 0 {
		fmt.Fprintf(a.stdout, "remains of broken-off writes removed: %d, %s\n", rep.Stale.Objects, size(rep.Stale.Bytes))
	}
	if rep.FreeAfter != nil {
		fmt.Fprintf(a.stdout, "a prune after %s deletes what is condemned\n", rep.FreeAfter.Format(time.RFC3339))
	}
	_, err := fmt.Fprintf(a.stdout, "%d backups need %s of %s in %d packs; %s stay unused in packs that are in use; %sfreed: %d packs, %s\n",
		rep.Backups, size(rep.Needed), size(rep.Packs.Bytes), rep.Packs.Objects, size(rep.Unused), would, rep.Freed.Objects, size(rep.Freed.Bytes))
	return err
}

// phases draws a bar for each thing that is done, one after the other.
type phases struct {
	a    *app
	mu   sync.Mutex // guards all below
	what string
	bar  *progress
}

func newPhases(a *app) *phases { return &phases{a: a} }

func (p *phases) set(what string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar == nil || what != p.what {
		if p.bar != nil {
			p.bar.done()
		}
		p.what, p.bar = what, p.a.newProgress(what)
		if what != "copy" && what != "check" && !strings.HasPrefix(what, "read ") { // which count bytes
			p.bar.unit = unitNumber
		}
	}
	p.bar.set(done, total)
}

func (p *phases) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.done()
	}
}
