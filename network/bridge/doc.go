// Package bridge is the network of a node in the Linux kernel: a bridge for
// each network, a pair of veth interfaces for each attachment, and one
// nftables table for everything about addresses.
//
//	d, err := bridge.Open(bridge.Options{ID: "shop", Dir: "/var/lib/shop/network"})
//	…
//	defer d.Close()
//	err = d.Ensure(ctx, network.Network{
//		Name:    "front",
//		Subnets: []netip.Prefix{netip.MustParsePrefix("10.71.0.0/16")},
//		Virtual: []netip.Prefix{netip.MustParsePrefix("10.72.0.0/24")},
//	})
//	ns, err := d.Create(ctx, "web.1", nil)
//	iface, err := d.Attach(ctx, network.Attachment{
//		Network: "front", Task: "web.1", Namespace: ns, Interface: "eth0", Default: true,
//	})
//	err = d.Program(ctx, []network.Rule{{
//		Service: "web", Address: netip.MustParseAddr("10.72.0.1"), Port: 80,
//		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.71.0.2:80")},
//	}})
//
// A [Driver] is a network.Driver, network.Namespaces and network.Balancer.
// What it makes outlives the program: [Driver.Close] leaves the data path as
// it is, the next [Open] with the same ID and folder adopts it, and
// [Driver.Purge] takes it away. Fleets on one machine have their own IDs, and
// with them their own table and interfaces; ranges and ports that another
// fleet or the host has are refused.
//
// # The way of a packet
//
// A task reaches everything by its gateway, which is the bridge: also the
// other tasks of its network. So the replies of an endpoint pass the node,
// which has to undo the translation of the address, and endpoints see their
// clients' own addresses. What is routed instead of bridged costs a few
// hundred nanoseconds a packet; source translation of every connection, which
// is the other way to bring replies back, costs more, and the address.
//
// The first packet of a connection is looked up in a map from frontend to a
// chain shared by all frontends with as many endpoints; the chain draws a
// number and looks the endpoint up in a second map. Both are hashes, so the
// number of services does not matter. All later packets follow connection
// tracking. A change of services is a change of elements of the maps, in one
// transaction.
//
// The node's own address is the source where there is no other way: for what
// leaves to the world, for its own clients at 127.0.0.1 and ::1, and for a
// task that reaches itself.
//
// # What is changed on the node
//
// IPv4 and IPv6 forwarding are turned on, with accept_ra at 2 where it was 1
// so that default routes stay; net.ipv4.conf.all.send_redirects is turned
// off, each interface keeping its own; route_localnet is turned on for the
// bridges. For uplinks ([Options.Uplinks]) both are set too, with what others
// send to the node's loopback dropped in the table; route_localnet is turned
// back by Purge, before the table goes. br_netfilter is turned off for IP where no bridge is another
// program's. None of the others is turned back. A firewall of the host whose
// forward policy is to drop has to let the bridges (named ob…) pass.
package bridge
