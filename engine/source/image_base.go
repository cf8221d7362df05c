package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"time"
)

// imageKind marks the states of image sources in backup records.
const imageKind = "image"

// imageID tells one image at one point in time from all others. It is what a backup record keeps as the source's state.
type imageID struct {
	Kind   string `json:"kind"` // imageKind
	Path   string `json:"path"` // absolute, without symbolic links
	Device bool   `json:"device,omitempty"`
	Size   int64  `json:"size"` // bytes

	// Of files only.
	FSType  string `json:"fsType,omitempty"`
	FSID    string `json:"fsId,omitempty"`   // hex of the file system's UUID, empty when it tells none
	Dev     uint64 `json:"dev,omitempty"`    // st_dev; may change with a restart or a mount
	Subvol  uint64 `json:"subvol,omitempty"` // btrfs: inodes are numbered in each subvolume
	Inode   uint64 `json:"inode,omitempty"`
	MtimeNS int64  `json:"mtimeNs,omitempty"` // since 1970, as are the others
	CtimeNS int64  `json:"ctimeNs,omitempty"`
	BirthNS int64  `json:"birthNs,omitempty"` // 0 when the file system tells none

	// For a later backup of the very same file.
	Boot  string `json:"boot,omitempty"`  // the kernel's boot ID
	Quiet bool   `json:"quiet,omitempty"` // nobody had it open for writing
}

func (id imageID) encode() json.RawMessage {
	b, err := json.Marshal(id)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	return b
}

// decodeImageID returns the reason why the state of a parent is of no use, or an empty one.
func decodeImageID(p Parent) (id imageID, reason string) {
	if err := json.Unmarshal(p.State, &id); err != nil {
		return id, "its record of the source cannot be read: " + err.Error()
	}
	switch {
	case id.Kind != imageKind:
		return id, fmt.Sprintf("it was not made from an image, but from a source of kind %q", id.Kind)
	case id.Device:
		return id, "it was made from the block device " + id.Path + ", which does not tell what changes"
	case id.Size != p.Size:
		return id, fmt.Sprintf("its record is of %d bytes, its image was of %d", p.Size, id.Size)
	case !filepath.IsAbs(id.Path):
		return id, fmt.Sprintf("its record names the image by the relative path %q", id.Path)
	}
	return id, ""
}

// sameTimes reports whether one file, seen twice, was not written in between.
func (id imageID) sameTimes(o imageID) bool {
	return id.Size == o.Size && id.MtimeNS == o.MtimeNS && id.CtimeNS == o.CtimeNS
}

// mismatch says why now is not the file, with the content, that then recorded; it is empty when it is.
// With moved, a new ctime is put down to renaming.
func (then imageID) mismatch(now imageID, moved bool) string {
	switch {
	case then.FSType != now.FSType, then.FSID != now.FSID, then.FSID == "" && then.Dev != now.Dev:
		return "lies on another file system now"
	case then.Subvol != now.Subvol, then.Inode != now.Inode, then.BirthNS != now.BirthNS:
		return "is another file now"
	case then.Size != now.Size:
		return fmt.Sprintf("had %d bytes then and has %d now", then.Size, now.Size)
	case then.MtimeNS != now.MtimeNS:
		return "was written on " + time.Unix(0, now.MtimeNS).UTC().Format(time.RFC3339)
	case then.CtimeNS != now.CtimeNS && !moved:
		return "was changed (content, name or mode) on " + time.Unix(0, now.CtimeNS).UTC().Format(time.RFC3339)
	}
	return ""
}

// sharesWith says why extents of the two open files cannot be compared; it is empty when they can.
func (id imageID) sharesWith(base imageID) string {
	switch {
	case id.FSType != base.FSType, id.FSID != base.FSID:
		return "is not on the same file system"
	case id.FSType == fsBtrfs && id.FSID != "":
		return "" // each subvolume has its own st_dev
	case id.Dev != base.Dev:
		return "is not on the same file system" // or on a copy of it, with the same UUID
	}
	return ""
}

// untracked says why nothing can be learnt about what changed in img; it is empty when something can.
func (img *imageFile) untracked() string {
	switch {
	case img.id.Device:
		return img.path + " is a block device, which does not tell what changed"
	case img.id.FSType != fsXFS && img.id.FSType != fsBtrfs:
		return fmt.Sprintf("%s lies on a file system without shared extents (%s; XFS and btrfs have them)", img.path, img.id.FSType)
	case img.realtime:
		return img.path + " lies in the realtime section of its file system"
	}
	if _, err := newFiemapper(img.f).mapExtents(make([]physExtent, 0, 1), 0, max(img.id.Size, 1)); err != nil {
		return fmt.Sprintf("the extents of %s cannot be read: %v", img.path, err)
	}
	return ""
}

// chooseBase returns the image of the first candidate that serves, open; or the reason why the newest does not.
func (o *imageOpener) chooseBase(ctx context.Context, img *imageFile, parents iter.Seq2[Parent, error]) (*imageFile, Base, error) {
	decision := Base{Reason: "there is no earlier backup of this volume"}
	if parents == nil {
		return nil, decision, nil
	}
	newest := true
	for p, err := range parents {
		if err != nil {
			return nil, Base{}, fmt.Errorf("look for earlier backups: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return nil, Base{}, err
		}
		if newest {
			if reason := img.untracked(); reason != "" {
				return nil, Base{Reason: reason}, nil
			}
		}
		base, reason, err := o.openBase(img, p)
		if err != nil {
			return nil, Base{}, err
		}
		if base != nil {
			return base, Base{Parent: &p}, nil
		}
		if newest {
			decision.Reason, newest = fmt.Sprintf("backup %s is no base: %s", p.ID, reason), false
		}
	}
	return nil, decision, nil
}

// openBase returns the image that p was made from, if it still is what it was, and img itself if it is that image; else a reason.
func (o *imageOpener) openBase(img *imageFile, p Parent) (base *imageFile, reason string, err error) {
	then, reason := decodeImageID(p)
	if reason != "" {
		return nil, reason, nil
	}
	if o.opts.BaseImage != "" {
		base, reason, err = tryBase(img, then, o.opts.BaseImage, true)
		if base != nil || err != nil {
			return base, "", err
		}
	}
	base, recorded, err := tryBase(img, then, then.Path, false)
	if reason == "" {
		reason = recorded
	}
	return base, reason, err
}

// tryBase looks for the image that was recorded as then at path. It returns a base or a reason.
func tryBase(img *imageFile, then imageID, path string, moved bool) (base *imageFile, reason string, err error) {
	base, err = openFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "its image " + path + " is gone", nil
	}
	if err != nil {
		return nil, "its image cannot be used: " + err.Error(), nil
	}
	if base.isSame(img) {
		if reason = sameImageReason(img, then); reason == "" {
			return img, "", base.Close()
		}
		return nil, reason, base.Close()
	}
	if reason = baseReason(img, base, then, moved); reason != "" {
		return nil, reason, base.Close()
	}
	return base, "", nil
}

// baseReason says why base, now open, does not serve for the image recorded as then; it is empty when it does.
func baseReason(img, base *imageFile, then imageID, moved bool) string {
	if m := then.mismatch(base.id, moved); m != "" {
		return fmt.Sprintf("its image %s %s", base.path, m)
	}
	if m := img.id.sharesWith(base.id); m != "" {
		return fmt.Sprintf("its image %s %s as %s", base.path, m, img.path)
	}
	if m := base.untracked(); m != "" {
		return m
	}
	return ""
}

// sameImageReason is baseReason for an image that is to be its own base.
func sameImageReason(img *imageFile, then imageID) string {
	const advice = "; to read only what changes, back up reflinked copies of it (cp --reflink) and keep the last one"
	if m := then.mismatch(img.id, false); m != "" {
		return fmt.Sprintf("its image is this one, %s, which %s%s", img.path, m, advice)
	}
	switch {
	case !then.Quiet:
		return fmt.Sprintf("its image is this one, %s, which was open for writing then%s", img.path, advice)
	case then.Boot == "" || then.Boot != img.id.Boot:
		return fmt.Sprintf("its image is this one, %s, and this host was restarted since%s", img.path, advice)
	}
	return ""
}
