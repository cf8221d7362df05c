// Package faultproxy is a TCP proxy for tests, between a client and a server that both believe in a network: it takes its time, cuts
// connections after so many bytes, inverts bytes, or answers that it is busy.
//
//	p := faultproxy.Start(t, serverAddr)
//	p.SetDelay(30 * time.Millisecond)
//	p.SetFaults(func(conn int) faultproxy.Fault { return faultproxy.Fault{CutUp: 1 << 20} })
//
// It counts bytes, and of what was sent to the server how much was in vain: the request that was under way on a connection that broke.
package faultproxy
