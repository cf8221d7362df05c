package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/fusemount"
)

type mountOptions struct {
	foreground, allowOther bool
	cacheMiB               int64
	log                    string
}

func newBackupMountCommand(a *app) *cobra.Command {
	var o mountOptions
	cmd := &cobra.Command{
		Use:   "mount URL DIR",
		Short: "Show the backups in a repository as files",
		Long: `Show the backups in a repository as files, until DIR is unmounted (umount DIR, or fusermount3 -u DIR):

    DIR/VOLUME/BACKUP/image.raw    the volume as it was
    DIR/VOLUME/BACKUP/backup.json  the backup record
    DIR/VOLUME/latest              the newest backup

Nothing is read before it is looked at; new backups appear by themselves. What is damaged is an I/O error to who reads it, and a line in
the log; the rest can be read. No root is needed where fusermount3 is installed.

DIR is an empty folder. The command prints its name and returns when it can be read; a process of its own goes on serving it. With
--foreground this process does, until DIR is unmounted or it is interrupted: either is success. A mount whose process was killed is
replaced.`,
		Example: `  shale backup mount /srv/backups /mnt/backups
  mount -o ro,loop /mnt/backups/db/latest/image.raw /mnt/db
  umount /mnt/db /mnt/backups`,
		Args: exactArgs("URL", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if least := int64(fusemount.MinCacheBytes >> 20); o.cacheMiB < least || o.cacheMiB > 1<<20 {
				return usagef(cmd, "--cache-size is %d MiB, want %d to %d", o.cacheMiB, least, 1<<20)
			}
			if !o.foreground {
				return a.detachMount(cmd.Context(), args[0], args[1], o)
			}
			err := a.serveMount(cmd.Context(), args[0], args[1], o)
			if err != nil {
				told := errors.New(strings.TrimSpace(err.Error() + "\n" + a.advice(cmd, err)))
				err = errors.Join(err, fusemount.Failed(told))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.foreground, "foreground", false, "serve in this process, until it is interrupted or DIR is unmounted")
	f.BoolVar(&o.allowOther, "allow-other", false, "let other users look into the mount")
	f.Int64Var(&o.cacheMiB, "cache-size", 48, "keep so many `MiB` of decoded chunks in memory, 4 or more")
	f.StringVar(&o.log, "log", "", "append the log to `FILE` (default: stderr with --foreground, else nowhere)")
	return cmd
}

// detachMount runs the same command again in a process of its own, and returns when the mount is there.
func (a *app) detachMount(ctx context.Context, url, dir string, o mountOptions) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	r, _, err := a.openRepository(ctx, url) // what can be wrong with it is told by this process, with its exit code
	if err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	again := []string{"backup", "mount", "--foreground", fmt.Sprintf("--cache-size=%d", o.cacheMiB), fmt.Sprintf("--parallel=%d", a.parallel)}
	if o.allowOther {
		again = append(again, "--allow-other")
	}
	if a.cacheDir != "" {
		again = append(again, "--cache-dir="+a.cacheDir)
	}
	for _, l := range []struct {
		name string
		rate byteRate
	}{{"upload", a.traffic.upload}, {"download", a.traffic.download}} {
		if l.rate > 0 {
			again = append(again, fmt.Sprintf("--limit-%s=%d", l.name, l.rate))
		}
	}
	again = append(again, a.s3.again()...)
	if o.log != "" {
		again = append(again, "--log="+o.log)
	}
	again, secrets, err := a.handOver(again)
	if err != nil {
		return err
	}
	pid, err := fusemount.Detach(ctx, append(again, "--", url, dir), secrets, nil)
	if err != nil {
		return interrupted(ctx, err, "nothing is mounted")
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

// serveMount mounts, and returns when the mount is gone.
func (a *app) serveMount(ctx context.Context, url, dir string, o mountOptions) (err error) {
	r, l, err := a.openRepository(ctx, url)
	if err != nil {
		return err
	}
	defer closeInto(&err, r)
	log := a.stderr
	if o.log != "" {
		f, err := os.OpenFile(o.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return fmt.Errorf("--log: %w", err)
		}
		defer f.Close()
		log = f
	}
	m, err := fusemount.Mount(ctx, dir, fusemount.Store(r), fusemount.Options{
		Source: r.Location(), AllowOther: o.allowOther, CacheBytes: o.cacheMiB << 20, Parallel: min(cmp.Or(a.parallel, max(r.Parallel(), 4)), 256),
		Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		return err
	}
	if err := fusemount.Ready(); err != nil {
		return errors.Join(err, m.Unmount(context.WithoutCancel(ctx)))
	}
	a.note("%s is mounted at %s", l, dir)
	m.Wait()
	a.note("%s", a.transferred(0))
	return nil
}
