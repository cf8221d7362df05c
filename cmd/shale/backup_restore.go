package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

func newBackupRestoreCommand(a *app) *cobra.Command {
	var holds string
	var o engine.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore BACKUP-URL TARGET",
		Short: "Write a backup to a file or a block device",
		Long: `Write a backup to a file or a block device, and print the target's name.

A file that does not exist is made, sparse, and appears under its name when it is complete. A target that exists is changed only with
--overwrite: what it holds already stays, what differs is fetched and written, and holes are punched. --holds names the backup that the target
is known to hold, unchanged since: then nothing of it is read, and only the difference between the two backups is fetched.

Every chunk is compared with its ID before it is written; one that is damaged ends the restore, with exit code 3.

A restore that was interrupted goes on when the same command is given again: what it had written lies in .TARGET.BACKUP.shale-restore
beside the target, or in the target itself.`,
		Example: `  shale backup restore 'vfs:///srv/backups?backup=backup-1a1fdc69ab53f7ad&volume=db' /srv/images/db-restored.raw
  shale backup restore "$URL" /dev/vg0/db --overwrite --blank
  shale backup restore "$TUESDAY" db.raw --overwrite --holds "$MONDAY"`,
		Args: exactArgs("BACKUP-URL", "TARGET"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Blank && holds != "" {
				return usagef(cmd, "--blank and --holds exclude each other")
			}
			r, l, b, err := a.openBackup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			if holds != "" {
				if o.Holds, err = heldBackup(cmd, r, l, holds); err != nil {
					return err
				}
			}
			bar := a.newProgress("restore")
			o.Progress, o.Workers = bar, a.parallel
			res, err := engine.Restore(cmd.Context(), r, b, args[1], o)
			bar.done()
			if err != nil {
				return interrupted(cmd.Context(), err, "what was restored is kept, and the same command goes on from there")
			}
			a.note("%s", a.transferred(0))
			if a.json {
				return a.printJSON(struct {
					*engine.RestoreResult
					Transfer transfer `json:"transfer"`
				}{res, a.transferred(0)})
			}
			a.note("%s of %s in use; fetched %s, kept %s", size(res.Data), size(res.Size), size(res.Fetched), size(res.Kept))
			_, err = fmt.Fprintln(a.stdout, res.Target)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Overwrite, "overwrite", false, "change a target that exists; required for a block device")
	f.StringVar(&holds, "holds", "", "`BACKUP` (URL, or ID) that the target holds, unchanged since")
	f.BoolVar(&o.Blank, "blank", false, "the target reads as zeros, as a new thin volume does: do not look")
	f.BoolVar(&o.Verify, "verify", false, "read the target again in the end and compare it with the backup")
	return cmd
}

// heldBackup reads the record of the backup that --holds names: one of the same repository.
func heldBackup(cmd *cobra.Command, r *chunkstore.Repository, l engine.Location, s string) (*chunkstore.Backup, error) {
	held := l
	held.Backup = s
	if strings.Contains(s, "?") {
		p, err := engine.ParseLocation(s)
		if err != nil {
			return nil, fmt.Errorf("--holds: %w", err)
		}
		held = p
	}
	if !held.SameRepository(l) {
		return nil, usagef(cmd, "--holds names a backup in another repository, %s", held.Repository())
	}
	return r.Backup(cmd.Context(), held.Volume, held.Backup)
}
