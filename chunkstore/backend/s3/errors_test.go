package s3_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func pemFile(t *testing.T, cert *x509.Certificate) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What the server says becomes one error, whatever the call, and names object, status and request.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{403, "InvalidAccessKeyId", s3.ErrCredentials},
		{403, "SignatureDoesNotMatch", s3.ErrCredentials},
		{403, "AccessDenied", s3.ErrDenied},
		{403, "SomethingElse", s3.ErrDenied},
		{401, "Whatever", s3.ErrDenied},
		{403, "RequestTimeTooSkewed", s3.ErrClock},
		{404, "NoSuchBucket", s3.ErrNoBucket},
		{400, "AuthorizationHeaderMalformed", s3.ErrRegion},
		{301, "PermanentRedirect", s3.ErrRegion},
		{404, "NoSuchKey", backend.ErrNotExist},
	} {
		g := newGate(t, nil)
		g.next(rule{times: 100, answer: answers(c.status, c.code)})
		be := g.open(t, "bucket")
		_, statErr := be.Stat(t.Context(), "packs/a")
		errs := map[string]error{
			"stat packs/a": statErr,
			"read packs/a": be.ReadAt(t.Context(), "packs/a", make([]byte, 10), 5),
			"put packs/a":  be.Put(t.Context(), "packs/a", []byte("x")),
			`list "packs/`: be.List(t.Context(), "packs/", func(backend.Object) error { return nil }),
		}
		for what, err := range errs {
			var answer *s3.ResponseError
			if !errors.Is(err, c.want) || !errors.As(err, &answer) || answer.Status != c.status || answer.Code != c.code ||
				!strings.HasPrefix(err.Error(), what) || !strings.Contains(err.Error(), "request 4711") {
				t.Errorf("%d %s, %s: got %v, want %v", c.status, c.code, what, err, c.want)
			}
		}
		if n := g.count(http.MethodPut); n != 1 {
			t.Errorf("%d %s: the put was tried %d times", c.status, c.code, n)
		}
	}
}

// What is passing is tried again.
func TestPassingTrouble(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
	}{
		{503, "SlowDown"}, {500, "InternalError"}, {429, "TooManyRequests"}, {400, "RequestTimeout"}, {409, "OperationAborted"}, {502, "html"}, {408, "x"},
	} {
		t.Run(c.code, func(t *testing.T) {
			t.Parallel()
			g := newGate(t, nil)
			g.next(rule{method: http.MethodPut, times: 2, answer: answers(c.status, c.code)})
			g.next(rule{method: http.MethodPut, answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }})
			if err := g.open(t, "bucket").Put(t.Context(), "a", []byte("x")); err != nil {
				t.Error(err)
			}
			if n := g.count(http.MethodPut); n != 3 {
				t.Errorf("tried %d times, want 3", n)
			}
		})
	}
}

// What does not pass is given up, with the last answer as the reason.
func TestBusyForGood(t *testing.T) {
	t.Parallel()
	g := newGate(t, nil)
	g.next(rule{times: 1000, answer: answers(503, "SlowDown")})
	start := time.Now()
	err := g.open(t, "bucket", func(o *s3.Options) { o.RetryFor = 2 * time.Second }).Put(t.Context(), "a", nil)
	if took := time.Since(start); !errors.Is(err, s3.ErrBusy) || !strings.Contains(err.Error(), "given up after") || took > 4*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
}

func TestNotRetried(t *testing.T) {
	g := newGate(t, nil)
	g.next(rule{answer: answers(503, "SlowDown")})
	err := g.open(t, "bucket", func(o *s3.Options) { o.RetryFor = -1 }).Put(t.Context(), "a", nil)
	if !errors.Is(err, s3.ErrBusy) || g.count(http.MethodPut) != 1 {
		t.Errorf("%d tries: %v", g.count(http.MethodPut), err)
	}
}

// A page of HTML, as a wrong port gives, is no answer of S3.
func TestNotS3(t *testing.T) {
	g := newGate(t, nil)
	g.next(rule{times: 100, answer: func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(400)
		_, _ = io.WriteString(w, "<!DOCTYPE html><html><body>Welcome\n to the console</body></html>"+strings.Repeat("x", 5000))
	}})
	err := g.open(t, "bucket").Put(t.Context(), "a", nil)
	if !errors.Is(err, s3.ErrNotS3) || len(err.Error()) > 500 || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

// Answers that are none of what was asked for are refused, never taken for an object's bytes.
func TestWrongContent(t *testing.T) {
	for what, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"ranges ignored": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Last-Modified", "Tue, 15 Nov 2022 12:45:26 GMT")
			_, _ = io.WriteString(w, "0123456789")
		},
		"another range": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Last-Modified", "Tue, 15 Nov 2022 12:45:26 GMT")
			w.Header().Set("Content-Range", "bytes 3-6/10")
			w.WriteHeader(206)
			_, _ = io.WriteString(w, "3456")
		},
	} {
		g := newGate(t, nil)
		g.next(rule{times: 100, answer: answer})
		err := g.open(t, "bucket").ReadAt(t.Context(), "a", make([]byte, 4), 4)
		if !errors.Is(err, s3.ErrNotS3) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestListOutOfOrder(t *testing.T) {
	g := newGate(t, nil)
	g.next(rule{times: 100, answer: func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>b</Key><LastModified>2022-11-15T12:45:26.000Z</LastModified><Size>1</Size></Contents>`+
			`<Contents><Key>a</Key><LastModified>2022-11-15T12:45:26.000Z</LastModified><Size>1</Size></Contents></ListBucketResult>`)
	}})
	err := g.open(t, "bucket").List(t.Context(), "", func(backend.Object) error { return nil })
	if !errors.Is(err, s3.ErrNotS3) || !strings.Contains(err.Error(), `"a" after "b"`) {
		t.Errorf("got %v", err)
	}
}

func TestTLSTrouble(t *testing.T) {
	url, caFile := tlsServer(t)
	plain := newGate(t, nil)
	old, oldFile := expired(t, certificate(t, time.Now().Add(-time.Hour)))
	for what, o := range map[string]s3.Options{
		"unknown authority":   {Endpoint: url},
		"another's authority": {Endpoint: url, CAFile: oldFile},
		"expired":             {Endpoint: old, CAFile: oldFile},
		"a server without":    {Endpoint: strings.Replace(plain.URL, "http", "https", 1)},
		"another host's":      {Endpoint: strings.Replace(url, "127.0.0.1", "localhost", 1), CAFile: caFile},
	} {
		o.Bucket, o.Getenv = "bucket", s3test.Getenv
		be, err := s3.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err = be.Stat(t.Context(), "a"); !errors.Is(err, s3.ErrTLS) || time.Since(start) > 5*time.Second {
			t.Errorf("%s: after %v: %v", what, time.Since(start), err)
		}
	}
}

func certificate(t *testing.T, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: until.Add(-time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	b, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{b}, PrivateKey: key}
}

// A server that never answered is given up soon, one that did is waited for.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	o := s3.Options{Bucket: "bucket", Endpoint: "http://" + deadAddr(t), Getenv: s3test.Getenv, RetryFor: time.Second}
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = be.Stat(t.Context(), "a"); !errors.Is(err, s3.ErrConnection) || !strings.Contains(err.Error(), "given up") {
		t.Errorf("got %v", err)
	}
	o.Endpoint = "http://no-such-host.invalid"
	if be, err = s3.Open(o); err != nil {
		t.Fatal(err)
	}
	if _, err = be.Stat(t.Context(), "a"); !errors.Is(err, s3.ErrConnection) || strings.Contains(err.Error(), "given up") {
		t.Errorf("a host that does not exist: %v", err)
	}
}

// A server that accepts and says nothing is an error, not a hang.
func TestStall(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	be, err := s3.Open(s3.Options{
		Bucket: "bucket", Endpoint: "http://" + l.Addr().String(), Getenv: s3test.Getenv, Stall: 200 * time.Millisecond, RetryFor: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = be.Put(t.Context(), "a", make([]byte, 64<<20)) // more than all buffers on the way
	if !errors.Is(err, s3.ErrConnection) || time.Since(start) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for what, o := range map[string]s3.Options{
		"not a bucket's name": {Bucket: "B"},
		"prefix":              {Bucket: "bucket", Prefix: "a//b"},
		"no empty segments":   {Bucket: "bucket", Prefix: "/a"},
		"addressing":          {Bucket: "bucket", Addressing: "dns"},
		"PartBytes":           {Bucket: "bucket", PartBytes: 1 << 20},
		"Stall":               {Bucket: "bucket", Stall: -1},
		"is not HOST":         {Bucket: "bucket", Endpoint: "https://host/path"},
		"no URL":              {Bucket: "bucket", Endpoint: "ht tp://host"},
		"ftp":                 {Bucket: "bucket", Endpoint: "ftp://host"},
		"credentials come":    {Bucket: "bucket", Endpoint: "https://key:secret@host"},
		"no such file":        {Bucket: "bucket", CAFile: "/no/such/file"},
		"no certificate":      {Bucket: "bucket", CAFile: "errors_test.go"},
	} {
		if _, err := s3.Open(o); err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// Credentials of a role are fetched, and fetched again when the server says that they have expired.
func TestRole(t *testing.T) {
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
	t.Setenv("AWS_CONFIG_FILE", "/none")
	t.Setenv("AWS_REGION", s3test.Region)
	var fetched atomic.Int64
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"AccessKeyId":"ROLE%d","SecretAccessKey":"secret","Token":"token","Expiration":%q}`,
			fetched.Add(1), time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	t.Cleanup(role.Close)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
	g := newGate(t, nil)
	g.next(rule{method: http.MethodPut, answer: answers(400, "ExpiredToken")})
	var keys, token string
	g.next(rule{method: http.MethodPut, answer: func(w http.ResponseWriter, r *http.Request) {
		keys, token = r.Header.Get("Authorization"), r.Header.Get("X-Amz-Security-Token")
	}})
	be := g.open(t, "bucket", func(o *s3.Options) { o.Getenv = nil })
	if err := be.Put(t.Context(), "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if fetched.Load() != 2 || !strings.Contains(keys, "Credential=ROLE2/") || token != "token" {
		t.Errorf("fetched %d times; the last request had %q and token %q", fetched.Load(), keys, token)
	}
}
