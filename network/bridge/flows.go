//go:build linux

package bridge

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// forgetFlows deletes from connection tracking what frontends sent to
// endpoints that before had and now has not: UDP flows, and TCP connections
// that were never answered. UDP flows that began while a published port had
// no endpoints go too: they would never find one. After a restart before is
// not known, and every endpoint of the fleet's networks counts.
func (d *Driver) forgetFlows(now, before []network.Rule, restarted bool) error {
	s := newStale(now, before)
	if restarted {
		s.protocols[network.TCP], s.protocols[network.UDP] = true, true
		d.networks.RLock()
		for _, nw := range d.nets {
			s.subnets = slices.Concat(s.subnets, nw.Subnets, nw.Whole)
		}
		d.networks.RUnlock()
	}
	if s.protocols[network.UDP] {
		addresses, err := d.host.AddrList(nil, unix.AF_UNSPEC)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addresses {
			if p, ok := prefixOf(a.IPNet); ok {
				s.local[p.Addr()] = true
			}
		}
	}
	if len(s.protocols) > 0 {
		settle()
	}
	forgotten := 0
	defer func() { // also where it ends half-way
		if forgotten > 0 && d.options.Forgotten != nil {
			d.options.Forgotten()
		}
	}()
	for _, protocol := range []network.Protocol{network.TCP, network.UDP} {
		if !s.protocols[protocol] {
			continue
		}
		n, err := d.forgetProtocol(protocol, s)
		forgotten += n
		if err != nil {
			return fmt.Errorf("forget %s flows: %w", protocol, err)
		}
	}
	return nil
}

// settle waits until the packets have passed that were under way in the table when
// it changed, some 8 ms: connection tracking lists none before it has. membarrier(2)
// returns when each processor has been through a state in which it holds nothing
// that RCU protects, and a packet in a hook does. A kernel that does not offer it
// leaves a chance of some hundred nanoseconds for each change.
func settle() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
}

// stale decides which flows lead nowhere.
type stale struct {
	protocols map[network.Protocol]bool // that can have some
	// now and before have the endpoints of every frontend that changed. A
	// published port is under the unspecified address of each family.
	now, before map[target]map[netip.AddrPort]bool
	subnets     []netip.Prefix      // whose addresses were endpoints if anything was
	local       map[netip.Addr]bool // the node's addresses
}

// target is what a client sent to.
type target struct {
	protocol network.Protocol
	to       netip.AddrPort
}

func newStale(now, before []network.Rule) stale {
	s := stale{
		protocols: map[network.Protocol]bool{},
		now:       map[target]map[netip.AddrPort]bool{},
		before:    map[target]map[netip.AddrPort]bool{},
		local:     map[netip.Addr]bool{},
	}
	for _, r := range now {
		for _, t := range targets(r) {
			s.now[t] = endpointSet(r)
		}
	}
	for _, r := range before {
		for _, t := range targets(r) {
			s.before[t] = endpointSet(r)
			for e := range s.before[t] {
				if !s.now[t][e] {
					s.protocols[r.Protocol] = true // withdrawn
				}
			}
		}
	}
	for _, r := range now {
		for _, t := range targets(r) {
			if r.Protocol == network.UDP && len(s.before[t]) == 0 && len(r.Endpoints) > 0 {
				s.protocols[network.UDP] = true // served now and not before
			}
		}
	}
	return s
}

func endpointSet(r network.Rule) map[netip.AddrPort]bool {
	set := make(map[netip.AddrPort]bool, len(r.Endpoints))
	for _, e := range r.Endpoints {
		set[e] = true
	}
	return set
}

func targets(r network.Rule) []target {
	addresses := []netip.Addr{r.Address}
	switch {
	case r.Address.IsValid():
	case r.HostIP.IsValid():
		addresses[0] = r.HostIP
	default:
		addresses = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	var all []target
	for _, a := range addresses {
		all = append(all, target{r.Protocol, netip.AddrPortFrom(a, r.Port)})
	}
	return all
}

// flow is an entry of connection tracking as a frontend sees it.
type flow struct {
	target                // where the client sent it
	from   netip.AddrPort // who answers
	status conntrack.Status
}

func flowOf(f conntrack.Flow) flow {
	protocol := network.TCP
	if f.Original.Protocol == unix.IPPROTO_UDP {
		protocol = network.UDP
	}
	return flow{target{protocol, f.Original.Dst}, f.Reply.Src, f.Status}
}

// has reports whether a flow should go.
func (s stale) has(f flow) bool {
	everywhere := target{f.protocol, netip.AddrPortFrom(unspecified(f.to.Addr()), f.to.Port())}
	if s.now[f.target][f.from] || s.now[everywhere][f.from] {
		return false
	}
	if f.status&conntrack.DestinationNAT != 0 {
		within := func(p netip.Prefix) bool { return p.Contains(f.from.Addr()) }
		return s.before[f.target][f.from] || s.before[everywhere][f.from] || slices.ContainsFunc(s.subnets, within)
	}
	// Not translated: it went to the node itself while nobody served it.
	served := len(s.now[f.target]) > 0 || len(s.now[everywhere]) > 0
	return f.protocol == network.UDP && served && f.from == f.to && (s.local[f.to.Addr()] || f.to.Addr().IsLoopback())
}

// forgetProtocol goes through the flows of one protocol, and returns how many it
// deleted. For TCP the kernel
// is asked for unanswered translated ones only; a kernel before 5.17 ignores
// the wish and sends all, which costs time and nothing else.
func (d *Driver) forgetProtocol(protocol network.Protocol, s stale) (deleted int, err error) {
	c, err := conntrack.Dial(d.hostFD())
	if err != nil {
		return deleted, err
	}
	defer c.Close() //nolint:errcheck // what was written is acknowledged
	var values, bits conntrack.Status
	if protocol == network.TCP {
		values, bits = conntrack.DestinationNAT, conntrack.DestinationNAT|conntrack.SeenReply
	}
	all, err := c.List(values, bits)
	if err != nil {
		return deleted, err
	}
	for _, entry := range all {
		f := flowOf(entry)
		if f.protocol != protocol || !s.has(f) {
			continue
		}
		if protocol == network.TCP && f.status&conntrack.SeenReply != 0 {
			continue // established: it ends when it ends
		}
		if err := c.Delete(entry); err != nil {
			return deleted, err
		}
		deleted++
	}
	return deleted, nil
}
