// Package control is the control plane: it decides which tasks there are and
// where they run, so that the services' specs become true.
//
// It has a pure core and a loop around it.
//
//   - [State] is an indexed view of the store's records, kept up to date by the
//     store's batches. It knows no clock, does no I/O and draws no random
//     numbers.
//   - [State.Plan] decides, at a given time, for each service that something
//     has changed for: how many tasks of which template there are to be, which
//     of them stop, and with the scheduler where new ones go. The result is a
//     list of writes, events that say why, and when to look again.
//   - [Loop] is elected, loads a State, and plans and commits whenever the
//     store changes or the time has come. Each commit has the leader's fence:
//     a deposed leader cannot write.
//
// There are no pending tasks and no stored to-do lists. What is missing is what
// the spec says less what there is, so a leader that dies at any instruction
// leaves nothing half done that the next one would not see.
//
// Where to read on: view.decide (rollout.go) is the life of a rollout;
// view.converge (converge.go) is what makes a spec true; view.turnBack
// (rollback.go) and view.hold (hold.go) are what is done after a rollout has
// failed. State.globalize (global.go) is where the tasks of a global service
// belong, and view.vacant (stateful.go) why no slot is ever run twice.
//
//	loop, err := control.New(control.Options{
//		Store: s, ID: "host-1", Scheduler: sched, Decode: decode,
//	})
//	if err != nil {
//		return err
//	}
//	return loop.Run(ctx) // until ctx ends
package control
