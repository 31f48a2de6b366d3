//go:build linux

package overlay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

func (c *talk) tuple() conntrack.Tuple {
	t := conntrack.Tuple{Protocol: unix.IPPROTO_UDP}
	if !c.udp {
		t.Protocol = unix.IPPROTO_TCP
	}
	t.Src = netip.MustParseAddrPort(c.LocalAddr().String())
	t.Dst = netip.MustParseAddrPort(c.RemoteAddr().String())
	return t
}

// A connection that falls silent after it was learnt is kept for as long as any
// other: connection tracking, which saw data and not that it has arrived, would
// keep it for minutes only.
func TestFastPathKeepsTheSilent(t *testing.T) {
	w := newFastWorld(t, 2, false, DirectAuto, nil)
	client, server := w.hosts[0].task("client", "front"), w.hosts[1].task("server", "front")
	server.echo(7)
	c := client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	for _, h := range w.hosts {
		h.until("the connection is kept for hours", func(conn *conntrack.Conn) bool {
			h.d.fast.Verify(0) // as Run does now and then
			f, err := conn.Get(c.tuple())
			check(t, err)
			return f.Timeout > time.Hour
		})
	}
}

// A reset ends a connection after as much as makes sequence numbers look like
// earlier ones to connection tracking, which has not seen what was between.
func TestFastPathResetAfterMuch(t *testing.T) {
	w := newFastWorld(t, 2, false, DirectAuto, nil)
	client, server := w.hosts[0].task("client", "front"), w.hosts[1].task("server", "front")
	virtual := netip.MustParseAddrPort("10.72.0.7:70")
	check(t, w.hosts[0].d.Program(t.Context(), []network.Rule{{Service: "s", Protocol: network.TCP, Address: virtual.Addr(), Port: 70, Endpoints: []netip.AddrPort{netip.AddrPortFrom(server.addrs[0], 7)}}}))
	var l net.Listener
	check(t, in(server.ns, func() (err error) {
		l, err = net.Listen("tcp", ":7")
		return err
	}))
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
			_ = c.Close()
		}
		ended <- err
	}()
	c := dialIn(t, client.ns, virtual.String(), "")
	check(t, c.SetDeadline(time.Now().Add(time.Minute)))
	buf := make([]byte, 1<<20)
	for range 2200 { // 2^31 is 2048 of them
		_, err := c.Write(buf)
		check(t, err)
	}
	check(t, c.(*net.TCPConn).SetLinger(0))
	check(t, c.Close())
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the server got %v, want a reset", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the server has not heard of the reset after 20 s")
	}
}
