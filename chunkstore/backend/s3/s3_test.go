package s3_test

import (
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
)

func TestContract(t *testing.T) {
	srv := s3test.Start(t, s3test.Config{})
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		bucket := s3test.BucketName(t)
		srv.NewBucket(t, bucket)
		o := srv.Options(bucket)
		o.Prefix = "some/prefix"
		be, err := s3.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		return be
	})
}
