// Package s3test runs a real S3 server for tests: versitygw, which scripts/setup installs.
//
//	srv := s3test.Start(t, s3test.Config{})
//	srv.NewBucket(t, "bucket")
//	be, err := s3.Open(srv.Options("bucket"))
//
// It takes part of a second to start, so tests of one package share one where they can: each takes a bucket of its own (BucketName).
package s3test
