//go:build linux

package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// Attach implements network.Driver.
func (d *Driver) Attach(ctx context.Context, a network.Attachment) (network.Interface, error) {
	if err := d.begin(ctx); err != nil {
		return network.Interface{}, err
	}
	if err := a.Validate(); err != nil {
		return network.Interface{}, err
	}
	unlock := d.locks.lock("task/" + a.Task)
	defer unlock()
	d.networks.RLock()
	defer d.networks.RUnlock()
	if err := d.begin(ctx); err != nil { // closed while waiting
		return network.Interface{}, err
	}
	iface, err := d.attach(a)
	if err != nil {
		return network.Interface{}, fmt.Errorf("attach task %s to network %q: %w", a.Task, a.Network, err)
	}
	return iface, nil
}

func (d *Driver) attach(a network.Attachment) (network.Interface, error) {
	nw := d.nets[a.Network]
	if nw == nil || nw.index == 0 {
		return network.Interface{}, network.ErrNoNetwork
	}
	if !isNamespace(a.Namespace) {
		return network.Interface{}, fmt.Errorf("%s: %w", a.Namespace, network.ErrNoNamespace)
	}
	namespace, err := os.Open(a.Namespace)
	if err != nil {
		return network.Interface{}, err
	}
	defer namespace.Close() //nolint:errcheck // read-only
	a, fresh, err := d.holdAddresses(nw, a)
	if err != nil {
		return network.Interface{}, err
	}
	// gofail: var addressesHeld struct{}
	// die()
	iface := network.Interface{Name: a.Interface, Gateways: nw.Gateways()}
	for i, addr := range a.Addresses {
		iface.Addresses = append(iface.Addresses, netip.PrefixFrom(addr, nw.Subnets[i].Bits()))
	}
	hardware := mac(d.options.ID, a.Network, a.Task, a.Interface)
	iface.MAC = hardware.String()
	err = d.plug(nw, a, veth{
		name: d.portName(a), peer: a.Interface, bridge: nw.index, mtu: nw.mtu, mac: hardware, namespace: namespace,
	})
	if err != nil && fresh {
		err = errors.Join(err, d.unplug(a), d.releaseAddresses(nw, a))
	}
	if err != nil {
		return network.Interface{}, err
	}
	return iface, nil
}

func (d *Driver) portName(a network.Attachment) string {
	return d.name("v", a.Network, a.Task, a.Interface)
}

// holdAddresses returns the attachment with the addresses it has, or with new
// ones, written down, in the order of the subnets. Fresh says that it had
// none.
func (d *Driver) holdAddresses(nw *segment, a network.Attachment) (held network.Attachment, fresh bool, err error) {
	wanted, err := nw.Split(a.Addresses)
	if err != nil {
		return a, false, err
	}
	d.mu.Lock()
	had, known := d.attachments[keyOf(a)]
	d.mu.Unlock()
	if known && len(had.Addresses) == len(nw.Subnets) {
		a.Addresses = had.Addresses
		if had.Namespace == a.Namespace && had.Default == a.Default {
			return a, false, nil
		}
		for _, addr := range a.Addresses {
			if err := d.state.rehold(a, addr); err != nil {
				return a, false, err
			}
		}
		d.remember(a)
		return a, false, nil
	}
	// A program killed between the files of two families left one of them.
	// It was never used: begin again.
	if known {
		if err := d.releaseAddresses(nw, had); err != nil {
			return a, false, err
		}
	}
	a.Addresses = nil
	for i, pool := range nw.pools {
		addr, err := d.holdAddress(pool, a, wanted[i])
		if err != nil {
			return a, false, errors.Join(err, d.releaseAddresses(nw, a))
		}
		a.Addresses = append(a.Addresses, addr)
	}
	d.remember(a)
	return a, true, nil
}

// holdAddress takes one address and writes down whose it is.
func (d *Driver) holdAddress(pool *network.Pool, a network.Attachment, wanted netip.Addr) (netip.Addr, error) {
	for {
		addr := wanted
		var err error
		if wanted.IsValid() {
			err = pool.Claim(wanted)
		} else {
			addr, err = pool.Take()
		}
		if err != nil {
			return netip.Addr{}, err
		}
		err = d.state.hold(a, addr)
		if err == nil {
			return addr, nil
		}
		// The file of an address that the pool thinks free: what is written
		// wins, and the pool keeps it as taken.
		if !errors.Is(err, fs.ErrExist) {
			pool.Free(addr)
			return netip.Addr{}, err
		}
		if wanted.IsValid() {
			return netip.Addr{}, &network.AddressError{Address: addr, Prefix: pool.Prefix(), Reason: "is taken; ask for another or for none", Taken: true}
		}
	}
}

func (d *Driver) remember(a network.Attachment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a.Addresses = slices.Clone(a.Addresses)
	d.attachments[keyOf(a)] = a
}

// releaseAddresses forgets an attachment and frees its addresses, the files
// first: an address in a file is never handed out.
func (d *Driver) releaseAddresses(nw *segment, a network.Attachment) error {
	for _, addr := range a.Addresses {
		if err := d.state.release(a.Network, addr); err != nil {
			return err
		}
	}
	d.mu.Lock()
	delete(d.attachments, keyOf(a))
	d.mu.Unlock()
	for _, addr := range a.Addresses {
		for _, pool := range nw.pools {
			pool.Free(addr)
		}
	}
	return nil
}

// plug makes the pair of interfaces, or finds it as it should be, and sets
// addresses and routes in the namespace.
func (d *Driver) plug(nw *segment, a network.Attachment, v veth) error {
	inner, err := dial(v.namespace)
	if err != nil {
		return err
	}
	defer inner.Close()
	err = d.host.addVeth(v)
	if errors.Is(err, unix.EEXIST) {
		link, lookErr := inner.LinkByName(v.peer)
		switch {
		case lookErr == nil && slices.Equal(link.Attrs().HardwareAddr, v.mac) && d.isPort(v):
			err = nil // made by an earlier call
		case lookErr == nil && !slices.Equal(link.Attrs().HardwareAddr, v.mac):
			return &network.ConfigError{Network: a.Network, Field: "interface", Reason: fmt.Sprintf("%s is in the namespace already and of another network; use another name", a.Interface)}
		default:
			// Its other end is in a namespace that was made anew.
			if err := d.unplug(a); err != nil {
				return err
			}
			err = d.host.addVeth(v)
		}
	}
	if err != nil {
		return fmt.Errorf("add interface %s: %w", a.Interface, err)
	}
	// gofail: var linkAdded struct{}
	// die()
	if d.bridged {
		if err := d.host.LinkSetHairpin(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: v.name}}, true); err != nil {
			return fmt.Errorf("interface %s: hairpin: %w", v.name, err)
		}
	}
	if err := configure(inner, nw, a); err != nil {
		return err
	}
	// gofail: var linkConfigured struct{}
	// die()
	return d.introduce(nw, a, v.mac)
}

// introduce tells the node where the task's addresses are, so that it never
// has to ask: a busy task answers no neighbour solicitation in time, and
// connections to it would fail as to a host that is not there.
func (d *Driver) introduce(nw *segment, a network.Attachment, hardware net.HardwareAddr) error {
	for _, addr := range a.Addresses {
		err := d.host.NeighSet(&netlink.Neigh{
			LinkIndex: nw.index, IP: addr.AsSlice(), HardwareAddr: hardware, State: netlink.NUD_PERMANENT,
		})
		if err != nil {
			return fmt.Errorf("neighbour entry of %v: %w", addr, err)
		}
	}
	return nil
}

// forget undoes introduce.
func (d *Driver) forget(nw *segment, a network.Attachment) error {
	for _, addr := range a.Addresses {
		err := d.host.NeighDel(&netlink.Neigh{LinkIndex: nw.index, IP: addr.AsSlice()})
		if err != nil && !isGone(err) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("neighbour entry of %v: %w", addr, err)
		}
	}
	return nil
}

// isPort reports whether the host's end is on the bridge.
func (d *Driver) isPort(v veth) bool {
	link, err := d.host.LinkByName(v.name)
	return err == nil && link.Attrs().MasterIndex == v.bridge
}

// configure sets addresses and routes of a task's interface. There is no
// route to the subnet itself: everything goes by the gateway, other tasks of
// the network too. That way the replies of an endpoint always pass the node,
// which has to put the virtual address back as their source, and tasks see
// the addresses of their clients.
func configure(inner *conn, nw *segment, a network.Attachment) error {
	link, err := inner.LinkByName(a.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", a.Interface, err)
	}
	if err := inner.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s: up: %w", a.Interface, err)
	}
	index := link.Attrs().Index
	for i, addr := range a.Addresses {
		subnet := nw.Subnets[i]
		err := inner.AddrReplace(link, &netlink.Addr{
			IPNet: ipNet(netip.PrefixFrom(addr, subnet.Bits())),
			Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE,
		})
		if err != nil {
			return fmt.Errorf("interface %s: address %s: %w", a.Interface, addr, err)
		}
		gateway := nw.gateway(addr.Is4())
		via := func(to netip.Prefix, table int) error {
			err := inner.RouteReplace(&netlink.Route{
				LinkIndex: index, Dst: ipNet(to), Gw: gateway.AsSlice(), Src: addr.AsSlice(),
				Flags: int(netlink.FLAG_ONLINK), Protocol: routeProtocol, Table: table,
			})
			if err != nil {
				return fmt.Errorf("interface %s: route to %s: %w", a.Interface, to, err)
			}
			return nil
		}
		everywhere := netip.PrefixFrom(unspecified(addr), 0)
		if err := via(subnet, unix.RT_TABLE_MAIN); err != nil {
			return err
		}
		if a.Default {
			if err := via(everywhere, unix.RT_TABLE_MAIN); err != nil {
				return err
			}
			continue
		}
		for _, v := range slices.Concat(nw.Virtual, nw.Whole) {
			if v.Addr().Is4() == addr.Is4() {
				if err := via(v.Masked(), unix.RT_TABLE_MAIN); err != nil {
					return err
				}
			}
		}
		// Replies to clients from elsewhere leave by the network they came
		// in on, not by the default one: strict reverse path filters ask so.
		table := ownTables + index
		if err := via(everywhere, table); err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Src, rule.Table, rule.Priority = ipNet(netip.PrefixFrom(addr, addr.BitLen())), table, ownTables
		rule.Family = family(addr)
		if err := inner.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("interface %s: rule for %s: %w", a.Interface, addr, err)
		}
	}
	return nil
}

// ownTables is where the numbers of routing tables begin that non-default
// interfaces of a task have of their own; those to 255 are the kernel's.
const ownTables = 1000

func family(addr netip.Addr) int {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func unspecified(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Detach implements network.Driver.
func (d *Driver) Detach(ctx context.Context, a network.Attachment) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	unlock := d.locks.lock("task/" + a.Task)
	defer unlock()
	d.networks.RLock()
	defer d.networks.RUnlock()
	if err := d.begin(ctx); err != nil { // closed while waiting
		return err
	}
	d.mu.Lock()
	had, known := d.attachments[keyOf(a)]
	d.mu.Unlock()
	if !known {
		return nil
	}
	// The interface goes first: an address that is still on one must not be
	// handed out.
	nw := d.nets[a.Network]
	err := d.unplug(had)
	// gofail: var linkRemoved struct{}
	// die()
	if err == nil && nw.index != 0 {
		err = d.forget(nw, had)
	}
	// gofail: var neighboursForgotten struct{}
	// die()
	if err == nil {
		err = d.releaseAddresses(nw, had)
	}
	if err != nil {
		return fmt.Errorf("detach task %s from network %q: %w", a.Task, a.Network, err)
	}
	return nil
}

// unplug removes the pair of interfaces, if it is there.
func (d *Driver) unplug(a network.Attachment) error {
	err := d.host.deleteLink(d.portName(a))
	if err != nil && !isGone(err) {
		return fmt.Errorf("remove interface %s: %w", d.portName(a), err)
	}
	return nil
}

// Attachments implements network.Driver.
func (d *Driver) Attachments(ctx context.Context) ([]network.Attachment, error) {
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]network.Attachment, 0, len(d.attachments))
	for _, a := range d.attachments {
		a.Addresses = slices.Clone(a.Addresses)
		all = append(all, a)
	}
	network.SortAttachments(all)
	return all, nil
}

// within reports whether the address of a holding is in a subnet.
func (h holding) within(subnet netip.Prefix) bool { return subnet.Contains(h.address) }

// bySubnet orders addresses as their subnets are.
func bySubnet(subnets []netip.Prefix) func(a, b netip.Addr) int {
	at := func(a netip.Addr) int {
		return slices.IndexFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return func(a, b netip.Addr) int { return at(a) - at(b) }
}
