// Package orchestrate makes a program the orchestrator of its own container
// fleet.
//
// A [Fleet] is the control plane as a Go value. The application declares what
// it wants as plain data, a [Service] or a [Network], and hands it to
// [Fleet.Apply]; the fleet decides where each task runs, and the nodes' agents
// make it true. On one machine, package local wires everything in one call:
//
//	fleet, err := local.Open("/var/lib/myapp")
//	if err != nil {
//		return err
//	}
//	defer fleet.Close()
//	err = fleet.Apply(ctx, orchestrate.Service{
//		Name: "web", Replicas: 3,
//		Template: orchestrate.Template{
//			Containers: []orchestrate.Container{{Image: "web:1"}},
//			Ports:      []orchestrate.Port{{Port: 8080, Published: 80}},
//		},
//	})
//	result, err := fleet.Wait(ctx, "web") // completed, failed and why, or superseded
//
// The words: a Service is a long-running workload; a task is one placed
// instance of it on one node, one or more containers that share a network
// namespace and volumes; a node is a machine, and its agent (package node) the
// code that runs tasks there; a rollout is the way from one revision of a
// service to the next, and always ends in a typed [Result].
//
// Everything that decides or does is a small interface with a real
// implementation, one in memory and a conformance suite: packages scheduler,
// runtime, network, volume, health and store. This package and those import
// the standard library alone.
package orchestrate
