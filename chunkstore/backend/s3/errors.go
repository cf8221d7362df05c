package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"unicode"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// What can be wrong with a bucket or with the way to it. Errors wrap one of these, and a ResponseError where the server said so.
var (
	// ErrNoCredentials: there are no keys in the environment and the shared files, and no role.
	ErrNoCredentials = errors.New("no S3 credentials found")
	// ErrCredentials: the server does not know the access key, or the secret key is not its own, or the token has expired.
	ErrCredentials = errors.New("the S3 server does not accept the credentials")
	// ErrDenied: the keys are right, but may not do this.
	ErrDenied = errors.New("the S3 server denies access")
	// ErrNoBucket: there is no such bucket.
	ErrNoBucket = errors.New("the bucket does not exist")
	// ErrRegion: the bucket is in another region than the one named.
	ErrRegion = errors.New("the bucket is in another region")
	// ErrClock: this host's clock and the server's disagree too much for signatures.
	ErrClock = errors.New("this host's clock and the S3 server's disagree")
	// ErrBusy: the server asks for fewer requests, and went on so.
	ErrBusy = errors.New("the S3 server is too busy")
	// ErrServer: the server failed.
	ErrServer = errors.New("the S3 server failed")
	// ErrTLS: the server's certificate cannot be trusted, or one side speaks TLS and the other does not.
	ErrTLS = errors.New("no trusted TLS connection to the S3 server")
	// ErrConnection: the server cannot be reached, or the connection broke or stood still.
	ErrConnection = errors.New("no connection to the S3 server")
	// ErrNotS3: something answers at the endpoint, but not in S3's words.
	ErrNotS3 = errors.New("what answers is no S3 server")
)

// ResponseError is an answer of the server that is a failure.
type ResponseError struct {
	Kind      error // one of this package's or of package backend; nil: none of them
	Status    int   // of HTTP
	Code      string
	Message   string
	RequestID string // for whoever runs the server
}

func (e *ResponseError) Error() string {
	s := fmt.Sprintf("%d", e.Status)
	if e.Code != "" && !strings.HasPrefix(e.Code, s) {
		s += " " + e.Code
	} else if e.Code != "" {
		s = e.Code
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.RequestID != "" {
		s += ", request " + e.RequestID
	}
	if e.Kind != nil {
		return fmt.Sprintf("%v (%s)", e.Kind, s)
	}
	return "the S3 server answered " + s
}

func (e *ResponseError) Unwrap() error { return e.Kind }

// kinds says what the codes of S3 mean here. Codes of the server that are not in it go by the status.
var kinds = map[string]error{
	"NoSuchKey":                            backend.ErrNotExist,
	"NoSuchBucket":                         ErrNoBucket,
	"XAdminUserNotFound":                   ErrCredentials, // of versitygw
	"InvalidAccessKeyId":                   ErrCredentials,
	"SignatureDoesNotMatch":                ErrCredentials,
	"InvalidToken":                         ErrCredentials,
	"ExpiredToken":                         ErrCredentials,
	"ExpiredTokenException":                ErrCredentials,
	"TokenRefreshRequired":                 ErrCredentials,
	"InvalidClientTokenId":                 ErrCredentials,
	"UnrecognizedClientException":          ErrCredentials,
	"AccessDenied":                         ErrDenied,
	"AllAccessDisabled":                    ErrDenied,
	"AccountProblem":                       ErrDenied,
	"RequestTimeTooSkewed":                 ErrClock,
	"RequestExpired":                       ErrClock,
	"AuthorizationHeaderMalformed":         ErrRegion,
	"PermanentRedirect":                    ErrRegion,
	"InvalidRegion":                        ErrRegion,
	"IllegalLocationConstraintException":   ErrRegion,
	"SlowDown":                             ErrBusy,
	"SlowDownRead":                         ErrBusy,
	"SlowDownWrite":                        ErrBusy,
	"ServiceUnavailable":                   ErrBusy,
	"Throttling":                           ErrBusy,
	"ThrottlingException":                  ErrBusy,
	"RequestLimitExceeded":                 ErrBusy,
	"TooManyRequests":                      ErrBusy,
	"ObjectLocked":                         backend.ErrRetained,
	"InvalidRange":                         backend.ErrShort,
	"PreconditionFailed":                   backend.ErrExist,
	"ObjectParentIsFile":                   backend.ErrName,
	"ExistingObjectIsDirectory":            backend.ErrName,
	"KeyTooLongError":                      backend.ErrName,
	"ObjectLockConfigurationNotFoundError": backend.ErrNoLock,
}

// classified turns what the client library returns into this package's errors.
func classified(err error) error {
	var answer minio.ErrorResponse
	var slow net.Error
	switch {
	case err == nil, isClassified(err), errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &answer):
		if answer.StatusCode == 0 || answer.RequestID == "minio" { // the library's own: it made sense of neither answer nor request
			return fmt.Errorf("%w: %s", ErrNotS3, clipped(answer.Error()))
		}
		return responseError(answer)
	case isTLS(err):
		return fmt.Errorf("%w: %w", ErrTLS, err)
	case errors.As(err, &slow) && slow.Timeout(): // not wrapped: it says it is a context's error, which it is not
		return fmt.Errorf("%w: %v", ErrConnection, err)
	}
	return fmt.Errorf("%w: %w", ErrConnection, err)
}

// isClassified reports whether the error is one of this package's, or of package backend, already.
func isClassified(err error) bool {
	var known *ResponseError
	if errors.As(err, &known) {
		return true
	}
	for _, kind := range []error{
		ErrNoCredentials, ErrConnection, ErrTLS, ErrNotS3, backend.ErrNoLock, backend.ErrShort, backend.ErrNotExist, backend.ErrExist, backend.ErrRetained,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

func responseError(answer minio.ErrorResponse) error {
	e := &ResponseError{
		Status: answer.StatusCode, Code: clipped(answer.Code), Message: clipped(answer.Message), RequestID: clipped(answer.RequestID),
	}
	if e.Kind = kinds[answer.Code]; e.Kind != nil {
		return e
	}
	spoken := answer.XMLName.Local != "" // it is S3's XML
	switch s := e.Status; {
	case s == http.StatusForbidden, s == http.StatusUnauthorized:
		e.Kind = ErrDenied
	case s == http.StatusServiceUnavailable, s == http.StatusTooManyRequests:
		e.Kind = ErrBusy
	case s >= 500 && s != http.StatusNotImplemented:
		e.Kind = ErrServer
	case s == http.StatusMovedPermanently, s == http.StatusTemporaryRedirect:
		e.Kind = ErrRegion
	case !spoken && (s == http.StatusBadRequest || s == http.StatusMethodNotAllowed || s < 400):
		e.Kind = ErrNotS3
	}
	return e
}

func isTLS(err error) bool {
	var (
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		alert     tls.AlertError
	)
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &verify) || errors.As(err, &authority) || errors.As(err, &host) ||
		errors.As(err, &invalid) || errors.As(err, &record) || errors.As(err, &alert)
}

// clipped makes a server's text fit for a message: one line, not too long.
func clipped(s string) string {
	const most = 200
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return strings.TrimSuffix(strings.TrimSpace(s), ".")
}

// status is the HTTP status of an answer, 0 when there was none.
func status(err error) int {
	var e *ResponseError
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// failure says what failed, on which object.
func failure(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", verb, name, err)
}
