package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

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
type s3Flags struct{ endpoint, caFile, addressing string }

func (o *s3Flags) register(f *pflag.FlagSet) {
	f.StringVar(&o.endpoint, "s3-endpoint", "", "S3 server: `HOST[:PORT]`, or a URL; http:// is without TLS (default: $SHALE_S3_ENDPOINT, else AWS)")
	f.StringVar(&o.caFile, "s3-ca-file", "", "trust the certificates in `FILE` (PEM), too, of the S3 server (default: $SHALE_S3_CA_FILE)")
	f.StringVar(&o.addressing, "s3-addressing", "",
		"name the bucket in the `path` of requests, or in the host name: virtual-host (default: $SHALE_S3_ADDRESSING, else path; of AWS virtual-host)")
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
	return args
}

// options are what flags and environment say.
func (o *s3Flags) options() s3.Options {
	return s3.Options{
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
