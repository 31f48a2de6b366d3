//go:build linux

package bridge

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

var (
	vip4 = netip.MustParseAddr("10.72.0.1")
	vip6 = netip.MustParseAddr("fd00:72::1")
)

// Every kind of client reaches every kind of frontend, and endpoints see the
// client's own address wherever that can be.
func TestEveryClientReachesEveryFrontend(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	w.ensure(front)
	a, b, client := w.task("a"), w.task("b"), w.task("client")
	w.serve(a.ns, "a", 80)
	w.serve(b.ns, "b", 80)
	eps := endpoints(80, a, b)
	for _, proto := range []network.Protocol{network.TCP, network.UDP} {
		w.program(
			network.Rule{Service: "web", Protocol: proto, Address: vip4, Port: 81, Endpoints: eps},
			network.Rule{Service: "web", Protocol: proto, Address: vip6, Port: 81, Endpoints: eps},
			network.Rule{Service: "web", Protocol: proto, Port: 8080, Endpoints: eps},
			network.Rule{Service: "web", Protocol: proto, HostIP: netip.MustParseAddr("127.0.0.1"), Port: 8081, Endpoints: eps},
		)
		for _, tc := range []struct {
			client string
			ns     *os.File
			to     string
			seen   string // "" where the node has to put its own address
		}{
			{"task", client.ns, "10.72.0.1:81", client.addr(true).String()},
			{"task", client.ns, "[fd00:72::1]:81", client.addr(false).String()},
			{"task", client.ns, "10.71.0.1:8080", client.addr(true).String()},
			{"task", client.ns, "[fd00:71::1]:8080", client.addr(false).String()},
			{"task", client.ns, "198.51.100.1:8080", client.addr(true).String()},
			{"node", w.hostNS, "10.72.0.1:81", "10.71.0.1"},
			{"node", w.hostNS, "[fd00:72::1]:81", "fd00:71::1"},
			{"node", w.hostNS, "127.0.0.1:8080", "10.71.0.1"},
			{"node", w.hostNS, "127.0.0.1:8081", "10.71.0.1"},
			{"node", w.hostNS, "[::1]:8080", "fd00:71::1"},
			{"node", w.hostNS, "198.51.100.1:8080", "198.51.100.1"},
			{"node", w.hostNS, "[fd00:99::1]:8080", "fd00:99::1"},
			{"outside", outside, "198.51.100.1:8080", "198.51.100.2"},
			{"outside", outside, "[fd00:99::1]:8080", "fd00:99::2"},
		} {
			seen := map[string]bool{}
			for range 40 { // all one endpoint by chance: 2^-39
				name, from, err := ask(tc.ns, string(proto), tc.to)
				if err != nil {
					t.Errorf("%s: %s to %s: %v", proto, tc.client, tc.to, err)
					break
				}
				if from.String() != tc.seen {
					t.Errorf("%s: %s to %s: the endpoint saw %s, want %s", proto, tc.client, tc.to, from, tc.seen)
					break
				}
				seen[name] = true
			}
			if !seen["a"] || !seen["b"] {
				t.Errorf("%s: %s to %s reached %v, want a and b", proto, tc.client, tc.to, seen)
			}
		}
	}
	// Published on 127.0.0.1 alone: not for others.
	if name, _, err := ask(outside, "tcp", "198.51.100.1:8081"); err == nil {
		t.Errorf("a port published on 127.0.0.1 answered from outside: %s", name)
	}
}

// A task reaches itself through its service's address.
func TestHairpin(t *testing.T) {
	w := newWorld(t)
	w.ensure(front)
	a := w.task("a")
	w.serve(a.ns, "a", 80)
	w.program(
		network.Rule{Service: "web", Address: vip4, Port: 80, Endpoints: a.endpoints(80)},
		network.Rule{Service: "web", Address: vip6, Port: 80, Endpoints: a.endpoints(80)},
		network.Rule{Service: "web", Port: 8080, Endpoints: a.endpoints(80)},
	)
	for _, to := range []string{"10.72.0.1:80", "[fd00:72::1]:80", "10.71.0.1:8080", "[fd00:71::1]:8080"} {
		if name, _, err := ask(a.ns, "tcp", to); err != nil || name != "a" {
			t.Errorf("a task to its own %s: %q, %v, want itself", to, name, err)
		}
	}
}

// What nobody serves is refused at once, not left to time out. A datagram of
// the node's own process does not even leave: EPERM.
func TestRefusedWithoutEndpoints(t *testing.T) {
	w := newWorld(t)
	w.ensure(front)
	client := w.task("client")
	far := netip.MustParseAddr("10.99.0.1") // no route of the node
	for _, proto := range []network.Protocol{network.TCP, network.UDP} {
		w.program(
			network.Rule{Service: "web", Protocol: proto, Address: vip4, Port: 80},
			network.Rule{Service: "web", Protocol: proto, Address: vip6, Port: 80},
			network.Rule{Service: "web", Protocol: proto, Address: far, Port: 80},
			network.Rule{Service: "web", Protocol: proto, Port: 8080},
		)
		for _, from := range []*os.File{client.ns, w.hostNS} {
			for _, to := range []string{"10.72.0.1:80", "[fd00:72::1]:80", "10.72.0.1:81", "[fd00:72::9]:80", "10.71.0.1:8080"} {
				if _, _, err := ask(from, string(proto), to); !errors.Is(err, unix.ECONNREFUSED) && !(proto == network.UDP && errors.Is(err, unix.EPERM)) {
					t.Errorf("%s from %s to %s, which has no endpoint: %v, want connection refused", proto, from.Name(), to, err)
				}
			}
		}
	}
}
