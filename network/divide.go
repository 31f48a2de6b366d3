package network

import "net/netip"

// Divider is a [Driver] that gives each node a part of a network, with a gateway
// of its own.
type Divider interface {
	// Gateways returns this node's addresses on a network, one in each of its
	// subnets, and none before the network was ensured. DNS is served there. Of
	// a driver that is no Divider these are [Network.Gateways].
	Gateways(name string) []netip.Addr
}
