package s3

import (
	"context"
	"net"
)

// DialTo has all connections made to addr, whatever the host's name.
func (o *Options) DialTo(addr string) {
	o.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}
