//go:build linux

package bridge

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"

	"github.com/orchestrate-go/orchestrate/network"
)

// The sets about networks.
const (
	setBridges  = "bridges"  // interface names of all bridges and links
	setLinks    = "links"    // of the links to other nodes
	setSame     = "same"     // two names: in and out of one network
	setInternal = "internal" // bridges of internal networks
	setSubnets  = "subnets"  // addresses of tasks; by family
	setWhole    = "whole"    // and of those on other nodes; by family
	setVirtual  = "virtual"  // ranges of virtual addresses; by family
	setLocal6   = "local6"   // IPv6 addresses of the node where ports are not published
	setUplinks  = "uplinks"  // Options.Uplinks and the tunnels
	setTunnels  = "tunnels"  // the tunnels
	setInside   = "inside"   // what may have an address of a Whole that is sealed: bridges, tunnels, loopback
	setSealed   = "sealed"   // such addresses: of every Whole where there are tunnels; by family
	setGuarded  = "guarded"  // where nobody may ask for the node's loopback: bridges and uplinks
	mapNetwork  = "network"  // address of a task on any node -> bridge of its network; by family
	mapGateway  = "gateway"  // the same -> the node's own address there, if the network has a Whole; by family
)

// The sets and maps about services; each by family.
const (
	// address, protocol, port -> goto the chain for the number of endpoints
	mapVirtual = "virtual-ports"
	mapHost    = "host-ports" // published on one address of the node
	// protocol, port -> the same
	mapAll = "published-ports"
	// address (0 for a port published on all), protocol, port, number of the
	// endpoint -> its address and port
	mapEndpoints = "endpoints"
	setRefused   = "refused" // address, protocol, port without endpoints
	// Connections to these are counted: by address, protocol and port, and to
	// any address of the node by protocol and port.
	setCounted    = "counted"
	setCountedAll = "counted-all"
	// An endpoint's address twice: a task that reaches itself, and whether an
	// address is an endpoint's at all.
	setHairpin = "hairpin"
)

func suffix(ipv4 bool) string {
	if ipv4 {
		return "4"
	}
	return "6"
}

var networkSets = []string{setBridges, setLinks, setSame, setInternal, setSubnets + "4", setSubnets + "6", setWhole + "4", setWhole + "6", setVirtual + "4", setVirtual + "6", setLocal6,
	setUplinks, setTunnels, setInside, setSealed + "4", setSealed + "6", setGuarded, mapNetwork + "4", mapNetwork + "6", mapGateway + "4", mapGateway + "6"}

var serviceSets = []string{mapVirtual, mapHost, mapAll, mapEndpoints, setRefused, setHairpin, setCounted, setCountedAll}

// allSets returns every set and map of the table, in the order of their IDs.
func allSets() []*nftables.Set {
	pair := func(types ...nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(types...) // at most five: cannot fail
	}
	sets := []*nftables.Set{
		{Name: setBridges, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Name: setLinks, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Name: setSame, KeyType: pair(nftables.TypeIFName, nftables.TypeIFName), KeyByteOrder: binaryutil.NativeEndian, Concatenation: true},
		{Name: setInternal, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Name: setLocal6, KeyType: nftables.TypeIP6Addr},
		{Name: setUplinks, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Name: setTunnels, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Name: setInside, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Name: setGuarded, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
	}
	for _, ipv4 := range []bool{true, false} {
		f, addr := suffix(ipv4), nftables.TypeIP6Addr
		if ipv4 {
			addr = nftables.TypeIPAddr
		}
		frontend := pair(addr, nftables.TypeInetProto, nftables.TypeInetService)
		sets = append(sets,
			&nftables.Set{Name: setSubnets + f, KeyType: addr, Interval: true},
			&nftables.Set{Name: setWhole + f, KeyType: addr, Interval: true},
			&nftables.Set{Name: setVirtual + f, KeyType: addr, Interval: true},
			&nftables.Set{Name: setSealed + f, KeyType: addr, Interval: true},
			&nftables.Set{Name: mapNetwork + f, KeyType: addr, Interval: true, IsMap: true, DataType: nftables.TypeIFName},
			&nftables.Set{Name: mapGateway + f, KeyType: addr, Interval: true, IsMap: true, DataType: addr},
			&nftables.Set{Name: mapVirtual + f, KeyType: frontend, Concatenation: true, IsMap: true, DataType: nftables.TypeVerdict},
			&nftables.Set{Name: mapHost + f, KeyType: frontend, Concatenation: true, IsMap: true, DataType: nftables.TypeVerdict},
			&nftables.Set{Name: mapAll + f, KeyType: pair(nftables.TypeInetProto, nftables.TypeInetService), Concatenation: true, IsMap: true, DataType: nftables.TypeVerdict},
			&nftables.Set{Name: mapEndpoints + f, KeyType: pair(addr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark), Concatenation: true, IsMap: true, DataType: pair(addr, nftables.TypeInetService)},
			&nftables.Set{Name: setRefused + f, KeyType: frontend, Concatenation: true},
			&nftables.Set{Name: setCounted + f, KeyType: frontend, Concatenation: true, Counter: true},
			&nftables.Set{Name: setCountedAll + f, KeyType: pair(nftables.TypeInetProto, nftables.TypeInetService), Concatenation: true, Counter: true},
			&nftables.Set{Name: setHairpin + f, KeyType: pair(addr, addr), Concatenation: true},
		)
	}
	return sets
}

// networkElements returns what the sets about networks hold.
func networkElements(nets []*segment, uplinks, tunnels []string, loopback6 bool) map[string][]nftables.SetElement {
	elements := map[string][]nftables.SetElement{}
	ranges := map[string][]span{}
	add := func(set string, key []byte) {
		elements[set] = append(elements[set], nftables.SetElement{Key: key})
	}
	for _, name := range slices.Concat(uplinks, tunnels) {
		add(setUplinks, interfaceKey(name))
		add(setGuarded, interfaceKey(name))
	}
	for _, name := range tunnels {
		add(setTunnels, interfaceKey(name))
		add(setInside, interfaceKey(name))
	}
	add(setInside, interfaceKey("lo"))
	for _, nw := range nets {
		name, link := interfaceKey(nw.bridge), interfaceKey(nw.link)
		add(setBridges, name)
		add(setGuarded, name)
		add(setInside, name)
		add(setSame, slices.Concat(name, name))
		if nw.Internal {
			add(setInternal, name)
		}
		whole := nw.Whole
		if len(whole) > 0 {
			add(setBridges, link)
			add(setGuarded, link)
			add(setLinks, link)
			add(setSame, slices.Concat(name, link))
			add(setSame, slices.Concat(link, name))
			if nw.Internal {
				add(setInternal, link)
			}
		} else {
			whole = nw.Subnets
		}
		for _, p := range nw.Subnets {
			set := setSubnets + suffix(p.Addr().Is4())
			ranges[set] = append(ranges[set], span{p.Masked(), nil})
		}
		for _, p := range whole {
			f := suffix(p.Addr().Is4())
			ranges[setWhole+f] = append(ranges[setWhole+f], span{p.Masked(), nil})
			ranges[mapNetwork+f] = append(ranges[mapNetwork+f], span{p.Masked(), name})
			if gw := nw.gateway(p.Addr().Is4()); len(nw.Whole) > 0 && gw.IsValid() {
				ranges[mapGateway+f] = append(ranges[mapGateway+f], span{p.Masked(), gw.AsSlice()})
			}
			if len(nw.Whole) > 0 && len(tunnels) > 0 {
				ranges[setSealed+f] = append(ranges[setSealed+f], span{p.Masked(), nil})
			}
		}
		for _, p := range nw.Virtual {
			set := setVirtual + suffix(p.Addr().Is4())
			ranges[set] = append(ranges[set], span{p.Masked(), nil})
		}
	}
	if !loopback6 {
		add(setLocal6, netip.IPv6Loopback().AsSlice())
	}
	for set, spans := range ranges {
		elements[set] = intervals(spans)
	}
	return elements
}

// interfaceKey is an interface's name as the kernel compares it.
func interfaceKey(name string) []byte {
	key := make([]byte, 16) // IFNAMSIZ
	copy(key, name)
	return key
}

// span is a range of addresses in a set, or in a map with what it leads to.
type span struct {
	netip.Prefix
	value []byte
}

// intervals returns spans that do not overlap as elements of an interval set or
// map: the first address of each, and the first after it, unless the next
// range begins there.
func intervals(spans []span) []nftables.SetElement {
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var elements []nftables.SetElement
	var end netip.Addr // the first address after the range that is open
	for _, p := range spans {
		if p.Addr() != end && end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
		if p.Addr() != end || p.value != nil {
			elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice(), Val: p.value})
		}
		end = network.Broadcast(p.Prefix).Next()
	}
	if end.IsValid() {
		elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return elements
}
