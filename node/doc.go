// Package node makes true what the control plane assigned to one machine.
//
// An [Agent] follows the tasks of its node in the store and runs one
// straight-line supervisor for each:
//
//	image → network namespace and address → volumes → secrets → init
//	containers → containers → probes → ready → endpoint published
//
// and backwards when the task is to stop: endpoint withdrawn on all nodes →
// drain delay → stop signal → grace → SIGKILL → unmount, detach, delete. Every step is
// idempotent and named from the task's ID, so an agent that starts again
// adopts what runs and finishes what was cut short; what no task owns any more
// is removed. Containers run on while no agent does.
//
// What must not run twice, the slots of stateful services, is bound to the
// node's lease: it is started only while that is alive, and ends by itself, with
// or without an agent, when it could not be renewed. tenure.go has the margins.
//
// The agent works on the interfaces runtime, network, volume and health alone:
//
//	agent, err := node.New(store, node.Options{
//		Node:    scheduler.Node{ID: "n1", Capacity: capacity},
//		Runtime: containers, Network: bridge, Namespaces: bridge,
//		Balancer: bridge, Volumes: volumes,
//	})
//	if err != nil { … }
//	err = agent.Run(ctx) // blocks until ctx ends
//
// Package local wires one with everything real behind it.
package node
