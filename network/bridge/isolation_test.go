//go:build linux

package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

var (
	back = network.Network{
		Name:    "back",
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.73.0.0/16"), netip.MustParsePrefix("fd00:73::/64")},
		Virtual: []netip.Prefix{netip.MustParsePrefix("10.74.0.0/24")},
	}
	private = network.Network{Name: "private", Subnets: []netip.Prefix{netip.MustParsePrefix("10.75.0.0/16"), netip.MustParsePrefix("fd00:75::/64")}, Internal: true}
)

// quick is the time in which a connection that can be made is made.
const quick = 700 * time.Millisecond

func (w *world) reaches(from *os.File, to netip.AddrPort) bool {
	c, err := connect(from, "tcp", to.String(), quick)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// Tasks reach their own network, the world and frontends; nothing else does,
// and nothing of an internal network leaves the node.
func TestIsolation(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	for _, n := range []network.Network{front, back, private} {
		w.ensure(n)
	}
	a, a2, b, p, p2 := w.task("a"), w.task("a2"), w.task("b", "back"), w.task("p", "private"), w.task("p2", "private")
	for _, k := range []*task{a, a2, b, p, p2} {
		w.serve(k.ns, k.id, 80)
	}
	w.serve(outside, "outside", 80)
	w.serve(w.hostNS, "node", 70)
	w.program(
		network.Rule{Service: "b", Address: netip.MustParseAddr("10.74.0.1"), Port: 80, Endpoints: b.endpoints(80)},
		network.Rule{Service: "b", Port: 8080, Endpoints: b.endpoints(80)},
	)
	// The world knows a way to the tasks; it does not help it.
	for _, subnet := range []string{"10.71.0.0/16", "fd00:71::/64", "10.73.0.0/16"} {
		w.routePrefix(outside, netip.MustParsePrefix(subnet))
	}
	at := netip.AddrPortFrom
	world4, world6 := netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("fd00:99::2")
	for _, tc := range []struct {
		what string
		from *os.File
		to   netip.AddrPort
		want bool
	}{
		{"task to task of its network", a.ns, at(a2.addr(true), 80), true},
		{"task to task of its network, IPv6", a.ns, at(a2.addr(false), 80), true},
		{"task to task of another network", a.ns, at(b.addr(true), 80), false},
		{"task to task of another network, IPv6", a.ns, at(b.addr(false), 80), false},
		{"task to a virtual address of another network", a.ns, netip.MustParseAddrPort("10.74.0.1:80"), true},
		{"task to a published port", a.ns, netip.MustParseAddrPort("10.71.0.1:8080"), true},
		{"task to the world", a.ns, at(world4, 80), true},
		{"task to the world, IPv6", a.ns, at(world6, 80), true},
		{"task to the node", a.ns, netip.MustParseAddrPort("10.71.0.1:70"), true},
		{"node to task", w.hostNS, at(a.addr(true), 80), true},
		{"node to task, IPv6", w.hostNS, at(a.addr(false), 80), true},
		{"world to task", outside, at(a.addr(true), 80), false},
		{"world to task, IPv6", outside, at(a.addr(false), 80), false},
		{"world to endpoint past its frontend", outside, at(b.addr(true), 80), false},
		{"world to published port", outside, netip.MustParseAddrPort("198.51.100.1:8080"), true},
		{"internal to its own network", p.ns, at(p2.addr(true), 80), true},
		{"internal to the world", p.ns, at(world4, 80), false},
		{"internal to the world, IPv6", p.ns, at(world6, 80), false},
		{"internal to another network", p.ns, at(a.addr(true), 80), false},
		{"another network to internal", a.ns, at(p.addr(true), 80), false},
	} {
		if got := w.reaches(tc.from, tc.to); got != tc.want {
			t.Errorf("%s: reached %v, want %v", tc.what, got, tc.want)
		}
	}
	// The world sees the node's address.
	for _, to := range []string{"198.51.100.2:80", "[fd00:99::2]:80"} {
		_, seen, err := ask(a.ns, "tcp", to)
		if want := map[bool]string{true: "198.51.100.1", false: "fd00:99::1"}[seen.Is4()]; err != nil || seen.String() != want {
			t.Errorf("task to %s: the world saw %s, %v, want %s", to, seen, err, want)
		}
	}
}

func (w *world) routePrefix(ns *os.File, to netip.Prefix) {
	w.Helper()
	c, err := dial(ns)
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	via := netip.MustParseAddr("fd00:99::1")
	if to.Addr().Is4() {
		via = netip.MustParseAddr("198.51.100.1")
	}
	if err := c.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		w.Fatal(err)
	}
}

// The bridge lets replies to the node's loopback in; a task that sends there
// by itself gets nowhere (CVE-2020-8558).
func TestLoopbackOfTheNodeIsNotReached(t *testing.T) {
	w := newWorld(t)
	w.ensure(front)
	a := w.task("a")
	var l net.PacketConn
	err := inside(w.hostNS, func() (err error) {
		l, err = net.ListenPacket("udp4", "127.0.0.1:7070")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the end of the test
	c, err := dial(a.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The task is root in its namespace, and does what it takes.
	err = inside(a.ns, func() error {
		return errors.Join(setSysctl("net.ipv4.conf.all.route_localnet", "1"), setSysctl("net.ipv4.conf.eth0.route_localnet", "1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	link, err := c.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	lo, err := c.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("127.0.0.1/8"))}); err != nil {
		t.Fatal(err)
	}
	err = c.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("127.0.0.1/32")), Gw: net.ParseIP("10.71.0.1"), Src: a.addr(true).AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
	if err != nil {
		t.Fatal(err)
	}
	before := w.dropped(a)
	out, err := connect(a.ns, "udp", "127.0.0.1:7070", quick)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // the end of the test
	if _, err := out.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(quick)); err != nil {
		t.Fatal(err)
	}
	if n, from, err := l.ReadFrom(make([]byte, 10)); err == nil {
		t.Errorf("a task's datagram reached 127.0.0.1 of the node: %d bytes from %s", n, from)
	}
	if after := w.dropped(a); after == before {
		t.Error("the task sent nothing to the node: the test proves nothing")
	}
}

// dropped counts the packets that the node got from a task.
func (w *world) dropped(k *task) uint64 {
	w.Helper()
	c, err := dial(w.hostNS)
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	port, err := c.LinkByName(w.d.portName(network.Attachment{Network: front.Name, Task: k.id, Interface: "eth0"}))
	if err != nil {
		w.Fatal(err)
	}
	return port.Attrs().Statistics.RxPackets
}

// A task on two networks answers on the one it was asked on, so that strict
// reverse path filters let it.
func TestTwoNetworks(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	w.ensure(front)
	w.ensure(back)
	err := inside(w.hostNS, func() error {
		return errors.Join(setSysctl("net.ipv4.conf.all.rp_filter", "1"), setSysctl("net.ipv4.conf.default.rp_filter", "1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	both := w.task("both", "front", "back")
	onBack := w.task("onback", "back")
	w.serve(both.ns, "both", 80)
	w.serve(onBack.ns, "onback", 80)
	all, err := w.d.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var second []netip.AddrPort
	for _, a := range all {
		if a.Task == "both" && a.Network == "back" {
			for _, addr := range a.Addresses {
				second = append(second, netip.AddrPortFrom(addr, 80))
			}
		}
	}
	w.program(
		network.Rule{Service: "both", Port: 8080, Endpoints: second},
		network.Rule{Service: "onback", Address: netip.MustParseAddr("10.74.0.1"), Port: 80, Endpoints: onBack.endpoints(80)},
	)
	for _, to := range []string{"198.51.100.1:8080", "[fd00:99::1]:8080"} {
		if name, _, err := ask(outside, "tcp", to); err != nil || name != "both" {
			t.Errorf("the world to %s, served by a task's second network: %q, %v", to, name, err)
		}
	}
	if name, seen, err := ask(both.ns, "tcp", "10.74.0.1:80"); err != nil || name != "onback" || seen != second[0].Addr() {
		t.Errorf("task to a virtual address of its second network: %q saw %s, %v, want it to see %s", name, seen, err, second[0].Addr())
	}
}

// What the host has already is not taken over: routes, ports, other fleets.
func TestConflictsWithTheHost(t *testing.T) {
	w := newWorld(t)
	w.outside() // 198.51.100.0/24
	var wrong *network.ConfigError
	for _, n := range []network.Network{
		{Name: "n", Subnets: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}},
		{Name: "n", Subnets: []netip.Prefix{netip.MustParsePrefix("198.51.0.0/16")}},
		{Name: "n", Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, Virtual: []netip.Prefix{netip.MustParsePrefix("198.51.100.128/25")}},
	} {
		if err := w.d.Ensure(t.Context(), n); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "198.51.100.0/24 by wire") {
			t.Errorf("Ensure(%v, %v) = %v, want a *ConfigError naming the route and its interface", n.Subnets, n.Virtual, err)
		}
	}
	w.ensure(front)
	a := w.task("a")

	other := &world{TB: t, dir: w.dir, hostNS: w.hostNS, opts: w.opts}
	other.opts.ID, other.opts.Dir = "other", filepath.Join(w.dir, "other")
	other.open()
	t.Cleanup(func() {
		if err := errors.Join(other.d.Purge(context.Background()), other.d.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := other.d.Ensure(t.Context(), front); !errors.As(err, &wrong) {
		t.Errorf("Ensure of another fleet's range = %v, want a *ConfigError", err)
	}
	other.ensure(back)

	var conflict *network.ConflictError
	w.program(network.Rule{Service: "web", Port: 8080, Endpoints: a.endpoints(80)})
	if err := other.d.Program(t.Context(), []network.Rule{{Service: "web", Port: 8080}}); !errors.As(err, &conflict) || !strings.Contains(err.Error(), `fleet test`) {
		t.Errorf("Program of another fleet's port = %v, want a *ConflictError naming the fleet", err)
	}

	for _, l := range []struct{ network, address string }{{"tcp", "127.0.0.1:7001"}, {"tcp", "[::]:7002"}, {"udp", "0.0.0.0:7003"}, {"tcp", "[::1]:7004"}} {
		err := inside(w.hostNS, func() error {
			if l.network == "udp" {
				c, err := net.ListenPacket(l.network, l.address)
				if err == nil {
					t.Cleanup(func() { _ = c.Close() })
				}
				return err
			}
			c, err := net.Listen(l.network, l.address)
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	pid := fmt.Sprintf("process %d ", os.Getpid())
	loop4, wire4 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("198.51.100.1")
	for _, tc := range []struct {
		rule    network.Rule
		refused bool
	}{
		{network.Rule{Port: 7001}, true},
		{network.Rule{Port: 7001, HostIP: loop4}, true},
		{network.Rule{Port: 7001, HostIP: wire4}, false},
		{network.Rule{Port: 7001, Protocol: network.UDP}, false},
		{network.Rule{Port: 7002}, true},
		{network.Rule{Port: 7002, HostIP: wire4}, true}, // [::] takes IPv4 as well
		{network.Rule{Port: 7003, Protocol: network.UDP}, true},
		{network.Rule{Port: 7003}, false},
		{network.Rule{Port: 7004, HostIP: netip.IPv4Unspecified()}, false},
		{network.Rule{Port: 7004, HostIP: netip.IPv6Unspecified()}, true},
		{network.Rule{Port: 7001, Address: vip4}, false},
	} {
		tc.rule.Service, tc.rule.Endpoints = "web", a.endpoints(80)
		err := w.d.Program(t.Context(), []network.Rule{tc.rule})
		if tc.refused && (!errors.As(err, &conflict) || !strings.Contains(err.Error(), pid)) {
			t.Errorf("publishing %s = %v, want a *ConflictError naming %s", tc.rule.Frontend(), err, pid)
		}
		if !tc.refused && err != nil {
			t.Errorf("publishing %s = %v, want it to work", tc.rule.Frontend(), err)
		}
	}
}

// Someone flushes the whole ruleset, or a part of ours: the next Program
// makes it whole again.
func TestTableIsRepaired(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	w.ensure(front)
	a, b := w.task("a"), w.task("b")
	w.serve(a.ns, "a", 80)
	w.serve(b.ns, "b", 80)
	rule := network.Rule{Service: "web", Port: 8080, Endpoints: a.endpoints(80)}
	w.program(rule)
	nft, err := nftables.New(nftables.WithNetNSFd(int(w.hostNS.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	nft.FlushRuleset()
	if err := nft.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(outside, "tcp", "198.51.100.1:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("without a ruleset: %v, want connection refused", err)
	}
	w.program(rule)
	if name, _, err := ask(outside, "tcp", "198.51.100.1:8080"); err != nil || name != "a" {
		t.Errorf("after a flush of the ruleset and Program: %q, %v, want a", name, err)
	}
	if w.routePrefix(outside, front.Subnets[0]); w.reaches(outside, a.endpoints(80)[0]) {
		t.Error("networks are not apart after the table was made anew")
	}
	nft.FlushSet(w.d.table.sets[mapEndpoints+"4"])
	if err := nft.Flush(); err != nil {
		t.Fatal(err)
	}
	rule.Endpoints = b.endpoints(80)
	w.program(rule)
	if name, _, err := ask(outside, "tcp", "198.51.100.1:8080"); err != nil || name != "b" {
		t.Errorf("after a flush of a map and Program: %q, %v, want b", name, err)
	}
}

// A restart changes nothing that a connection could feel.
func TestRestartKeepsTheDataPath(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	w.ensure(front)
	a := w.task("a")
	w.serve(a.ns, "a", 80)
	rule := network.Rule{Service: "web", Port: 8080, Endpoints: a.endpoints(80)}
	w.program(rule)
	c, err := connect(outside, "tcp", "198.51.100.1:8080", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the end of the test
	works := func(when string) {
		t.Helper()
		if name, _, err := askOn(c); err != nil || name != "a" {
			t.Errorf("%s: on the old connection %q, %v", when, name, err)
		}
		if name, _, err := ask(outside, "tcp", "198.51.100.1:8080"); err != nil || name != "a" {
			t.Errorf("%s: on a new connection %q, %v", when, name, err)
		}
	}
	works("before")
	if err := w.d.Close(); err != nil {
		t.Fatal(err)
	}
	works("while closed")
	w.open()
	works("opened")
	w.ensure(front)
	works("ensured")
	again, err := w.d.Attach(t.Context(), network.Attachment{Network: "front", Task: "a", Namespace: a.ns.Name(), Interface: "eth0", Default: true})
	if err != nil || fmt.Sprint(again) != fmt.Sprint(a.iface) {
		t.Errorf("attached again: %v, %v, want %v", again, err, a.iface)
	}
	works("attached")
	w.program(rule)
	works("programmed")
}

// br_netfilter may be on for the sake of other bridges; everything but ::1
// works then too.
func TestWithBridgeNetfilter(t *testing.T) {
	w := newWorld(t)
	if !w.d.bridged {
		t.Skip("this kernel has no br_netfilter")
	}
	outside := w.outside()
	w.foreignBridge()
	w.ensure(front)
	a, client := w.task("a"), w.task("client")
	w.serve(a.ns, "a", 80)
	rules := []network.Rule{
		{Service: "web", Address: vip4, Port: 80, Endpoints: a.endpoints(80)},
		{Service: "web", Address: vip6, Port: 80, Endpoints: a.endpoints(80)},
		{Service: "web", Port: 8080, Endpoints: a.endpoints(80)},
	}
	w.program(rules...)
	if w.d.loopback6() {
		t.Fatal("br_netfilter is off although there is a bridge of another program")
	}
	for _, tc := range []struct {
		ns   *os.File
		to   string
		seen string
	}{
		{client.ns, "10.72.0.1:80", client.addr(true).String()},
		{client.ns, "[fd00:72::1]:80", client.addr(false).String()},
		{client.ns, "10.71.0.1:8080", client.addr(true).String()},
		{a.ns, "10.72.0.1:80", "10.71.0.1"},
		{a.ns, "[fd00:72::1]:80", "fd00:71::1"},
		{w.hostNS, "127.0.0.1:8080", "10.71.0.1"},
		{outside, "198.51.100.1:8080", "198.51.100.2"},
		{outside, "[fd00:99::1]:8080", "fd00:99::2"},
	} {
		if name, seen, err := ask(tc.ns, "tcp", tc.to); err != nil || name != "a" || seen.String() != tc.seen {
			t.Errorf("%s to %s: %q saw %s, %v, want %s", tc.ns.Name(), tc.to, name, seen, err, tc.seen)
		}
	}
	if _, _, err := ask(w.hostNS, "tcp", "[::1]:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("[::1] with br_netfilter on: %v, want connection refused at once", err)
	}
	// Switched off by hand, it is noticed at the next Program.
	if err := inside(w.hostNS, func() error { return setSysctl("net.bridge.bridge-nf-call-ip6tables", "0") }); err != nil {
		t.Fatal(err)
	}
	w.program(rules...)
	if name, _, err := ask(w.hostNS, "tcp", "[::1]:8080"); err != nil || name != "a" {
		t.Errorf("[::1] with br_netfilter off: %q, %v, want a", name, err)
	}
}

// foreignBridge is a bridge of somebody else, who wants br_netfilter.
func (w *world) foreignBridge() {
	w.Helper()
	c, err := dial(w.hostNS)
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	if err := c.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: -1}}); err != nil {
		w.Fatal(err)
	}
}
