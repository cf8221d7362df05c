package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
	"github.com/shalebackup/shale/engine"
)

// s3Help is what the help of repositories says about S3.
const s3Help = `An S3 repository is s3://BUCKET@REGION/PREFIX, on AWS or on a server that --s3-endpoint names. Region and prefix may be left out:
the region is then $AWS_REGION, or asked for, and the bucket is the repository. The bucket must exist, and the server must know conditional
writes (If-None-Match), which 'repo init' tries.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), from the profile $AWS_PROFILE of the
shared files (~/.aws/credentials), or are those of the machine's role; never from arguments.`

// s3Flags say how S3 servers are reached.
type s3Flags struct {
	endpoint, caFile, addressing string
	retryFor                     time.Duration
}

func (o *s3Flags) register(f *pflag.FlagSet) {
	f.StringVar(&o.endpoint, "s3-endpoint", "", "S3 server: `HOST[:PORT]`, or a URL; http:// is without TLS (default: $SHALE_S3_ENDPOINT, else AWS)")
	f.StringVar(&o.caFile, "s3-ca-file", "", "trust the certificates in `FILE` (PEM), too, of the S3 server (default: $SHALE_S3_CA_FILE)")
	f.StringVar(&o.addressing, "s3-addressing", "",
		"name the bucket in the `path` of requests, or in the host name: virtual-host (default: $SHALE_S3_ADDRESSING, else path; of AWS virtual-host)")
	f.DurationVar(&o.retryFor, "s3-retry-for", s3.DefaultRetryFor, "how long a request that keeps failing is tried again; 0: it is not")
}

// again are the arguments that tell another process of shale the same. The environment tells it the rest.
func (o *s3Flags) again() (args []string) {
	caFile := o.caFile
	if abs, err := filepath.Abs(caFile); err == nil && caFile != "" {
		caFile = abs
	}
	for _, f := range []struct{ name, value string }{{"endpoint", o.endpoint}, {"ca-file", caFile}, {"addressing", o.addressing}} {
		if f.value != "" {
			args = append(args, "--s3-"+f.name+"="+f.value)
		}
	}
	return append(args, "--s3-retry-for="+o.retryFor.String())
}

// options are what flags and environment say.
func (o *s3Flags) options() s3.Options {
	retryFor := o.retryFor
	if retryFor == 0 {
		retryFor = -1
	}
	return s3.Options{
		RetryFor:   retryFor,
		Endpoint:   first(o.endpoint, os.Getenv("SHALE_S3_ENDPOINT"), os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL")),
		CAFile:     first(o.caFile, os.Getenv("SHALE_S3_CA_FILE"), os.Getenv("AWS_CA_BUNDLE")),
		Addressing: s3.Addressing(first(o.addressing, os.Getenv("SHALE_S3_ADDRESSING"))),
	}
}

// first returns the first that is not empty.
func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// backendOptions say how repositories are reached: what is moved is counted, and kept to the limits.
func (a *app) backendOptions() engine.BackendOptions {
	return engine.BackendOptions{S3: a.s3.options(), Wrap: a.wrap}
}

func s3Advice(_ *cobra.Command, err error) string {
	switch {
	case errors.Is(err, s3.ErrNoCredentials):
		return "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws/credentials by AWS_PROFILE."
	case errors.Is(err, s3.ErrCredentials):
		return "Compare AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY with what the server's keys are; of temporary keys AWS_SESSION_TOKEN,\n" +
			"and whether they have expired. Keys of one server are not another's: is --s3-endpoint the right one?"
	case errors.Is(err, s3.ErrNoBucket):
		return "Make the bucket first ('aws s3 mb s3://BUCKET'), or mend its name or --s3-endpoint."
	case errors.Is(err, s3.ErrRegion):
		return "Name the region in the URL, s3://BUCKET@REGION/PREFIX, or by AWS_REGION."
	case errors.Is(err, s3.ErrClock):
		return "Set this host's clock ('timedatectl set-ntp true'): requests are signed with the time."
	case errors.Is(err, backend.ErrRetained):
		return "An object lock keeps it from being deleted until then. Give the same command again after that."
	case errors.Is(err, backend.ErrNoLock):
		return "Object lock is chosen when a bucket is made ('aws s3api create-bucket --object-lock-enabled-for-bucket ...'); on AWS it can be\n" +
			"turned on later. Without it, leave out --lock-for."
	case errors.Is(err, s3.ErrDenied):
		return "A backup needs the rights s3:ListBucket of the bucket and s3:GetObject, s3:PutObject and s3:DeleteObject of its objects;\n" +
			"--lock-for also s3:GetObjectRetention and s3:PutObjectRetention; 'repo prune' also s3:ListBucketMultipartUploads,\n" +
			"s3:ListMultipartUploadParts and s3:AbortMultipartUpload."
	case errors.Is(err, backend.ErrNoPutIfAbsent):
		return "A newer version of the server may have conditional writes (If-None-Match); AWS, MinIO, Ceph and versitygw do."
	case errors.Is(err, s3.ErrTLS):
		return "For a server with a certificate of its own, name the authority's by --s3-ca-file; for one without TLS write --s3-endpoint http://..."
	case errors.Is(err, s3.ErrNotS3):
		return "Is --s3-endpoint the server's S3 port, and https:// or http:// as it speaks?"
	case errors.Is(err, s3.ErrBusy), errors.Is(err, s3.ErrServer):
		return "Give the same command again later; what was stored is kept. A smaller --parallel asks less of the server."
	case errors.Is(err, s3.ErrConnection):
		return "Is the network up, and --s3-endpoint right? Give the same command again; what was stored is kept."
	}
	return ""
}
