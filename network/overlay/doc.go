// Package overlay is a network over many nodes: what package bridge makes on
// one, joined by plain routes where nodes share a link, and by VXLAN (RFC 7348)
// in the kernel elsewhere.
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
// To a node on the same link the route leads directly: packets go as they are,
// as large as the link takes them. See [Direct] for when. The node knows such a
// peer by VXLAN too, and takes both from it, so that a peer that moves to
// another subnet, or back, needs another route and nothing else. Tasks may send
// what fits a direct route. To a node beyond VXLAN that may be too large; then
// their own node tells them, as any router does, and it lowers the segment size
// that TCP connections announce (RFC 4459, 3.2).
//
// A network is a VXLAN network of its own, so networks are as far apart between
// nodes as they are on one. Its number is taken in the store too. On a link,
// where there is no number, each node goes by addresses: networks never share
// any. It lets nothing of a task out to another network's addresses, and lets
// in what comes from an address of the same network that it would answer by the
// link, which are those of nodes that it knows.
//
// Virtual addresses and published ports work on every node: a node that sends a
// connection to an endpoint elsewhere translates it as one to its own. The
// endpoint sees the address of a task that connects, and the forwarding node's
// where the client is outside the network.
//
// Neither VXLAN nor a direct route encrypts or proves who sends. UDP port 4789
// must be open between the nodes, and to nobody else. Who is on a link of nodes
// with direct routes can send to tasks in the name of another node's task, as
// anyone can who reaches port 4789; where that is to be feared, encrypt.
//
// # Fast path
//
// Connections that are open between a task and another node pass the node's bridge,
// table and connection tracking by, in programs at the interfaces (BPF) that
// translate addresses, follow the kernel's routes and put VXLAN around packets.
// What begins and ends a connection, and one packet in five seconds, still goes by
// them; so they decide, and a change of what they know ends a flow within ten
// seconds. When Run has ended all goes the slow way after a minute. See [FastPath],
// which is on by default where the kernel has what it needs, and off with encryption.
// [Driver.FastPathStats] tells whether it is used.
//
// # Encryption
//
// With [Options.Encryption] all that goes between nodes goes by tunnels in the
// manner of WireGuard, in place of VXLAN and direct routes:
//
//	overlay.Options{…, Encryption: wireguard.New(wireguard.Options{})}
//
// A node makes its keys itself and keeps the private ones in a file in the
// bridge's folder that root alone reads; the store has public keys. A tunnel
// takes from a node what comes from the node's own slices. Keys are replaced
// without an interruption, see Options.Rotate. Where there is no tunnel to a node
// nothing goes there, and what comes from elsewhere with an address of a network
// is dropped: a packet is encrypted or it is not sent. So encryption is switched
// on for all nodes: those that have it and those that have not do not reach each
// other. UDP ports 51820 and 51821 must be open between the nodes.
//
// The store's access control should hold nodes to the keys of [Rights]. A node
// that was taken over can then claim another's slices, which cuts that one off,
// but not its keys.
package overlay
