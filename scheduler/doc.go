// Package scheduler decides which tasks run on which nodes. It is pure Go on
// the standard library alone: no clock, no I/O, no goroutines, and the same
// input gives the same output.
//
// A [Cluster] holds the nodes and the tasks bound to them, and is kept up to
// date by deltas: SetNode, RemoveNode, Bind, Release. A [Request] asks for
// places for a group of replicas that are alike. A [Scheduler] decides many
// requests in one Place:
//
//	c := scheduler.NewCluster()
//	c.SetNode(scheduler.Node{ID: "n1", Ready: true,
//		Capacity: scheduler.Resources{CPU: 4000, Memory: 8 << 30}})
//	s, err := scheduler.New(scheduler.Options{})
//	decisions, err := s.Place(c, []scheduler.Request{{
//		Service: "web", Count: 3,
//		Resources:   scheduler.Resources{CPU: 500, Memory: 256 << 20},
//		Constraints: []scheduler.Constraint{scheduler.MustConstraint("node.os != windows")},
//	}})
//	for i, task := range decisions[0].Tasks { run(task, decisions[0].Nodes[i]) }
//
// Place binds what it placed into the Cluster, so that the next Place counts on
// it; to only ask, give it a [Cluster.Clone]. If the decision is then not
// carried out, Release the tasks. What found no place is not an error of Place:
// each [Decision] says how many were placed and, with numbers, why others were
// not and what would help.
//
// Nodes are chosen in this order: the filters, which are rules that always
// hold; preferred nodes first, avoided and failing ones last; the request's
// spreading; the strategy's scores. Strategies are registered under names with
// the Scheduler: spread, binpack, random, and one's own, made of a [Filter], a
// [Scorer] or a whole [Placer]. Package schedulertest checks them.
//
// [FairShare] admits the requests of namespaces that compete, in front of
// Place, and [Scheduler.Rebalance] plans moves of tasks that are placed.
package scheduler
