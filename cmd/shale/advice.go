package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine/source"
	"github.com/shalebackup/shale/fusemount"
	"github.com/shalebackup/shale/thin"
	"github.com/shalebackup/shale/thin/pool"
)

// advice says what the user can do about err, the failure of cmd; empty when the error says it all. It is the one place for that:
// the rooms below say what happened, and to what.
func (a *app) advice(cmd *cobra.Command, err error) string {
	for _, of := range []func(*cobra.Command, error) string{a.repositoryAdvice, s3Advice, poolAdvice, thinAdvice, sourceAdvice, a.systemAdvice} {
		if s := of(cmd, err); s != "" {
			return s
		}
	}
	return ""
}

// repositoryAdvice is about the repository that was opened last.
func (a *app) repositoryAdvice(cmd *cobra.Command, err error) string {
	url := "URL"
	if !a.location.IsZero() {
		url = shellQuote(a.location.String())
	}
	shale := func(command string) string { return quoted("shale " + command + " " + url) }
	var missing *chunkstore.NotFoundError
	switch {
	case errors.Is(err, chunkstore.ErrNoRepository):
		return shale("repo init") + " makes one."
	case errors.Is(err, chunkstore.ErrRepositoryExists):
		return "Use it as it is, or name another folder. 'shale repo stats' says what it holds."
	case errors.Is(err, chunkstore.ErrSealed):
		return "Give --password-file, --password-command or --identity-file, or set $SHALE_PASSWORD; on a terminal shale asks." + fromAdvice(cmd)
	case errors.Is(err, chunkstore.ErrNotSealed):
		return "If it should be, somebody may have replaced it: do not use it. If not, leave the password out, or add --allow-plain." + fromAdvice(cmd)
	case errors.Is(err, chunkstore.ErrReplaced):
		return replacedAdvice(err)
	case errors.Is(err, chunkstore.ErrKey) && !damaged(err):
		return shale("repo key list") + " shows, to whoever has one of its keys, which there are. There is no way around them."
	case errors.Is(err, chunkstore.ErrLastKey):
		return "Add another first: " + shale("repo key add") + "."
	case errors.Is(err, chunkstore.ErrUnsupported):
		return fmt.Sprintf("A newer shale wrote it: use that one. This is %s.", buildVersion().Version)
	case damaged(err):
		return damageAdvice(cmd, err, shale)
	case errors.As(err, &missing) && missing.What == "key":
		return shale("repo key list") + " shows what there is."
	case errors.Is(err, chunkstore.ErrMuchDamage):
		return "Is all of the store there, and mounted? If so, --force goes on."
	case errors.As(err, &missing):
		return shale("backup list") + " shows what there is."
	}
	return ""
}

// fromAdvice is for commands that open two repositories.
func fromAdvice(cmd *cobra.Command) string {
	if cmd.Flags().Lookup("from-password-file") == nil {
		return ""
	}
	return "\nFor the repository that is copied from: --from-password-file and so on."
}

func replacedAdvice(err error) string {
	var r *chunkstore.ReplacedError
	if !errors.As(err, &r) {
		return ""
	}
	return "If nobody is known to have done that, somebody may want your next backup: do not use it. If it is right, remove\n" +
		r.File + ", where the other is remembered."
}

func damageAdvice(cmd *cobra.Command, err error, shale func(command string) string) string {
	var c *chunkstore.CorruptError
	errors.As(err, &c)
	switch {
	case c != nil && c.Object == "config":
		return "Without its configuration the repository cannot be read. Put back the file 'config' from a copy: it never changes."
	case c != nil && (strings.HasPrefix(c.Object, "keys/") || strings.HasPrefix(c.Object, "epochs/")):
		return "Put the object back from a copy of the repository, or open it with another key: the other objects are not touched by this."
	case cmd.Name() == "prune" && !errors.Is(err, errDamage):
		return "A prune deletes nothing while it cannot tell what backups need. " + shale("repo repair") + " mends what can be had;\n" +
			"delete the backups that have lost something otherwise."
	case c != nil && strings.HasPrefix(c.Object, "trash/"):
		return "When no backup is running on any host, " + shale("repo repair --alone") + " removes it."
	case c != nil && strings.HasPrefix(c.Object, "index/"), errors.Is(err, chunkstore.ErrNotFound):
		return shale("repo reindex") + " makes the index anew from the packs."
	case errors.Is(err, chunkstore.ErrCorrupt), errors.Is(err, errDamage) && slices.Contains([]string{"list", "forget", "sync"}, cmd.Name()):
		return shale("repo check --stored") + " says what else is damaged, and which backups that touches."
	case errors.Is(err, errDamage) && (cmd.Name() == "check" || cmd.Name() == "verify"):
		return "What is not listed can be restored. " + shale("repo repair") + " mends what can be had elsewhere: from second copies,\n" +
			"and with --from SOURCE from the volume itself, an image, or a copy of the repository."
	case errors.Is(err, errDamage) && cmd.Name() == "repair":
		if dry, _ := cmd.Flags().GetBool("dry-run"); dry {
			return "Nothing was changed. Without --dry-run what can be mended is mended."
		}
		return "Give it again with --from SOURCE, or back up with --full what still has the content: old backups are whole then, too."
	}
	return ""
}

func poolAdvice(_ *cobra.Command, err error) string {
	const asIs = "What is not written to can be backed up all the same: unmount the volume, make it read-only (blockdev --setro)\n" +
		"or deactivate it (lvchange -an), and add --no-snapshot."
	switch {
	case errors.Is(err, pool.ErrReadOnly), errors.Is(err, pool.ErrNeedsCheck):
		return "No snapshot can be taken in such a pool. " + asIs
	case errors.Is(err, pool.ErrOutOfSpace):
		return "Extend the pool, or delete something in it. " + asIs
	case errors.Is(err, pool.ErrFailed):
		return "The kernel gave the pool up: see dmesg, then thin_check and 'lvconvert --repair' on the inactive pool."
	case errors.Is(err, pool.ErrHeld):
		return "Wait for it to end; if none runs, 'dmsetup message POOL 0 release_metadata_snap' releases it."
	case errors.Is(err, pool.ErrInactive):
		return "Activate it ('lvchange -ay VG/LV'; with -K for a snapshot), or name the pool by --thin-metadata, --thin-data and --thin-id."
	case errors.Is(err, pool.ErrNotThin):
		return "'dmsetup table' and 'lvs -o+segtype' show which volumes are thin."
	case errors.Is(err, pool.ErrNoTool):
		return "Install the packages dmsetup and, for LVM volumes, lvm2."
	case errors.Is(err, pool.ErrNoKernel):
		return "Load the kernel module dm_thin_pool; in a container, share /dev/mapper/control with it."
	case errors.Is(err, pool.ErrPermission):
		return "Snapshots of thin volumes take root."
	case errors.Is(err, pool.ErrFreezeExpired):
		return "The file system could not be written out in time. Try again when the machine is less busy."
	case errors.Is(err, pool.ErrNotFound):
		return "'dmsetup ls' and 'lvs' show what there is. A file is named by its path."
	}
	return ""
}

func thinAdvice(cmd *cobra.Command, err error) string {
	const metaSnap = "Of an active pool the metadata is read at a snapshot: 'dmsetup message POOL 0 reserve_metadata_snap', then --metadata-snap."
	said := strings.HasPrefix(cmd.CommandPath(), "shale thin") // its errors say these themselves
	switch {
	case errors.Is(err, thin.ErrNotMetadata):
		return "Name the pool's metadata (LVM's ends in _tmeta), not the pool, its data or a volume."
	case errors.Is(err, thin.ErrNoDevice):
		return "'shale thin devices META' lists those that there are."
	case errors.Is(err, thin.ErrChanged):
		return metaSnap
	case errors.Is(err, thin.ErrDamaged):
		return "thin_check says more; thin_repair writes what can be saved to another device."
	case said:
	case errors.Is(err, thin.ErrInUse), errors.Is(err, thin.ErrNoMetadataSnapshot):
		return metaSnap
	case errors.Is(err, thin.ErrNeedsCheck):
		return "After thin_check the kernel takes the pool again; --allow-needs-check reads it as it is."
	}
	return ""
}

func sourceAdvice(_ *cobra.Command, err error) string {
	switch {
	case errors.Is(err, source.ErrWritable):
		return "Leave out --no-snapshot, or unmount it and make it read-only (blockdev --setro) or deactivate it (lvchange -an)."
	case errors.Is(err, source.ErrChanged):
		return "Stop what writes to it, or back up a copy of one moment: a thin snapshot, or cp --reflink=always."
	case errors.Is(err, fusemount.ErrMounted):
		return "'umount DIR' takes it away; or name another folder."
	}
	return ""
}

func (a *app) systemAdvice(_ *cobra.Command, err error) string {
	place := a.within(err)
	switch {
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "This user may not: run shale as the owner, or as root. On NFS root is often nobody (root_squash): then nobody must own the folder."
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		if place != "" {
			place = " in " + place
		}
		return "Make room" + place + " and give the same command again; what was stored is kept."
	case errors.Is(err, syscall.ESTALE):
		if place == "" {
			place = "the folder"
		}
		return "The NFS server no longer has what was mounted here. Unmount the file system of " + place + " ('umount -l') and mount it again."
	case place != "" && (errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ETIMEDOUT)):
		return "See dmesg for why " + place + " cannot be used. Where it is on NFS, the server may be away: a soft mount gives up, a hard one waits.\n" +
			"Give the same command again; what was stored is kept."
	case errors.Is(err, syscall.EROFS):
		return "That file system is mounted read-only. Where only the cache is meant, --cache-dir names another folder for it."
	}
	return ""
}

// within is the folder of the repository that was opened last, if err is of a file in it.
func (a *app) within(err error) string {
	path := ""
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &p):
		path = p.Path
	case errors.As(err, &l):
		path = l.New
	}
	if dir := a.location.Path; dir != "" && a.location.Bucket == "" && (path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")) {
		return dir
	}
	return ""
}

// quoted sets a command off from the words around it, unless its own quotes do.
func quoted(command string) string {
	if strings.Contains(command, "'") {
		return command
	}
	return "'" + command + "'"
}

// shellQuote quotes s for a shell where that is needed.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:=+,@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
