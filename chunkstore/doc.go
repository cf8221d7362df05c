// Package chunkstore is a content-addressed store for images and files, kept as immutable objects in a backend.
//
// # Words
//
// A Repository lives at one backend. A blob is an image or a file: a Merkle radix tree over spans, whose leaves list the
// chunks of one span and whose root is a pure function of the content (and of the repository's secret). A chunk is named by
// its ID, the keyed BLAKE3-256 of its plain bytes, and is stored once, as a record in a pack. The index, a set of immutable
// sorted segments, says where each record is. A backup record names a blob and is written last. docs/format.md describes
// every byte; each file here that defines a format begins with its table.
//
// # Promises
//
// Whatever a listed backup needs is in the backend: packs are put before the index segment that names them, segments before
// the backup record. A crash leaves at most packs that nothing refers to; a Writer on the same host adopts those of
// an interrupted one, so that they are not uploaded again.
//
// Nothing unverified is returned. A record's stored bytes carry an xxHash64 and a part of the ID, both checked on each read;
// tree nodes are checked against their whole ID. Damage is a *CorruptError that names the object and the offset.
//
// Any number of hosts may write at once; no lock is taken. A prune may run beside them: it never takes away what a listed backup needs
// (docs/adr/0007). The local cache holds copies of index segments under the repository's own ID and can be deleted at any time.
//
// In a sealed repository every record is encrypted and authenticated with its place (seal_aes.go), under master keys that the
// repository holds only wrapped (keys.go, keyring.go). docs/security.md says what that protects.
//
// Memory is bounded: a Writer holds WriterOptions.Buffers packs and at most maxPending index entries, readers one batch a
// goroutine; the index is memory-mapped.
//
// # Concurrency
//
// Repository, Writer and Blob are safe for many goroutines.
package chunkstore
