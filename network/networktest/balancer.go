package networktest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
)

// Traffic is what TestBalancer tests: a balancer, and a client and servers on
// the two sides of it.
type Traffic struct {
	Balancer network.Balancer
	// Virtual are two addresses to use as virtual ones, of one family.
	Virtual [2]netip.Addr
	// Node is an address of the node, of the same family.
	Node netip.Addr
	// Servers are three servers of the same family. Each answers TCP and
	// UDP.
	Servers [3]netip.AddrPort
	// Connect makes a new connection, or sends a first datagram, to a
	// frontend, and returns which server answered. With nobody there it
	// fails at once.
	Connect func(ctx context.Context, protocol network.Protocol, to netip.AddrPort) (netip.AddrPort, error)
}

type balancerCase struct {
	name string
	run  func(t testing.TB, tr Traffic)
}

// TestBalancer runs the suite for balancers; open returns one without rules
// for each case.
func TestBalancer(t *testing.T, open func(t testing.TB) Traffic) {
	for _, c := range balancerCases {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

var protocols = []network.Protocol{network.TCP, network.UDP}

// enough connections that each of three servers gets one, but for a chance of
// 3 * (2/3)^60, or 10^-10.
const enough = 60

var balancerCases = []balancerCase{
	{"connections spread over all endpoints", func(t testing.TB, tr Traffic) {
		for _, p := range protocols {
			tr.program(t, tr.virtual(p, 0, tr.Servers[:]...), tr.published(p, 8080, tr.Servers[:2]...))
			if got := tr.reach(t, p, tr.frontend(0)); len(got) != 3 || got[tr.Servers[0]] > enough*2/3 {
				t.Errorf("%s: %d connections to three endpoints went to %v, want all three, about evenly", p, enough, got)
			}
			if got := tr.reach(t, p, tr.node(8080)); len(got) != 2 {
				t.Errorf("%s: connections to the published port went to %v, want its two endpoints", p, got)
			}
		}
	}},
	{"frontends do not mix", func(t testing.TB, tr Traffic) {
		for _, p := range protocols {
			tr.program(t, tr.virtual(p, 0, tr.Servers[0]), tr.virtual(p, 1, tr.Servers[1]), tr.published(p, 8080, tr.Servers[2]))
			for i, to := range []netip.AddrPort{tr.frontend(0), tr.frontend(1), tr.node(8080)} {
				if got := tr.reach(t, p, to); len(got) != 1 || got[tr.Servers[i]] == 0 {
					t.Errorf("%s: connections to %s went to %v, want %s alone", p, to, got, tr.Servers[i])
				}
			}
		}
	}},
	{"a protocol is a frontend of its own", func(t testing.TB, tr Traffic) {
		tr.program(t, tr.virtual(network.TCP, 0, tr.Servers[0]), tr.virtual(network.UDP, 0, tr.Servers[1]))
		for i, p := range protocols {
			if got := tr.reach(t, p, tr.frontend(0)); len(got) != 1 || got[tr.Servers[i]] == 0 {
				t.Errorf("%s: connections went to %v, want %s alone", p, got, tr.Servers[i])
			}
		}
	}},
	{"a withdrawn endpoint gets no new connection", func(t testing.TB, tr Traffic) {
		for _, p := range protocols {
			for _, servers := range [][]netip.AddrPort{tr.Servers[:], tr.Servers[1:], tr.Servers[2:], tr.Servers[:1], tr.Servers[:2]} {
				tr.program(t, tr.virtual(p, 0, servers...), tr.published(p, 8080, servers...))
				for _, to := range []netip.AddrPort{tr.frontend(0), tr.node(8080)} {
					got := tr.reach(t, p, to)
					for server := range got {
						if !slices.Contains(servers, server) {
							t.Errorf("%s: a connection to %s went to %s, want one of %v", p, to, server, servers)
						}
					}
					if len(got) != len(servers) {
						t.Errorf("%s: connections to %s went to %v, want all of %v", p, to, got, servers)
					}
				}
			}
		}
	}},
	{"without endpoints, and without a rule, connections are refused", func(t testing.TB, tr Traffic) {
		for _, p := range protocols {
			tr.program(t, tr.virtual(p, 0, tr.Servers[:]...), tr.published(p, 8080, tr.Servers[:]...))
			tr.program(t, tr.virtual(p, 0), tr.published(p, 8080))
			tr.refuses(t, p, tr.frontend(0))
			tr.refuses(t, p, tr.node(8080))
			tr.program(t, tr.virtual(p, 0, tr.Servers[:]...), tr.published(p, 8080, tr.Servers[:]...))
			tr.program(t)
			tr.refuses(t, p, tr.frontend(0))
			tr.refuses(t, p, tr.node(8080))
		}
	}},
	{"the same rules again change nothing", func(t testing.TB, tr Traffic) {
		rule := tr.virtual(network.TCP, 0, tr.Servers[0], tr.Servers[1])
		tr.program(t, rule)
		slices.Reverse(rule.Endpoints)
		rule.Protocol = "" // the same in another spelling
		tr.program(t, rule)
		if got := tr.reach(t, network.TCP, tr.frontend(0)); len(got) != 2 {
			t.Errorf("connections went to %v, want both endpoints", got)
		}
	}},
	{"affinity sends a client to one endpoint", func(t testing.TB, tr Traffic) {
		for _, p := range protocols {
			rule := tr.virtual(p, 0, tr.Servers[:]...)
			rule.SourceAffinity = true
			tr.program(t, rule)
			first := tr.reach(t, p, tr.frontend(0))
			slices.Reverse(rule.Endpoints)
			tr.program(t, rule)
			again := tr.reach(t, p, tr.frontend(0))
			if len(first) != 1 || fmt.Sprint(first) != fmt.Sprint(again) {
				t.Errorf("%s: connections of one client went to %v, and with the endpoints in another order to %v; want one endpoint, the same", p, first, again)
			}
			rule.SourceAffinity = false
			tr.program(t, rule)
			if got := tr.reach(t, p, tr.frontend(0)); len(got) != 3 {
				t.Errorf("%s: without affinity connections went to %v, want all three", p, got)
			}
		}
	}},
	{"rules that contradict each other are refused whole", func(t testing.TB, tr Traffic) {
		good := tr.virtual(network.TCP, 0, tr.Servers[0])
		tr.program(t, good)
		twice := tr.virtual(network.TCP, 0, tr.Servers[2])
		twice.Service = "other"
		narrow := tr.published(network.TCP, 8080, tr.Servers[0])
		narrow.HostIP = tr.Node
		for what, rules := range map[string][]network.Rule{
			"one virtual port twice":                        {tr.virtual(network.TCP, 0, tr.Servers[1]), tr.virtual(network.TCP, 1, tr.Servers[1]), twice},
			"one published port twice":                      {tr.published(network.TCP, 8080, tr.Servers[1]), tr.published(network.TCP, 8080, tr.Servers[2])},
			"a port published everywhere and on an address": {tr.published(network.TCP, 8080, tr.Servers[1]), narrow},
		} {
			var conflict *network.ConflictError
			if err := tr.Balancer.Program(t.Context(), rules); !errors.As(err, &conflict) || len(conflict.Services) != 2 {
				t.Errorf("%s: Program = %v, want a *ConflictError naming both services", what, err)
			}
		}
		wantConfig(t, "a rule without a port", tr.Balancer.Program(t.Context(), []network.Rule{tr.virtual(network.TCP, 1, tr.Servers[1]), {Service: "bad", Address: tr.Virtual[0]}}), "port")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := tr.Balancer.Program(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("Program with a context that has ended = %v, want its error", err)
		}
		if got := tr.reach(t, network.TCP, tr.frontend(0)); len(got) != 1 || got[tr.Servers[0]] == 0 {
			t.Errorf("after refused rules connections went to %v, want %s as before", got, tr.Servers[0])
		}
		tr.refuses(t, network.TCP, tr.frontend(1))
		tr.refuses(t, network.TCP, tr.node(8080))
	}},
	{"a port published on one address is there alone", func(t testing.TB, tr Traffic) {
		for _, p := range protocols {
			rule := tr.published(p, 8080, tr.Servers[0])
			rule.HostIP = tr.Node
			tr.program(t, rule)
			if got := tr.reach(t, p, tr.node(8080)); got[tr.Servers[0]] != enough {
				t.Errorf("%s: connections to %s went to %v, want the endpoint", p, tr.Node, got)
			}
			rule.HostIP = netip.MustParseAddr("192.0.2.250") // documentation's, nobody's
			tr.program(t, rule)
			tr.refuses(t, p, tr.node(8080))
		}
	}},
	{"endpoints of another family are left out", func(t testing.TB, tr Traffic) {
		other := netip.MustParseAddrPort("[fd00:dead::1]:80")
		if !tr.Virtual[0].Is4() {
			other = netip.MustParseAddrPort("10.213.99.1:80")
		}
		tr.program(t, tr.virtual(network.TCP, 0, other, tr.Servers[0]), tr.published(network.TCP, 8080, other, tr.Servers[0]), tr.virtual(network.TCP, 1, other))
		for _, to := range []netip.AddrPort{tr.frontend(0), tr.node(8080)} {
			if got := tr.reach(t, network.TCP, to); got[tr.Servers[0]] != enough {
				t.Errorf("connections to %s went to %v, want the endpoint of its family", to, got)
			}
		}
		tr.refuses(t, network.TCP, tr.frontend(1))
	}},
}

func (tr Traffic) frontend(i int) netip.AddrPort { return netip.AddrPortFrom(tr.Virtual[i], 80) }

func (tr Traffic) node(port uint16) netip.AddrPort { return netip.AddrPortFrom(tr.Node, port) }

func (tr Traffic) virtual(p network.Protocol, i int, endpoints ...netip.AddrPort) network.Rule {
	return network.Rule{Service: fmt.Sprintf("default/s%d", i), Protocol: p, Address: tr.Virtual[i], Port: 80, Endpoints: slices.Clone(endpoints)}
}

func (tr Traffic) published(p network.Protocol, port uint16, endpoints ...netip.AddrPort) network.Rule {
	return network.Rule{Service: "default/published", Protocol: p, Port: port, Endpoints: slices.Clone(endpoints)}
}

func (tr Traffic) program(t testing.TB, rules ...network.Rule) {
	t.Helper()
	if err := tr.Balancer.Program(t.Context(), rules); err != nil {
		t.Fatalf("Program = %v", err)
	}
}

// reach counts which servers enough connections go to.
func (tr Traffic) reach(t testing.TB, p network.Protocol, to netip.AddrPort) map[netip.AddrPort]int {
	t.Helper()
	got := map[netip.AddrPort]int{}
	for range enough {
		server, err := tr.Connect(t.Context(), p, to)
		if err != nil {
			t.Fatalf("%s connection to %s: %v", p, to, err)
		}
		got[server]++
	}
	return got
}

func (tr Traffic) refuses(t testing.TB, p network.Protocol, to netip.AddrPort) {
	t.Helper()
	if server, err := tr.Connect(t.Context(), p, to); err == nil {
		t.Errorf("%s connection to %s reached %s, want it refused", p, to, server)
	}
}
