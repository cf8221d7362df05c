package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// copyAnswer is the answer of backup copy.
type copyAnswer struct {
	URL     string                 `json:"url"`     // in the destination
	Existed bool                   `json:"existed"` // nothing was done
	Backup  *chunkstore.Backup     `json:"backup"`
	Writer  chunkstore.WriterStats `json:"writer"`
	Lock    *chunkstore.LockReport `json:"lock,omitempty"`
	Moved   transfer               `json:"transfer"`
}

func newBackupCopyCommand(a *app) *cobra.Command {
	var compression string
	var secrets fromSecrets
	var locks lockFlags
	cmd := &cobra.Command{
		Use:   "copy BACKUP-URL URL",
		Short: "Copy a backup into another repository",
		Long: `Copy a backup into another repository, and print the URL it has there. The two may differ in whatever they have: key, codec, lengths of
chunks. Every chunk is checked against its ID when it is read, and stored as a backup of the volume would store it. What is equal to
the nearest backup that both repositories have is neither read nor stored.

The copy keeps the volume, the time, the host and the labels; and the ID, unless the other repository has another backup of that ID. A
backup that it has already, by whatever way, is not copied again. The next 'backup create' into the other repository may compare
with the copy: it then reads only what changed since. (The snapshot of a thin volume that this takes stays the first repository's.)

Interrupted, it goes on when the same command is given again. 'shale repo sync' copies all that a repository lacks.
` + fromHelp,
		Example: `  shale backup copy 'vfs:///srv/backups?backup=backup-1a1fdc69ab53f7ad&volume=db' /mnt/offsite`,
		Args:    exactArgs("BACKUP-URL", "URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx := cmd.Context()
			if err := checkCompression(cmd, compression); err != nil {
				return err
			}
			lockFor, lockMode, err := locks.lock(cmd)
			if err != nil {
				return err
			}
			restore := secrets.use(a)
			from, source, b, err := a.openBackup(ctx, args[0])
			restore()
			if err != nil {
				return err
			}
			defer closeInto(&err, from)
			to, l, err := a.openRepository(ctx, args[1])
			if err != nil {
				return err
			}
			defer closeInto(&err, to)
			bar := a.newProgress("copy")
			res, err := engine.Copy(ctx, from, b, to, engine.CopyOptions{
				Compression: chunkstore.Compression(compression), Workers: a.parallel, Progress: bar, LockFor: lockFor, LockMode: lockMode,
			})
			bar.done()
			if err != nil {
				a.blame(err, source)
				return interrupted(ctx, err, "there is no copy; what was stored is kept, and not stored again next time")
			}
			return a.printCopied(l.Of(res.Backup), res)
		},
	}
	cmd.Flags().StringVar(&compression, "compression", "", "`CODEC`: none, s2, zstd:1 to zstd:4 (default: that of the repository copied to)")
	secrets.addFlags(cmd.Flags())
	locks.addFlags(cmd)
	completeCompression(cmd)
	return cmd
}

// blame makes source the repository that advice is about, if err comes of it and not of the destination, which was opened last.
func (a *app) blame(err error, source engine.Location) {
	var se *engine.SourceError
	if errors.As(err, &se) {
		a.location = source.Repository()
	}
}

func (a *app) printCopied(l engine.Location, res *engine.CopyResult) error {
	moved := a.transferred(0)
	if a.json {
		a.note("%s", moved)
		return a.printJSON(copyAnswer{l.String(), res.Existed, res.Backup, res.Writer, res.Lock, moved})
	}
	if res.Existed {
		a.note("it is there already: nothing was copied")
	} else {
		a.noteCopied(res)
	}
	a.note("%s", moved)
	_, err := fmt.Fprintln(a.stdout, l)
	return err
}

// noteCopied tells what a copy cost.
func (a *app) noteCopied(res *engine.CopyResult) {
	b := res.Backup
	compared := "copied whole"
	if b.Parent != "" {
		compared = "compared with backup " + b.Parent
	}
	a.noteAdopted(res.Writer.Adopted)
	a.note("%s of %s, %s: %s of %s in use; read %s, new %s, stored %s, in %.1f s", b.ID, b.Volume, compared,
		size(b.Blob.Data), size(b.Blob.Size), size(b.Counts.Read), size(b.Counts.New), size(res.Writer.Stored), b.Counts.Seconds)
	a.noteLock(res.Lock)
}

func (a *app) noteAdopted(packs int64) {
	if packs > 0 {
		a.note("took over %d pack(s) that an interrupted run had stored", packs)
	}
}
