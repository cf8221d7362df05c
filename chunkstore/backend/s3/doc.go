// Package s3 is the backend of a bucket: on AWS, or on any server that speaks S3 with conditional writes (MinIO, Ceph, versitygw).
//
// An object of the repository is an object of the bucket, its key the prefix and the name. Keys that are no valid names are
// foreign and left alone. A repository without a prefix has the bucket to itself.
//
// # Promises
//
// Whole: a put is one request, or, for what is longer than a part, an upload in parts that shows nothing until it is completed. Each
// body carries its MD5, and over plain HTTP its SHA-256 under the signature, so that the server refuses what was changed on the way; MD5
// because every server knows it, and object lock wants a sum. Parts are slices of the data given: an upload takes no memory of its own.
//
// One winner: PutIfAbsent is a single request with If-None-Match: *, which servers enforce more often than on uploads in parts.
// What a server does that does not know the header, a repository learns before its first object (chunkstore.Init); one that
// says so is ErrNoPutIfAbsent.
//
// Times are the server's, in whole seconds.
//
// # Retries
//
// Retrying is this package's own, request by request; the client library's is off. It has to know what a wrapper around Backend and the
// library cannot: which part of an upload is missing; how much of a body has come, so that a read goes on behind it, if the object is
// still the same; and whether a lost answer may have been a success. The put that meets "taken" after such an answer looks whether the object
// there is its own, by a random mark in its metadata, and so tells its success from that of another. Waits double up
// to a bound, and are random, so that hosts do not come back at once. Options.RetryFor bounds how long a request may keep
// failing. What cannot get better (keys, rights, a missing bucket, certificates, clocks) fails at once, and so does, after
// a short while, a server that never answered. A connection on which nothing moves for Options.Stall is given up.
//
// # Versions and locks
//
// In a bucket with versioning Delete adds a delete marker, as for any S3 program: the bytes stay until a lifecycle rule of the
// bucket removes noncurrent versions. That is what makes versions a safety net: keys that may not delete versions cannot destroy
// anything. Retain (backend.ObjectLocker) locks the current version of an object.
//
// # Credentials
//
// From the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; or AWS_ACCESS_KEY and AWS_SECRET_KEY, as Convoy
// called them), else the profile AWS_PROFILE of the shared files, else the role of the machine, container or web identity. They are in no option,
// no location and no error.
package s3
