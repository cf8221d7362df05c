// Package engine moves data between sources and repositories: backup, restore, verify, copy; and says which backups to keep.
//
// # Backup
//
// A source names the extents that may differ from its base. They are gathered span by span; workers read, cut, hash, compress and
// store one span each, in parallel, and give the span's new chunks to the blob's tree. Inside a changed span, cutting begins again
// at the last border before a change and ends where a new border meets an old one, so that an incremental backup gives exactly
// the tree of a full one and reads the changed chunks and at most one neighbour a run. The backup record is written last.
//
// # Restore
//
// Chunks are fetched in batches, each checked against its ID, and written in the order of the target. Holes are left
// unwritten, or punched where the target has data. A chunk that the target holds already is not fetched: it is known from the
// backup that the target is said to hold, or by hashing what is there. So a restore that was interrupted goes on where it was.
//
// # Copy
//
// A backup in one repository is a source for another, which stores it as it stores any: its tree is that of a backup of the same content
// made there. What differs is known by comparing two trees, so that a copy costs what changed since the nearest backup that both
// repositories have. A copy names its origin, by which it is recognised.
//
// # Retention
//
// A Retention is a set of rules, each of which keeps backups by itself; Decide is a pure function of the backups, the rules and the
// time. Forget deletes the records of those that no rule keeps, after all decisions are made. The newest of a volume always stays.
//
// # Promises
//
// The first error stops the pipeline and is returned; cancelling the context does the same. Memory is bounded by the number of
// workers times the span, whatever the size of the volume. Nothing is logged; what the user should know is in the results.
package engine
