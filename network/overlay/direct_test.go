//go:build linux

package overlay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestNextHop(t *testing.T) {
	a, b := prefixes("192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"), prefixes("192.0.2.2/24", "2001:db8::2/64", "fe80::2/64")
	for _, tc := range []struct {
		what         string
		mode         Direct
		mine, theirs []netip.Prefix
		want4, want6 string
	}{
		{"one subnet", DirectAuto, a, b, "192.0.2.2", "2001:db8::2"},
		{"never", DirectNever, a, b, "", ""},
		{"a peer that takes none", DirectAlways, a, nil, "", ""},
		{"IPv4 alone", DirectAuto, a[:1], b[:1], "192.0.2.2", ""},
		{"IPv6 link-local", DirectAuto, []netip.Prefix{a[0], a[2]}, []netip.Prefix{b[0], b[2]}, "192.0.2.2", "fe80::2"},
		{"IPv6 alone", DirectAuto, a[1:], b[1:], "2001:db8::2", "2001:db8::2"},
		{"another subnet", DirectAuto, a, prefixes("203.0.113.2/24", "2001:db8::2/64"), "", ""},
		{"another subnet, always", DirectAlways, a[:1], prefixes("203.0.113.2/24"), "203.0.113.2", ""},
		{"a subnet in the other", DirectAuto, a, prefixes("192.0.2.130/25"), "", ""},
		{"no subnets", DirectAuto, prefixes("192.0.2.1/32"), prefixes("192.0.2.2/32"), "", ""},
		{"no subnets, always", DirectAlways, prefixes("192.0.2.1/32"), prefixes("192.0.2.2/32"), "192.0.2.2", ""},
	} {
		for ipv4, want := range map[bool]string{true: tc.want4, false: tc.want6} {
			got, ok := nextHop(tc.mode, tc.mine, tc.theirs, ipv4)
			if ok != (want != "") || ok && got.String() != want {
				t.Errorf("%s, IPv4 %v: got %v, %v; want %q", tc.what, ipv4, got, ok, want)
			}
		}
	}
}

// ways returns the interfaces of the routes to other nodes' parts of a network,
// each once.
func (h *host) ways(name string) []string {
	h.w.Helper()
	var ways []string
	check(h.w, in(h.ns, func() error {
		routes, err := netlink.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		for _, r := range routes {
			to, ok := prefixOf(r.Dst)
			if !ok || r.Type == unix.RTN_BLACKHOLE || !slices.ContainsFunc(front.Subnets, func(p netip.Prefix) bool { return p.Contains(to.Addr()) }) {
				continue
			}
			link, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil {
				return err
			}
			ways = append(ways, link.Attrs().Name)
		}
		return err
	}))
	slices.Sort(ways)
	return ways
}

// Nodes of one link reach each other without VXLAN, with packets as large as
// the link takes, also where reverse paths are filtered.
func TestDirect(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("underlay IPv6=%v", v6), func(t *testing.T) {
			w := newWorld(t, 2, v6)
			for _, h := range w.hosts {
				h.sysctl("net/ipv4/conf/all/rp_filter", "1")
			}
			w.ensure(front)
			for _, h := range w.hosts {
				if got := h.ways("front"); !slices.Equal(got, []string{"eth0", "eth0"}) {
					t.Errorf("%s sends by %v, want eth0 for both families", h.name, got)
				}
			}
			a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
			heard := b.listen(53)
			for i, to := range b.addrs {
				size := 1500 - 20 - 8
				if !to.Is4() {
					size = 1500 - 40 - 8
				}
				text := fmt.Sprintf("%-*s", size, "not before "+to.String())
				if got := say(t, a.ns, a.addrs[i], netip.AddrPortFrom(to, 53), text, heard); len(got.text) != size || got.from != a.addrs[i] {
					t.Errorf("%v got %d bytes from %v, want %d from %v", to, len(got.text), got.from, size, a.addrs[i])
				}
			}
			check(t, in(w.hosts[0].ns, func() error {
				link, err := netlink.LinkByName(w.hosts[0].d.LinkName("front"))
				if err == nil && link.Attrs().Statistics.TxPackets > 0 {
					err = fmt.Errorf("%d packets left by VXLAN, want none", link.Attrs().Statistics.TxPackets)
				}
				return err
			}))
		})
	}
}

// A stranger on the link reaches no task: neither with its own address nor with
// one that no node has, nor the node's loopback, which direct routes open to
// replies.
func TestStrangersOnTheLink(t *testing.T) {
	w := newWorld(t, 3, false)
	w.ensure(front)
	w.ensure(back)
	friend, victim := w.hosts[1].task("friend", "front"), w.hosts[0].task("victim", "front")
	heard := victim.listen(53)
	loopback := hear(w, w.hosts[0].ns, netip.MustParseAddr("127.0.0.1"), 54)
	stranger := w.namespace("stranger")
	w.plug(stranger, "stranger", netip.MustParsePrefix("192.0.2.200/24"))
	// An address of the network, in a slice that no node has.
	nobody := netip.MustParseAddr("10.71.0.9")
	for w.known("front", nobody) {
		nobody = netip.AddrFrom4([4]byte{10, 71, nobody.As4()[2] + 1, 9})
	}
	// A task of another network that takes an address of this one.
	liar := w.hosts[1].task("liar", "back")
	foreign := w.hosts[2].task("foreign", "front").addrs[0]
	for _, c := range []struct {
		who  string
		ns   *os.File
		from netip.Addr
		to   netip.AddrPort
	}{
		{"a stranger", stranger, netip.MustParseAddr("192.0.2.200"), netip.AddrPortFrom(victim.addrs[0], 53)},
		{"a stranger with an address of the network", stranger, nobody, netip.AddrPortFrom(victim.addrs[0], 53)},
		{"a stranger who asks for the loopback", stranger, netip.MustParseAddr("192.0.2.200"), netip.MustParseAddrPort("127.0.0.1:54")},
		{"a stranger with an address of a task who asks for the loopback", stranger, friend.addrs[0], netip.MustParseAddrPort("127.0.0.1:54")},
		{"a task of another network", liar.ns, liar.addrs[0], netip.AddrPortFrom(victim.addrs[0], 53)},
		{"a task of another network with an address of this one", liar.ns, foreign, netip.AddrPortFrom(victim.addrs[0], 53)},
	} {
		check(t, in(c.ns, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			// From the address, and on the wire what an attacker would send.
			err = netlink.AddrReplace(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(c.from, 32))})
			if err != nil || c.ns != stranger {
				return err
			}
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			check(t, os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0))
			_ = netlink.RouteDel(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("127.0.0.0/8")), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST})
			_ = netlink.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("127.0.0.1/8"))})
			return netlink.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(netip.PrefixFrom(c.to.Addr(), 32)), Gw: w.hosts[0].addr.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		}))
		send(t, c.ns, c.from, c.to, "a lie")
		// What comes after it shows that it did not come.
		truth := "not " + c.who
		for _, got := range []datagram{
			say(t, friend.ns, friend.addrs[0], netip.AddrPortFrom(victim.addrs[0], 53), truth, heard),
			say(t, w.hosts[0].ns, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddrPort("127.0.0.1:54"), truth, loopback),
		} {
			if got.text != truth {
				t.Errorf("%s sends from %v to %v: arrived as from %v, want it to be dropped", c.who, c.from, c.to, got.from)
			}
		}
	}
}

// known reports whether a node has the slice with an address.
func (w *world) known(name string, a netip.Addr) bool {
	for _, h := range w.hosts {
		if o := h.d.nets[name]; h.d.cut(o.whole, o.index)[0].Contains(a) {
			return true
		}
	}
	return false
}

// A peer that moves to another subnet is reached by VXLAN, and directly when it
// is back. The connection goes on, and nothing is left of the way before.
func TestPeerMoves(t *testing.T) {
	w := newWorld(t, 2, false)
	w.ensure(front)
	away := netip.MustParseAddr("203.0.113.2")
	for i, p := range prefixes("203.0.113.1/32", "203.0.113.2/24") { // the first reaches the second as by a router
		check(t, in(w.hosts[i].ns, func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(p)}); err != nil || i == 1 {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), Scope: netlink.SCOPE_LINK})
		}))
	}
	a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
	w.sink(b.ns, 80)
	var conns []net.Conn
	for _, addr := range b.addrs {
		c := dialIn(t, a.ns, netip.AddrPortFrom(addr, 80).String(), "e")
		defer c.Close()
		conns = append(conns, c)
	}
	link := w.hosts[0].d.LinkName("front")
	for _, step := range []struct {
		underlay netip.Addr
		want     string
	}{{w.hosts[1].addr, "eth0"}, {away, link}, {w.hosts[1].addr, "eth0"}} {
		h := w.hosts[1]
		h.close()
		h.opts.Underlay = step.underlay
		h.open()
		check(t, h.d.Ensure(t.Context(), front))
		w.await(w.hosts[0], fmt.Sprintf("routes by %s", step.want), func() bool {
			return slices.Equal(w.hosts[0].ways("front"), []string{step.want, step.want})
		})
		for _, c := range conns {
			check(t, echo(c, 20<<10))
		}
	}
}

// A task of a network with direct routes sends packets that are too large for a
// node beyond VXLAN. It is told, and its clients beyond the node too.
func TestLargePacketsToADistantNode(t *testing.T) {
	w := newWorld(t, 1, false, DirectAuto)
	w.mode = DirectNever
	w.host(1)
	w.ensure(front)
	a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
	if got := w.hosts[0].ways("front"); slices.Contains(got, "eth0") {
		t.Fatalf("routes by %v to a node that takes nothing but VXLAN", got)
	}
	w.sink(b.ns, 80)
	w.sink(a.ns, 80)
	for i := range b.addrs {
		for _, c := range []struct {
			ns *os.File
			to netip.Addr
		}{{a.ns, b.addrs[i]}, {b.ns, a.addrs[i]}} {
			conn := dialIn(t, c.ns, netip.AddrPortFrom(c.to, 80).String(), "e")
			if err := echo(conn, 256<<10); err != nil {
				t.Errorf("to %v: %v", c.to, err)
			}
			mss, err := segment(conn)
			if limit := 1450 - 20 - 20 - 12; err != nil || mss > limit {
				t.Errorf("to %v: segments of %d bytes (%v), want %d at most from the first on", c.to, mss, err, limit)
			}
			_ = conn.Close()
		}
	}
}

// Nothing of the ways to other nodes is left on the link when a network goes.
func TestRemoveLeavesNothing(t *testing.T) {
	w := newWorld(t, 2, false)
	w.ensure(front)
	if err := w.hosts[0].d.Remove(t.Context(), "front"); err != nil {
		t.Fatal(err)
	}
	if got := w.hosts[0].ways("front"); len(got) > 0 {
		t.Errorf("the network is removed, routes are left by %v", got)
	}
}

// echo sends bytes and reads them back.
func echo(c net.Conn, n int) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, n))
		sent <- err
	}()
	_, err := io.CopyN(io.Discard, c, int64(n))
	return errors.Join(err, <-sent)
}

// segment returns the size of the segments that a connection sends.
func segment(c net.Conn) (int, error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	errControl := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, errControl); err != nil {
		return 0, err
	}
	return int(info.Snd_mss), nil
}

type datagram struct {
	text string
	from netip.Addr
}

// listen returns the datagrams that come to a port of the task.
func (k *task) listen(port uint16) <-chan datagram {
	k.w.Helper()
	return hear(k.w, k.ns, netip.IPv6Unspecified(), port)
}

func hear(w *world, ns *os.File, at netip.Addr, port uint16) <-chan datagram {
	w.Helper()
	var c *net.UDPConn
	check(w, in(ns, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, port)))
		return err
	}))
	heard, done := make(chan datagram, 100), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			heard <- datagram{string(buf[:n]), from.Addr().Unmap()}
		}
	}()
	w.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return heard
}

// say sends a datagram, again and again, until one is heard that no earlier call
// sent: this one, or one that nobody should have heard.
func say(t testing.TB, ns *os.File, from netip.Addr, to netip.AddrPort, text string, heard <-chan datagram) datagram {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		send(t, ns, from, to, text)
		again := time.After(time.Second)
		for waiting := true; waiting; {
			select {
			case got := <-heard:
				if got.text == text || !strings.HasPrefix(got.text, "not ") {
					return got
				}
			case <-again:
				waiting = false
			case <-limit:
				t.Fatalf("nothing is heard at %v from %v in 30 s", to, from)
			}
		}
	}
}

func send(t testing.TB, ns *os.File, from netip.Addr, to netip.AddrPort, text string) {
	t.Helper()
	check(t, in(ns, func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_, err = io.WriteString(c, text)
		return errors.Join(err, c.Close())
	}))
}

func (h *host) sysctl(name, value string) {
	h.w.Helper()
	check(h.w, in(h.ns, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }))
}
