// Package orchestratetest simulates a whole fleet in a unit test: the real
// control planes, schedulers and agents, on a store, machines, containers and a
// network that are simulated, in virtual time and with faults. A day of a fleet
// takes a second, and is the same day each time.
//
//	func TestWebSurvivesItsNodes(t *testing.T) {
//		orchestratetest.Run(t, orchestratetest.Scenario{
//			For:     24 * time.Hour,
//			Nodes:   []orchestratetest.NodeGroup{{Count: 5, Zones: []string{"a", "b"}}},
//			Objects: []orchestrate.Object{web},
//			Script: []orchestratetest.Step{
//				{At: time.Hour, Do: orchestratetest.NodeDies{Node: "n1", For: 10 * time.Minute}},
//			},
//			Random: orchestratetest.Random{Every: time.Minute},
//			Always: []orchestratetest.Invariant{
//				orchestratetest.Always("there is always one", func(v *orchestratetest.View) error { … }),
//			},
//		})
//	}
//
// A [Scenario] is data: the fleet, what the application does and what fails, at
// moments that are given ([Step]) or drawn from a seed ([Random]), and what must
// hold. [Run] returns a [Report] with a hash of all that happened: the same
// scenario has the same hash, whatever the machine does meanwhile, with the race
// detector or without.
//
// # What is real
//
// Everything that decides: package orchestrate and its planner, the scheduler
// with the strategies of [Scenario.Options], the agents of package node with the
// drivers that [Scenario.Agent] gives them, elections, leases, rollouts, health
// monitors, autoscalers. What they meet is simulated. Things that happen at the
// same moment are let happen one after another, in an order that follows from
// what they are about, so nothing depends on how Go runs its goroutines.
//
// # What must hold
//
// Invariants are checked after every step: those of [Ready], which hold of every
// fleet, [AtLeast], and your own by [Always] and [Eventually]. When one does not
// hold, the steps that it takes are looked for, and printed as a Go test with the
// last events. [Explore] does the same without failing the test.
//
// A scenario that could not test what it seems to is an error: one whose script is
// about a node or a service that there is none of, or goes on after its end; one that
// applies what is refused; [AtLeast] of a service that never had as many. A fault that
// comes to nothing as things are, such as the death of a machine that is off, is in
// the events as "without effect".
//
// # What happened in earnest
//
// [Replay] decides again by the log of a fleet, a simulated or a real one, that
// [orchestrate.WithRecorder] has written: with the current code, or with another
// strategy. It is open-loop, and says what would have been decided; what would have
// followed is for a simulation to say.
//
// # Limits
//
// Without [Scenario.Balancers] nodes publish their endpoints and program nothing,
// since that costs with the square of the fleet's size. A hung node is an agent
// that hangs. A clock that is off, or runs fast or slow, shows in records, in what is
// believed of leases and in how long machines hold containers; all timers else go by
// one clock.
//
// # Strategies and drivers of your own
//
// A strategy is registered by [Scenario.Options], and used by the services that name it
// in their Placement; drivers are put in by [Scenario.Agent].
//
// A driver of your own is called by many goroutines, as it is by an agent. As long
// as what it answers does not depend on the order of calls at one moment, runs
// are the same; it must not wait for anything outside the test.
package orchestratetest
