//go:build linux

package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/store"
)

// follower is the driver as a [store.Follower] of all slices.
type follower Driver

// Reset takes the slices of the snapshot.
func (f *follower) Reset(s store.Snapshot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.peers)
	for _, item := range s.Items {
		f.read(item)
	}
	f.seen = true
	return f.join(slices.Collect(maps.Keys(f.nets)))
}

// Apply follows one commit.
func (f *follower) Apply(b store.Batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := map[string]bool{}
	for _, c := range b.Changes {
		name, _, ok := splitKey(c.Item.Key)
		if !ok {
			continue
		}
		changed[name] = true
		if c.Deleted {
			delete(f.peers[name], c.Item.Key)
		} else {
			f.read(c.Item)
		}
	}
	return f.join(slices.Collect(maps.Keys(changed)))
}

func (f *follower) read(item store.Item) {
	name, _, ok := splitKey(item.Key)
	var s slice
	if err := json.Unmarshal(item.Value, &s); !ok || err != nil {
		f.log.Error("cannot read a slice's record", "key", item.Key, "error", err)
		return
	}
	if f.peers[name] == nil {
		f.peers[name] = map[string]slice{}
	}
	f.peers[name][item.Key] = s
}

// join brings networks up to what is known. What cannot be done for one peer
// must not keep the others away: it is logged, and tried again with the next
// change.
func (f *follower) join(names []string) error {
	d := (*Driver)(f)
	if err := d.reseal(); err != nil { // before the routes to what it knows
		d.log.Error("cannot tell tunnels of other nodes", "error", err)
	}
	for _, name := range names {
		if err := d.join(name); err != nil {
			d.log.Error("cannot reach other nodes", "network", name, "error", err)
		}
	}
	if d.joined != nil {
		d.joined()
	}
	return nil
}

// makeLink makes this node's end of a network, or finds it as it should be, and
// returns its index.
func (d *Driver) makeLink(part network.Network, vni, mtu int, mac net.HardwareAddr) (int, error) {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: d.LinkName(part.Name), MTU: mtu, TxQLen: -1, HardwareAddr: mac},
		VxlanId:   vni, SrcAddr: d.opts.Underlay.AsSlice(), Port: int(d.opts.Port),
		// Without a checksum over what has its own (RFC 6935 for IPv6).
		UDP6ZeroCSumTx: true, UDP6ZeroCSumRx: true,
	}
	link, err := d.host.LinkByName(want.Name)
	if err == nil {
		have, ok := link.(*netlink.Vxlan)
		if !ok || have.VxlanId != vni || have.Port != want.Port || !have.SrcAddr.Equal(want.SrcAddr) || !slices.Equal(have.HardwareAddr, mac) {
			if err := d.host.LinkDel(link); err != nil {
				return 0, fmt.Errorf("replace interface %s: %w", want.Name, err)
			}
			err = errGone
		}
	}
	if errors.Is(err, errGone) || errors.As(err, &netlink.LinkNotFoundError{}) {
		if err = d.host.LinkAdd(want); err == nil {
			link, err = d.host.LinkByName(want.Name)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", want.Name, err)
	}
	if link.Attrs().MTU != mtu {
		if err := d.host.LinkSetMTU(link, mtu); err != nil {
			return 0, fmt.Errorf("interface %s: mtu %d: %w", want.Name, mtu, err)
		}
	}
	// Nobody would hear what the kernel says of an address of its own choice.
	if err := d.host.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return 0, fmt.Errorf("interface %s: no address of the kernel's choice: %w", want.Name, err)
	}
	for _, gw := range part.Gateways() {
		// The address of the node's own connections to tasks elsewhere.
		err := d.host.AddrReplace(link, &netlink.Addr{
			IPNet: ipNet(netip.PrefixFrom(gw, gw.BitLen())), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE,
		})
		if err != nil {
			return 0, fmt.Errorf("interface %s: address %v: %w", want.Name, gw, err)
		}
	}
	if err := d.host.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("interface %s: up: %w", want.Name, err)
	}
	return link.Attrs().Index, nil
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

var errGone = errors.New("gone")

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// routeProtocol is that of package bridge.
const routeProtocol netlink.RouteProtocol = 217

// entries are what the kernel needs to know of peers: by what they are for.
type entries struct {
	forwarding map[string]netip.Addr // MAC -> underlay
	neighbours map[netip.Addr]string // the address that a route leads by -> MAC
	routes     map[netip.Prefix]hop  // by slice
	sources    map[bool]netip.Addr   // this node's gateway, by whether it is IPv4
}

// hop is where a route leads.
type hop struct {
	via  netip.Addr // the zero Addr for a tunnel, which has one other end for each address
	link int        // index of the interface
}

// entriesOf returns what this node is to know of the peers on a network.
func (d *Driver) entriesOf(o *overlay) entries {
	e := entries{map[string]netip.Addr{}, map[netip.Addr]string{}, map[netip.Prefix]hop{}, map[bool]netip.Addr{}}
	for _, gw := range (network.Network{Subnets: d.cut(o.whole, o.index)}).Gateways() {
		e.sources[gw.Is4()] = gw
	}
	count := d.sliceCount(o.whole)
	for key, peer := range d.peers[o.name] {
		_, index, _ := splitKey(key)
		if index == o.index || index >= count || peer.Node == d.opts.Node {
			continue
		}
		if d.seal != nil {
			if h, ok := d.sealedHop(peer.Node); ok {
				for _, p := range d.cut(o.whole, index) {
					e.routes[p] = h
				}
			}
			continue
		}
		if peer.Underlay.Is4() != d.opts.Underlay.Is4() {
			continue
		}
		mac, err := net.ParseMAC(peer.MAC)
		if err != nil || len(mac) != 6 {
			continue
		}
		e.forwarding[peer.MAC] = peer.Underlay
		part := network.Network{Subnets: d.cut(o.whole, index)}
		for i, gw := range part.Gateways() {
			if gw.Is6() {
				gw = linkLocal(mac)
			}
			e.neighbours[gw] = peer.MAC
			// Peers are known to the link also where a direct route passes it
			// by: one that moves needs another route then, and nothing else.
			e.routes[part.Subnets[i]] = hop{gw, o.link}
			if via, ok := nextHop(d.opts.Direct, o.way.addrs, peer.Link, gw.Is4()); ok {
				e.routes[part.Subnets[i]] = hop{via, o.way.index}
			}
		}
	}
	return e
}

// linkLocal derives an IPv6 address from that of an interface (RFC 4291, appendix
// A). For an address of another kind the kernel would look whether it is on
// that very link, and it is in the slice, whose route may lead elsewhere.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// join makes the kernel know the peers on a network, and no others. d.mu is
// held.
func (d *Driver) join(name string) error {
	o := d.nets[name]
	if o == nil || !d.seen || d.seal != nil && !d.seal.known {
		return nil
	}
	want := d.entriesOf(o)
	if d.seal != nil {
		return d.setRoutes(o, want)
	}
	// What leads to a peer comes before the route that uses it, and goes after.
	d.fastEnds(o, want)
	errs := []error{d.setForwarding(o, want, false), d.setNeighbours(o, want, false), d.setRoutes(o, want),
		d.setNeighbours(o, want, true), d.setForwarding(o, want, true)}
	return errors.Join(errs...)
}

func (d *Driver) setForwarding(o *overlay, want entries, clear bool) error {
	have, err := d.host.NeighList(o.link, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	same := map[string]bool{}
	var errs []error
	for _, n := range have {
		addr, _ := netip.AddrFromSlice(n.IP)
		mac := n.HardwareAddr.String()
		if want.forwarding[mac] == addr.Unmap() && addr.IsValid() {
			same[mac] = true
		} else if _, replaced := want.forwarding[mac]; clear && !replaced {
			n.Family, n.LinkIndex = unix.AF_BRIDGE, o.link
			errs = append(errs, gone(d.host.NeighDel(&n)))
		}
	}
	for mac, underlay := range want.forwarding {
		if clear || same[mac] {
			continue
		}
		hw, err := net.ParseMAC(mac)
		if err == nil {
			err = d.host.NeighSet(&netlink.Neigh{
				LinkIndex: o.link, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
				State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, HardwareAddr: hw, IP: underlay.AsSlice(),
			})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("forwarding entry of %s at %v: %w", mac, underlay, err))
		}
	}
	return errors.Join(errs...)
}

func (d *Driver) setNeighbours(o *overlay, want entries, clear bool) error {
	var errs []error
	same := map[netip.Addr]bool{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		have, err := d.host.NeighList(o.link, family)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range have {
			addr, ok := netip.AddrFromSlice(n.IP)
			addr = addr.Unmap()
			mac, wanted := want.neighbours[addr]
			switch {
			case ok && wanted && n.State == netlink.NUD_PERMANENT && mac == n.HardwareAddr.String():
				same[addr] = true
			case clear && !wanted && n.State == netlink.NUD_PERMANENT:
				errs = append(errs, gone(d.host.NeighDel(&n)))
			}
		}
	}
	for addr, mac := range want.neighbours {
		if clear || same[addr] {
			continue
		}
		hw, err := net.ParseMAC(mac)
		if err == nil {
			err = d.host.NeighSet(&netlink.Neigh{LinkIndex: o.link, IP: addr.AsSlice(), HardwareAddr: hw, State: netlink.NUD_PERMANENT})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("neighbour entry of %v: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// setRoutes takes away what leads elsewhere than it should only where nothing
// takes its place: a route is replaced in one step.
func (d *Driver) setRoutes(o *overlay, want entries) error {
	have, err := d.host.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	same := map[netip.Prefix]bool{}
	for _, r := range have {
		to, ok := prefixOf(r.Dst)
		if !ok || r.Type == unix.RTN_BLACKHOLE || !slices.ContainsFunc(o.whole, func(w netip.Prefix) bool { return w.Bits() <= to.Bits() && w.Contains(to.Addr()) }) {
			continue // another network's
		}
		if h, wanted := want.routes[to]; wanted && h == hopOf(r) {
			same[to] = true
		} else if !wanted {
			errs = append(errs, gone(d.host.RouteDel(&r)))
		}
	}
	for to, h := range want.routes {
		if same[to] {
			continue
		}
		r := &netlink.Route{LinkIndex: h.link, Dst: ipNet(to), Src: want.sources[to.Addr().Is4()].AsSlice(), Protocol: routeProtocol}
		switch {
		case !h.via.IsValid():
			r.Scope = netlink.SCOPE_LINK
		case h.via.Is4() == to.Addr().Is4():
			r.Gw, r.Flags = h.via.AsSlice(), int(netlink.FLAG_ONLINK)
		default:
			r.Via, r.Flags = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: h.via.AsSlice()}, int(netlink.FLAG_ONLINK)
		}
		if err := d.host.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("route to %v by %v: %w", to, h.via, err))
		}
	}
	return errors.Join(errs...)
}

// hopOf returns where a route of the kernel leads.
func hopOf(r netlink.Route) hop {
	via, _ := netip.AddrFromSlice(r.Gw)
	if v, ok := r.Via.(*netlink.Via); ok {
		via, _ = netip.AddrFromSlice(v.Addr)
	}
	return hop{via.Unmap(), r.LinkIndex}
}

// gone forgives the deletion of what is not there.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, size := n.Mask.Size()
	if size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones), ok
}
