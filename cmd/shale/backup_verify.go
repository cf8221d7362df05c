package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/engine"
)

func newBackupVerifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify BACKUP-URL",
		Short: "Read every byte of a backup and compare it with its ID",
		Long: `Read every byte of a backup and compare it with its ID, without restoring it. 'repo check --data' does so for all backups at once.

Exit code 3: parts of it are damaged; their ranges are listed, by offset and length in bytes.`,
		Example: `  shale backup verify 'vfs:///srv/backups?backup=backup-1a1fdc69ab53f7ad&volume=db'`,
		Args:    exactArgs("BACKUP-URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, _, b, err := a.openBackup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			bar := a.newProgress("verify")
			rep, err := engine.Verify(cmd.Context(), r, b, bar)
			bar.done()
			if err != nil {
				return interrupted(cmd.Context(), err, "nothing was changed")
			}
			a.note("%s", a.transferred(0))
			if a.json {
				err = a.printJSON(struct {
					*engine.VerifyReport
					Transfer transfer `json:"transfer"`
				}{rep, a.transferred(0)})
			} else {
				for _, d := range rep.Damage {
					fmt.Fprintf(a.stdout, "damaged: %d bytes at %d: %s\n", d.Len, d.Off, d.Error)
				}
				_, err = fmt.Fprintf(a.stdout, "%s: %s of %s verified\n", b.ID, size(rep.Read), size(rep.Data))
			}
			if err == nil && len(rep.Damage) > 0 {
				err = fmt.Errorf("%w in %d range(s)", errDamage, len(rep.Damage))
			}
			return err
		},
	}
}
