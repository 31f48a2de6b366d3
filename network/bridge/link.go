//go:build linux

package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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

// AdmitLink lets the node's own connections from its loopback addresses leave
// by a network's link and by the uplinks, as they may by its bridge. It is
// called once the link is there, and up.
func (d *Driver) AdmitLink(name string) error {
	d.networks.RLock()
	defer d.networks.RUnlock()
	nw := d.nets[name]
	if nw == nil {
		return network.ErrNoNetwork
	}
	link, err := d.host.LinkByName(nw.link)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", nw.link, err)
	}
	err = inside(d.hostNS, func() error {
		if !nw.gateway(true).IsValid() {
			return nil
		}
		return errors.Join(
			setSysctl("net/ipv4/conf/"+nw.link+"/route_localnet", "1"),
			setSysctl("net/ipv4/conf/"+nw.link+"/send_redirects", "0"),
			looseReversePath(nw.link),
		)
	})
	if err != nil {
		return err
	}
	if err := d.loopbackRoute(nw, link.Attrs().Index); err != nil {
		return err
	}
	for _, name := range d.options.Uplinks {
		if err := d.admitUplink(nw, name); err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	return nil
}

// looseReversePath has an interface of ours take what the node would answer by
// another one: of two nodes, one is the first to send another way. The kernel
// takes the greater of an interface's value and the one for all.
func looseReversePath(name string) error { return setSysctl("net/ipv4/conf/"+name+"/rp_filter", "2") }

// admitUplink does for an interface of the node's what AdmitLink does for one of
// ours. It writes down what it is about to change, so that it can be changed
// back: without the table's rules, which drop what others send to the node's
// loopback, route_localnet must not stay.
func (d *Driver) admitUplink(nw *segment, name string) error {
	link, err := d.host.LinkByName(name)
	if err != nil {
		return err
	}
	if nw.gateway(true).IsValid() {
		err = inside(d.hostNS, func() error {
			path := "net/ipv4/conf/" + name + "/route_localnet"
			if on, err := os.ReadFile(sysctlPath(path)); err == nil && on[0] == '0' {
				if err := os.WriteFile(d.state.uplinkPath(name), nil, 0o600); err != nil {
					return err
				}
			}
			return errors.Join(setSysctl(path, "1"), setSysctl("net/ipv4/conf/"+name+"/send_redirects", "0"))
		})
		if err != nil {
			return err
		}
	}
	return d.loopbackRoute(nw, link.Attrs().Index)
}

// leaveUplinks takes back what admitUplink did, before the table goes, unless
// another fleet of this machine needs it: that one takes it back then.
func (d *Driver) leaveUplinks() error {
	files, err := filepath.Glob(d.state.uplinkPath("*"))
	if err != nil || len(files) == 0 && len(d.options.Uplinks) == 0 {
		return err
	}
	if others, err := d.table.others(); err != nil || others {
		return err
	}
	var errs []error
	for _, file := range files {
		name := strings.TrimPrefix(filepath.Base(file), uplinkPrefix)
		err := inside(d.hostNS, func() error {
			return ignoreMissing(setSysctl("net/ipv4/conf/"+name+"/route_localnet", "0"))
		})
		if err == nil {
			err = os.Remove(file)
		}
		errs = append(errs, err)
	}
	for _, name := range d.options.Uplinks {
		link, err := d.host.LinkByName(name)
		if err == nil {
			err = d.host.RouteDel(&netlink.Route{
				LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(netip.IPv6Loopback(), 128)),
				Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: 2000 + link.Attrs().Index, Protocol: routeProtocol,
			})
		}
		if err != nil && !isGone(err) && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("interface %s: route to ::1: %w", name, err))
		}
	}
	return errors.Join(errs...)
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
// that lead over interfaces which stay.
func (d *Driver) removePeerRoutes(nw *segment) error {
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
