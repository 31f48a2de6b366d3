//go:build linux

package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
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
	w, client, server := newFastPair(t, false, DirectAuto, nil)
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

// It is also when the process was another in between, which alone knew the connection.
func TestFastPathKeepsTheSilentOverRestarts(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, nil)
	c := client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	h := w.hosts[0]
	kept := func(conn *conntrack.Conn) time.Duration {
		f, err := conn.Get(c.tuple())
		check(t, err)
		return f.Timeout
	}
	// What connection tracking saw last may have it think of data on its way.
	doubt := func(conn *conntrack.Conn) bool {
		f, err := conn.Get(c.tuple())
		check(t, errors.Join(err, conn.Doubt(f)))
		return kept(conn) <= 5*time.Minute
	}
	hours := func(conn *conntrack.Conn) bool { return kept(conn) > time.Hour }
	h.until("the connection is doubted", doubt)
	h.cancel()
	check(t, <-h.done)
	h.until("a process that ends has it kept for hours", hours)
	h.until("the connection is doubted", doubt)
	h.close()
	h.open()
	h.until("the next process has it kept for hours", hours)
}

// All goes the fast way for as long as Run is there, and not for long without.
func TestFastPathIsLookedAfter(t *testing.T) {
	const idle = 300 * time.Millisecond
	w, client, server := newFastPair(t, false, DirectAuto, func(o *Options) { o.fast.Idle = idle })
	h := w.hosts[0]
	c := client.talk("udp", netip.AddrPortFrom(server.addrs[0], 7))
	for began := time.Now(); time.Since(began) < 6*idle; {
		c.fast(h, w.hosts[1])
	}
	h.cancel()
	check(t, <-h.done)
	limit := time.Now().Add(20 * time.Second)
	for before := (FastPathStats{}); ; {
		c.back(1)
		now := h.passed()
		if now.Sent == before.Sent && now.Received == before.Received {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("20 s after Run has ended packets go the fast way: %+v, then %+v", before, now)
		}
		before = now
	}
	h.run()
	c.fast(h, w.hosts[1])
}

// What somebody takes from the interfaces is put back.
func TestFastPathIsPutBack(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectNever, func(o *Options) { o.fast.Idle = time.Second })
	h := w.hosts[0]
	c := client.talk("udp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(h, w.hosts[1])
	attached, err := h.d.Attachments(t.Context())
	check(t, err)
	links := []string{h.d.LinkName("front")}
	for _, a := range attached {
		links = append(links, h.d.PortName(a))
	}
	check(t, in(h.ns, func() error {
		for _, name := range links {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}); err != nil {
				return err
			}
		}
		return nil
	}))
	for _, name := range links {
		if n := h.filters(name); n != 0 {
			t.Fatalf("%s has %d filters, want it to have none", name, n)
		}
	}
	c.fast(h, w.hosts[1])
}

// A connection to a node that is gone, with data on its way there, is not kept for
// days, as the kernel would not do that either; and is again once the node answers,
// however little is said from then on.
func TestFastPathPeerDies(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, func(o *Options) {
		o.fast = fastpath.Options{Refresh: 200 * time.Millisecond, Idle: time.Second}
	})
	c := client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	for began := time.Now(); time.Since(began) < time.Second; {
		c.back(1) // until connection tracking has seen the other end too
	}
	plug := func(change func(port netlink.Link) error) {
		check(t, in(w.link, func() error {
			port, err := netlink.LinkByName("p1")
			if err != nil {
				return err
			}
			return change(port)
		}))
	}
	plug(netlink.LinkSetNoMaster)
	_, err := c.Write([]byte("x"))
	check(t, err)
	resent := func() (n uint32) {
		raw, err := c.Conn.(*net.TCPConn).SyscallConn()
		check(t, err)
		check(t, raw.Control(func(fd uintptr) {
			info, errInfo := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err = errInfo; err == nil {
				n = info.Total_retrans
			}
		}))
		check(t, err)
		return n
	}
	kept := func(conn *conntrack.Conn) time.Duration {
		f, err := conn.Get(c.tuple())
		check(t, err)
		return f.Timeout
	}
	first, seen := uint32(0), false
	w.hosts[0].until("the connection is kept for minutes, and after more is sent too", func(conn *conntrack.Conn) bool {
		n := resent()
		short := kept(conn) <= 5*time.Minute
		if short && !seen {
			first, seen = n, true
		}
		return short && n >= first+2
	})
	plug(func(port netlink.Link) error {
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, br)
	})
	check(t, c.SetDeadline(time.Now().Add(time.Minute)))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("when the node is back: %v", err)
	}
	w.hosts[0].until("the connection is kept for hours", func(conn *conntrack.Conn) bool { return kept(conn) > time.Hour })
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
	w, client, server := newFastPair(t, false, DirectNever, func(o *Options) {
		o.fast = fastpath.Options{Refresh: time.Minute, Idle: time.Minute} // no packet slips by
	})
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

// from is talk with a port of one's own choice.
func (k *task) from(protocol string, port int, to netip.AddrPort) *talk {
	k.w.Helper()
	c := &talk{TB: k.w, udp: protocol == "udp"}
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{Port: port}, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		errControl := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(err, errControl)
	}}
	if c.udp {
		d.LocalAddr = &net.UDPAddr{Port: port}
	}
	check(k.w, in(k.ns, func() (err error) {
		c.Conn, err = d.Dial(protocol, to.String())
		return err
	}))
	k.w.Cleanup(func() { _ = c.Conn.Close() })
	if !c.udp {
		_, err := io.WriteString(c, "e")
		check(k.w, err)
	}
	return c
}

// An endpoint's own address and a virtual one that leads to it are spoken to from
// one port: for the endpoint the second is from another.
func TestFastPathOnePortTwice(t *testing.T) {
	for _, protocol := range []string{"tcp", "udp"} {
		t.Run(protocol, func(t *testing.T) {
			w, client, server := newFastPair(t, false, DirectNever, nil)
			to, virtual := netip.AddrPortFrom(server.addrs[0], 7), netip.MustParseAddrPort("10.72.0.7:70")
			check(t, w.hosts[0].d.Program(t.Context(), []network.Rule{{Service: "echo", Protocol: network.Protocol(protocol), Address: virtual.Addr(), Port: virtual.Port(), Endpoints: []netip.AddrPort{to}}}))
			var talks []*talk
			for _, addr := range []netip.AddrPort{to, virtual} {
				talks = append(talks, client.from(protocol, 4000, addr))
			}
			for range 2 {
				for _, c := range talks {
					c.back(1000)
				}
				for _, c := range talks {
					c.fast(w.hosts[0], w.hosts[1])
				}
			}
		})
	}
}

// A connection that one end has closed goes on the other way, and ends.
func TestFastPathHalfClosed(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectNever, nil)
	c := client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	check(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	const size = 4 << 20
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		written <- errors.Join(err, c.Conn.(*net.TCPConn).CloseWrite())
	}()
	n, err := io.Copy(io.Discard, c)
	if err := errors.Join(err, <-written); err != nil || n != size {
		t.Errorf("%d bytes came back, %v; want %d", n, err, size)
	}
	for _, h := range w.hosts {
		h.until("the connection is over", func(conn *conntrack.Conn) bool {
			f, err := conn.Get(c.tuple())
			return errors.Is(err, unix.ENOENT) || err == nil && !f.Established
		})
	}
}

// A task that sends in another's name gets nothing onto the fast path.
func TestFastPathForgedSource(t *testing.T) {
	w := newFastWorld(t, 2, false, DirectAuto, nil)
	client, liar, server := w.hosts[0].task("client", "front"), w.hosts[0].task("liar", "front"), w.hosts[1].task("server", "front")
	server.echo(7)
	to := netip.AddrPortFrom(server.addrs[0], 7)
	c := client.talk("udp", to)
	c.fast(w.hosts[0], w.hosts[1])
	check(t, in(liar.ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(client.addrs[0], 32))})
	}))
	var forged net.Conn
	check(t, in(liar.ns, func() (err error) {
		forged, err = net.DialUDP("udp", c.LocalAddr().(*net.UDPAddr), net.UDPAddrFromAddrPort(to))
		return err
	}))
	defer forged.Close()
	before := w.hosts[0].passed()
	for range 100 {
		_, err := forged.Write([]byte("x"))
		check(t, err)
	}
	other := client.talk("udp", to) // learnt after what the liar sent has been read
	other.fast(w.hosts[0], w.hosts[1])
	if s := w.hosts[0].passed(); s.Flows != before.Flows+1 {
		t.Errorf("%d flows are known, want %d: the liar's are none of its own", s.Flows, before.Flows+1)
	}
	c.fast(w.hosts[0], w.hosts[1])
}

// A task that gets the address of one that is gone hears what the other end still
// sends to it.
func TestFastPathAddressAgain(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, nil)
	c := client.from("udp", 4000, netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	h := w.hosts[1]
	check(t, h.d.Detach(t.Context(), network.Attachment{Network: "front", Task: "server", Namespace: server.ns.Name(), Interface: "eth0"}))
	path, err := h.d.Create(t.Context(), "next", nil)
	check(t, err)
	_, err = h.d.Attach(t.Context(), network.Attachment{Network: "front", Task: "next", Namespace: path, Interface: "eth0", Default: true, Addresses: server.addrs})
	check(t, err)
	next := &task{host: h, id: "next", addrs: server.addrs}
	next.ns, err = os.Open(path)
	check(t, err)
	defer next.ns.Close()
	next.echo(7)
	if who := string(c.answer([]byte("w"), 100)); who != "next" {
		t.Errorf("%s answers, want next", who)
	}
	c.fast(w.hosts[0], w.hosts[1])
}

// A task of two networks talks on both.
func TestFastPathOfTwoNetworks(t *testing.T) {
	w := newFastWorld(t, 2, false, DirectAuto, nil)
	w.ensure(back)
	client, server := w.hosts[0].task("client", "front", "back"), w.hosts[1].task("server", "front", "back")
	server.echo(7)
	var talks []*talk
	for _, addr := range server.addrs {
		c := client.talk("tcp", netip.AddrPortFrom(addr, 7))
		c.fast(w.hosts[0], w.hosts[1])
		c.back(1 << 20)
		talks = append(talks, c)
	}
	check(t, w.hosts[0].d.Detach(t.Context(), network.Attachment{Network: "back", Task: "client", Namespace: client.ns.Name(), Interface: "eth1"}))
	if s := w.hosts[0].passed(); s.Flows != 2 {
		t.Errorf("%d flows are known, want the 2 of the network that is left", s.Flows)
	}
	talks[0].fast(w.hosts[0], w.hosts[1])
}

// A peer that moves in the middle of fast flows is reached by VXLAN, and directly
// when it is back. Segments that do not fit VXLAN are told to the task.
func TestFastPathPeerMoves(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, nil)
	var talks []*talk
	for _, addr := range server.addrs {
		talks = append(talks, client.talk("tcp", netip.AddrPortFrom(addr, 7)))
	}
	h := w.hosts[1]
	for _, step := range []struct {
		direct Direct
		want   string
	}{{DirectAuto, "eth0"}, {DirectNever, w.hosts[0].d.LinkName("front")}, {DirectAuto, "eth0"}} {
		h.reopen(func(o *Options) { o.Direct = step.direct })
		w.await(w.hosts[0], fmt.Sprintf("routes by %s", step.want), func() bool {
			return slices.Equal(w.hosts[0].ways("front"), []string{step.want, step.want})
		})
		for _, c := range talks {
			c.back(1 << 20)
			c.fast(w.hosts[0], w.hosts[1])
			c.back(1 << 20)
		}
	}
}

// A network of IPv4 alone has nothing forwarded by IPv6. The underlay can be of
// IPv6 all the same.
func TestFastPathOfIPv4OnIPv6(t *testing.T) {
	w := newWorld(t, 2, true, DirectNever)
	w.ensure(network.Network{Name: "four", Subnets: []netip.Prefix{netip.MustParsePrefix("10.75.0.0/16")}})
	client, server := w.hosts[0].task("client", "four"), w.hosts[1].task("server", "four")
	server.echo(7)
	c := client.talk("udp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	check(t, in(w.hosts[0].ns, func() error {
		on, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
		if err == nil && on[0] != '0' {
			err = fmt.Errorf("the node forwards IPv6: %s", on)
		}
		return err
	}))
}

// What an administrator has encrypted by IPsec does not pass it by.
func TestFastPathIPsec(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectNever, nil)
	c := client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	h := w.hosts[0]
	policy := func(do func(*netlink.XfrmPolicy) error) {
		check(t, in(h.ns, func() error {
			return do(&netlink.XfrmPolicy{
				Src: ipNet(netip.PrefixFrom(h.addr, 32)), Dst: ipNet(netip.PrefixFrom(w.hosts[1].addr, 32)), Dir: netlink.XFRM_DIR_OUT,
				Tmpls: []netlink.XfrmPolicyTmpl{{Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT}},
			})
		}))
		h.d.fast.Verify(0) // as Run does now and then
	}
	left := w.capture()
	policy(netlink.XfrmPolicyAdd)
	if s := h.passed(); s.Flows != 0 {
		t.Errorf("%d flows go by the fast path with IPsec", s.Flows)
	}
	_, err := c.Write([]byte("this is not to be read by others"))
	check(t, err)
	again := client.from("udp", 4000, c.tuple().Dst)
	for range 100 {
		_, err := again.Write([]byte("this is not to be read by others"))
		check(t, err)
	}
	packets := left()
	policy(netlink.XfrmPolicyDel)
	for _, packet := range packets {
		if bytes.Contains(packet, []byte("not to be read")) {
			t.Fatal("a packet left as plain text that IPsec was to encrypt")
		}
	}
	client.talk("tcp", c.tuple().Dst).fast(w.hosts[0], w.hosts[1])
}

// A task with many flows leaves room for those of others, and for its own others
// when some end.
func TestFastPathRoomForOthers(t *testing.T) {
	w := newFastWorld(t, 2, false, DirectAuto, func(o *Options) { o.fast.Most = 3 })
	greedy, modest := w.hosts[0].task("greedy", "front"), w.hosts[0].task("modest", "front")
	var servers []*task
	for i := range 3 { // which have their own share each
		server := w.hosts[1].task(fmt.Sprint("server", i), "front")
		server.echo(7)
		servers = append(servers, server)
	}
	to := func(i int) netip.AddrPort { return netip.AddrPortFrom(servers[i].addrs[0], 7) }
	var talks []*talk
	for range 3 {
		c := greedy.talk("tcp", to(0))
		c.fast(w.hosts[0], w.hosts[1])
		talks = append(talks, c)
	}
	more := greedy.talk("tcp", to(1))
	for range 100 {
		more.back(1)
	}
	modest.talk("tcp", to(2)).fast(w.hosts[0], w.hosts[1])
	if s := w.hosts[0].passed(); s.Flows != 4 {
		t.Errorf("%d flows are known, want 3 of the one task and 1 of the other", s.Flows)
	}
	check(t, talks[0].Close())
	w.hosts[0].until("a connection is forgotten", func(*conntrack.Conn) bool {
		w.hosts[0].d.fast.Verify(0)
		return w.hosts[0].passed().Flows == 3
	})
	more.fast(w.hosts[0], w.hosts[1])
}
