package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

const cacheEnv = "SHALE_CACHE_DIR"

// repositoryOptions says how this process uses a repository.
func (a *app) repositoryOptions() (chunkstore.Options, error) {
	dir, err := a.cacheFolder()
	if err != nil {
		return chunkstore.Options{}, err
	}
	c, err := a.credentials()
	return chunkstore.Options{CacheDir: dir, Parallel: a.parallel, Damaged: a.damageNotes(), Credentials: c}, err
}

// cacheFolder is there when it returns.
func (a *app) cacheFolder() (string, error) {
	dir := a.cacheDir
	if dir == "" {
		dir = os.Getenv(cacheEnv)
	}
	if dir == "" && os.Getuid() == 0 {
		dir = "/var/cache/shale"
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("cache folder: %w; --cache-dir names one", err)
		}
		dir = filepath.Join(user, "shale")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("cache folder: %w; --cache-dir or $%s names another", err, cacheEnv)
	}
	if fs := networkFS(dir); fs != "" {
		a.note("the cache folder %s is on %s, which is slow and can fail under shale; --cache-dir or $%s names a local one", dir, fs, cacheEnv)
	}
	return dir, nil
}

// networkFS names the network file system that dir is on; empty: none that is known.
func networkFS(dir string) string {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return ""
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC:
		return "NFS"
	case unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC:
		return "SMB"
	}
	return ""
}

// parseLocation reads the URL of a repository, or of a backup in one.
func (a *app) parseLocation(url string) (engine.Location, error) {
	l, err := engine.ParseLocation(url)
	if err == nil {
		a.location = l.Repository()
	}
	return l, err
}

// backupLocation reads the URL of a backup.
func (a *app) backupLocation(url string) (engine.Location, error) {
	l, err := a.parseLocation(url)
	if err == nil && l.Backup == "" {
		err = fmt.Errorf("%w: %s names a repository, not a backup: add ?backup=ID&volume=NAME", engine.ErrURL, url)
	}
	return l, err
}

// openRepository opens the repository of a URL that may name a backup in it.
func (a *app) openRepository(ctx context.Context, url string) (*chunkstore.Repository, engine.Location, error) {
	l, err := a.parseLocation(url)
	if err != nil {
		return nil, l, err
	}
	o, err := a.repositoryOptions()
	if err != nil {
		return nil, l, err
	}
	r, err := engine.OpenRepository(ctx, l, a.backendOptions(), o)
	return r, l, err
}

// openBackup opens a backup by its URL.
func (a *app) openBackup(ctx context.Context, url string) (*chunkstore.Repository, engine.Location, *chunkstore.Backup, error) {
	l, err := a.backupLocation(url)
	if err != nil {
		return nil, l, nil, err
	}
	r, l, err := a.openRepository(ctx, url)
	if err != nil {
		return nil, l, nil, err
	}
	b, err := r.Backup(ctx, l.Volume, l.Backup)
	if err != nil {
		return nil, l, nil, errors.Join(err, r.Close())
	}
	return r, l, b, nil
}

func newRepoCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repo",
		Short: "Make, check and describe repositories",
		Long: `Make, check and describe repositories.

A repository is a folder, local or on NFS, or lies in an S3 bucket. It is named by a path or a URL: /srv/backups, vfs:///srv/backups,
s3://bucket@region/prefix. Any number of hosts may back up to one at once. Where a command takes a repository, the URL of a backup in it
does as well.

` + s3Help,
	}
	asGroup(cmd)
	cmd.AddCommand(newRepoInitCommand(a), newRepoStatsCommand(a), newRepoCheckCommand(a), newRepoReindexCommand(a), newRepoPruneCommand(a),
		newRepoRepairCommand(a), newRepoSyncCommand(a), newRepoKeyCommand(a))
	return cmd
}
