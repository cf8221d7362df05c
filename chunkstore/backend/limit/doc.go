// Package limit bounds what a process asks of a backend: bytes per second each way, and requests at once.
//
// A Bucket is a rate that everything shares which was given it: all requests of a backend, several backends, the workers that read a
// source. It hands out small pieces in the order in which they were asked for, so a large object delays another request by the pieces
// that are under way, not by its length.
//
// A backend that can wait between pieces (backend.Pacer) moves its bytes evenly. To one that cannot the whole object goes at
// once, after the wait for it: the average is right, the wire sees bursts.
//
//	up := limit.NewBucket(10 << 20)
//	be = limit.New(be, limit.Options{Upload: up})
package limit
