// Package remote reaches into the tasks of nodes on other machines: logs, exec and
// stats, by HTTP/2 with certificates on both sides.
//
// On a node, beside its agent:
//
//	agent, err := node.New(store, node.Options{Address: "10.0.0.1:7444", …})
//	go remote.Serve(ctx, listener, member, agent)
//
// and in a control plane:
//
//	fleet, err := orchestrate.New(store, orchestrate.WithAccess(remote.Access(store, member)))
//
// A node answers control planes alone, and a control plane talks to the node that
// it means alone: both look at the name in the other's certificate (package
// identity). Nothing is sent without.
//
// What is slow at one end slows the other down: HTTP/2's flow control reaches from
// the reader's function to the container's pipe. Whoever gives up, or is cut off,
// ends the call at the other end too, and the process that an Exec began. Logs
// that are followed go on after a connection broke where they were, no line twice
// and none left out as long as the node keeps it.
package remote
