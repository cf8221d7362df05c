package faultproxy_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/shalebackup/shale/e2e/faultproxy"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
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
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// talk sends data and returns what comes back.
func talk(t *testing.T, addr string, data []byte) ([]byte, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil { // a connection that is refused may break as early as here
		return nil, err
	}
	defer c.Close()
	go func() {
		_, _ = c.Write(data)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	return io.ReadAll(c)
}

func TestFaults(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 50_000)
	flipped := bytes.Clone(data)
	flipped[123_455] ^= 0xff
	for name, c := range map[string]struct {
		fault  faultproxy.Fault
		want   []byte // nil: broken before the end
		broken bool
		stats  faultproxy.Stats
	}{
		"none":      {faultproxy.Fault{}, data, false, faultproxy.Stats{Conns: 1, Up: 500_000, Down: 500_000}},
		"flip up":   {faultproxy.Fault{FlipUp: 123_456}, flipped, false, faultproxy.Stats{Conns: 1, Flipped: 1, Up: 500_000, Down: 500_000}},
		"flip down": {faultproxy.Fault{FlipDown: 123_456}, flipped, false, faultproxy.Stats{Conns: 1, Flipped: 1, Up: 500_000, Down: 500_000}},
		"cut up":    {faultproxy.Fault{CutUp: 100_000}, nil, true, faultproxy.Stats{Conns: 1, Cut: 1, Up: 100_000}},
		"cut down":  {faultproxy.Fault{CutDown: 100_000}, nil, true, faultproxy.Stats{Conns: 1, Cut: 1, Down: 100_000}},
		"refuse":    {faultproxy.Fault{Refuse: true}, nil, true, faultproxy.Stats{Conns: 1, Cut: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			p := faultproxy.Start(t, echo(t))
			p.SetFaults(func(int) faultproxy.Fault { return c.fault })
			got, err := talk(t, p.Addr(), data)
			broken := err != nil || len(got) < len(data) // by a reset, or by an end that comes too early
			if c.want != nil && !bytes.Equal(got, c.want) || broken != c.broken {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			s := p.Stats()
			if s.Conns != c.stats.Conns || s.Cut != c.stats.Cut || s.Flipped != c.stats.Flipped || c.stats.Up > 0 && s.Up != c.stats.Up ||
				c.stats.Down > 0 && s.Down != c.stats.Down {
				t.Errorf("got %+v, want %+v", s, c.stats)
			}
		})
	}
}

func TestBusy(t *testing.T) {
	p := faultproxy.Start(t, "127.0.0.1:1")
	p.SetFaults(func(int) faultproxy.Fault { return faultproxy.Fault{Busy: true} })
	resp, err := http.Post("http://"+p.Addr(), "text/plain", bytes.NewReader(make([]byte, 100_000)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != 503 || err != nil || !bytes.Contains(b, []byte("SlowDown")) || p.Stats().Busy != 1 {
		t.Errorf("got %s %q, %v", resp.Status, b, err)
	}
}

// A delay is that of one way there and back, however much is under way.
func TestDelay(t *testing.T) {
	p := faultproxy.Start(t, echo(t))
	const delay = 100 * time.Millisecond
	p.SetDelay(delay)
	start := time.Now()
	if got, err := talk(t, p.Addr(), make([]byte, 2<<20)); err != nil || len(got) != 2<<20 {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if took := time.Since(start); took < 2*delay || took > 8*delay { // once more for the handshake
		t.Errorf("took %v", took)
	}
}

// What was sent before a cut, and not answered, was in vain.
func TestLost(t *testing.T) {
	p := faultproxy.Start(t, echo(t))
	p.SetFaults(func(int) faultproxy.Fault { return faultproxy.Fault{CutUp: 15} })
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, c) // until it breaks
	for deadline := time.Now().Add(5 * time.Second); p.Stats().Lost == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if s := p.Stats(); s.Lost != 5 || s.Up != 15 {
		t.Errorf("got %+v, want 5 bytes of 15 lost", s)
	}
}
