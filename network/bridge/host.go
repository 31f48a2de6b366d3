//go:build linux

package bridge

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// checkRoutes refuses a network whose addresses the node reaches elsewhere. Routes
// of the network itself, as it is to be or was, do not count.
func (d *Driver) checkRoutes(nw, old *segment) error {
	routes, err := d.host.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		to, ok := prefixOf(r.Dst)
		if !ok || to.Bits() == 0 || to.Addr().IsLinkLocalUnicast() || to.Addr().IsMulticast() {
			continue
		}
		name := "another interface"
		if link, err := d.host.LinkByIndex(r.LinkIndex); err == nil {
			name = link.Attrs().Name
		}
		if name == nw.bridge || name == nw.link || nw.toPeers(to, r.Protocol) || old != nil && old.toPeers(to, r.Protocol) {
			continue
		}
		for _, mine := range slices.Concat(nw.Subnets, nw.Virtual) {
			if mine.Overlaps(to) {
				return &network.ConfigError{Network: nw.Name, Field: "subnets", Reason: fmt.Sprintf("%s overlaps the route to %s by %s of this node; choose another range", mine, to, name)}
			}
		}
	}
	return nil
}

// uplinkMTU is the MTU of the interface with the default route: a larger one
// in a task would be fragmented or lost on the way out.
func (d *Driver) uplinkMTU() int {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := d.host.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			continue
		}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 || r.LinkIndex == 0 {
				continue
			}
			if link, err := d.host.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU >= 1280 {
				return link.Attrs().MTU
			}
		}
	}
	return 1500 // Ethernet's
}

// hostSysctls sets what the node must do for the network. What holds for the
// whole node is never turned back, because others may have come to need it.
func (d *Driver) hostSysctls(nw *segment) error {
	return inside(d.hostNS, func() error {
		if nw.gateway(true).IsValid() {
			err := errors.Join(
				setSysctl("net.ipv4.ip_forward", "1"),
				// Connections of the node's own processes from 127.0.0.1 to a
				// published port leave by the bridge. What a task sends to
				// 127.0.0.0/8 of the node is dropped in the table.
				setSysctl("net/ipv4/conf/"+nw.bridge+"/route_localnet", "1"),
				// Tasks reach each other by way of the node, on purpose. The
				// kernel takes the greater of the two values, so that "all"
				// off changes nothing for interfaces whose own is on. It
				// matters: a redirect, even one that the table drops, uses up
				// the allowance for refusals by ICMP.
				setSysctl("net/ipv4/conf/"+nw.bridge+"/send_redirects", "0"),
				setSysctl("net.ipv4.conf.all.send_redirects", "0"),
			)
			if err != nil {
				return err
			}
		}
		if !nw.gateway(false).IsValid() {
			return nil
		}
		if err := keepRouterAdvertisements(); err != nil {
			return err
		}
		return errors.Join(
			setSysctl("net.ipv6.conf.all.forwarding", "1"),
			setSysctl("net/ipv6/conf/"+nw.bridge+"/accept_ra", "0"),
		)
	})
}

// filterBridges are the switches of br_netfilter, which makes bridged packets
// pass the hooks of nftables as if they were routed.
const filterBridges = "/proc/sys/net/bridge/bridge-nf-call-"

// leaveBridgesAlone turns br_netfilter off where all bridges of the node are
// of fleets like this one, which do not need it: it costs a tenth of the
// throughput, and replies to ::1 get lost in it. Another program's bridge
// may need it, so where there is one it stays as it is.
func (d *Driver) leaveBridgesAlone() error {
	if !d.bridged {
		return nil
	}
	links, err := d.host.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Type() == "bridge" && !ourBridge.MatchString(l.Attrs().Name) {
			return nil
		}
	}
	return inside(d.hostNS, func() error {
		return errors.Join(setSysctl("net.bridge.bridge-nf-call-iptables", "0"), setSysctl("net.bridge.bridge-nf-call-ip6tables", "0"))
	})
}

// ourBridge is the form of Driver.name for bridges, of any fleet.
var ourBridge = regexp.MustCompile("^ob[0-9a-f]{12}$")

// loopback6 reports whether published ports can be had at ::1. Where
// br_netfilter is on for IPv6 they cannot: it translates the reply before the
// kernel looks whether ::1 came from outside. Connections are then refused
// at once, and clients of "localhost" go on to 127.0.0.1.
func (d *Driver) loopback6() bool {
	on := []byte("0")
	_ = inside(d.hostNS, func() (err error) { // without br_netfilter there is no file
		on, err = os.ReadFile(filterBridges + "ip6tables")
		return err
	})
	return len(on) == 0 || on[0] == '0'
}

// followBridgeFilter takes note where somebody switched br_netfilter on or off
// since the table was written.
func (d *Driver) followBridgeFilter() error {
	d.networks.RLock()
	defer d.networks.RUnlock()
	if now := d.loopback6(); now != d.table.publishesLoopback6() {
		return d.table.setNetworks(slices.Collect(maps.Values(d.nets)), now)
	}
	return nil
}

// keepRouterAdvertisements keeps the default routes of a node that learnt
// them by IPv6 router advertisements: a kernel that forwards ignores those,
// unless accept_ra is 2.
func keepRouterAdvertisements() error {
	if on, err := os.ReadFile(sysctlPath("net.ipv6.conf.all.forwarding")); err != nil || on[0] != '0' {
		return err
	}
	entries, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := "net/ipv6/conf/" + e.Name() + "/accept_ra"
		if accept, err := os.ReadFile(sysctlPath(name)); err != nil || accept[0] != '1' {
			continue // an interface that went away meanwhile needs nothing
		}
		if err := setSysctl(name, "2"); err != nil {
			return err
		}
	}
	return nil
}
