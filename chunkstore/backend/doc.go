// Package backend states the contract of the places where objects live, and the rules for their names.
//
// An object is a named byte string, written once and whole. A Backend is a place with Put, PutIfAbsent, ReadAt, List, Stat and
// Delete; the folders below implement it:
//
//	mem          in memory, for tests
//	file         a folder of a local file system or of NFS
//	s3           a bucket; its s3test starts a server for tests
//	limit        a wrapper: bytes per second, and requests at once
//	meter        a wrapper: counts requests and bytes
//	backendtest  the conformance suite that each of them passes, and wrappers that inject faults and crashes
//
// # Promises
//
// Whole or nothing: whatever dies at whatever moment, an object that can be seen holds all the bytes of one Put. Durable: when Put
// returns, the object survives a power cut. One winner: of any number of hosts that call PutIfAbsent for one name, one succeeds.
// These three are all that the store above builds on; it takes no other lock. A backend does not verify content: bits that rot are
// found by the store, which knows the checksums.
//
// # Behaviour is added by wrapping
//
// Retries, limits and counters are backends around a backend, which their Unwrap returns. Abilities that not all places have are
// small interfaces asked for by As (StaleRemover, ObjectLocker, Pacer).
//
//	if r, ok := backend.As[backend.StaleRemover](be); ok {
//		n, bytes, err := r.RemoveStale(ctx, backend.StaleAge)
//	}
package backend
