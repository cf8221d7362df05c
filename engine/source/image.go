package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"
)

// ErrChanged: the image, or the base it is compared with, was written while the backup ran, so that what was read is of no one
// point in time.
var ErrChanged = errors.New("written while it was backed up")

// ImageOptions are choices for an image source; the zero value works.
type ImageOptions struct {
	// BaseImage is where the image of the earlier backup lies now, for when that is not where it lay then. Naming it here also says that
	// a change of its inode alone since (renamed, linked, new mode: a new ctime) did not hide a change of its content. Default: the place
	// that the earlier backup recorded.
	BaseImage string
}

// Image returns an Opener of the raw image or block device at path. It must not be written during the backup: for a file that is
// checked with each read, and an error that wraps ErrChanged; for a device it cannot be.
//
// # What is read
//
// Without a base, the parts of a file that SEEK_DATA reports (all of it, where the file system does not know its holes), or a
// whole device. Extents are rounded to 4 KiB.
//
// With a base, which is the file that the earlier backup read, the parts that the two files do not have in common on the disk.
// Files share bytes on XFS and btrfs: cp --reflink and snapshots of a subvolume make such pairs.
//
// # Why comparing places is enough
//
// Once both files are written out (FIEMAP_FLAG_SYNC), two ranges that lie in the same blocks of one file system are the same bytes:
// they are one range with two names. And the base still holds what the earlier backup read from it, as its inode, size and times of
// change are those of then; those times are trusted because Open writes the file out first, which makes the kernel note the next
// write through a memory mapping too, and waits until the clock has moved on from the last change, so that a later write cannot carry the
// same time. Places that say nothing about the bytes (compressed, inline, encrypted, not yet allocated) count as changed; what
// is allocated and not written reads as zeros. All the while the files' times are watched, and each window of the base's map is
// read twice, lest the file system move extents in between.
//
// One hole remains: a base image that was written after its backup with O_DIRECT, followed by a power cut before its new times reached
// the disk, looks untouched. Do not write to base images.
//
// The base may be the image itself, when it has not been written since; as images in use are written, more is asked for then: at the
// earlier backup nobody had it open for writing, and the host has not been restarted.
func Image(path string, opts ImageOptions) Opener {
	return &imageOpener{path: path, opts: opts}
}

type imageOpener struct {
	path string
	opts ImageOptions
}

// Open implements Opener. The candidates' images are looked for where they were, or at BaseImage.
func (o *imageOpener) Open(ctx context.Context, parents iter.Seq2[Parent, error]) (Source, Base, error) {
	img, err := openImage(ctx, o.path)
	if err != nil {
		return nil, Base{}, err
	}
	base, decision, err := o.chooseBase(ctx, img, parents)
	if err != nil {
		return nil, Base{}, errors.Join(err, img.Close())
	}
	return &imageSource{img: img, base: base}, decision, nil
}

// imageSource is a Source. Its fields do not change once it is open, but for the counters.
type imageSource struct {
	img  *imageFile
	base *imageFile // what Extents is relative to: nil without a base, img itself when it has not been written since

	bytesRead, extents atomic.Int64
}

func (s *imageSource) Size() int64 { return s.img.id.Size }

func (s *imageSource) State() json.RawMessage { return s.img.id.encode() }

func (s *imageSource) Stats() Stats {
	return Stats{BytesRead: s.bytesRead.Load(), MetadataBlocks: s.extents.Load()}
}

func (s *imageSource) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		out := &extentRounder{size: s.Size(), yield: func(e Extent) bool { return yield(e, nil) }}
		var err error
		switch s.base {
		case nil:
			err = s.dataExtents(ctx, out)
		case s.img:
			err = s.img.unchanged()
		default:
			err = s.changedExtents(ctx, out)
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Extent{}, err)
		}
	}
}

// dataExtents feeds out with the parts of the image that may hold data.
func (s *imageSource) dataExtents(ctx context.Context, out *extentRounder) error {
	for off := int64(0); off < out.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, end, err := s.img.nextData(off)
		if changed := s.img.unchanged(); changed != nil {
			return changed
		}
		if err != nil {
			return err
		}
		if !out.add(data, rangeEqual) || !out.add(end, rangeData) {
			return errStopped
		}
		off = end
	}
	if !out.finish() {
		return errStopped
	}
	return nil
}

// changedExtents feeds out with the parts of the image that do not lie where the base's lie.
func (s *imageSource) changedExtents(ctx context.Context, out *extentRounder) error {
	d := mapDiff{
		old:     newFiemapper(s.base.f),
		new:     newFiemapper(s.img.f),
		oldSize: s.base.id.Size,
		newSize: s.img.id.Size,
		check:   func() error { return errors.Join(s.base.unchanged(), s.img.unchanged()) },
		count:   func(n int) { s.extents.Add(int64(n)) },
		out:     out,
	}
	if err := d.run(ctx); err != nil {
		return fmt.Errorf("compare %s with base %s: %w", s.img.path, s.base.path, err)
	}
	return nil
}

// ReadAt implements Source. A file that was written or truncated since Open is an error that wraps ErrChanged, whether or not the range is
// hit; the bytes of a read that succeeded are those of the time of Open.
func (s *imageSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off > s.Size() || int64(len(p)) > s.Size()-off {
		return fmt.Errorf("read %s: %d bytes at %d are not within its %d bytes", s.img.path, len(p), off, s.Size())
	}
	n, err := s.img.f.ReadAt(p, off)
	s.bytesRead.Add(int64(n))
	// After the read: a write changes the times first and the bytes then, so unchanged times vouch for the bytes.
	if changed := s.img.unchanged(); changed != nil {
		return changed
	}
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("it ends at %d, before its %d bytes: %w", off+int64(n), s.Size(), io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read %s: %w", s.img.path, err)
}

// Close implements Source. The image is the caller's: it is neither kept nor removed.
func (s *imageSource) Close(context.Context, bool) error {
	err := s.img.Close()
	if s.base != nil && s.base != s.img {
		err = errors.Join(err, s.base.Close())
	}
	return err
}
