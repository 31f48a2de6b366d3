//go:build linux

package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
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
	for _, protocol := range []network.Protocol{network.TCP, network.UDP} {
		if !s.protocols[protocol] {
			continue
		}
		if err := d.forgetProtocol(protocol, s); err != nil {
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

// flow is an entry of connection tracking.
type flow struct {
	target                  // where the client sent it
	from     netip.AddrPort // who answers
	status   uint32
	original []byte // attribute CTA_TUPLE_ORIG, to delete it by
}

// has reports whether a flow should go.
func (s stale) has(f flow) bool {
	everywhere := target{f.protocol, netip.AddrPortFrom(unspecified(f.to.Addr()), f.to.Port())}
	if s.now[f.target][f.from] || s.now[everywhere][f.from] {
		return false
	}
	if f.status&ipsDstNAT != 0 {
		within := func(p netip.Prefix) bool { return p.Contains(f.from.Addr()) }
		return s.before[f.target][f.from] || s.before[everywhere][f.from] || slices.ContainsFunc(s.subnets, within)
	}
	// Not translated: it went to the node itself while nobody served it.
	served := len(s.now[f.target]) > 0 || len(s.now[everywhere]) > 0
	return f.protocol == network.UDP && served && f.from == f.to && (s.local[f.to.Addr()] || f.to.Addr().IsLoopback())
}

// Of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
const (
	ctGet          = 1
	ctDelete       = 2
	ctaTupleOrig   = 1
	ctaTupleReply  = 2
	ctaStatus      = 3
	ctaTupleIP     = 1
	ctaTupleProto  = 2
	ctaIPv4Src     = 1
	ctaIPv4Dst     = 2
	ctaIPv6Src     = 3
	ctaIPv6Dst     = 4
	ctaProtoNum    = 1
	ctaProtoSrc    = 2
	ctaProtoDst    = 3
	ctaStatusMask  = 26
	ipsSeenReply   = 1 << 1
	nfgenmsgLength = 4
)

// forgetProtocol goes through the flows of one protocol. For TCP the kernel
// is asked for unanswered translated ones only; a kernel before 5.17 ignores
// the wish and sends all, which costs time and nothing else.
func (d *Driver) forgetProtocol(protocol network.Protocol, s stale) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: d.hostFD()})
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // what was written is acknowledged
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	if protocol == network.TCP {
		ae.Uint32(ctaStatus, ipsDstNAT)
		ae.Uint32(ctaStatusMask, ipsDstNAT|ipsSeenReply)
	}
	filter, err := ae.Encode()
	if err != nil {
		return err
	}
	msgs, err := c.Execute(conntrackMessage(ctGet, netlink.Request|netlink.Dump, filter))
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, m := range msgs {
		f, ok := parseFlow(m.Data)
		if !ok || f.protocol != protocol || !s.has(f) {
			continue
		}
		if protocol == network.TCP && f.status&ipsSeenReply != 0 {
			continue // established: it ends when it ends
		}
		body, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: ctaTupleOrig | netlink.Nested, Data: f.original}})
		if err != nil {
			return err
		}
		del := conntrackMessage(ctDelete, netlink.Request|netlink.Acknowledge, body)
		del.Data[0] = uint8(family(f.to.Addr()))
		if _, err := c.Execute(del); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete: %w", err)
		}
	}
	return nil
}

func conntrackMessage(kind uint16, flags netlink.HeaderFlags, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind), Flags: flags},
		Data:   append(make([]byte, nfgenmsgLength), body...),
	}
}

// parseFlow reads an entry of a protocol with ports.
func parseFlow(data []byte) (flow, bool) {
	var f flow
	if len(data) < nfgenmsgLength {
		return f, false
	}
	ad, err := netlink.NewAttributeDecoder(data[nfgenmsgLength:])
	if err != nil {
		return f, false
	}
	ad.ByteOrder = binary.BigEndian
	var sent, answered tuple
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			f.original = ad.Bytes()
			sent = parseTuple(f.original)
		case ctaTupleReply:
			answered = parseTuple(ad.Bytes())
		case ctaStatus:
			if len(ad.Bytes()) == 4 {
				f.status = ad.Uint32()
			}
		}
	}
	switch sent.protocol {
	case unix.IPPROTO_TCP:
		f.protocol = network.TCP
	case unix.IPPROTO_UDP:
		f.protocol = network.UDP
	default:
		return f, false
	}
	f.to, f.from = sent.dst, answered.src
	return f, ad.Err() == nil && f.to.IsValid() && f.from.IsValid()
}

// tuple is one direction of a flow.
type tuple struct {
	protocol uint8
	src, dst netip.AddrPort
}

func parseTuple(data []byte) tuple {
	var t tuple
	var src, dst netip.Addr
	var sport, dport uint16
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return t
	}
	for ad.Next() {
		part, err := netlink.NewAttributeDecoder(ad.Bytes())
		if err != nil {
			return t
		}
		for part.Next() {
			b := part.Bytes()
			switch {
			case ad.Type() == ctaTupleIP && (part.Type() == ctaIPv4Src || part.Type() == ctaIPv6Src):
				src, _ = netip.AddrFromSlice(b) // invalid where the length is wrong
			case ad.Type() == ctaTupleIP && (part.Type() == ctaIPv4Dst || part.Type() == ctaIPv6Dst):
				dst, _ = netip.AddrFromSlice(b)
			case ad.Type() == ctaTupleProto && part.Type() == ctaProtoNum && len(b) == 1:
				t.protocol = b[0]
			case ad.Type() == ctaTupleProto && part.Type() == ctaProtoSrc && len(b) == 2:
				sport = binary.BigEndian.Uint16(b)
			case ad.Type() == ctaTupleProto && part.Type() == ctaProtoDst && len(b) == 2:
				dport = binary.BigEndian.Uint16(b)
			}
		}
	}
	t.src, t.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return t
}
