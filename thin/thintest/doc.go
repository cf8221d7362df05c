// Package thintest writes dm-thin metadata: for tests of readers and for benchmarks that need pools of any size and shape.
//
// A [Pool] builds mapping trees as the kernel does, copy-on-write: a snapshot shares its origin's root, and a block that
// is mapped anew copies only the nodes on its path. Nothing is ever freed, and of the space maps only the counts are
// written: thin_dump and thin_delta read such metadata, thin_check would complain and a kernel must not be given it.
// [Patch] breaks metadata in a chosen place and mends the checksum, as hostile metadata would have it.
//
// The package knows the format by itself and imports no reader: what both understand alike was written down twice.
package thintest
