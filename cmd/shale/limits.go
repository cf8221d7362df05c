package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/limit"
	"github.com/shalebackup/shale/chunkstore/backend/meter"
)

// byteRate is a flag: bytes per second, 0 for no limit.
type byteRate int64

var _ pflag.Value = (*byteRate)(nil)

// Set reads "10M", MiB per second.
func (r *byteRate) Set(s string) error {
	number := strings.TrimRight(s, "BKMGTbkmgt")
	factor, ok := map[string]float64{"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}[strings.ToUpper(s[len(number):])]
	v, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(v >= 0 && v*factor < math.MaxInt64) || v != 0 && v*factor < 1 {
		return fmt.Errorf("bytes per second are a number with K, M, G or T (powers of 1024), as 10M; or 0, for no limit")
	}
	*r = byteRate(v * factor)
	return nil
}

func (r *byteRate) String() string { return strconv.FormatInt(int64(*r), 10) }

// Type implements pflag.Value.
func (r *byteRate) Type() string { return "rate" }

// traffic is what goes to and from the repositories of one command: counted, and kept to the limits that were given.
type traffic struct {
	upload, download byteRate      // flags
	options          limit.Options // shared by all repositories; made with the first
	meters           []*meter.Backend
}

// wrap is the engine.Wrapper of every repository that is opened.
func (a *app) wrap(be backend.Backend) backend.Backend {
	t := &a.traffic
	m := meter.New(be)
	if len(t.meters) == 0 {
		t.options = limit.Options{
			Upload: limit.NewBucket(int64(t.upload)), Download: limit.NewBucket(int64(t.download)), Requests: a.parallel,
		}
	}
	t.meters = append(t.meters, m)
	if t.options == (limit.Options{}) {
		return m
	}
	return limit.New(m, t.options)
}
