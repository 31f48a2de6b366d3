// Package memory is the network of a node that exists in memory only: for
// tests of what is built on package network, where no kernel should be
// touched.
//
// A [Node] implements network.Driver, network.Namespaces and
// network.Balancer. It keeps the same promises as network/bridge, and passes
// the same suite in network/networktest, but moves no packets: [Node.Dial]
// says where the balancer would send a connection. A hook sees each call
// before it is done and can make it fail or wait:
//
//	node := memory.New(memory.Options{Hook: func(ctx context.Context, c memory.Call) error {
//		if c.Method == "Attach" && c.Task == "web.3" {
//			return errors.New("injected")
//		}
//		return nil
//	}})
//	err := node.Ensure(ctx, network.Network{Name: "front", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}})
//
// A program that restarts is a [Node.Reopen]: the node stays, the handle is
// new.
package memory
