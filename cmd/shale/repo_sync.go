package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// syncAnswer is the answer of repo sync.
type syncAnswer struct {
	Volumes int            `json:"volumes"` // looked at
	Backups int            `json:"backups"` // of these, in the source
	Existed int            `json:"existed"`
	Older   int            `json:"older"` // left out by --newer
	Copied  []listedBackup `json:"copied"`
	Read    int64          `json:"read"`
	Stored  int64          `json:"stored"`
	Adopted int64          `json:"adopted"`
	Damage  []syncDamage   `json:"damage"`
	Moved   transfer       `json:"transfer"`
}

// syncDamage is a backup that was not copied.
type syncDamage struct {
	Volume string `json:"volume"`
	Backup string `json:"backup"`
	Error  string `json:"error"`
}

func newRepoSyncCommand(a *app) *cobra.Command {
	var o engine.SyncOptions
	var compression string
	var secrets fromSecrets
	var locks lockFlags
	cmd := &cobra.Command{
		Use:   "sync URL URL",
		Short: "Copy all backups that another repository lacks",
		Long: `Copy all backups that another repository lacks, from the first to the second, as 'shale backup copy' does: the oldest first, so that each
costs what it differs from the one before. Nothing is deleted in either: a backup that was forgotten in the first stays in the second, and
one that was forgotten in the second is copied again if the first has it; not so with --newer. Both may be in use meanwhile.

With --lock-for the copies that are made, and all that they need, cannot be deleted (S3 object lock).

A backup that cannot be copied because of damage is told of, and the others are copied: exit code 3. Interrupted, it goes on when the same
command is given again.
` + fromHelp,
		Example: `  shale repo sync /srv/backups /mnt/offsite
  shale repo sync /srv/backups /mnt/offsite --volume db --newer --limit-upload 10M`,
		Args: exactArgs("URL", "URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := checkCompression(cmd, compression); err != nil {
				return err
			}
			if o.LockFor, o.LockMode, err = locks.lock(cmd); err != nil {
				return err
			}
			o.Compression = chunkstore.Compression(compression)
			return a.repoSync(cmd, args[0], args[1], &secrets, o)
		},
	}
	cmd.Flags().StringVar(&o.Volume, "volume", "", "only the backups of the volume `NAME`")
	cmd.Flags().BoolVar(&o.Newer, "newer", false, "leave out what is older than the newest backup that the second repository has of the volume")
	cmd.Flags().StringVar(&compression, "compression", "", "`CODEC`: none, s2, zstd:1 to zstd:4 (default: that of the repository copied to)")
	secrets.addFlags(cmd.Flags())
	locks.addFlags(cmd)
	completeCompression(cmd)
	return cmd
}

func (a *app) repoSync(cmd *cobra.Command, source, dest string, secrets *fromSecrets, o engine.SyncOptions) (err error) {
	ctx := cmd.Context()
	if l, err := a.parseLocation(source); err == nil && l.Backup != "" {
		return usagef(cmd, "%s names a backup: 'shale backup copy' copies one", source)
	}
	restore := secrets.use(a)
	from, sl, err := a.openRepository(ctx, source)
	restore()
	if err != nil {
		return err
	}
	defer closeInto(&err, from)
	to, l, err := a.openRepository(ctx, dest)
	if err != nil {
		return err
	}
	defer closeInto(&err, to)
	answer := syncAnswer{Copied: []listedBackup{}, Damage: []syncDamage{}}
	bar := a.newProgress("sync")
	o.Workers, o.Progress = a.parallel, bar
	o.Copied = func(res *engine.CopyResult) {
		answer.Copied = append(answer.Copied, listedBackup{l.Of(res.Backup).String(), res.Backup})
	}
	rep, err := engine.Sync(ctx, from, to, o)
	bar.done()
	if err != nil {
		a.blame(err, sl)
		return withDone(ctx, err, fmt.Sprintf("%d backup(s) were copied; give the same command again to go on", rep.Copied))
	}
	for _, d := range rep.Damage {
		answer.Damage = append(answer.Damage, syncDamage{d.Volume, d.Backup, d.Err.Error()})
		a.blame(d.Err, sl)
	}
	answer.Volumes, answer.Backups, answer.Existed, answer.Older = rep.Volumes, rep.Backups, rep.Existed, rep.Older
	answer.Read, answer.Stored, answer.Adopted = rep.Read, rep.Stored, rep.Adopted
	if err := a.printSync(&answer); err != nil {
		return err
	}
	if n := len(rep.Damage); n > 0 {
		return fmt.Errorf("%w in %d place(s)", errDamage, n)
	}
	return nil
}

func (a *app) printSync(answer *syncAnswer) error {
	answer.Moved = a.transferred(0)
	a.note("%s", answer.Moved)
	if a.json {
		return a.printJSON(answer)
	}
	for _, b := range answer.Copied {
		if _, err := fmt.Fprintln(a.stdout, b.URL); err != nil {
			return err
		}
	}
	for _, d := range answer.Damage {
		what := "not copied: " + d.Backup + " of " + d.Volume
		if d.Backup == "" {
			what = "but its backups were found"
		}
		if _, err := fmt.Fprintf(a.stdout, "damaged, %s: %s\n", what, d.Error); err != nil {
			return err
		}
	}
	a.noteAdopted(answer.Adopted)
	if answer.Older > 0 {
		a.note("%d older than the newest there, and left out", answer.Older)
	}
	_, err := fmt.Fprintf(a.stdout, "%d of %d backups of %d volume(s) copied, %d were there; read %s, stored %s\n",
		len(answer.Copied), answer.Backups, answer.Volumes, answer.Existed, size(answer.Read), size(answer.Stored))
	return err
}
