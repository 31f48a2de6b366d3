//go:build linux

package overlay

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// A port that is published on every node leads to a task on another one, which
// sees the address of the node that was asked. One that is published where a task
// runs leads to that task, which sees its client's own.
func TestPublishedDatagrams(t *testing.T) {
	for _, mode := range []Direct{DirectAuto, DirectNever, sealed} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, 2, false, mode)
			w.ensure(front)
			outside := w.namespace("outside")
			w.plug(outside, "out", netip.MustParsePrefix("192.0.2.200/24"))
			for ns, addr := range map[string]string{"n0": "2001:db8::1/64", "outside": "2001:db8::200/64"} {
				file := outside
				if ns == "n0" {
					file = w.hosts[0].ns
				}
				check(t, in(file, func() error {
					eth, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					return netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(addr)), Flags: unix.IFA_F_NODAD})
				}))
			}
			here, there := w.hosts[0].task("here", "front"), w.hosts[1].task("there", "front")
			heardHere, heardThere := here.listen(53), there.listen(53)
			endpoints := func(k *task) (all []netip.AddrPort) {
				for _, a := range k.addrs {
					all = append(all, netip.AddrPortFrom(a, 53))
				}
				return all
			}
			check(t, w.hosts[0].d.Program(t.Context(), []network.Rule{
				{Service: "everywhere", Protocol: network.UDP, Port: 8053, Endpoints: endpoints(there)},
				{Service: "local", Protocol: network.UDP, Port: 8054, Endpoints: endpoints(here)},
			}))
			o := w.hosts[0].d.nets["front"]
			gateways := (network.Network{Subnets: w.hosts[0].d.cut(o.whole, o.index)}).Gateways()
			for i, way := range []struct{ from, to string }{{"192.0.2.200", "192.0.2.1"}, {"2001:db8::200", "2001:db8::1"}} {
				from, to := netip.MustParseAddr(way.from), netip.MustParseAddr(way.to)
				text := fmt.Sprint("not before ", way.to)
				if got := say(t, outside, from, netip.AddrPortFrom(to, 8053), text, heardThere); got.text != text || got.from != gateways[i] {
					t.Errorf("published on every node, asked at %v: %q from %v, want it from the node's %v", to, got.text, got.from, gateways[i])
				}
				if got := say(t, outside, from, netip.AddrPortFrom(to, 8054), text, heardHere); got.text != text || got.from != from {
					t.Errorf("published where the task runs, asked at %v: %q from %v, want it from the client's %v", to, got.text, got.from, from)
				}
			}
		})
	}
}
