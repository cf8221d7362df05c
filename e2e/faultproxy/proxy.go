package faultproxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Fault is what happens to one connection. The zero value is nothing.
type Fault struct {
	CutUp    int64 // it breaks after so many bytes from the client; 0: it does not
	CutDown  int64 // it breaks after so many bytes from the server
	FlipUp   int64 // that byte from the client, counted from 1, is inverted
	FlipDown int64 // that byte from the server
	Refuse   bool  // it breaks at once
	Busy     bool  // its first request is answered with 503 and SlowDown, as S3 does; then it ends
}

// Stats count since the start.
type Stats struct {
	Conns    int
	Cut      int   // connections that broke on purpose, or were refused
	Flipped  int   // bytes inverted
	Busy     int   // requests answered with 503
	Up, Down int64 // bytes passed on, from and to the client
	// Lost is the part of Up that was sent in vain: what came from the client since the server's last answer, on connections that
	// broke, or that the client gave up while it waited.
	Lost int64
}

// Proxy passes connections on to one server. Use Start.
type Proxy struct {
	addr, to string
	delay    atomic.Int64 // nanoseconds there and back
	wg       sync.WaitGroup

	mu     sync.Mutex // guards all below
	faults func(conn int) Fault
	stats  Stats
	conns  map[net.Conn]struct{}
	closed bool
}

// Start starts a proxy before the server at to. It ends with the test.
func Start(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{addr: l.Addr().String(), to: to, conns: map[net.Conn]struct{}{}}
	p.wg.Go(func() { p.serve(l) })
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.closed = true
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

// Addr is where the proxy listens, HOST:PORT.
func (p *Proxy) Addr() string { return p.addr }

// SetDelay has everything take so long, there and back, from now on. It does not bound what goes through.
func (p *Proxy) SetDelay(d time.Duration) { p.delay.Store(int64(d)) }

// SetFaults has each new connection ask f what is to happen to it; conn counts from 1. f is called by one goroutine at a time. nil: nothing.
func (p *Proxy) SetFaults(f func(conn int) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
}

// Stats returns the counts so far.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

func (p *Proxy) serve(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		fault, ok := p.accept(client)
		if !ok {
			client.Close()
			continue
		}
		p.wg.Go(func() {
			defer p.forget(client)
			p.connect(client, fault)
		})
	}
}

// accept counts the connection and says what is to happen to it.
func (p *Proxy) accept(client net.Conn) (f Fault, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Conns++
	if p.faults != nil {
		f = p.faults(p.stats.Conns)
	}
	if f.Refuse {
		p.stats.Cut++
		reset(client)
	}
	ok = !p.closed && !f.Refuse
	if ok {
		p.conns[client] = struct{}{}
	}
	return f, ok
}

func (p *Proxy) forget(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Proxy) connect(client net.Conn, f Fault) {
	if f.Busy {
		p.answerBusy(client)
		return
	}
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer server.Close()
	c := &connection{p: p, client: client, server: server}
	time.Sleep(time.Duration(p.delay.Load())) // of the handshake
	var wg sync.WaitGroup
	wg.Go(func() { c.pass(true, f.CutUp, f.FlipUp) })
	wg.Go(func() { c.pass(false, f.CutDown, f.FlipDown) })
	wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.cut || c.asking {
		p.stats.Lost += c.request
	}
}

const busyAnswer = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

// answerBusy answers the first request, whatever it is, and takes the rest of it, so that the client comes to read the answer.
func (p *Proxy) answerBusy(client net.Conn) {
	if _, err := client.Read(make([]byte, 4096)); err != nil {
		return
	}
	p.mu.Lock()
	p.stats.Busy++
	p.mu.Unlock()
	_, _ = io.WriteString(client, "HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Type: application/xml\r\nContent-Length: 87\r\n\r\n"+busyAnswer)
	_ = client.(*net.TCPConn).CloseWrite()
	_ = client.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, client)
}

// connection is one that is passed on.
type connection struct {
	p              *Proxy
	client, server net.Conn

	// Guarded by the proxy's lock.
	request int64 // bytes from the client since the server last answered
	asking  bool  // the last bytes came from the client
	cut     bool
}

// piece is bytes on their way.
type piece struct {
	data []byte
	due  time.Time
}

// inFlight is how many pieces are on their way at most; each is up to 64 KiB.
const inFlight = 256

// pass passes on one direction until it ends or is cut.
func (c *connection) pass(up bool, cut, flip int64) {
	from, to := c.server, c.client
	if up {
		from, to = to, from
	}
	way := make(chan piece, inFlight)
	var wg sync.WaitGroup
	wg.Go(func() {
		for w := range way {
			time.Sleep(time.Until(w.due))
			if _, err := to.Write(w.data); err != nil {
				from.Close()
			}
		}
	})
	broken := c.read(from, up, cut, flip, way)
	close(way)
	wg.Wait()
	if broken {
		reset(c.client)
		reset(c.server)
		return
	}
	_ = to.(*net.TCPConn).CloseWrite()
}

// read takes what comes from one side, until it ends (false) or the connection is to break (true).
func (c *connection) read(from net.Conn, up bool, cut, flip int64, way chan<- piece) bool {
	total := int64(0)
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if b = b[:n]; cut > 0 && total+int64(n) >= cut {
			b, err = b[:cut-total], io.ErrClosedPipe
		}
		flipped := flip > total && flip <= total+int64(len(b))
		if flipped {
			b[flip-total-1] ^= 0xff
		}
		total += int64(len(b))
		broken := err == io.ErrClosedPipe
		c.count(up, int64(len(b)), flipped, broken)
		if len(b) > 0 {
			way <- piece{b, time.Now().Add(time.Duration(c.p.delay.Load()) / 2)}
		}
		if err != nil {
			return broken
		}
	}
}

func (c *connection) count(up bool, n int64, flipped, broken bool) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	s := &c.p.stats
	switch {
	case n == 0:
	case up:
		if !c.asking {
			c.request = 0
		}
		c.asking = true
		c.request += n
		s.Up += n
	default:
		c.asking = false
		s.Down += n
	}
	if flipped {
		s.Flipped++
	}
	if broken && !c.cut {
		c.cut = true
		s.Cut++
	}
}

// reset closes a connection so that the other side sees it broken, not ended.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}
