// Package networktest is the specification of package network's interfaces,
// as tests that any implementation can run:
//
//	func TestConformance(t *testing.T) {
//		networktest.TestDriver(t, func(t testing.TB) networktest.Node {
//			d := open(t) // closed and cleaned up by t.Cleanup
//			return networktest.Node{Driver: d, Namespaces: d}
//		})
//	}
//
// [TestDriver] asks for a network.Driver with its network.Namespaces,
// [TestBalancer] for a network.Balancer and a way to send connections through
// it, [Traffic]. A driver that moves no packets answers for them from what
// was programmed. Each case gets a node of its own and leaves it with
// attachments and rules on it: cleaning up is the implementer's, who can see
// there that it works.
package networktest
