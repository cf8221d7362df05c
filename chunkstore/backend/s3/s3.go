package s3

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Options say which bucket it is and how it is reached. Bucket is required; the zero value of all else is right for AWS.
type Options struct {
	Bucket string
	Region string // empty: $AWS_REGION, $AWS_DEFAULT_REGION, or else the server is asked
	Prefix string // of all keys, without slashes at its ends; empty: the bucket is the repository

	// Endpoint is the server: HOST, HOST:PORT, or a URL of these. http:// is without TLS. Empty: AWS.
	Endpoint string
	// Addressing says where requests name the bucket. Empty: in the path, of AWS in the host name.
	Addressing Addressing
	// CAFile has certificates, in PEM form, of authorities to trust beside the system's.
	CAFile string

	// RetryFor is how long a request may keep failing, from its first failure on; default DefaultRetryFor, negative: not retried.
	RetryFor time.Duration
	// Stall is how long a connection may stand still; default 1 minute.
	Stall time.Duration
	// PartBytes is the length of parts of an upload; an object that is not longer than one and a half is put in one request. 5 MiB or
	// more; default 16 MiB.
	PartBytes int

	// Getenv looks up the environment's credentials and region; nil: os.Getenv.
	Getenv func(string) string

	dial dialer // nil: the network's; for tests
}

// Addressing is where requests name the bucket.
type Addressing string

const (
	AddressPath        Addressing = "path"         // https://host/bucket/key
	AddressVirtualHost Addressing = "virtual-host" // https://bucket.host/key
)

// DefaultRetryFor is how long a request may keep failing unless the options say otherwise.
const DefaultRetryFor = 5 * time.Minute

const (
	defaultStall     = time.Minute
	defaultPartBytes = 16 << 20
	leastPartBytes   = 5 << 20 // S3's own
	maxPrefix        = 500     // bytes: with the longest name less than S3's 1024
	awsEndpoint      = "s3.amazonaws.com"
)

// Backend holds objects in a bucket. Use Open.
type Backend struct {
	core      minio.Core
	creds     *credentials.Credentials
	bucket    string
	prefix    string // of keys; ends with a slash unless empty
	location  string
	plain     bool // no TLS
	partBytes int
	retryFor  time.Duration

	up, down backend.Pace // nil: not called

	lockable atomic.Pointer[lockability] // nil: not known yet

	reached atomic.Bool // the server has answered, and accepted the credentials
}

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.StaleRemover = (*Backend)(nil)
	_ backend.ObjectLocker = (*Backend)(nil)
	_ backend.Pacer        = (*Backend)(nil)
	_ backend.Distant      = (*Backend)(nil)
)

// Open makes the backend of a bucket. No request is made yet.
func Open(o Options) (*Backend, error) {
	b, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", o.Bucket, err)
	}
	return b, nil
}

func open(o Options) (*Backend, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if err := o.complete(); err != nil {
		return nil, err
	}
	host, plain, err := parseEndpoint(o.Endpoint)
	if err != nil {
		return nil, err
	}
	transport, err := newTransport(o.CAFile, o.Stall, o.dial)
	if err != nil {
		return nil, err
	}
	b := &Backend{
		creds: newCredentials(o.Getenv), bucket: o.Bucket, plain: plain, partBytes: o.PartBytes, retryFor: o.RetryFor,
		location: "s3://" + o.Bucket,
	}
	if o.Prefix != "" {
		b.prefix = o.Prefix + "/"
		b.location += "/" + o.Prefix
	}
	lookup := minio.BucketLookupAuto
	switch o.Addressing {
	case AddressPath:
		lookup = minio.BucketLookupPath
	case AddressVirtualHost:
		lookup = minio.BucketLookupDNS
	}
	core, err := minio.NewCore(host, &minio.Options{
		Creds: b.creds, Secure: !plain, Transport: transport, Region: o.Region, BucketLookup: lookup, MaxRetries: 1,
	})
	if err != nil {
		return nil, err
	}
	b.core = *core
	return b, nil
}

// complete checks the options and fills in defaults.
func (o *Options) complete() error {
	switch {
	case !ValidBucket(o.Bucket):
		return errors.New("not a bucket's name: 3 to 63 lower-case letters, digits, '-' and '.'")
	case !ValidPrefix(o.Prefix):
		return fmt.Errorf("prefix %q: no empty segments, '.', '..' or control characters, at most %d bytes", o.Prefix, maxPrefix)
	case o.Addressing != "" && o.Addressing != AddressPath && o.Addressing != AddressVirtualHost:
		return fmt.Errorf("addressing is %q, not %s or %s", o.Addressing, AddressPath, AddressVirtualHost)
	case o.PartBytes != 0 && o.PartBytes < leastPartBytes:
		return fmt.Errorf("option PartBytes is %d, the least is %d", o.PartBytes, leastPartBytes)
	case o.Stall < 0:
		return fmt.Errorf("option Stall is %v, it cannot be negative", o.Stall)
	}
	if o.Region == "" {
		if o.Region = o.Getenv("AWS_REGION"); o.Region == "" {
			o.Region = o.Getenv("AWS_DEFAULT_REGION")
		}
	}
	if o.RetryFor == 0 {
		o.RetryFor = DefaultRetryFor
	}
	if o.Stall == 0 {
		o.Stall = defaultStall
	}
	if o.PartBytes == 0 {
		o.PartBytes = defaultPartBytes
	}
	return nil
}

// ValidBucket reports whether name may name a bucket.
func ValidBucket(name string) bool { return s3utils.CheckValidBucketNameStrict(name) == nil }

// ValidPrefix reports whether a prefix may stand before the names of a repository: segments separated by single slashes, none of
// them "." or "..", no control characters.
func ValidPrefix(prefix string) bool {
	if prefix == "" {
		return true
	}
	if len(prefix) > maxPrefix || s3utils.CheckValidObjectName(prefix) != nil {
		return false
	}
	for segment := range strings.SplitSeq(prefix, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return !strings.ContainsFunc(prefix, isControl)
}

func isControl(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

// parseEndpoint returns the host, with its port if one was given, and whether it is spoken to without TLS.
func parseEndpoint(s string) (host string, plain bool, err error) {
	if s == "" {
		return awsEndpoint, false, nil
	}
	full := s
	if !strings.Contains(s, "://") {
		full = "https://" + s
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		return "", false, errors.New("the endpoint is no URL") // which may have a password in it
	case u.User != nil:
		return "", false, errors.New("the endpoint has a user or password in it: credentials come from the environment")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.Fragment != "":
		return "", false, fmt.Errorf("endpoint %q is not HOST[:PORT], http://HOST[:PORT] or https://HOST[:PORT]", s)
	}
	return u.Host, u.Scheme == "http", nil
}

// AtOnce implements backend.Distant: over 30 ms, eight reads of a MiB or two keep a link of some 200 MB/s busy.
func (b *Backend) AtOnce() int { return 8 }

// Location implements backend.Backend.
func (b *Backend) Location() string { return b.location }

// Stat implements backend.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (backend.Object, error) {
	if err := backend.Begin(ctx, "stat", name); err != nil {
		return backend.Object{}, err
	}
	info, err := b.head(ctx, name)
	if err != nil {
		return backend.Object{}, failure("stat", name, err)
	}
	return backend.Object{Name: name, Size: info.Size, ModTime: info.LastModified}, nil
}

// head asks for an object's description.
func (b *Backend) head(ctx context.Context, name string) (info minio.ObjectInfo, err error) {
	err = b.try(ctx, func() (err error) {
		info, err = b.headOnce(ctx, name)
		return err
	})
	return info, err
}

func (b *Backend) headOnce(ctx context.Context, name string) (minio.ObjectInfo, error) {
	info, err := b.core.StatObject(ctx, b.bucket, b.key(name), minio.StatObjectOptions{})
	if err != nil {
		return info, b.explain(ctx, name, err)
	}
	if info.Size < 0 {
		return info, fmt.Errorf("%w: it does not tell an object's length", ErrNotS3)
	}
	return info, nil
}

// explain finds out why a HEAD failed, whose answers have no body: whether there is no object or no bucket, which right is missing.
func (b *Backend) explain(ctx context.Context, name string, err error) error {
	err = classified(err)
	s := status(err)
	if s < 300 || s >= 500 || s == 404 && b.reached.Load() {
		return err
	}
	var o minio.GetObjectOptions
	if o.SetRange(0, 1) != nil {
		return err
	}
	body, _, _, why := b.core.GetObject(ctx, b.bucket, b.key(name), o)
	if why == nil {
		body.Close()
		return err
	}
	if why = classified(why); status(why) == 0 || errors.Is(why, backend.ErrShort) {
		return err
	}
	return why
}

// Delete implements backend.Backend. In a bucket with versioning it adds a delete marker.
func (b *Backend) Delete(ctx context.Context, name string) error {
	if err := backend.Begin(ctx, "delete", name); err != nil {
		return err
	}
	err := b.try(ctx, func() error {
		return b.core.RemoveObject(ctx, b.bucket, b.key(name), minio.RemoveObjectOptions{})
	})
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	return failure("delete", name, b.locked(ctx, name, err))
}

func (b *Backend) key(name string) string { return b.prefix + name }
