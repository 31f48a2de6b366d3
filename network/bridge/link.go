//go:build linux

package bridge

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// LinkName is the name of the interface by which a network that has a Whole
// reaches other nodes. Whoever makes it, as package overlay does, makes it a
// part of the network by this name; the driver removes it with the network.
func (d *Driver) LinkName(network string) string { return d.name("x", network) }

// TunnelName is the name of one of the interfaces of Options.Tunnels, counted
// from 0. Whoever makes it makes it by this name; Purge removes it.
func (d *Driver) TunnelName(i int) string { return d.name("w", strconv.Itoa(i)) }

// Port is where a task's interface is plugged in.
type Port struct {
	Name      string // of the host's end
	Link      int    // its index
	MAC       net.HardwareAddr
	Bridge    int
	BridgeMAC net.HardwareAddr
}

// Port finds where an attachment is plugged in.
func (d *Driver) Port(a network.Attachment) (Port, error) {
	d.networks.RLock()
	defer d.networks.RUnlock()
	nw := d.nets[a.Network]
	if nw == nil {
		return Port{}, network.ErrNoNetwork
	}
	port := Port{Name: d.portName(a), MAC: mac(d.options.ID, a.Network, a.Task, a.Interface)}
	link, err := d.host.LinkByName(port.Name)
	if err != nil {
		return Port{}, fmt.Errorf("interface %s: %w", port.Name, err)
	}
	bridge, err := d.host.LinkByName(nw.bridge)
	if err != nil {
		return Port{}, fmt.Errorf("interface %s: %w", nw.bridge, err)
	}
	port.Link, port.Bridge, port.BridgeMAC = link.Attrs().Index, bridge.Attrs().Index, bridge.Attrs().HardwareAddr
	return port, nil
}

// PortName is the name that Port returns.
func (d *Driver) PortName(a network.Attachment) string { return d.portName(a) }

func (d *Driver) tunnels() []string {
	var names []string
	for i := range d.options.Tunnels {
		names = append(names, d.TunnelName(i))
	}
	return names
}

// AdmitLinks lets the node's own connections from its loopback addresses leave
// by what leads to a network's other nodes, as they may by its bridge: its link
// if it has one, the uplinks and the tunnels. It is called once these are there,
// and up.
func (d *Driver) AdmitLinks(name string) error {
	d.networks.RLock()
	defer d.networks.RUnlock()
	nw := d.nets[name]
	if nw == nil {
		return network.ErrNoNetwork
	}
	for _, own := range append(d.tunnels(), nw.link) {
		link, err := d.host.LinkByName(own)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err == nil {
			err = d.admitLink(nw, link)
		}
		if err != nil {
			return fmt.Errorf("interface %s: %w", own, err)
		}
	}
	for _, name := range d.options.Uplinks {
		if err := d.admitUplink(nw, name); err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	return nil
}

func (d *Driver) admitLink(nw *segment, link netlink.Link) error {
	name := link.Attrs().Name
	err := inside(d.hostNS, func() error {
		if !nw.gateway(true).IsValid() {
			return nil
		}
		return errors.Join(
			setSysctl("net/ipv4/conf/"+name+"/route_localnet", "1"),
			setSysctl("net/ipv4/conf/"+name+"/send_redirects", "0"),
			looseReversePath(name),
		)
	})
	if err != nil {
		return err
	}
	return d.loopbackRoute(nw, link.Attrs().Index)
}

// TrimLinks takes away the ways to other nodes that an earlier driver made and
// this one is not to have, from the kernel and from the table: with tunnels all
// that are none, without them the tunnels.
func (d *Driver) TrimLinks() error {
	d.networks.Lock()
	defer d.networks.Unlock()
	left := d.leaveUplinks(d.options.Uplinks)
	if d.options.Tunnels == 0 {
		return errors.Join(left, d.removeTunnels())
	}
	errs := []error{left}
	changed := false
	for _, nw := range d.nets {
		if len(nw.Whole) == 0 {
			continue
		}
		changed = true
		if err := d.host.deleteLink(nw.link); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", nw.link, err))
		}
		errs = append(errs, d.removePeerRoutes(nw, d.tunnels()...))
	}
	if changed {
		errs = append(errs, d.table.setNetworks(slices.Collect(maps.Values(d.nets)), d.loopback6()))
	}
	return errors.Join(errs...)
}

// removeTunnels removes those of an earlier driver too.
func (d *Driver) removeTunnels() error {
	var errs []error
	for i := range max(d.options.Tunnels, 2) {
		if err := d.host.deleteLink(d.TunnelName(i)); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", d.TunnelName(i), err))
		}
	}
	return errors.Join(errs...)
}

// looseReversePath has an interface of ours take what the node would answer by
// another one: of two nodes, one is the first to send another way. The kernel
// takes the greater of an interface's value and the one for all.
func looseReversePath(name string) error { return setSysctl("net/ipv4/conf/"+name+"/rp_filter", "2") }

// admitUplink does for an interface of the node's what admitLink does for one of
// ours. It writes down what it is about to change, so that it can be changed
// back: without the table's rules, which drop what others send to the node's
// loopback, route_localnet must not stay.
func (d *Driver) admitUplink(nw *segment, name string) error {
	link, err := d.host.LinkByName(name)
	if err != nil {
		return err
	}
	err = inside(d.hostNS, func() error {
		path := "net/ipv4/conf/" + name + "/route_localnet"
		on, err := os.ReadFile(sysctlPath(path))
		if err != nil {
			return err
		}
		if err := d.state.noteUplink(name, on[0] == '0'); err != nil || !nw.gateway(true).IsValid() {
			return err
		}
		return errors.Join(setSysctl(path, "1"), setSysctl("net/ipv4/conf/"+name+"/send_redirects", "0"))
	})
	if err != nil {
		return err
	}
	return d.loopbackRoute(nw, link.Attrs().Index)
}

// leaveUplinks takes back what admitUplink did to interfaces that are uplinks no
// more, unless another fleet of this machine needs it: that one takes it back
// then. It is called before the table goes.
func (d *Driver) leaveUplinks(but []string) error {
	uplinks, err := d.state.uplinks()
	if err != nil || len(uplinks) == 0 {
		return err
	}
	if others, err := d.table.others(); err != nil || others {
		return err
	}
	var errs []error
	for name, changed := range uplinks {
		if slices.Contains(but, name) {
			continue
		}
		err := d.leaveUplink(name, changed)
		if err == nil {
			err = d.state.forgetUplink(name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (d *Driver) leaveUplink(name string, changed bool) error {
	link, err := d.host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = d.host.RouteDel(&netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(netip.IPv6Loopback(), 128)),
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: 2000 + link.Attrs().Index, Protocol: routeProtocol,
		})
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("interface %s: route to ::1: %w", name, err)
	}
	if !changed {
		return nil
	}
	return inside(d.hostNS, func() error { return setSysctl("net/ipv4/conf/"+name+"/route_localnet", "0") })
}

// others reports whether other fleets have tables on this machine.
func (t *table) others() (bool, error) {
	c, err := t.open()
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nft tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(other *nftables.Table) bool {
		return other.Name != t.name && strings.HasPrefix(other.Name, tablePrefix)
	}), nil
}

// removePeerRoutes takes away the routes to a network's parts on other nodes
// that lead over interfaces which stay, but for those over some.
func (d *Driver) removePeerRoutes(nw *segment, but ...string) error {
	if len(nw.Whole) == 0 {
		return nil
	}
	routes, err := d.host.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if to, ok := prefixOf(r.Dst); ok && nw.toPeers(to, r.Protocol) {
			if link, err := d.host.LinkByIndex(r.LinkIndex); err == nil && slices.Contains(but, link.Attrs().Name) || len(but) > 0 && r.Type == unix.RTN_BLACKHOLE {
				continue
			}
			if err := d.host.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove route to %s: %w", to, err)
			}
		}
	}
	return nil
}

// toPeers reports whether a route is one to a part of the network on another
// node.
func (s *segment) toPeers(to netip.Prefix, protocol netlink.RouteProtocol) bool {
	return protocol == routeProtocol && slices.ContainsFunc(s.Whole, func(w netip.Prefix) bool {
		return w.Bits() <= to.Bits() && w.Contains(to.Addr())
	})
}
