package s3_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend/s3"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
)

// gate stands before a real server and answers some requests itself, or loses an answer. It passes on all else as it is, so that
// signatures stay good.
type gate struct {
	*httptest.Server
	to   *http.Transport
	addr string

	mu     sync.Mutex // guards all below
	rules  []*rule
	counts map[string]int // requests by method and what they are about
}

// rule is what happens to the next requests that it matches.
type rule struct {
	method, query string                                       // query: a key of it; empty: any request
	times         int                                          // how many requests
	answer        func(w http.ResponseWriter, r *http.Request) // instead of the server; nil: see lose
	lose          bool                                         // the server answers, and the connection breaks before the answer comes
	after         int                                          // of the answer's body so many bytes come before it breaks; 0: none of the answer

	met int
}

// newGate makes a gate before srv; nil: before nothing.
func newGate(t *testing.T, srv *s3test.Server) *gate {
	t.Helper()
	g := &gate{counts: map[string]int{}, to: &http.Transport{DisableCompression: true}}
	if srv != nil {
		g.addr = srv.Addr
	}
	g.Server = httptest.NewServer(g)
	t.Cleanup(func() {
		g.Server.CloseClientConnections()
		g.Server.Close()
		g.to.CloseIdleConnections()
		for _, r := range g.rules {
			if r.met == 0 {
				t.Errorf("no request met the rule for %s %s", r.method, r.query)
			}
		}
	})
	return g
}

// next adds a rule.
func (g *gate) next(r rule) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.times == 0 {
		r.times = 1
	}
	g.rules = append(g.rules, &r)
}

// count is how many requests of the method there were.
func (g *gate) count(method string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts[method]
}

func (g *gate) match(r *http.Request) *rule {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts[r.Method]++
	for _, rule := range g.rules {
		if (rule.method == "" || rule.method == r.Method) && (rule.query == "" || r.URL.Query().Has(rule.query)) && rule.met < rule.times {
			rule.met++
			return rule
		}
	}
	return nil
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rule := g.match(r)
	if rule != nil && rule.answer != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		rule.answer(w, r)
		return
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", g.addr, ""
	resp, err := g.to.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	if rule != nil && rule.lose && rule.after == 0 {
		panic(http.ErrAbortHandler)
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	if rule != nil && rule.lose {
		_, _ = io.CopyN(w, resp.Body, int64(rule.after))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = io.Copy(w, resp.Body)
}

// answers makes an answer in S3's words.
func answers(status int, code string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>A message.</Message><RequestId>4711</RequestId></Error>")
		}
	}
}

// open opens a bucket through the gate.
func (g *gate) open(t *testing.T, bucket string, change ...func(*s3.Options)) *s3.Backend {
	t.Helper()
	o := s3.Options{Bucket: bucket, Endpoint: g.URL, Getenv: s3test.Getenv, RetryFor: 30 * time.Second}
	for _, c := range change {
		c(&o)
	}
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return be
}

// tlsServer is an HTTPS server of no use, and a file with its certificate.
func tlsServer(t *testing.T) (url, caFile string) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = quiet()
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, pemFile(t, s.Certificate())
}

// expired is a TLS server whose certificate's time is over, and a file with it.
func expired(t *testing.T, cert tls.Certificate) (url, caFile string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: quiet()}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return "https://" + l.Addr().String(), pemFile(t, leaf)
}

// deadAddr is an address where nobody listens.
func deadAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
