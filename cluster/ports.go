//go:build linux

package cluster

import (
	"cmp"
	"net"
	"net/netip"
	"strconv"
)

// Ports are what the machines of a fleet listen on, TCP all of them. They are
// the same on every machine; a port that is 0 is the default. Two fleets on one
// machine need others.
type Ports struct {
	// Store and Peer are etcd's, on control planes: 2379, for all, and 2380,
	// for control planes alone.
	Store, Peer uint16
	// Join is where machines join and renew their certificates, on control
	// planes: 7443, for all.
	Join uint16
	// Node is where an agent answers control planes: 7444.
	Node uint16
}

// DefaultPorts are those of a fleet that names none.
var DefaultPorts = Ports{Store: 2379, Peer: 2380, Join: 7443, Node: 7444}

func (p Ports) withDefaults() Ports {
	return Ports{
		Store: cmp.Or(p.Store, DefaultPorts.Store), Peer: cmp.Or(p.Peer, DefaultPorts.Peer),
		Join: cmp.Or(p.Join, DefaultPorts.Join), Node: cmp.Or(p.Node, DefaultPorts.Node),
	}
}

func at(addr netip.Addr, port uint16) string {
	return net.JoinHostPort(addr.String(), strconv.Itoa(int(port)))
}

func atAll(addrs []netip.Addr, port uint16) []string {
	var all []string
	for _, a := range addrs {
		all = append(all, at(a, port))
	}
	return all
}

func urls(addrs []netip.Addr, port uint16) []string {
	all := atAll(addrs, port)
	for i, a := range all {
		all[i] = "https://" + a
	}
	return all
}
