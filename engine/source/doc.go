// Package source is what can be backed up: thin devices, images and block devices.
//
// A Source is one volume at one point in time. It says which extents may hold data, or, when a base was found, which may
// differ from an earlier backup; it hands out their bytes; and it describes itself in a State, by which a later backup finds its base
// again. An Opener makes the choice of the base: it takes candidates, newest first, and either proves that one of them still
// exists as it was, or says in plain words why everything must be read.
//
// # Promises
//
// What is not proven equal is read: a base that is gone, was used again, written or moved to another file system is never compared with.
// Memory does not grow with the size of a volume or the number of its extents. ReadAt may be called from many goroutines, Extents
// beside it. Nothing is written to what is backed up.
//
// # Images
//
// A raw file or a block device. Holes of files are found by SEEK_HOLE; on file systems with shared extents (XFS, btrfs) an image and
// a reflinked copy of its earlier self are compared by the places of their bytes (FIEMAP), without reading either:
//
//	img := source.Image("/srv/images/db-tuesday.raw", source.ImageOptions{})
//	src, base, err := img.Open(ctx, parents) // the parent's image: /srv/images/db-monday.raw
//
// See Image for why that is sound.
package source
