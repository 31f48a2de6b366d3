//go:build linux

package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/networktest"
)

func TestConformanceDriver(t *testing.T) {
	networktest.TestDriver(t, func(t testing.TB) networktest.Node { return newWorld(t).node() })
}

func (w *world) node() networktest.Node {
	return networktest.Node{Driver: w.d, Namespaces: w.d, Reopen: func(t testing.TB) networktest.Node {
		w.reopen()
		return w.node()
	}}
}

// The balancer's suite with connections of each kind of client, in each
// family.
func TestConformanceBalancer(t *testing.T) {
	for _, client := range []string{"task", "node", "outside"} {
		for _, ipv4 := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, IPv%s", client, suffix(ipv4)), func(t *testing.T) {
				networktest.TestBalancer(t, func(t testing.TB) networktest.Traffic { return traffic(t, client, ipv4) })
			})
		}
	}
}

func traffic(t testing.TB, client string, ipv4 bool) networktest.Traffic {
	w := newWorld(t)
	from := w.hostNS
	outside := w.outside()
	w.ensure(front)
	switch client {
	case "task":
		from = w.task("client").ns
	case "outside":
		from = outside
	}
	tr := networktest.Traffic{Balancer: w.d, Virtual: [2]netip.Addr{vip4, vip4.Next()}, Node: netip.MustParseAddr("198.51.100.1")}
	if !ipv4 {
		tr.Virtual, tr.Node = [2]netip.Addr{vip6, vip6.Next()}, netip.MustParseAddr("fd00:99::1")
	}
	servers := map[string]netip.AddrPort{}
	for i := range tr.Servers {
		k := w.task(fmt.Sprintf("s%d", i))
		w.serve(k.ns, k.id, 80)
		tr.Servers[i] = netip.AddrPortFrom(k.addr(ipv4), 80)
		servers[k.id] = tr.Servers[i]
	}
	if client == "outside" {
		// Beyond the node nobody knows of virtual addresses, unless told.
		w.route(from, tr.Virtual[0], ipv4)
		w.route(from, tr.Virtual[1], ipv4)
	}
	tr.Connect = func(_ context.Context, p network.Protocol, to netip.AddrPort) (netip.AddrPort, error) {
		name, _, err := ask(from, string(p), to.String())
		return servers[name], err
	}
	return tr
}
