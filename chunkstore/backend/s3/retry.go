package s3

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

const (
	// firstRetryFor bounds how long a server is tried that never answered: it is probably misspelt.
	firstRetryFor = 10 * time.Second
	// Waits between two tries double from the least to the longest; a server that asks for fewer requests gets longer ones.
	leastWait     = 100 * time.Millisecond
	leastBusyWait = 500 * time.Millisecond
	longestWait   = 15 * time.Second
	// suspectTries is how often a refusal is tried again that makes no sense of keys that were accepted before: a request that
	// was damaged on the way is refused in these words.
	suspectTries = 3
)

// try calls request until it succeeds, fails for good, or has kept failing for as long as the options allow. Its error is
// classified.
func (b *Backend) try(ctx context.Context, request func() error) error {
	var first time.Time // of failing
	for n := 1; ; n++ {
		err := classified(request())
		if err == nil || understood(err) {
			b.reached.Store(true)
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !b.again(err, n):
			return err
		}
		now := time.Now()
		if n == 1 {
			first = now
		}
		wait := backOff(n, errors.Is(err, ErrBusy))
		if now.Add(wait).Sub(first) > b.patience() {
			return fmt.Errorf("%w; given up after %d tries in %v", err, n, now.Sub(first).Round(time.Second))
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// patience is how long a request may keep failing.
func (b *Backend) patience() time.Duration {
	if b.reached.Load() {
		return b.retryFor
	}
	return min(b.retryFor, firstRetryFor)
}

// backOff is the wait after the n-th failure: half of it for certain, half by chance.
func backOff(n int, busy bool) time.Duration {
	least := leastWait
	if busy {
		least = leastBusyWait
	}
	wait := min(least<<min(n-1, 16), longestWait)
	return wait/2 + rand.N(wait/2+1)
}

// understood reports whether the error is an answer that only a server gives that knows bucket and keys.
func understood(err error) bool {
	for _, kind := range []error{backend.ErrNotExist, backend.ErrExist, backend.ErrShort, backend.ErrRetained, backend.ErrName} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// again says whether a request that failed for the n-th time is worth another try.
func (b *Backend) again(err error, n int) bool {
	var answer *ResponseError
	var host *net.DNSError
	switch {
	case errors.As(err, &host) && host.IsNotFound && !b.reached.Load(): // misspelt
		return false
	case errors.Is(err, ErrConnection), errors.Is(err, ErrBusy), errors.Is(err, ErrServer):
		return true
	case !errors.As(err, &answer):
		return errors.Is(err, ErrNotS3) && b.reached.Load() && n <= suspectTries
	}
	switch answer.Code {
	case "ExpiredToken", "ExpiredTokenException": // a role's new token is fetched
		b.creds.Expire()
		return n <= suspectTries
	case "RequestTimeout", "IncompleteBody", "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
		"OperationAborted", "ConditionalRequestConflict":
		return true
	}
	switch {
	case answer.Status == http.StatusRequestTimeout, answer.Status == 499: // nginx: the client closed the connection
		return true
	case errors.Is(err, backend.ErrName): // a server on a file system may say so while it removes an empty folder
		return n <= suspectTries
	case errors.Is(err, ErrCredentials), errors.Is(err, ErrNotS3), answer.Status == http.StatusBadRequest && answer.Kind == nil:
		return b.reached.Load() && n <= suspectTries
	}
	return false
}
