//go:build linux

package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// space is a network namespace, and a thread that is in it. It goes with them.
type space struct {
	ns    *os.File
	links *netlink.Handle
	work  chan func()
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{work: make(chan func())}
	var wg sync.WaitGroup
	ready := make(chan error)
	wg.Go(func() {
		runtime.LockOSThread() // and not unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		ready <- err
		for f := range s.work {
			f()
		}
	})
	t.Cleanup(func() {
		close(s.work)
		wg.Wait()
		_ = s.ns.Close()
	})
	check(t, <-ready)
	var err error
	s.links, err = netlink.NewHandleAt(netns.NsHandle(s.ns.Fd()))
	check(t, err)
	t.Cleanup(s.links.Close)
	check(t, s.do(func() error {
		for name, value := range map[string]string{
			"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", // as on a node
			"ipv6/conf/default/accept_dad": "0", // addresses can be used at once
		} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	}))
	s.up(t, "lo")
	return s
}

// do runs f on the thread in the namespace.
func (s *space) do(f func() error) error {
	done := make(chan error)
	s.work <- func() { done <- f() }
	return <-done
}

func (s *space) up(t testing.TB, name string, addresses ...string) int {
	t.Helper()
	l, err := s.links.LinkByName(name)
	check(t, err)
	check(t, s.links.LinkSetUp(l))
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		check(t, err)
		addr.Flags = unix.IFA_F_NODAD
		check(t, s.links.AddrAdd(l, addr))
		if addr.IP.To4() == nil { // the kernel makes its own some time later
			whole := &net.IPNet{IP: addr.IP, Mask: net.CIDRMask(128, 128)}
			check(t, s.links.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: whole, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL}))
		}
	}
	return l.Attrs().Index
}

func (s *space) veth(t testing.TB, name string, mac [6]byte, peer *space, peerName string, peerMAC [6]byte) {
	t.Helper()
	check(t, s.links.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac[:]},
		PeerName:  peerName, PeerHardwareAddr: peerMAC[:], PeerNamespace: netlink.NsFd(peer.ns.Fd()),
	}))
}

func (s *space) neighbour(t testing.TB, link int, addr string, mac [6]byte) {
	t.Helper()
	check(t, s.links.NeighSet(&netlink.Neigh{LinkIndex: link, IP: net.ParseIP(addr), HardwareAddr: mac[:], State: netlink.NUD_PERMANENT}))
}

func (s *space) route(t testing.TB, link int, to, via string) {
	t.Helper()
	dst, err := netlink.ParseIPNet(to)
	check(t, err)
	r := &netlink.Route{LinkIndex: link, Dst: dst}
	if via != "" {
		r.Gw, r.Flags = net.ParseIP(via), int(netlink.FLAG_ONLINK)
	}
	check(t, s.links.RouteAdd(r))
}

// The hardware addresses of a lab.
var (
	macTask   = [6]byte{2, 0, 0, 0, 0, 1}
	macPort   = [6]byte{2, 0, 0, 0, 0, 2} // the host's end of the task's pair
	macBridge = [6]byte{2, 0, 0, 0, 0, 3}
	macUplink = [6]byte{2, 0, 0, 0, 0, 4}
	macWire   = [6]byte{2, 0, 0, 0, 0, 5} // the other node's uplink
	macVXLAN  = [6]byte{2, 0, 0, 0, 0, 6}
	macFar    = [6]byte{2, 0, 0, 0, 0, 7} // the other node's VXLAN link
)

const (
	labPort   = 14789
	labNumber = 0x123456
)

// lab is a node with a task, and a node on the same link, where tasks have the
// addresses 10.2.0.0/24 and fd02::/64 by the link, and 10.3.0.0/24 and fd03::/64 by
// VXLAN.
type lab struct {
	testing.TB
	node, task, peer         *space
	port, bridge, uplink, vx int // interfaces of the node
	underlay, far            netip.Addr
	p                        *Path
	room                     int // what VXLAN puts around
}

func newLab(t testing.TB, v6 bool) *lab {
	t.Helper()
	l := &lab{TB: t, node: newSpace(t), task: newSpace(t), peer: newSpace(t)}
	l.underlay, l.far, l.room = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), 50
	if v6 {
		l.underlay, l.far, l.room = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), 70
	}
	l.node.veth(t, "port", macPort, l.task, "eth0", macTask)
	l.node.veth(t, "up", macUplink, l.peer, "wire", macWire)
	check(t, l.node.links.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge", HardwareAddr: macBridge[:]}}))
	l.port, l.bridge = l.node.up(t, "port"), l.node.up(t, "bridge")
	l.uplink = l.node.up(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	l.task.up(t, "eth0", "10.1.0.2/24", "fd01::2/64")
	wire := l.peer.up(t, "wire", "192.0.2.2/24", "2001:db8::2/64")
	l.vx = l.vxlan(l.node, l.uplink, l.underlay, l.far, macVXLAN)
	l.vxlan(l.peer, wire, l.far, l.underlay, macFar)
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		l.node.neighbour(t, l.uplink, addr, macWire)
	}
	l.node.route(t, l.uplink, "10.2.0.0/24", "192.0.2.2")
	l.node.route(t, l.uplink, "fd02::/64", "2001:db8::2")
	for to, via := range map[string]string{"10.3.0.0/24": "10.3.0.0", "fd03::/64": "fd03::"} {
		l.node.neighbour(t, l.vx, via, macFar)
		l.node.route(t, l.vx, to, via)
	}
	var err error
	l.p, err = Open(Options{
		Name: "lab", Namespace: int(l.node.ns.Fd()), Links: l.node.links, Underlay: l.underlay, Port: labPort,
		Refresh: time.Hour, Idle: 2 * time.Hour, Worth: 4,
	})
	check(t, err)
	t.Cleanup(func() {
		if err := l.p.Close(); err != nil {
			t.Error(err)
		}
	})
	l.set()
	return l
}

// set tells the fast path of what there is.
func (l *lab) set() {
	l.Helper()
	check(l, l.p.SetUplink(l.uplink))
	check(l, l.p.SetEnds(l.vx, labNumber, map[string]netip.Addr{net.HardwareAddr(macFar[:]).String(): l.far}))
	check(l, l.p.SetPort("task", Port{
		Link: l.port, MAC: macTask[:], Bridge: l.bridge, BridgeMAC: macBridge[:],
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")},
		Whole:     []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
		Own:       []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64")},
	}))
}

func (l *lab) vxlan(s *space, under int, from, to netip.Addr, mac [6]byte) int {
	l.Helper()
	link := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vx", HardwareAddr: mac[:], MTU: 1500 - l.room},
		VxlanId:   labNumber, VtepDevIndex: under, SrcAddr: from.AsSlice(), Group: to.AsSlice(), Port: labPort, UDP6ZeroCSumRx: true,
	}
	check(l, s.links.LinkAdd(link))
	return s.up(l, "vx")
}

// tuple says a flow in words: protocol, source and destination.
func tuple(protocol uint8, src, dst string) conntrack.Tuple {
	return conntrack.Tuple{Protocol: protocol, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

// know makes a flow known as learn does, of which a packet was last seen some time
// ago. goes is what the task's packets are on the wire.
func (l *lab) know(sent, goes conntrack.Tuple, ago time.Duration) (out, in key) {
	l.Helper()
	checked := uint64(clock() - int64(ago)) // may be before the machine began
	var translated uint32
	if sent != goes {
		translated = 1
	}
	out, in = keyOf(l.port, sent), keyOf(0, goes.Back())
	f := flow{Key: out, Translated: translated, Interface: uint32(l.bridge), Checked: checked}
	f.set(goes)
	check(l, l.p.kernel.Flows.Put(out, f))
	f = flow{Key: in, Translated: translated, Interface: uint32(l.port), ToMAC: macTask, FromMAC: macBridge, Checked: checked}
	f.set(sent.Back())
	check(l, l.p.kernel.Flows.Put(in, f))
	return out, in
}

// What a program says (linux/pkt_cls.h).
const (
	actUnspecified = 0xffffffff // whoever is next may say
	actShot        = 2
	actRedirect    = 7
)

// run shows a packet that came by an interface of the node to a program.
func (l *lab) run(program *ebpf.Program, link int, data []byte, gso uint32) (action uint32, out []byte, err error) {
	var skb [192]byte // struct __sk_buff of linux/bpf.h
	binary.NativeEndian.PutUint32(skb[40:], uint32(link))
	binary.NativeEndian.PutUint32(skb[176:], gso)
	o := &ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256), Context: skb}
	err = l.node.do(func() error {
		action, err = program.Run(o)
		return err
	})
	return action, o.DataOut, err
}

func (l *lab) known(k key) (f flow, ok bool) {
	l.Helper()
	err := l.p.kernel.Flows.Lookup(k, &f)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		l.Fatal(err)
	}
	return f, err == nil
}

// wrapped is what VXLAN makes of a frame (RFC 7348, 5) on the way from the node to
// the other. Of the outer header's source port and, with IPv4, of its identifier
// nothing is said but where they may lie: they are taken over from got.
func (l *lab) wrapped(frame []byte, tos uint8, got []byte) ([]byte, error) {
	o := packet{
		toMAC: macWire, fromMAC: macUplink, ttl: 64, tos: tos & 3, noSum: true,
		Tuple:   conntrack.Tuple{Protocol: unix.IPPROTO_UDP, Src: netip.AddrPortFrom(l.underlay, 0), Dst: netip.AddrPortFrom(l.far, labPort)},
		payload: append([]byte{8, 0, 0, 0, labNumber >> 16, labNumber >> 8 & 0xff, labNumber & 0xff, 0}, frame...),
	}
	if o.tos == 3 {
		o.tos = 2 // RFC 6040, as the kernel does it
	}
	udp := l.room - 8 - 8
	if len(got) < l.room {
		return nil, fmt.Errorf("%d bytes are no frame in VXLAN", len(got))
	}
	port := binary.BigEndian.Uint16(got[udp:])
	if port < 49152 {
		return nil, fmt.Errorf("VXLAN's source port is %d, and not a dynamic one (RFC 6335)", port)
	}
	o.Src = netip.AddrPortFrom(l.underlay, port)
	if l.underlay.Is4() {
		o.id = binary.BigEndian.Uint16(got[18:])
	}
	return o.bytes(), nil
}
