// Package pool works with live dm-thin pools on this host, through dmsetup and LVM's commands: it finds the pool of a
// volume, takes and removes snapshots, activates them read-only, and reserves the metadata snapshot that makes the pool's
// metadata readable while it is in use. Package thin reads that metadata; this package never does.
//
//	h := pool.New(pool.Config{})
//	vol, err := h.Resolve(ctx, "vg0/home")     // or /dev/mapper/x, /dev/dm-3, x
//	snap, err := h.Snapshot(ctx, vol)          // consistent: the file system is frozen for the moment it takes
//	meta, err := h.Reserve(ctx, vol.Pool)      // meta.Root is the held root: read vol.Pool.Metadata at it
//	...                                        // read vol.Pool.Data by the mappings found there
//	err = meta.Release(ctx)
//	err = snap.Keep()                          // or h.Delete(ctx, snap.Ref)
//
// # Promises
//
// Nothing is left frozen. The origin of a snapshot is suspended for a few commands; it is resumed on each way out, when the
// context is cancelled too, and a watchdog process resumes it should this process be killed or hang meanwhile (RunWatchdog).
// If both are killed at once, the next Recover does it.
//
// Nothing is leaked and nothing foreign is removed. Whatever outlives a call (a frozen volume, a reserved metadata
// snapshot, an active device, a snapshot not yet kept) is written to a claim file in Config.StateDir before it is made. The
// owner holds a lock on that file, so a claim that can be locked was left by a process that died: Recover undoes it. What has
// no claim belongs to somebody else and is left alone.
//
// # Pools in trouble
//
// A pool that is read-only, that asks for thin_check, or is out of data space still serves reads: snapshots that exist can be
// activated. It takes no messages when read-only, so it can neither be given a snapshot nor reserve its metadata; but its
// metadata does not change then. Out of data space, Snapshot refuses, because the file system cannot write out what it
// holds; Reserve works. A failed pool serves nothing. See Status.
//
// # LVM
//
// For an LVM thin volume snapshots are made and removed by lvcreate and lvremove: LVM counts the pool's transactions
// and device IDs in its own metadata, and messages sent past it would leave the two in disagreement. Metadata snapshots and
// read-only activation do not touch what LVM counts and go straight to device-mapper.
//
// # Units
//
// Sizes are bytes. Counts of pool blocks and of metadata blocks (4096 bytes) say so.
//
// # Source
//
// Status and message formats follow Linux drivers/md/dm-thin.c (pool_status, pool_message, thin_status), names of LVM's
// devices lvm2's libdm/libdm-string.c (dm_build_dm_name).
package pool
