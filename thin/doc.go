// Package thin reads the metadata of a device-mapper thin pool, without changing it.
//
// A pool maps, for each thin device, thin blocks to data blocks of one size. The maps are copy-on-write B-trees, so a
// snapshot shares every node that has not changed since with its origin; [Reader.Diff] walks two of them together and
// skips what they share, so that its cost follows the change and not the size of the volume.
//
//	superblock (block 0) -> mapping tree: device ID -> root of a tree: thin block -> data block, time
//	                     -> details tree: device ID -> mapped blocks, transaction, times
//	                     -> held root: a frozen copy of the superblock, the metadata snapshot
//
// # Reading a live pool
//
// The kernel changes the main trees of an active pool while they are read. Reserve a metadata snapshot first (package
// pool) and open with [Options.MetadataSnapshot]: the trees below the held root stay as they are until it is released.
// A block device is read with O_DIRECT, because the kernel writes it beside the page cache, and is opened exclusively
// unless it is read at the held root: an active pool's main trees are refused with [ErrInUse].
// [Reader.Recheck] tells after a walk whether the metadata read is still the one that was opened.
// A metadata snapshot freezes mappings, not data: blocks of a device that is still written may change under it.
//
// # Promises
//
// Memory: one B-tree path a walk (two for a difference), 4 KiB a level, whatever the pool's size.
//
// Verification: of each block that is read, the checksum, the block number, the kind of node, the counts, the order of
// keys and their place below the parent's keys are verified before anything is answered from it; mappings lie inside
// the data device, children inside the metadata device. What fails is a [DamageError] that names the block; an answer
// that was begun ends with it. Only what a walk visits is verified: subtrees that a difference skips are not read.
//
// Concurrency: a Reader may be used from many goroutines; each iterator walks on its own.
//
// # Source
//
// Layouts follow Linux drivers/md/dm-thin-metadata.c and drivers/md/persistent-data; each file names its struct.
// Answers are tested against thin_dump and thin_delta of thin-provisioning-tools 0.9.
package thin
