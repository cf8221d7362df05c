package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
	"github.com/shalebackup/shale/fusemount"
	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/pool"
)

func TestExitCode(t *testing.T) {
	t.Parallel()
	going := t.Context()
	ended, cancel := context.WithCancel(going)
	cancel()
	usage := usagef(&cobra.Command{Use: "shale"}, "no")
	corrupt := &chunkstore.CorruptError{Object: "packs/data/00/00", Err: errors.New("bad")}
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		want int
	}{
		{"done", going, nil, 0},
		{"done as the signal came", ended, nil, 0},
		{"failed", going, errors.New("no"), 1},
		{"usage", going, fmt.Errorf("x: %w", usage), 2},
		{"usage, interrupted", ended, usage, 2},
		{"URL", going, fmt.Errorf("--base: %w", engine.ErrURL), 2},
		{"report of damage", going, fmt.Errorf("%w in 3 places", errDamage), 3},
		{"damage on the way", going, fmt.Errorf("restore: %w", corrupt), 3},
		{"damage, interrupted", ended, errors.Join(context.Canceled, corrupt), 3},
		{"thin metadata", going, &thin.DamageError{Block: 7, Err: errors.New("bad")}, 3},
		{"chunk that a backup needs", going, &chunkstore.NotFoundError{What: "chunk", Name: "x"}, 3},
		{"tree node that a backup needs", going, &chunkstore.NotFoundError{What: "tree node", Name: "x"}, 3},
		{"backup that is not there", going, &chunkstore.NotFoundError{What: "backup", Name: "x"}, 1},
		{"unsupported", going, chunkstore.ErrUnsupported, 1},
		{"interrupted", ended, context.Canceled, 130},
		{"failed of an interruption", ended, errors.New("pipe closed"), 130},
	} {
		if got := exitCode(c.ctx, c.err); got != c.want {
			t.Errorf("%s: exit code %d, want %d", c.name, got, c.want)
		}
	}
}

func TestInterruptedSaysWhatElseFailed(t *testing.T) {
	t.Parallel()
	going := t.Context()
	ended, cancel := context.WithCancel(going)
	cancel()
	stop := fmt.Errorf("read span 7: %w", context.Canceled)
	other := errors.New("snapshot is still there")
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want string
	}{
		{going, other, "snapshot is still there"},
		{ended, stop, "interrupted: all is well"},
		{ended, errors.Join(stop, context.Canceled), "interrupted: all is well"},
		{ended, errors.Join(context.Canceled, other), "interrupted: all is well; also: context canceled\nsnapshot is still there"},
	} {
		if got := interrupted(c.ctx, c.err, "all is well"); got.Error() != c.want || !errors.Is(got, c.err) {
			t.Errorf("%v becomes %q, want %q", c.err, got, c.want)
		}
	}
	if err := interrupted(ended, nil, "x"); err != nil {
		t.Errorf("success becomes %v", err)
	}
}

// Every error that a user can do something about has its advice, also when it is wrapped.
func TestAdvice(t *testing.T) {
	t.Parallel()
	a := &app{location: engine.Location{Path: "/srv/my backups"}}
	shale := &cobra.Command{Use: "shale"}
	thinCmd, check, list := &cobra.Command{Use: "thin"}, &cobra.Command{Use: "check"}, &cobra.Command{Use: "list"}
	shale.AddCommand(thinCmd, check, list)
	corrupt := func(object string) error { return &chunkstore.CorruptError{Object: object, Err: errors.New("bad")} }
	for _, c := range []struct {
		cmd  *cobra.Command
		err  error
		want string
	}{
		{list, chunkstore.ErrNoRepository, "shale repo init 'vfs:///srv/my backups' makes one"},
		{list, chunkstore.ErrRepositoryExists, "another folder"},
		{list, chunkstore.ErrUnsupported, "A newer shale"},
		{list, corrupt("config"), "Put back the file 'config'"},
		{list, corrupt("index/abc"), "repo reindex"},
		{list, corrupt("packs/data/ab/cd"), "repo check --stored"},
		{list, &chunkstore.NotFoundError{What: "chunk", Name: "x"}, "repo reindex"},
		{list, &chunkstore.NotFoundError{What: "backup", Name: "x"}, "backup list"},
		{list, errDamage, "repo check --stored"},
		{check, errDamage, "repo repair"},
		{list, source.ErrChanged, "cp --reflink=always"},
		{list, source.ErrWritable, "blockdev --setro"},
		{list, fusemount.ErrMounted, "umount DIR"},
		{list, thin.ErrNeedsCheck, "--allow-needs-check"},
		{list, thin.ErrInUse, "reserve_metadata_snap"},
		{list, thin.ErrNoMetadataSnapshot, "reserve_metadata_snap"},
		{list, thin.ErrChanged, "--metadata-snap"},
		{list, thin.ErrNotMetadata, "_tmeta"},
		{list, thin.ErrNoDevice, "shale thin devices META"},
		{list, &thin.DamageError{Err: errors.New("bad")}, "thin_check"},
		{list, pool.ErrReadOnly, "--no-snapshot"},
		{list, pool.ErrNeedsCheck, "--no-snapshot"},
		{list, pool.ErrOutOfSpace, "Extend the pool"},
		{list, pool.ErrFailed, "lvconvert --repair"},
		{list, pool.ErrHeld, "release_metadata_snap"},
		{list, pool.ErrInactive, "lvchange -ay"},
		{list, pool.ErrNotThin, "dmsetup table"},
		{list, pool.ErrNoTool, "dmsetup"},
		{list, pool.ErrNoKernel, "dm_thin_pool"},
		{list, pool.ErrPermission, "root"},
		{list, pool.ErrNotFound, "dmsetup ls"},
		{list, pool.ErrFreezeExpired, "Try again"},
		{list, &os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, "root"},
		{list, &os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, "Make room"},
		{list, &os.PathError{Op: "write", Path: "/x", Err: syscall.EROFS}, "read-only"},
		{list, &os.PathError{Op: "sync", Path: "/srv/my backups/packs/x", Err: syscall.EDQUOT}, "Make room in /srv/my backups and"},
		{list, &os.LinkError{Op: "link", New: "/srv/my backups/x", Err: syscall.ENOSPC}, "Make room in /srv/my backups and"},
		{list, &os.PathError{Op: "write", Path: "/srv/my backups of mine/x", Err: syscall.ENOSPC}, "Make room and"},
		{list, &os.PathError{Op: "stat", Path: "/srv/my backups", Err: syscall.ESTALE}, "the file system of /srv/my backups ('umount -l') and mount it again"},
		{list, &os.PathError{Op: "sync", Path: "/srv/my backups/x", Err: syscall.EIO}, "a soft mount gives up"},
		{list, &os.PathError{Op: "sync", Path: "/srv/my backups/x", Err: syscall.ETIMEDOUT}, "a soft mount gives up"},
		{list, &os.PathError{Op: "read", Path: "/dev/sda", Err: syscall.EIO}, ""},
		{thinCmd, thin.ErrNeedsCheck, ""}, // says it itself
		{list, errors.New("something else"), ""},
	} {
		got := a.advice(c.cmd, fmt.Errorf("read x: %w", c.err))
		if !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s: %v: advice is %q, want %q in it", c.cmd.Name(), c.err, got, c.want)
		}
	}
}

func TestShellQuote(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"vfs:///srv/b-1_2.x": "vfs:///srv/b-1_2.x",
		"":                   "''",
		"/a b":               "'/a b'",
		"/a?b=c&d":           "'/a?b=c&d'",
		"it's":               `'it'\''s'`,
		"$HOME":              "'$HOME'",
	} {
		if got := shellQuote(s); got != want {
			t.Errorf("%q is quoted %s, want %s", s, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", 1 << 40: "1.0 TiB",
		1 << 50: "1.0 PiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
}
