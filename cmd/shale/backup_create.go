package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/limit"
	"github.com/shalebackup/shale/engine"
	"github.com/shalebackup/shale/engine/source"
	"github.com/shalebackup/shale/thin/pool"
)

type createOptions struct {
	dest, volume, base, baseImage string
	compression                   string
	full                          bool
	labels                        []string
	locks                         lockFlags
	thinMetadata, thinData        string
	thinID, thinBase              int64
	metadataSnap, allowNeedsCheck bool
	noSnapshot                    bool
	size                          int64
	limitRead                     byteRate
}

func newBackupCreateCommand(a *app) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:   "create [SOURCE] --dest URL --volume NAME",
		Short: "Back up a volume",
		Long: `Back up a volume, and print the backup's URL on the last line.

SOURCE is a thin volume, an image, or a block device.

A thin volume is named as device-mapper or LVM name it: home, vg0/home, /dev/mapper/home, /dev/vg0/home. It may be in use: shale takes
a snapshot of it, with its file system frozen for that moment, and reads that. The snapshot is kept for the next backup, which then
reads only what changed, and removes it when it has one of its own. (For LVM's: lvs @shale lists them.) With --no-snapshot SOURCE is
itself a snapshot, or another volume that is not active or read-only, and is read as it is; in a pool that is read-only or out of
space this is what is left.

Of an image or a block device, which nobody may write meanwhile, holes are neither read nor stored. On XFS and btrfs an image is
compared with the image of the earlier backup (--base-image, if it was moved) by the places of their bytes: make each day's image
a reflinked copy (cp --reflink), and only what changed is read.

A device of a thin pool that is not active, or of a captured copy, is given by its metadata and data instead of SOURCE:
--thin-metadata, --thin-data and --thin-id. --thin-base is the device, a snapshot nobody wrote to, that an earlier backup
of the volume was made from: then only what changed between the two is read.

--lock-for locks all that the backup needs in a bucket with object lock: what it stores, and what it shares with earlier backups, whose
locks are extended where they end earlier. Locks last up to an eighth longer than asked for, so that not every backup has to extend
all of them. Until then delete and prune leave it alone, and say so.

Without --base the newest earlier backup serves that can be compared with. When there is none, everything is read, and it is said
why; what the repository has is not stored again.`,
		Example: `  shale backup create vg0/db --dest /srv/backups --volume db
  shale backup create /dev/mapper/db-monday --no-snapshot --dest /srv/backups --volume db
  shale backup create /srv/images/db.raw --dest /srv/backups --volume db
  shale backup create --thin-metadata meta.img --thin-data data.img --thin-id 3 --thin-base 2 --volume db --dest /srv/backups`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef(cmd, "expects one SOURCE, got %d arguments", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.backupCreate(cmd, args, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dest, "dest", "", "`URL` of the repository (required)")
	f.StringVar(&o.volume, "volume", "", "`NAME` of the volume in the repository (required)")
	f.StringVar(&o.base, "base", "", "`BACKUP` (URL, or ID) to compare with (default: the newest that serves)")
	f.BoolVar(&o.full, "full", false, "compare with no earlier backup")
	f.BoolVar(&o.noSnapshot, "no-snapshot", false, "read the thin volume as it is: nobody may write to it")
	f.StringVar(&o.baseImage, "base-image", "", "`FILE` where the earlier backup's image lies now")
	f.StringVar(&o.compression, "compression", "", "`CODEC`: none, s2, zstd:1 to zstd:4 (default: the repository's)")
	f.StringArrayVar(&o.labels, "label", nil, "`KEY=VALUE` to keep in the backup record; may be repeated")
	f.StringVar(&o.thinMetadata, "thin-metadata", "", "`FILE` or device: a thin pool's metadata")
	f.StringVar(&o.thinData, "thin-data", "", "`FILE` or device: the pool's data")
	f.Int64Var(&o.thinID, "thin-id", -1, "`ID` of the thin device to back up")
	f.Int64Var(&o.thinBase, "thin-base", -1, "`ID` of the thin device to compare with")
	f.Int64Var(&o.size, "size", 0, "the thin device's size in `BYTES` (default: to its last mapped block)")
	f.BoolVar(&o.metadataSnap, "metadata-snap", false, "read the thin metadata at its held root")
	f.BoolVar(&o.allowNeedsCheck, "allow-needs-check", false, "read thin metadata that is marked needs_check")
	f.Var(&o.limitRead, "limit-read", "read at most `RATE` bytes per second of the volume's data: 500K, 10M, 1G (default: no limit)")
	o.locks.addFlags(cmd)
	completeCompression(cmd)
	return cmd
}

func (a *app) backupCreate(cmd *cobra.Command, args []string, o createOptions) (err error) {
	ctx := cmd.Context()
	if o.dest == "" || o.volume == "" {
		return usagef(cmd, "--dest and --volume are required")
	}
	if !chunkstore.ValidVolumeName(o.volume) {
		return usagef(cmd, "--volume %q: a volume's name has letters, digits, '_', '.' and '-', begins with a letter or digit, and has at most 255 bytes", o.volume)
	}
	if err := checkCompression(cmd, o.compression); err != nil {
		return err
	}
	labels, err := parseLabels(cmd, o.labels)
	if err != nil {
		return err
	}
	lockFor, lockMode, err := o.locks.lock(cmd)
	if err != nil {
		return err
	}
	opener, err := o.source(cmd, args, a.note)
	if err != nil {
		return err
	}
	base, err := o.baseID(cmd)
	if err != nil {
		return err
	}
	r, l, err := a.openRepository(ctx, o.dest)
	if err != nil {
		return err
	}
	defer closeInto(&err, r)
	if !lockFor.IsZero() {
		if err := r.CanLock(ctx); err != nil {
			return fmt.Errorf("--lock-for: %w", err)
		}
	}
	bar := a.newProgress("backup")
	res, err := engine.Backup(ctx, r, opener, engine.BackupOptions{
		Volume: o.volume, Base: base, Full: o.full, Labels: labels,
		Compression: chunkstore.Compression(o.compression), Workers: a.parallel, Progress: bar,
		ReadRate: limit.NewBucket(int64(o.limitRead)), LockFor: lockFor, LockMode: lockMode,
	})
	bar.done()
	if err != nil {
		return interrupted(ctx, err, "there is no new backup; what was stored is kept, and not stored again next time")
	}
	return a.printCreated(l.Of(res.Backup), res)
}

// created is the answer of backup create.
type created struct {
	URL    string                 `json:"url"`
	Reason string                 `json:"reason,omitempty"` // why everything was read
	Backup *chunkstore.Backup     `json:"backup"`
	Writer chunkstore.WriterStats `json:"writer"`
	Lock   *chunkstore.LockReport `json:"lock,omitempty"`
	Moved  transfer               `json:"transfer"`
}

func (a *app) printCreated(l engine.Location, res *engine.BackupResult) error {
	moved := a.transferred(res.Backup.Counts.Read)
	if a.json {
		a.note("%s", moved)
		return a.printJSON(created{l.String(), res.Reason, res.Backup, res.Writer, res.Lock, moved})
	}
	c := res.Backup.Counts
	if res.Parent == "" {
		a.note("everything was read: %s", res.Reason)
	} else {
		a.note("compared with backup %s", res.Parent)
	}
	if res.Writer.Adopted > 0 {
		a.note("took over %d pack(s) that an interrupted backup had stored", res.Writer.Adopted)
	}
	a.note("%s of %s in use; read %s, new %s, stored %s, in %.1f s", size(res.Backup.Blob.Data), size(res.Backup.Blob.Size),
		size(c.Read), size(c.New), size(res.Writer.Stored), c.Seconds)
	a.noteLock(res.Lock)
	a.note("%s", moved)
	_, err := fmt.Fprintln(a.stdout, l)
	return err
}

// source is what the flags and arguments name.
func (o *createOptions) source(cmd *cobra.Command, args []string, note func(string, ...any)) (source.Opener, error) {
	thin := o.thinMetadata != "" || o.thinData != "" || o.thinID >= 0 || o.thinBase >= 0
	switch {
	case thin && len(args) > 0:
		return nil, usagef(cmd, "SOURCE and --thin-... exclude each other")
	case thin && (o.thinMetadata == "" || o.thinData == "" || o.thinID < 0):
		return nil, usagef(cmd, "a thin device takes --thin-metadata, --thin-data and --thin-id")
	case !thin && len(args) == 0:
		return nil, usagef(cmd, "expects SOURCE, a thin volume, an image or a block device, or --thin-metadata, --thin-data and --thin-id")
	case !thin:
		return o.named(cmd, args[0], note)
	case o.noSnapshot:
		return nil, usagef(cmd, "--no-snapshot is for SOURCE, a thin volume")
	}
	for _, id := range []int64{o.thinID, o.thinBase} {
		if id > source.MaxThinDevice {
			return nil, usagef(cmd, "thin device ID %d: IDs have 24 bits", id)
		}
	}
	t := source.ThinPoolOptions{
		Metadata: o.thinMetadata, Data: o.thinData, Device: uint32(o.thinID), Size: o.size,
		MetadataSnapshot: o.metadataSnap, AllowNeedsCheck: o.allowNeedsCheck,
	}
	if o.thinBase >= 0 {
		base := uint32(o.thinBase)
		t.Base = &base
	}
	return source.ThinPool(t), nil
}

// named is what SOURCE names.
func (o *createOptions) named(cmd *cobra.Command, name string, note func(string, ...any)) (source.Opener, error) {
	h := pool.New(pool.Config{})
	vol, thin, err := source.FindThin(cmd.Context(), h, name)
	switch {
	case err != nil:
		return nil, err
	case thin && o.baseImage != "":
		return nil, usagef(cmd, "--base-image is for images; %s is a thin volume", name)
	case thin:
		return source.ThinDevice(vol, source.ThinLiveOptions{AsIs: o.noSnapshot, Host: h, Note: note}), nil
	case o.noSnapshot:
		return nil, usagef(cmd, "--no-snapshot is for thin volumes; of %s none would be taken", name)
	}
	return source.Image(name, source.ImageOptions{BaseImage: o.baseImage}), nil
}

// baseID takes the backup's ID from --base.
func (o *createOptions) baseID(cmd *cobra.Command) (string, error) {
	if o.base == "" {
		return "", nil
	}
	if o.full {
		return "", usagef(cmd, "--base and --full exclude each other")
	}
	if !strings.Contains(o.base, "?") {
		return o.base, nil
	}
	l, err := engine.ParseLocation(o.base)
	if err != nil {
		return "", fmt.Errorf("--base: %w", err)
	}
	if dest, err := engine.ParseLocation(o.dest); err == nil && !dest.SameRepository(l) {
		return "", usagef(cmd, "--base is a backup in another repository, %s", l.Repository())
	}
	if l.Volume != o.volume {
		return "", usagef(cmd, "--base is a backup of volume %s, not %s", l.Volume, o.volume)
	}
	return l.Backup, nil
}

func parseLabels(cmd *cobra.Command, labels []string) (map[string]string, error) {
	if len(labels) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, s := range labels {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usagef(cmd, "--label %q: KEY=VALUE is expected", s)
		}
		m[k] = v
	}
	return m, nil
}
