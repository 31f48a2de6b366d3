// Package overlay is a network over many nodes: what package bridge makes on
// one, joined by VXLAN (RFC 7348) in the kernel.
//
//	d, err := overlay.Open(overlay.Options{
//		Bridge:   bridge.Options{ID: "shop", Dir: "/var/lib/shop/network"},
//		Store:    store, // the fleet's
//		Node:     "n1",
//		Underlay: netip.MustParseAddr("192.0.2.1"), // by which other nodes reach this one
//	})
//	…
//	go d.Run(ctx) // follows the other nodes
//	agent, err := node.New(store, node.Options{Network: d, Namespaces: d, Balancer: d, …})
//
// Each node takes a slice of each network's subnets that it has tasks on, by
// compare-and-set in the store: the network's addresses are then unique in the
// fleet without anyone who hands them out. With the slice stands where the node
// is. Every other node on the network makes three permanent entries of that: a
// route to the slice, the neighbour it leads to, and the forwarding entry that
// says behind which address of the underlay it is. So there is no flooding, no
// multicast, no learning and no resolving, and what is gone from the store is
// gone from the kernel.
//
// A network is a VXLAN network of its own, so networks are as far apart between
// nodes as they are on one. Its number is taken in the store too.
//
// Virtual addresses and published ports work on every node: a node that sends a
// connection to an endpoint elsewhere translates it as one to its own. The
// endpoint sees the address of a task that connects, and the forwarding node's
// where the client is outside the network.
//
// VXLAN does not encrypt. UDP port 4789 must be open between the nodes, and to
// nobody else.
package overlay
