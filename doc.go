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
// A new revision takes the place of the old one a few tasks at a time; or a
// [Canary] tries it beside the old one, or a whole second set stands ready before
// the traffic is switched ([BlueGreen]). Where these wait, [Fleet.Promote] and
// [Fleet.Abort] go on or back, and else their own health does. What fails is rolled
// back ([Fleet.Rollback] does it by hand, and [Fleet.History] has the revisions). A
// [Job] runs to its end, a [CronJob] makes one at each time of a schedule.
// [Fleet.Plan] says what an Apply would do, and [Fleet.Events], [Fleet.Watch] and
// [Fleet.Why] what was done, by whom and for what reason.
//
// Everything that decides or does is a small interface with a real
// implementation, one in memory and a conformance suite: packages scheduler,
// runtime, network, volume, health and store. This package and those import
// the standard library alone.
package orchestrate
