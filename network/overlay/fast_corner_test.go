//go:build linux

package overlay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
	"github.com/orchestrate-go/orchestrate/network/overlay/internal/fastpath"
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
	for i := range 2200 { // 2^31 is 2048 of them
		if i == 20 {
			for _, h := range w.hosts {
				h.d.fast.Verify(0) // as Run does now and then
			}
		}
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

// filters returns how many filters there are where packets come in by an
// interface of a host.
func (h *host) filters(name string) (n int) {
	h.w.Helper()
	check(h.w, in(h.ns, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		n = len(filters)
		if errors.Is(err, unix.EINVAL) {
			return nil // there is no queueing discipline that could have some
		}
		return err
	}))
	return n
}

// reopen is another process, with other options.
func (h *host) reopen(set func(*Options)) {
	h.w.Helper()
	h.close()
	set(&h.opts)
	h.open()
	check(h.w, h.d.Ensure(h.w.Context(), front))
}

// An earlier process's filters go from where this one wants none.
func TestFastPathLeavesTheUplink(t *testing.T) {
	for _, c := range []struct {
		what    string
		ingress bool // an administrator has a queueing discipline for what comes in
		set     func(*Options)
	}{
		{"no direct routes", false, func(o *Options) { o.Direct = DirectNever }},
		{"no fast path", true, func(o *Options) { o.FastPath = FastPathNever }},
		{"encryption", true, func(o *Options) { o.Encryption = encryption() }},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t, 2, false)
			h := w.hosts[0]
			if c.ingress {
				check(t, in(h.ns, func() error {
					l, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					return netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}})
				}))
			}
			w.ensure(front)
			if h.filters("eth0") == 0 {
				t.Fatal("there is no filter to begin with")
			}
			h.reopen(c.set)
			if n := h.filters("eth0"); n != 0 {
				t.Errorf("%d filters are left", n)
			}
		})
	}
}

// What does not fit the way to another node with VXLAN around it goes the slow way,
// which sends it in fragments.
func TestFastPathUnderlayShrinks(t *testing.T) {
	w := newFastWorld(t, 2, false, DirectNever, func(o *Options) {
		o.fast = fastpath.Options{Refresh: time.Minute, Idle: time.Minute} // no packet slips by
	})
	client, server := w.hosts[0].task("client", "front"), w.hosts[1].task("server", "front")
	server.echo(7)
	c := client.talk("udp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	const size = 1350 // fits without VXLAN around it
	c.back(size)
	shrink := func(ns *os.File, name string) {
		check(t, in(ns, func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, 1400)
		}))
	}
	for i, h := range w.hosts {
		shrink(w.link, fmt.Sprintf("p%d", i))
		shrink(h.ns, "eth0")
	}
	c.back(size)
	c.fast(w.hosts[0], w.hosts[1]) // what does fit
}
