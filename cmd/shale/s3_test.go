package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
)

// Every error of S3 comes with something to do.
func TestS3Advice(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		s3.ErrNoCredentials:      "AWS_PROFILE",
		s3.ErrCredentials:        "AWS_SECRET_ACCESS_KEY",
		s3.ErrDenied:             "s3:PutObject",
		s3.ErrNoBucket:           "aws s3 mb",
		s3.ErrRegion:             "s3://BUCKET@REGION/PREFIX",
		s3.ErrClock:              "timedatectl",
		s3.ErrBusy:               "--parallel",
		s3.ErrServer:             "later",
		s3.ErrTLS:                "--s3-ca-file",
		s3.ErrConnection:         "--s3-endpoint",
		s3.ErrNotS3:              "S3 port",
		backend.ErrNoLock:        "--object-lock-enabled-for-bucket",
		backend.ErrNoPutIfAbsent: "If-None-Match",
		&backend.RetainedError{Name: "packs/a", Until: time.Now(), Err: &s3.ResponseError{Kind: s3.ErrDenied}}: "object lock keeps it",
	} {
		a := &app{}
		if got := a.advice(newRepoStatsCommand(a), fmt.Errorf("put packs/a: %w", err)); !strings.Contains(got, want) {
			t.Errorf("%v: advice is %q, want %q in it", err, got, want)
		}
	}
}

// Flags go before the environment, and shale's own variables before AWS's.
func TestS3Options(t *testing.T) {
	for _, name := range []string{
		"SHALE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "SHALE_S3_CA_FILE", "AWS_CA_BUNDLE", "SHALE_S3_ADDRESSING",
	} {
		t.Setenv(name, "")
	}
	var o s3Flags
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.register(f)
	if got := o.options(); got.Endpoint != "" || got.CAFile != "" || got.Addressing != "" || got.RetryFor != s3.DefaultRetryFor {
		t.Errorf("by default: %+v", got)
	}
	for _, c := range []struct{ name, value string }{
		{"AWS_ENDPOINT_URL", "aws"}, {"AWS_ENDPOINT_URL_S3", "aws-s3"}, {"SHALE_S3_ENDPOINT", "shale"},
	} {
		t.Setenv(c.name, c.value)
		if got := o.options().Endpoint; got != c.value {
			t.Errorf("with $%s the endpoint is %q", c.name, got)
		}
	}
	t.Setenv("AWS_CA_BUNDLE", "bundle")
	t.Setenv("SHALE_S3_ADDRESSING", "virtual-host")
	if got := o.options(); got.CAFile != "bundle" || got.Addressing != s3.AddressVirtualHost {
		t.Errorf("from the environment: %+v", got)
	}
	args := []string{"--s3-endpoint=flag", "--s3-ca-file=/ca", "--s3-addressing=path", "--s3-retry-for=0s"}
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	if got := o.options(); got.Endpoint != "flag" || got.CAFile != "/ca" || got.Addressing != s3.AddressPath || got.RetryFor >= 0 {
		t.Errorf("from flags: %+v", got)
	}
	again := o.again() // what the process of a mount is told
	slices.Sort(args)
	slices.Sort(again)
	if !slices.Equal(again, args) {
		t.Errorf("again: %q, want %q", again, args)
	}
}

func TestLockFlags(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(31, 1<<20))
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "--lock-for", []string{"--lock-for", "30 days"}},
		{2, "longer than nothing", []string{"--lock-for", "0d"}},
		{2, "governance or compliance", []string{"--lock-for", "30d", "--lock-mode", "forever"}},
		{2, "with --lock-for", []string{"--lock-mode", "compliance"}},
		{1, "no object locks", []string{"--lock-for", "30d"}},
	} {
		says(t, s.run(c.code, append([]string{"backup", "create", img, "--dest", repo, "--volume", "v"}, c.args...)...).talk, c.says)
	}
}
