package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/engine"
)

// lockFlags are the flags of commands that make backups which may be locked.
type lockFlags struct{ period, mode string }

func (o *lockFlags) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.period, "lock-for", "", "lock what the backup needs for a `PERIOD`, as 30d or 1y: nobody can delete it (S3 object lock)")
	f.StringVar(&o.mode, "lock-mode", string(backend.Governance), "`MODE` of the lock: governance, which a special right can end, or compliance, which nobody can")
}

// lock reads --lock-for and --lock-mode; a period of zero is no lock.
func (o *lockFlags) lock(cmd *cobra.Command) (p engine.Period, mode backend.LockMode, err error) {
	if mode = backend.LockMode(o.mode); mode != backend.Governance && mode != backend.Compliance {
		return p, mode, usagef(cmd, "--lock-mode %q: %s or %s is expected", o.mode, backend.Governance, backend.Compliance)
	}
	if o.period == "" {
		if cmd.Flags().Changed("lock-mode") {
			return p, mode, usagef(cmd, "--lock-mode is of use with --lock-for")
		}
		return p, mode, nil
	}
	if p, err = engine.ParsePeriod(o.period); err == nil && p.IsZero() {
		err = errors.New("it must be longer than nothing")
	}
	if err != nil {
		return p, mode, usagef(cmd, "--lock-for %w", err)
	}
	return p, mode, nil
}

// noteLock tells what a lock took; nil: there is none.
func (a *app) noteLock(lock *chunkstore.LockReport) {
	if lock != nil {
		a.note("locked until %s (%s): %d of %d objects that were looked at, now or for longer", lock.Until.Local().Format(time.DateTime),
			lock.Mode, lock.Extended, lock.Objects)
	}
}
