package chunkstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Backup is a backup record: JSON, sealed as a pack of kind backup, immutable, written when all it needs is durable.
type Backup struct {
	Version int               `json:"version"` // backupVersion
	ID      string            `json:"id"`      // "backup-" and 16 hex digits: 11 of the time in milliseconds, 5 random
	Volume  string            `json:"volume"`
	Time    time.Time         `json:"time"` // the point in time that the backup shows
	Blob    BlobRef           `json:"blob"`
	Parent  string            `json:"parent,omitempty"` // ID of the backup whose tree this one's was made from
	Host    string            `json:"host,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Source  json.RawMessage   `json:"source,omitempty"` // what the next incremental backup compares with
	Origin  *Origin           `json:"origin,omitempty"` // of a copy: the backup that was made of the volume itself
	Trash   []string          `json:"trash,omitempty"`  // trash lists whose packs this backup is known not to need
	Lock    *ObjectLock       `json:"lock,omitempty"`   // nothing that this backup needs can be deleted until then
	Counts  Counts            `json:"counts"`
}

// Origin names a backup in whichever repository. Copies of a backup, and copies of those, have one Origin.
type Origin struct {
	Repository string `json:"repository"` // its ID
	Backup     string `json:"backup"`     // ID; the volume is that of the record
}

// Counts say what a backup cost.
type Counts struct {
	Read           int64   `json:"read"`            // bytes read from the source's data
	MetadataBlocks int64   `json:"metadata_blocks"` // blocks of thin metadata, or file extents, looked at
	Chunks         int64   `json:"chunks"`          // chunks cut
	New            int64   `json:"new"`             // plain bytes of chunks that the repository lacked
	NewChunks      int64   `json:"new_chunks"`
	NewNodes       int64   `json:"new_nodes"` // tree nodes written
	Stored         int64   `json:"stored"`    // bytes put in the repository, this record not counted
	Seconds        float64 `json:"seconds"`
}

const (
	backupVersion = 1
	backupPrefix  = "backup-"
	maxRecordLen  = 16 << 20 // bytes of JSON
	maxVolumeName = 255      // bytes
)

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ValidVolumeName says whether name may name a volume: letters, digits, '_', '.', '-', beginning with a letter or digit, at
// most 255 bytes.
func ValidVolumeName(name string) bool {
	return len(name) <= maxVolumeName && volumeName.MatchString(name)
}

// NewBackupID makes an ID that sorts by t. Those of one millisecond are in no particular order; PutBackup makes them ascend.
func NewBackupID(t time.Time) (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	ms := max(t.UnixMilli(), 0)
	v := uint64(ms)<<20 | binary.BigEndian.Uint64(b[:])&(1<<20-1)
	return fmt.Sprintf("%s%016x", backupPrefix, v), nil
}

// newBackupID is NewBackupID, except that of those of one millisecond each sorts behind the one before.
func (r *Repository) newBackupID(t time.Time) (string, error) {
	id, err := NewBackupID(t)
	if err != nil {
		return "", err
	}
	r.idMu.Lock()
	defer r.idMu.Unlock()
	if BackupTime(id).Equal(BackupTime(r.lastID)) && id <= r.lastID {
		last, err := strconv.ParseUint(strings.TrimPrefix(r.lastID, backupPrefix), 16, 64)
		if err != nil {
			return "", err
		}
		if next := fmt.Sprintf("%s%016x", backupPrefix, last+1); BackupTime(next).Equal(BackupTime(id)) {
			id = next
		}
	}
	r.lastID = id
	return id, nil
}

// Origin names the backup of which b, a record in r, is a copy; b itself when it is none. Two records of one volume with equal
// Origins are the same backup.
func (r *Repository) Origin(b *Backup) Origin {
	if b.Origin != nil {
		return *b.Origin
	}
	return Origin{Repository: r.cfg.ID, Backup: b.ID}
}

// BackupTime is the time that a backup's ID carries, to the millisecond; zero for what is no ID.
func BackupTime(id string) time.Time {
	v, err := strconv.ParseUint(strings.TrimPrefix(id, backupPrefix), 16, 64)
	if err != nil || !validBackupID(id) {
		return time.Time{}
	}
	return time.UnixMilli(int64(v >> 20)).UTC()
}

func validBackupID(id string) bool {
	s, ok := strings.CutPrefix(id, backupPrefix)
	return ok && len(s) == 16 && isHex(s, 8) && s == strings.ToLower(s)
}

// volumeKey stands for a volume's name in object names: 32 hex digits of the name's keyed hash.
func (r *Repository) volumeKey(volume string) string {
	var id ID
	r.nameKey.id(&id, []byte(volume))
	return hex.EncodeToString(id[:16])
}

func (r *Repository) backupObject(volume, id string) string {
	return prefixBackups + r.volumeKey(volume) + "/" + id
}

// validate says what makes b impossible as a record.
func (b *Backup) validate() error {
	switch {
	case !ValidVolumeName(b.Volume):
		return fmt.Errorf("volume name %q: letters, digits, '_', '.', '-', beginning with a letter or digit", b.Volume)
	case !validBackupID(b.ID):
		return fmt.Errorf("%q is no backup's ID", b.ID)
	case b.Blob.Size < 0 || b.Blob.Size > maxBlobSize || b.Blob.Data < 0 || b.Blob.Data > b.Blob.Size || b.Blob.Root.IsZero() != (b.Blob.Data == 0):
		return fmt.Errorf("impossible blob: %d of %d bytes, root %v", b.Blob.Data, b.Blob.Size, b.Blob.Root)
	case b.Origin != nil && (!isHex(b.Origin.Repository, 16) || !validBackupID(b.Origin.Backup)):
		return fmt.Errorf("impossible origin: backup %q of repository %q", b.Origin.Backup, b.Origin.Repository)
	}
	return nil
}

// PutBackup flushes the Writer and then writes the record. It fills in Version and Trash, and ID and Time where they are empty.
// ErrPruned when a prune has removed what the backup relied on.
func (w *Writer) PutBackup(ctx context.Context, b *Backup) error {
	if b.Time.IsZero() {
		b.Time = time.Now().UTC()
	}
	if b.ID == "" {
		var err error
		if b.ID, err = w.r.newBackupID(b.Time); err != nil {
			return err
		}
	}
	b.Version = backupVersion
	b.Trash = nil
	if w.lock == nil { // a lock in another repository
		b.Lock = nil
	}
	if _, err := b.encode(); err != nil {
		return err
	}
	if err := w.Flush(ctx); err != nil {
		return err
	}
	volume, err := json.Marshal(volumeObject{Volume: b.Volume})
	if err != nil {
		return err
	}
	err = w.putObject(ctx, prefixVolumes+w.r.volumeKey(b.Volume), kindVolume, volume, w.r.be.Put)
	if err != nil && !errors.Is(err, backend.ErrRetained) { // locked, it is there
		return fmt.Errorf("write the volume's name: %w", err)
	}
	if err := w.saveFromTrash(ctx, b); err != nil {
		return err
	}
	record, err := b.encode() // nothing may come between the last look at the trash and the record
	if err != nil {
		return err
	}
	if err := w.putObject(ctx, w.r.backupObject(b.Volume, b.ID), kindBackup, record, w.r.be.PutIfAbsent); err != nil {
		return fmt.Errorf("write backup record: %w", err)
	}
	if err := w.checkRecorded(ctx, b); err != nil || w.lock == nil {
		return err
	}
	return w.lock.recorded(ctx, b)
}

// encode makes the record's JSON, if the record is possible.
func (b *Backup) encode() ([]byte, error) {
	record, err := json.Marshal(b)
	if err == nil && len(record) > maxRecordLen {
		err = fmt.Errorf("%d bytes are more than a record can have", len(record))
	}
	if err == nil {
		err = b.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("backup record: %w", err)
	}
	return record, nil
}

type volumeObject struct {
	Volume string `json:"volume"`
}

func (w *Writer) putObject(ctx context.Context, name string, kind packKind, data []byte,
	put func(context.Context, string, []byte) error) error {
	_, b, err := w.r.buildObject(kind, data)
	if err != nil {
		return err
	}
	if err := put(ctx, name, b); err != nil {
		return err
	}
	w.stats.stored.Add(int64(len(b)))
	w.stats.objects.Add(1)
	return nil
}

// Volumes lists the names of volumes that have or had backups, ascending.
func (r *Repository) Volumes(ctx context.Context) ([]string, error) {
	var objects []string
	err := r.be.List(ctx, prefixVolumes, func(o backend.Object) error {
		objects = append(objects, o.Name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	names := make([]string, len(objects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.atOnce)
	for i, object := range objects {
		g.Go(func() (err error) {
			names[i], err = r.readVolume(ctx, object)
			if errors.Is(err, backend.ErrNotExist) {
				return nil // went meanwhile
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(s string) bool { return s == "" })
	slices.Sort(names)
	return names, nil
}

func (r *Repository) readVolume(ctx context.Context, object string) (string, error) {
	b, err := r.readObject(ctx, object, kindVolume)
	if err != nil {
		return "", err
	}
	var v volumeObject
	if err := json.Unmarshal(b, &v); err != nil {
		return "", &CorruptError{Object: object, Err: err}
	}
	if !ValidVolumeName(v.Volume) || object != prefixVolumes+r.volumeKey(v.Volume) {
		return "", &CorruptError{Object: object, Err: errors.New("content is not what the name says")}
	}
	return v.Volume, nil
}

// Backups lists the IDs of a volume's backups, the oldest first; those of one millisecond in the order of their IDs. Nothing is read but
// the listing.
func (r *Repository) Backups(ctx context.Context, volume string) ([]string, error) {
	prefix := prefixBackups + r.volumeKey(volume) + "/"
	var ids []string
	err := r.be.List(ctx, prefix, func(o backend.Object) error {
		if id := o.Name[len(prefix):]; validBackupID(id) {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list backups of %s: %w", volume, err)
	}
	return ids, nil
}

// Backup reads one backup record. ErrNotFound when there is none.
func (r *Repository) Backup(ctx context.Context, volume, id string) (*Backup, error) {
	if !validBackupID(id) {
		return nil, &NotFoundError{What: "backup", Name: id}
	}
	object := r.backupObject(volume, id)
	b, err := r.readBackup(ctx, object)
	if errors.Is(err, backend.ErrNotExist) {
		return nil, &NotFoundError{What: "backup", Name: id + " of volume " + volume}
	}
	if err != nil {
		return nil, fmt.Errorf("read backup record: %w", err)
	}
	return b, nil
}

// readBackup reads and checks the record in an object whose name says which backup it must be.
func (r *Repository) readBackup(ctx context.Context, object string) (*Backup, error) {
	data, err := r.readObject(ctx, object, kindBackup)
	if err != nil {
		return nil, err
	}
	b, err := decodeBackup(data)
	switch {
	case errors.Is(err, ErrUnsupported):
		return nil, fmt.Errorf("%s: %w", object, err)
	case err != nil:
		return nil, &CorruptError{Object: object, Err: err}
	case object != r.backupObject(b.Volume, b.ID):
		return nil, &CorruptError{Object: object, Err: errors.New("content is not what the name says")}
	}
	return b, nil
}

// decodeBackup decodes a record's JSON.
func decodeBackup(data []byte) (*Backup, error) {
	if len(data) > maxRecordLen {
		return nil, fmt.Errorf("record of %d bytes", len(data))
	}
	b := &Backup{}
	if err := json.Unmarshal(data, b); err != nil {
		return nil, err
	}
	if b.Version != backupVersion {
		return nil, fmt.Errorf("%w: backup record version %d", ErrUnsupported, b.Version)
	}
	return b, b.validate()
}

// WalkBackups reads every backup record, of one volume or, when volume is empty, of all, several at a time, and calls fn
// for each from one goroutine, ordered by volume key and time. Records that went meanwhile are passed over. fn gets the error of
// a record that cannot be read, with its object's name; what fn returns ends the walk.
func (r *Repository) WalkBackups(ctx context.Context, volume string, fn func(object string, b *Backup, err error) error) error {
	prefix := prefixBackups
	if volume != "" {
		prefix += r.volumeKey(volume) + "/"
	}
	objects, err := r.listBackups(ctx, prefix)
	if err != nil {
		return err
	}
	return r.walkBackups(ctx, objects, fn)
}

// listBackups returns the names of the records that begin with prefix.
func (r *Repository) listBackups(ctx context.Context, prefix string) (objects []string, err error) {
	err = r.be.List(ctx, prefix, func(o backend.Object) error {
		objects = append(objects, o.Name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	return objects, nil
}

// walkBackups is WalkBackups for records listed before.
func (r *Repository) walkBackups(ctx context.Context, objects []string, fn func(object string, b *Backup, err error) error) error {
	type result struct {
		b   *Backup
		err error
	}
	for batch := range slices.Chunk(objects, 64) {
		results := make([]result, len(batch))
		var g errgroup.Group
		g.SetLimit(2 * r.atOnce)
		for i, object := range batch {
			g.Go(func() error {
				b, err := r.readBackup(ctx, object)
				results[i] = result{b, err}
				return nil
			})
		}
		_ = g.Wait()
		if err := ctx.Err(); err != nil {
			return err
		}
		for i, res := range results {
			if errors.Is(res.err, backend.ErrNotExist) {
				continue
			}
			if err := fn(batch[i], res.b, res.err); err != nil {
				return err
			}
		}
	}
	return nil
}

// ListBackups returns all records of a volume, or of all volumes when volume is empty, by time, and by ID where that is equal. The first record that cannot be
// read is an error.
func (r *Repository) ListBackups(ctx context.Context, volume string) ([]*Backup, error) {
	var all []*Backup
	err := r.WalkBackups(ctx, volume, func(_ string, b *Backup, err error) error {
		all = append(all, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b *Backup) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// DeleteBackup removes a backup record. What only it needed stays until a prune. backend.ErrRetained while it is locked.
func (r *Repository) DeleteBackup(ctx context.Context, volume, id string) error {
	if !validBackupID(id) {
		return &NotFoundError{What: "backup", Name: id}
	}
	object := r.backupObject(volume, id)
	if _, err := r.be.Stat(ctx, object); errors.Is(err, backend.ErrNotExist) {
		return &NotFoundError{What: "backup", Name: id + " of volume " + volume}
	} else if err != nil {
		return fmt.Errorf("delete backup record: %w", err)
	}
	locker, err := r.locker(ctx)
	if err == nil {
		err = retained(ctx, locker, object)
	}
	if err == nil {
		err = r.be.Delete(ctx, object)
	}
	if err != nil {
		return fmt.Errorf("delete backup record: %w", err)
	}
	return nil
}
