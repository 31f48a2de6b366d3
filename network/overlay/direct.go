//go:build linux

package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// Direct says to which nodes packets go as they are, by a plain route to the
// other node's address on a link that both are on. To all others they go by
// VXLAN. Either way the receiving node takes both.
type Direct string

// The choices.
const (
	// DirectAuto, also when empty, uses direct routes to nodes whose underlay
	// address is of the same subnet. The link must pass packets with addresses
	// that are not its hosts' own: a virtual network of a cloud may have to be
	// told so (there it is called the source and destination check, or IP
	// forwarding), else choose DirectNever.
	DirectAuto Direct = "auto"
	// DirectAlways uses direct routes to all nodes: they are all on one link,
	// though their subnets do not say so.
	DirectAlways Direct = "always"
	// DirectNever uses VXLAN alone, and takes nothing else.
	DirectNever Direct = "never"
)

// underlay is the interface by which other nodes are reached.
type underlay struct {
	name  string
	index int
	mtu   int
	addrs []netip.Prefix // its addresses, the one of Options first
}

// underlay finds the interface with the underlay's address.
func (d *Driver) underlay() (underlay, error) {
	all, err := d.host.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return underlay{}, fmt.Errorf("list addresses: %w", err)
	}
	at := slices.IndexFunc(all, func(a netlink.Addr) bool {
		p, ok := prefixOf(a.IPNet)
		return ok && p.Addr() == d.opts.Underlay
	})
	if at < 0 {
		return underlay{}, &network.ConfigError{Field: "underlay", Reason: fmt.Sprintf("no interface of this node has %v", d.opts.Underlay)}
	}
	link, err := d.host.LinkByIndex(all[at].LinkIndex)
	if err != nil {
		return underlay{}, fmt.Errorf("interface with %v: %w", d.opts.Underlay, err)
	}
	u := underlay{name: link.Attrs().Name, index: link.Attrs().Index, mtu: link.Attrs().MTU}
	for _, a := range all {
		// Addresses that come and go are not told to others.
		const passing = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_DADFAILED
		if p, ok := prefixOf(a.IPNet); ok && a.LinkIndex == u.index && (a.Flags&passing == 0 || p.Addr() == d.opts.Underlay) {
			u.addrs = append(u.addrs, p)
		}
	}
	slices.SortFunc(u.addrs, func(a, b netip.Prefix) int {
		return cmp.Or(-cmp.Compare(rank(a.Addr(), d.opts.Underlay), rank(b.Addr(), d.opts.Underlay)), a.Addr().Compare(b.Addr()))
	})
	return u, nil
}

// rank orders addresses of one interface by how good they are to be reached by.
func rank(a, underlay netip.Addr) int {
	switch {
	case a == underlay:
		return 2
	case !a.IsLinkLocalUnicast():
		return 1
	default:
		return 0
	}
}

// nextHop returns the address of a peer by which a part of a network on it, of
// one family, is reached directly. Mine and theirs are the addresses of both
// nodes on their underlay, the best first. It is a function of what both know,
// so that both come to the same, but for a moment.
//
// IPv4 can be sent to a neighbour by its IPv6 address (RFC 5549's next hop), not
// the other way round: then a link-local address will do, which Linux gives to
// every interface.
func nextHop(mode Direct, mine, theirs []netip.Prefix, ipv4 bool) (netip.Addr, bool) {
	if mode == DirectNever || len(mine) == 0 || len(theirs) == 0 || mode != DirectAlways && !sameSubnet(mine[0], theirs[0]) {
		return netip.Addr{}, false
	}
	for _, hop4 := range []bool{true, false} {
		if hop4 && !ipv4 {
			continue
		}
		for i, t := range theirs {
			if t.Addr().Is4() != hop4 {
				continue
			}
			if i == 0 && mode == DirectAlways && mine[0].Addr().Is4() == hop4 {
				return t.Addr(), true
			}
			if slices.ContainsFunc(mine, func(m netip.Prefix) bool { return sameSubnet(m, t) }) {
				return t.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}

// sameSubnet reports whether each of two addresses of interfaces is in the
// other's subnet.
func sameSubnet(a, b netip.Prefix) bool { return a.Contains(b.Addr()) && b.Contains(a.Addr()) }
