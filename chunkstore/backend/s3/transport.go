package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// dialer makes connections.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// newTransport makes the way to the server. caFile adds certificates to the system's; stall is how long a connection may stand still.
func newTransport(caFile string, stall time.Duration, dial dialer) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       stall,
		TLSHandshakeTimeout:   min(stall, 15*time.Second),
		ResponseHeaderTimeout: stall,
		DisableCompression:    true, // what comes is what is stored
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(8)},
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: min(stall, 15*time.Second), KeepAlive: 30 * time.Second}).DialContext
	}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &stallConn{c, stall}, nil
	}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("certificates of the S3 server's authority: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificates of the S3 server's authority: %s has no certificate in PEM form", caFile)
	}
	t.TLSClientConfig.RootCAs = roots
	return t, nil
}

// stallConn is a connection that fails when nothing moves for a while, in either direction.
type stallConn struct {
	net.Conn
	stall time.Duration
}

// writePiece: a write is cut, so that a long one on a slow line shows that it moves.
const writePiece = 64 << 10

// Read implements net.Conn.
func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn. It puts off the deadline of a read that waits for the answer, too.
func (c *stallConn) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(p[:min(len(p), writePiece)])
		n, p = n+m, p[m:]
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
