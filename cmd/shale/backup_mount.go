package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/fusemount"
)

func newBackupMountCommand(a *app) *cobra.Command {
	var foreground, allowOther bool
	var cacheMiB int64
	cmd := &cobra.Command{
		Use:   "mount URL DIR",
		Short: "Show the backups in a repository as files",
		Long: `Show the backups in a repository as files, until DIR is unmounted (umount DIR, or fusermount3 -u DIR):

  DIR/VOLUME/BACKUP/image.raw    the volume as it was
  DIR/VOLUME/BACKUP/backup.json  the backup record
  DIR/VOLUME/latest              the newest backup

Nothing is read before it is looked at; new backups appear by themselves. The command returns when DIR can be read; a process of its
own goes on serving it. With --foreground it is this one. No root is needed where fusermount3 is installed.`,
		Example: `  shale backup mount /srv/backups /mnt/backups
  mount -o ro,loop /mnt/backups/db/latest/image.raw /mnt/db`,
		Args: exactArgs("URL", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !foreground {
				return a.detachMount(cmd, args, allowOther, cacheMiB)
			}
			err := a.serveMount(cmd.Context(), args[0], args[1], fusemount.Options{AllowOther: allowOther, CacheBytes: cacheMiB << 20})
			if err != nil {
				err = errors.Join(err, fusemount.Failed(err))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&foreground, "foreground", false, "serve in this process, until it is interrupted or DIR is unmounted")
	f.BoolVar(&allowOther, "allow-other", false, "let other users look into the mount")
	f.Int64Var(&cacheMiB, "cache-size", 64, "MiB of decoded chunks to keep in memory, 4 or more")
	return cmd
}

// detachMount runs the same command again in a process of its own, and returns when the mount is there.
func (a *app) detachMount(cmd *cobra.Command, args []string, allowOther bool, cacheMiB int64) error {
	dir, err := filepath.Abs(args[1])
	if err != nil {
		return err
	}
	again := []string{"backup", "mount", "--foreground", "--quiet", args[0], dir, fmt.Sprintf("--cache-size=%d", cacheMiB)}
	if allowOther {
		again = append(again, "--allow-other")
	}
	if a.cacheDir != "" {
		again = append(again, "--cache-dir", a.cacheDir)
	}
	pid, err := fusemount.Detach(cmd.Context(), again, nil)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Dir string `json:"dir"`
			PID int    `json:"pid"`
		}{dir, pid})
	}
	_, err = fmt.Fprintln(a.stdout, dir)
	return err
}

func (a *app) serveMount(ctx context.Context, url, dir string, o fusemount.Options) (err error) {
	r, l, err := a.openRepository(ctx, url)
	if err != nil {
		return err
	}
	defer closeInto(&err, r)
	o.Source = l.Path
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	m, err := fusemount.Mount(ctx, dir, fusemount.Store(r), o)
	if err != nil {
		return err
	}
	if err := fusemount.Ready(); err != nil {
		return errors.Join(err, m.Unmount(context.WithoutCancel(ctx)))
	}
	a.note("%s is mounted at %s", l, dir)
	m.Wait()
	return nil
}
