// Package fusemount shows the backups of a repository as a read-only file system.
//
//	DIR/<volume>/<backup>/image.raw    the volume as it was, sparse
//	DIR/<volume>/<backup>/backup.json  the backup record
//	DIR/<volume>/latest                symlink to the newest backup's folder
//
// Mount attaches a tree to a folder and serves it until its context ends, Unmount is called or somebody runs umount. A server
// belongs in a process of its own, so that no reader dies with the command or the daemon that asked for it: Detach starts one,
// Ready and Failed are its answers. A server never looks at its own mount (see Options.SameProcess).
//
// # Words
//
// A view is a run of an image's bytes made of pinned chunks and of zeros; it is handed to writev as it is, so no byte is
// copied between the decoder and the kernel. The arena is the fixed memory that decoded chunks live in. A stream watches
// one open file for sequential reads.
//
// # Promises
//
// Cost: mounting and listing read listings only; looking into a backup's folder reads its record; opening image.raw reads
// nothing. SEEK_HOLE and SEEK_DATA read chunk lists, no chunks.
//
// Memory: decoded chunks take Options.CacheBytes, mapped outside of Go's heap, whatever is read and by however many. Half of
// it may be pinned at once by requests and read-ahead; who needs more waits. Beside it there are the kernel's requests under
// way, 1 MiB each, and what the repository itself keeps.
//
// A chunk is read and decoded once for all who want it at the same time. Sequential readers have what comes next loaded, up
// to 8 MiB ahead, and further where more than four goroutines do it (Options.Parallel), all readers together; random ones do not. Loading ahead stops when the reader
// goes elsewhere or closes the file.
//
// Damage: nothing that the repository could not verify is shown. A read that needs such bytes is EIO, one that does not is
// served. The log names object and offset, once a minute for each place.
//
// Time: backups never change, so the kernel keeps their pages and attributes for as long as it likes. Lists of volumes and of
// backups are asked for again after Options.Refresh.
//
// A read whose reader got a signal goes on for a second and then fails with EINTR, so that a hung store can be left.
//
// # Names
//
// Volume and backup names come from the store; those that cannot be file names are left out, with a line in the log.
//
// # Page cache or not
//
// image.raw goes through the kernel's page cache. Past it (Options.DirectIO, or a reader's own O_DIRECT) a reader of 1 MiB
// at a time was a fifth to a quarter faster, 2.4 against 1.9 GB/s, but one of 4 KiB nine times slower, 0.15 against 1.3 GB/s,
// since each read is then a request of its own; mapped files would need Linux 6.6, and nothing is kept between readers. Loop
// devices work both ways. As root the mount's read-ahead in the kernel is raised from 128 KiB to 1 MiB: 1.8 against 1.4 GB/s,
// with fewer requests. More than that gave 5 % and would make each page fault of a mapped file read as much.
// (A repository on tmpfs, 2 GiB image, a quarter of it holes, zstd 3 to 1, 2 vCPU, Linux 6.18.)
package fusemount
