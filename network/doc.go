// Package network is the interface between an agent and the kernel's
// networking on its node.
//
// The words:
//
//   - A [Network] is one or two ranges of addresses. A [Driver] makes it true
//     on the node, and attaches tasks to it.
//   - A task lives in a network namespace that [Namespaces] makes. It belongs
//     to the agent, not to a container: a container that is restarted keeps
//     its task's addresses. An [Attachment] connects it to one network, and
//     the [Interface] is what it got there.
//   - A [Rule] says to which endpoints the connections for a virtual address
//     or a published port go. A [Balancer] takes all rules of the node at
//     once; [Canonical] checks them and brings them into one form.
//   - A [Pool] hands out the addresses of one range, for those who write a
//     driver.
//
// A task that serves on a published port:
//
//	err := driver.Ensure(ctx, network.Network{Name: "front", Subnets: subnets})
//	namespace, err := namespaces.Create(ctx, "web.1", nil)
//	iface, err := driver.Attach(ctx, network.Attachment{
//		Network: "front", Task: "web.1", Namespace: namespace, Interface: "eth0", Default: true,
//	})
//	err = balancer.Program(ctx, []network.Rule{{
//		Service: "default/web", Port: 80, // of every address of the node
//		Endpoints: []netip.AddrPort{netip.AddrPortFrom(iface.Addresses[0].Addr(), 8080)},
//	}})
//
// Every call is idempotent, so an agent that was killed makes it again: the
// same attachment has the same addresses, and undoing what is not there is no
// error.
//
// Drivers are network/bridge, for one Linux node, and network/memory, for
// tests; network/networktest is the suite that they pass and that any other
// driver can run. network/dns answers the names of services.
package network
