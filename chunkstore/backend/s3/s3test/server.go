package s3test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/shalebackup/shale/chunkstore/backend/s3"
)

// Keys of every server.
const (
	AccessKey = "shale-test"
	SecretKey = "shale-test-secret"
	Region    = "us-east-1"
)

// startTimeout is how long a server may take to answer, on a busy machine.
const startTimeout = 30 * time.Second

// Config says what server to start. The zero value is one without TLS.
type Config struct {
	// TLS: with a certificate of its own, which CAFile vouches for.
	TLS bool
	// Versions: buckets can have versions, and so object lock as S3 has it.
	Versions bool
	// Domain makes it answer for BUCKET.Domain too.
	Domain string
}

// Server is an S3 server that runs for a test, on a folder of its own.
type Server struct {
	Addr   string // HOST:PORT
	CAFile string // empty without TLS
	tls    bool
	client *minio.Client
}

// Start starts a server and waits until it answers; it ends with the test. Where the server is not installed the test is skipped, or
// fails when SHALE_E2E is set.
func Start(t testing.TB, c Config) *Server {
	t.Helper()
	binary := Binary(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "objects")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: freeAddr(t), tls: c.TLS}
	args := []string{"--quiet", "--keep-alive", "--port", s.Addr, "--region", Region}
	if c.TLS {
		cert, key := makeCertificate(t, dir)
		args = append(args, "--cert", cert, "--key", key)
		s.CAFile = cert
	}
	if c.Domain != "" {
		args = append(args, "--virtual-domain", c.Domain)
	}
	args = append(args, "posix")
	if !xattrs(dir) {
		side := filepath.Join(dir, "meta")
		if err := os.Mkdir(side, 0o755); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--sidecar", side)
	}
	if c.Versions {
		versions := filepath.Join(dir, "versions")
		if err := os.Mkdir(versions, 0o755); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--versioning-dir", versions)
	}
	s.run(t, binary, append(args, root))
	s.connect(t)
	return s
}

// Binary finds the server.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("versitygw")
	if err != nil {
		path = filepath.Join(gopath(), "bin", "versitygw")
		_, err = os.Stat(path)
	}
	switch {
	case err == nil:
		return path
	case os.Getenv("SHALE_E2E") != "":
		t.Fatal("no versitygw: scripts/setup installs it")
	}
	t.Skip("no versitygw: scripts/setup installs it")
	return ""
}

func gopath() string {
	if p := os.Getenv("GOPATH"); p != "" {
		return filepath.SplitList(p)[0]
	}
	home, _ := os.UserHomeDir()
	return filepath.Join(home, "go")
}

// run starts the process, which ends with the test.
func (s *Server) run(t testing.TB, binary string, args []string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = diesWithParent()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the S3 server: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("the S3 server said: %s", out.String())
		}
	})
	for deadline := time.Now().Add(startTimeout); ; {
		c, err := net.DialTimeout("tcp", s.Addr, time.Second)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("the S3 server ended: %s", out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the S3 server does not answer: %v", err)
		}
	}
}

// Endpoint is the server's URL.
func (s *Server) Endpoint() string {
	if s.tls {
		return "https://" + s.Addr
	}
	return "http://" + s.Addr
}

// Getenv is an environment with the server's keys, and nothing else.
func Getenv(name string) string {
	return map[string]string{"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": SecretKey, "AWS_REGION": Region}[name]
}

// Environ is what Getenv says, as a process takes it.
func Environ() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + AccessKey, "AWS_SECRET_ACCESS_KEY=" + SecretKey, "AWS_REGION=" + Region}
}

// Options name a bucket of the server.
func (s *Server) Options(bucket string) s3.Options {
	return s3.Options{Bucket: bucket, Endpoint: s.Endpoint(), CAFile: s.CAFile, Getenv: Getenv}
}

// NewBucket makes an empty bucket of that name.
func (s *Server) NewBucket(t testing.TB, name string) {
	t.Helper()
	if err := s.client.MakeBucket(t.Context(), name, minio.MakeBucketOptions{Region: Region}); err != nil {
		t.Fatalf("make bucket %s: %v", name, err)
	}
}

// NewLockedBucket makes a bucket with versions and object lock.
func (s *Server) NewLockedBucket(t testing.TB, name string) {
	t.Helper()
	if err := s.client.MakeBucket(t.Context(), name, minio.MakeBucketOptions{Region: Region, ObjectLocking: true}); err != nil {
		t.Fatalf("make bucket %s: %v", name, err)
	}
}

// Client speaks to the server, past the backend.
func (s *Server) Client() *minio.Client { return s.client }

func (s *Server) connect(t testing.TB) {
	t.Helper()
	tr := &http.Transport{}
	if s.tls {
		ca, err := os.ReadFile(s.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		tr.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	t.Cleanup(tr.CloseIdleConnections)
	var err error
	s.client, err = minio.New(s.Addr, &minio.Options{
		Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Secure: s.tls, Transport: tr, Region: Region,
		BucketLookup: minio.BucketLookupPath, MaxRetries: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for { // it listens before it is ready
		_, err := s.client.ListBuckets(ctx)
		if err == nil {
			return
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Fatalf("the S3 server lists no buckets: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// makeCertificate makes a certificate for 127.0.0.1 and localhost that vouches for itself.
func makeCertificate(t testing.TB, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "shale test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// BucketName makes a bucket's name of a test's.
func BucketName(t testing.TB) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, t.Name())
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%s-%x", strings.Trim(name[max(0, len(name)-40):], "-"), b)
}
