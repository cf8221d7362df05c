package main

import (
	"fmt"

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
		Long: `Write a backup to a file or a block device.

A file that does not exist is made, sparse, and appears under its name when it is complete. A target that exists is changed only with
--overwrite: what it holds already stays, what differs is fetched and written, and holes are punched. --holds names the backup that the target
is known to hold, unchanged since: then nothing of it is read, and only the difference between the two backups is fetched.

A restore that was interrupted goes on when the same command is given again.`,
		Example: `  shale backup restore '/srv/backups?backup=backup-019a6e0f1c2d3e4f&volume=db' /srv/images/db-restored.raw
  shale backup restore "$URL" /dev/vg0/db --overwrite --blank`,
		Args: exactArgs("BACKUP-URL", "TARGET"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
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
				if cmd.Context().Err() != nil {
					a.note("interrupted: the same command goes on where this one stopped")
				}
				return err
			}
			if a.json {
				return a.printJSON(res)
			}
			a.note("%s of %s in use; fetched %s, kept %s", size(res.Data), size(res.Size), size(res.Fetched), size(res.Kept))
			_, err = fmt.Fprintln(a.stdout, res.Target)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Overwrite, "overwrite", false, "change a target that exists; required for a block device")
	f.StringVar(&holds, "holds", "", "URL or ID of the backup that the target holds")
	f.BoolVar(&o.Blank, "blank", false, "the target reads as zeros, as a new thin volume does: do not look")
	f.BoolVar(&o.Verify, "verify", false, "read the target again in the end and compare it with the backup")
	return cmd
}

// heldBackup reads the record of the backup that --holds names: one of the same repository.
func heldBackup(cmd *cobra.Command, r *chunkstore.Repository, l engine.Location, s string) (*chunkstore.Backup, error) {
	held := engine.Location{Path: l.Path, Volume: l.Volume, Backup: s}
	if p, err := engine.ParseLocation(s); err == nil && p.Backup != "" {
		held = p
	}
	if held.Path != l.Path {
		return nil, usagef(cmd, "--holds names a backup in another repository, %s", held.Path)
	}
	return r.Backup(cmd.Context(), held.Volume, held.Backup)
}
