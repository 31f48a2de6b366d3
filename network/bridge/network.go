//go:build linux

package bridge

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// Ensure implements network.Driver. A subnet or virtual range that a route of
// the node covers already is refused. What changes on a network with
// attachments (MTU, Internal, Virtual) holds for what is attached from then
// on, and for the node at once.
func (d *Driver) Ensure(ctx context.Context, n network.Network) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	if err := n.Validate(); err != nil {
		return err
	}
	for option := range n.Options {
		return &network.ConfigError{Network: n.Name, Field: "options", Reason: fmt.Sprintf("%q is unknown; the bridge driver has none", option)}
	}
	for i, p := range n.Subnets {
		n.Subnets = slices.Clone(n.Subnets)
		n.Subnets[i] = p.Masked()
	}
	d.networks.Lock()
	defer d.networks.Unlock()
	if err := d.begin(ctx); err != nil { // closed while waiting
		return err
	}
	others := make([]network.Network, 0, len(d.nets))
	for _, other := range d.nets {
		others = append(others, other.Network)
	}
	if err := n.Overlaps(others); err != nil {
		return err
	}
	old := d.nets[n.Name]
	nw, err := d.newNet(n)
	if err != nil {
		return err
	}
	if old != nil {
		if err := n.Changes(old.Network); err == nil {
			nw.pools = old.pools
		} else if len(d.tasksOn(n.Name)) > 0 {
			return err
		}
	}
	if err := d.checkRoutes(nw, old); err != nil {
		return err
	}
	if err := d.ensure(nw, old); err != nil {
		return fmt.Errorf("ensure network %q: %w", n.Name, err)
	}
	return nil
}

// ensure writes the network down first, so that what it makes next is found
// and removed even when the program is killed in between.
func (d *Driver) ensure(nw, old *segment) error {
	if err := d.state.saveNetwork(nw.Network); err != nil {
		return err
	}
	// gofail: var networkSaved struct{}
	// die()
	d.nets[nw.Name] = nw
	if old != nil && !slices.Equal(old.Whole, nw.Whole) {
		if err := d.removePeerRoutes(old); err != nil {
			return err
		}
	}
	if err := d.makeBridge(nw); err != nil {
		return err
	}
	// gofail: var bridgeMade struct{}
	// die()
	if err := d.hostSysctls(nw); err != nil {
		return err
	}
	if err := d.leaveBridgesAlone(); err != nil {
		return err
	}
	if err := d.table.setNetworks(slices.Collect(maps.Values(d.nets)), d.loopback6()); err != nil {
		return err
	}
	// gofail: var networkTableSet struct{}
	// die()
	if old == nil {
		d.log.Info("network ensured", "network", nw.Name, "bridge", nw.bridge, "subnets", nw.Subnets)
	}
	return nil
}

// makeBridge makes the bridge with its addresses and routes, or brings one
// that is there to what it should be.
func (d *Driver) makeBridge(nw *segment) error {
	nw.mtu = cmp.Or(nw.MTU, d.options.MTU)
	if nw.mtu == 0 {
		nw.mtu = d.uplinkMTU()
	}
	link, err := d.host.LinkByName(nw.bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		snooping := false // a handful of ports: flooding is cheaper than tracking
		err = d.host.LinkAdd(&netlink.Bridge{
			LinkAttrs: netlink.LinkAttrs{
				Name: nw.bridge, MTU: nw.mtu, TxQLen: -1,
				// A bridge without an address of its own changes it with its
				// ports, and peers would have to resolve it again.
				HardwareAddr: mac(d.options.ID, nw.Name),
			},
			MulticastSnooping: &snooping,
		})
		if err != nil {
			return fmt.Errorf("add bridge %s: %w", nw.bridge, err)
		}
		link, err = d.host.LinkByName(nw.bridge)
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", nw.bridge, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("interface %s is a %s, not a bridge: %w", nw.bridge, link.Type(), fs.ErrExist)
	}
	nw.index = link.Attrs().Index
	if link.Attrs().MTU != nw.mtu {
		if err := d.host.LinkSetMTU(link, nw.mtu); err != nil {
			return fmt.Errorf("bridge %s: mtu %d: %w", nw.bridge, nw.mtu, err)
		}
	}
	if err := d.setAddresses(nw, link); err != nil {
		return err
	}
	if err := d.host.LinkSetUp(link); err != nil {
		return fmt.Errorf("bridge %s: up: %w", nw.bridge, err)
	}
	return errors.Join(d.setVirtualRoutes(nw), d.loopbackRoute(nw, nw.index))
}

// setAddresses gives the bridge the gateways' addresses and takes away those
// of subnets that the network had before.
func (d *Driver) setAddresses(nw *segment, link netlink.Link) error {
	have, err := d.host.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("bridge %s: addresses: %w", nw.bridge, err)
	}
	want := map[netip.Prefix]bool{}
	for i, gw := range nw.Gateways() {
		want[netip.PrefixFrom(gw, nw.Subnets[i].Bits())] = true
	}
	for _, a := range have {
		p, ok := prefixOf(a.IPNet)
		switch {
		case !ok || p.Addr().IsLinkLocalUnicast():
		case want[p]:
			delete(want, p)
		default:
			if err := d.host.AddrDel(link, &a); err != nil {
				return fmt.Errorf("bridge %s: remove address %s: %w", nw.bridge, p, err)
			}
		}
	}
	for p := range want {
		if err := d.host.AddrReplace(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("bridge %s: add address %s: %w", nw.bridge, p, err)
		}
	}
	return nil
}

// setVirtualRoutes makes virtual addresses reachable for the node's own
// processes: without a route a connection fails before the output hook can
// send it to an endpoint. The gateway as source brings replies back.
func (d *Driver) setVirtualRoutes(nw *segment) error {
	routes, err := d.host.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{LinkIndex: nw.index, Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	want := map[netip.Prefix]bool{}
	for _, v := range nw.Virtual {
		if nw.gateway(v.Addr().Is4()).IsValid() {
			want[v.Masked()] = true
		}
	}
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && want[p] {
			delete(want, p)
			continue
		}
		if err := d.host.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", r.Dst, err)
		}
	}
	for p := range want {
		err := d.host.RouteReplace(&netlink.Route{
			LinkIndex: nw.index, Dst: ipNet(p), Src: nw.gateway(p.Addr().Is4()).AsSlice(),
			Scope: netlink.SCOPE_LINK, Protocol: routeProtocol,
		})
		if err != nil {
			return fmt.Errorf("route %s to bridge %s: %w", p, nw.bridge, err)
		}
	}
	return nil
}

// loopbackRoute lets replies to connections of the node's own processes from
// ::1 to a published port come in by an interface of the network: what
// route_localnet is for IPv4. The node itself prefers its own route to ::1, of
// metric 0.
func (d *Driver) loopbackRoute(nw *segment, index int) error {
	if !nw.gateway(false).IsValid() {
		return nil
	}
	err := d.host.RouteReplace(&netlink.Route{
		LinkIndex: index, Dst: ipNet(netip.PrefixFrom(netip.IPv6Loopback(), 128)),
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: 2000 + index, // one for each interface
		Protocol: routeProtocol,
	})
	if err != nil {
		return fmt.Errorf("network %s: route to ::1: %w", nw.Name, err)
	}
	return nil
}

// routeProtocol marks the routes that this driver made (RTPROT_STATIC is an
// administrator's; values from 192 up are free, see rtnetlink(7)).
const routeProtocol netlink.RouteProtocol = 217

// gateway returns the node's address of a family, if there is one.
func (s *segment) gateway(ipv4 bool) netip.Addr {
	for _, gw := range s.Gateways() {
		if gw.Is4() == ipv4 {
			return gw
		}
	}
	return netip.Addr{}
}

// Remove implements network.Driver.
func (d *Driver) Remove(ctx context.Context, name string) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	d.networks.Lock()
	defer d.networks.Unlock()
	if err := d.begin(ctx); err != nil { // closed while waiting
		return err
	}
	if tasks := d.tasksOn(name); len(tasks) > 0 {
		return &network.InUseError{Network: name, Tasks: tasks}
	}
	nw := d.nets[name]
	if nw == nil {
		return nil
	}
	rest := maps.Clone(d.nets)
	delete(rest, name)
	err := d.removeLinks(nw)
	if err == nil {
		err = d.table.setNetworks(slices.Collect(maps.Values(rest)), d.loopback6())
	}
	if err == nil {
		err = d.state.removeNetwork(name)
	}
	if err != nil {
		return fmt.Errorf("remove network %q: %w", name, err)
	}
	d.nets = rest
	d.log.Info("network removed", "network", name, "bridge", nw.bridge)
	return nil
}

// removeLinks takes a bridge away with all its ports, and the ways to other
// nodes.
func (d *Driver) removeLinks(nw *segment) error {
	if err := d.host.deleteLink(nw.link); err != nil && !isGone(err) {
		return fmt.Errorf("remove interface %s: %w", nw.link, err)
	}
	if err := d.removePeerRoutes(nw); err != nil {
		return err
	}
	bridge, err := d.host.LinkByName(nw.bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	links, err := d.host.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index && l.Type() == "veth" {
			if err := d.host.LinkDel(l); err != nil && !isGone(err) {
				return fmt.Errorf("remove interface %s: %w", l.Attrs().Name, err)
			}
		}
	}
	if err := d.host.LinkDel(bridge); err != nil && !isGone(err) {
		return fmt.Errorf("remove bridge %s: %w", nw.bridge, err)
	}
	return nil
}

func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.As(err, &netlink.LinkNotFoundError{})
}

// tasksOn returns the tasks attached to a network, sorted.
func (d *Driver) tasksOn(name string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var tasks []string
	for k := range d.attachments {
		if k.network == name {
			tasks = append(tasks, k.task)
		}
	}
	slices.Sort(tasks)
	return slices.Compact(tasks)
}

// mac derives a locally administered unicast address (IEEE 802: the second
// lowest bit of the first byte set, the lowest clear) from what has it.
func mac(parts ...string) net.HardwareAddr {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	m := net.HardwareAddr(h.Sum(nil)[:6])
	m[0] = m[0]&^1 | 2
	return m
}
