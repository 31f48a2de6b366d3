//go:build linux

package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/bridge"
	"github.com/orchestrate-go/orchestrate/network/networktest"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

var (
	front = network.Network{Name: "front", Subnets: prefixes("10.71.0.0/16", "fd00:71::/64"), Virtual: prefixes("10.72.0.0/24", "fd00:72::/112")}
	back  = network.Network{Name: "back", Subnets: prefixes("10.73.0.0/16", "fd00:73::/64"), Virtual: prefixes("10.74.0.0/24", "fd00:74::/112")}
)

// ensure makes a network on all hosts and waits until each knows all.
func (w *world) ensure(n network.Network) {
	w.Helper()
	for _, h := range w.hosts {
		check(w, h.d.Ensure(w.Context(), n))
	}
	w.settled(n.Name)
}

// settled waits until every host has a route to every other.
func (w *world) settled(name string) {
	w.Helper()
	for _, h := range w.hosts {
		w.await(h, fmt.Sprintf("%s knows all other nodes on %s", h.name, name), func() bool {
			return len(h.peersOn(name)) == len(w.hosts)-1
		})
	}
}

// peersOn returns where the kernel sends what is for other nodes.
func (h *host) peersOn(name string) []string {
	h.w.Helper()
	var to []string
	if h.w.mode == sealed {
		h.d.mu.Lock()
		defer h.d.mu.Unlock()
		for _, p := range h.d.seal.kept.Tunnels[0].Config.Peers {
			to = append(to, p.Endpoint.Addr().String())
		}
		slices.Sort(to)
		return to
	}
	err := in(h.ns, func() error {
		link, err := netlink.LinkByName(h.d.LinkName(name))
		if err != nil {
			return err
		}
		have, err := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
		for _, n := range have {
			to = append(to, n.IP.String())
		}
		return err
	})
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
		h.w.Fatal(err)
	}
	slices.Sort(to)
	return to
}

// await looks whether something is so with each change that the host's driver
// has followed.
func (w *world) await(h *host, what string, so func() bool) {
	w.Helper()
	limit := time.After(30 * time.Second)
	for !so() {
		select {
		case <-h.joined:
		case <-limit:
			w.Fatalf("%s: not in 30 s", what)
		}
	}
}

func TestTasksOfManyNodes(t *testing.T) {
	for _, mode := range []Direct{DirectAuto, DirectNever, sealed} {
		t.Run(fmt.Sprintf("direct=%v", mode), func(t *testing.T) { testTasksOfManyNodes(t, mode) })
	}
}

func testTasksOfManyNodes(t *testing.T, mode Direct) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("underlay IPv6=%v", v6), func(t *testing.T) {
			w := newWorld(t, 3, v6, mode)
			w.ensure(front)
			var tasks []*task
			for i, h := range w.hosts {
				k := h.task(fmt.Sprintf("t%d", i), "front")
				k.serve(80)
				tasks = append(tasks, k)
			}
			for _, from := range tasks {
				for _, to := range tasks {
					for i, addr := range to.addrs {
						who, seen, err := ask(from.ns, netip.AddrPortFrom(addr, 80).String())
						if err != nil || who != to.id || seen != from.addrs[i].String() {
							t.Errorf("%s asks %s at %v: answered by %q, which saw %q, error %v; want %s and %v", from.id, to.id, addr, who, seen, err, to.id, from.addrs[i])
						}
					}
				}
			}
			// Each node can serve names where it says that its tasks ask.
			for _, h := range w.hosts {
				gateways := h.d.Gateways("front")
				if len(gateways) != len(front.Subnets) {
					t.Errorf("%s has the gateways %v, want one for each of %v", h.name, gateways, front.Subnets)
				}
				for _, gw := range gateways {
					check(t, in(h.ns, func() error {
						l, err := net.Listen("tcp", netip.AddrPortFrom(gw, 53).String())
						if err != nil {
							return err
						}
						return l.Close()
					}))
				}
			}
			// A node's own processes reach tasks elsewhere too.
			for _, addr := range tasks[2].addrs {
				if who, _, err := ask(w.hosts[0].ns, netip.AddrPortFrom(addr, 80).String()); err != nil || who != "t2" {
					t.Errorf("node 0 asks t2 at %v: got %q, %v", addr, who, err)
				}
			}
		})
	}
}

// A virtual address and a published port lead to endpoints on other nodes, from
// a task, from the node and from outside, whichever node is asked.
func TestBalancesOverNodes(t *testing.T) {
	for _, mode := range []Direct{DirectAuto, DirectNever, sealed} {
		t.Run(string(mode), func(t *testing.T) { testBalancesOverNodes(t, mode) })
	}
}

func testBalancesOverNodes(t *testing.T, mode Direct) {
	w := newWorld(t, 3, false, mode)
	w.ensure(front)
	var endpoints []netip.AddrPort
	for i, h := range w.hosts[:2] {
		k := h.task(fmt.Sprintf("t%d", i), "front")
		k.serve(8080)
		for _, a := range k.addrs {
			endpoints = append(endpoints, netip.AddrPortFrom(a, 8080))
		}
	}
	vips := []netip.Addr{netip.MustParseAddr("10.72.0.7"), netip.MustParseAddr("fd00:72::7")}
	for _, h := range w.hosts {
		check(t, h.d.Program(t.Context(), []network.Rule{
			{Service: "web", Address: vips[0], Port: 80, Endpoints: endpoints},
			{Service: "web", Address: vips[1], Port: 80, Endpoints: endpoints},
			{Service: "web", Port: 8081, Endpoints: endpoints},
		}))
	}
	client := w.hosts[2].task("client", "front")
	outside := w.namespace("outside")
	w.plug(outside, "out", netip.MustParsePrefix("192.0.2.200/24"))
	for _, c := range []struct {
		who string
		ns  *os.File
		to  []string
	}{
		{"a task", client.ns, []string{"10.72.0.7:80", "[fd00:72::7]:80"}},
		{"a node without endpoints", w.hosts[2].ns, []string{"10.72.0.7:80", "[fd00:72::7]:80", "127.0.0.1:8081", "[::1]:8081"}},
		{"a node with one", w.hosts[0].ns, []string{"10.72.0.7:80", "127.0.0.1:8081", "[::1]:8081"}},
		{"outside", outside, []string{"192.0.2.1:8081", "192.0.2.2:8081", "192.0.2.3:8081"}},
	} {
		for _, to := range c.to {
			counts := map[string]int{}
			for range 40 {
				who, _, err := ask(c.ns, to)
				if err != nil {
					t.Fatalf("%s asks %s: %v", c.who, to, err)
				}
				counts[who]++
			}
			if counts["t0"] == 0 || counts["t1"] == 0 {
				t.Errorf("%s asks %s: answered by %v, want both tasks", c.who, to, counts)
			}
		}
	}
}

// Networks are apart between nodes too.
func TestNetworksAreApart(t *testing.T) {
	for _, mode := range []Direct{DirectAuto, DirectNever, sealed} {
		t.Run(string(mode), func(t *testing.T) { testNetworksAreApart(t, mode) })
	}
}

func testNetworksAreApart(t *testing.T, mode Direct) {
	w := newWorld(t, 2, false, mode)
	w.ensure(front)
	w.ensure(back)
	server := w.hosts[1].task("server", "back")
	server.serve(80)
	both := w.hosts[0].task("both", "front", "back")
	stranger := w.hosts[0].task("stranger", "front")
	to := netip.AddrPortFrom(server.addrs[0], 80).String()
	if who, _, err := ask(both.ns, to); err != nil || who != "server" {
		t.Errorf("a task on both networks: got %q, %v; want the server", who, err)
	}
	if who, _, err := ask(stranger.ns, to); err == nil {
		t.Errorf("a task of another network: answered by %q, want an error", who)
	}
}

// A node that leaves is forgotten by the others, and its slice is free.
func TestForget(t *testing.T) {
	for _, mode := range []Direct{DirectAuto, sealed} {
		t.Run(string(mode), func(t *testing.T) { testForget(t, mode) })
	}
}

func testForget(t *testing.T, mode Direct) {
	w := newWorld(t, 3, false, mode)
	w.ensure(front)
	gone := w.hosts[2]
	check(t, Forget(t.Context(), w.store, gone.name))
	for _, h := range w.hosts[:2] {
		w.await(h, h.name+" forgets the node", func() bool { return !slices.Contains(h.peersOn("front"), gone.addr.String()) })
		if got := h.peersOn("front"); len(got) != 1 {
			t.Errorf("%s knows %v, want the one other node", h.name, got)
		}
	}
	// It comes back as if nothing had been.
	check(t, gone.d.Ensure(t.Context(), front))
	w.settled("front")
}

// A restart of the program keeps slice, addresses and connections' way.
func TestReopen(t *testing.T) {
	w := newWorld(t, 2, false)
	w.ensure(front)
	a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
	b.serve(80)
	to := netip.AddrPortFrom(b.addrs[0], 80).String()
	w.hosts[0].close()
	if who, _, err := ask(a.ns, to); err != nil || who != "b" {
		t.Errorf("while the program is away: got %q, %v", who, err)
	}
	w.hosts[0].open()
	w.ensure(front)
	again := w.hosts[0].task("a", "front")
	if !slices.Equal(again.addrs, a.addrs) {
		t.Errorf("addresses after a restart: got %v, want %v", again.addrs, a.addrs)
	}
	if who, _, err := ask(again.ns, to); err != nil || who != "b" {
		t.Errorf("after a restart: got %q, %v", who, err)
	}
}

// Nodes that come at once take slices that do not overlap, all of one number.
func TestClaims(t *testing.T) {
	s := memory.New(memory.Options{})
	defer s.Close()
	whole := prefixes("10.0.0.0/20", "fd00::/64") // room for 16
	var mu sync.Mutex
	var wg sync.WaitGroup
	taken := map[int]string{}
	numbers := map[int]bool{}
	refused := 0
	for i := range 20 {
		wg.Go(func() {
			// Bridge IDs tell the fleets of one machine apart, and need not be the
			// same on all nodes.
			d := &Driver{opts: Options{Bridge: bridge.Options{ID: fmt.Sprintf("id%d", i)}, Store: s, Node: fmt.Sprintf("n%d", i), Underlay: netip.MustParseAddr("192.0.2.1")}}
			index, err := d.claim(t.Context(), "net", whole, hardware(d.opts.Node, "net"), underlay{})
			vni, errVNI := d.number(t.Context(), "net")
			mu.Lock()
			defer mu.Unlock()
			if errVNI != nil {
				t.Error(errVNI)
			}
			numbers[vni] = true
			if errors.Is(err, network.ErrExhausted) {
				refused++
				return
			}
			if err != nil {
				t.Error(err)
			}
			if other, twice := taken[index]; twice {
				t.Errorf("slice %d was given to %s and %s", index, other, d.opts.Node)
			}
			taken[index] = d.opts.Node
		})
	}
	wg.Wait()
	if len(taken) != 16 || refused != 4 || len(numbers) != 1 {
		t.Errorf("16 slices for 20 nodes: %d taken, %d refused, numbers %v; want 16, 4 and one number", len(taken), refused, numbers)
	}
	for node := range 20 {
		check(t, Forget(t.Context(), s, fmt.Sprintf("n%d", node)))
	}
	left, err := s.List(t.Context(), "/overlay/")
	if err != nil || len(left.Items) > 0 {
		t.Errorf("after all nodes were forgotten: %v left (%v), want nothing", left.Items, err)
	}
}

// Slices cover their prefix and do not overlap.
func TestCut(t *testing.T) {
	for _, p := range prefixes("10.0.0.0/12", "10.0.0.0/16", "10.0.0.0/20", "10.0.0.0/24", "10.0.0.0/29", "fd00::/48", "fd00::/64", "fd00::/112") {
		d := new(Driver)
		count := d.sliceCount([]netip.Prefix{p})
		var last netip.Prefix
		for i := range min(count, 300) {
			s := d.cut([]netip.Prefix{p}, i)[0]
			if !p.Contains(s.Addr()) || s.Bits() < p.Bits() || s != s.Masked() {
				t.Fatalf("slice %d of %v is %v, want a part of it", i, p, s)
			}
			if i > 0 && (last.Overlaps(s) || network.Broadcast(last).Next() != s.Addr()) {
				t.Fatalf("slice %d of %v is %v after %v, want the next", i, p, s, last)
			}
			last = s
		}
		if count < 2 {
			t.Errorf("%v is cut into %d slices, want several", p, count)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	w := newWorld(t, 1, false)
	good := w.hosts[0].opts
	for field, change := range map[string]func(*Options){
		"store":    func(o *Options) { o.Store = nil },
		"node":     func(o *Options) { o.Node = "" },
		"underlay": func(o *Options) { o.Underlay = netip.Addr{} },
	} {
		o := good
		change(&o)
		_, err := Open(o)
		var bad *network.ConfigError
		if !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("Open without %s: got %v, want a ConfigError about it", field, err)
		}
	}
	o := good
	o.Underlay = netip.MustParseAddr("203.0.113.9")
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "203.0.113.9") {
		t.Errorf("Open with an address that the node has not: got %v, want an error that names it", err)
	}
	n := front
	n.MTU = 1501
	var bad *network.ConfigError
	if err := w.hosts[0].d.Ensure(t.Context(), n); !errors.As(err, &bad) || bad.Field != "mtu" {
		t.Errorf("Ensure with an MTU that does not fit: got %v, want a ConfigError about it", err)
	}
}

// The driver of one node is a driver like any other.
func TestConformance(t *testing.T) {
	networktest.TestDriver(t, func(t testing.TB) networktest.Node {
		h := newWorld(t, 1, false).hosts[0]
		h.close()
		h.opts.undivided = true
		h.open()
		return h.node()
	})
}

func (h *host) node() networktest.Node {
	return networktest.Node{Driver: h.d, Namespaces: h.d, Reopen: func(t testing.TB) networktest.Node {
		h.close()
		h.open()
		return h.node()
	}}
}
