// Package file is the backend of a folder: on a local file system, or on one shared by many hosts over NFS.
//
// An object is a regular file; its name is its path below the repository's folder. What has no valid name is foreign and
// left alone. Symbolic links and special files are no objects, whatever their name: not listed, not read, and no folder is listed
// through a link.
//
// # Promises
//
// A crash at any moment, of the process or of the machine, leaves each object whole: bytes go to a temporary (".tmp-" and a random
// name, in the object's own folder), are fsynced, and only then get their name; the folder is fsynced before Put returns, and so
// is, at its first use, each folder above it. An error (no space, no quota) names the object and the cause, and the temporary is removed. A
// writer that is killed leaves its temporary, which RemoveStale removes a day later.
//
// PutIfAbsent gives the name by link(2), which fails when it is taken, on NFS too. Where the answer of the server was lost and the call
// repeated, the inode tells whether the name is ours. File systems without links (FAT, some FUSE ones) get a rename that does
// not replace (renameat2 of Linux). Where there is neither, PutIfAbsent fails: creating the name itself with O_EXCL would show
// an object before its bytes are there, and a crash would leave it so.
//
// No file is ever locked.
//
// # NFS
//
// ESTALE, answered for a file or folder that was replaced on another host, is met by opening it again; what stays stale is the
// mount itself. An NFS client remembers for half a minute that a name was absent: before anything is said to be absent, the server
// is asked whether the folder has changed, and the name looked for once more. That there is no room may be told as late as at the
// fsync or the close: both count, and nothing has its name before. A file that is deleted while a client has it open stays as
// ".nfs...": no object, and removed by RemoveStale when its client has been dead for a day. A hard mount waits for a server that is
// away; behind a soft one calls fail.
//
// # Open files
//
// A few objects are kept open for ReadAt (Options.OpenFiles), which then costs one pread and no allocation. What this backend replaces or
// deletes it closes. What another process replaces is noticed by Stat (so by backend.ReadAll) but not by ReadAt alone, which may give the
// old bytes as long as the file is kept open; and what another process deletes may stay readable, and take space, as long. Objects of
// the store are never replaced by other bytes, so that does no harm. Close lets go of them all.
//
// # Who may read
//
// Files are made with mode 0600 and folders with 0700; where the repository's own folder grants its
// group something, files and folders grant it the same, whatever the
// umask, and the set-group-ID bit is passed on. Others get nothing. So "chmod
// 2770" of the repository's folder, before the first backup, shares it with a group.
package file
