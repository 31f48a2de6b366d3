package orchestrate

import "time"

// UpdateOrder says whether a rollout starts a new task before it stops an old
// one.
type UpdateOrder string

// The update orders.
const (
	// OrderAuto, also when empty, is StartFirst, but StopFirst where two
	// tasks cannot be there at once: host networking with ports, an
	// exclusive volume, or MaxSurge "0".
	OrderAuto  UpdateOrder = "auto"
	StartFirst UpdateOrder = "start-first"
	StopFirst  UpdateOrder = "stop-first"
)

// UpdateStrategy says how a new revision takes the place of the last that
// completed.
type UpdateStrategy string

// The update strategies. Where nothing of an earlier revision runs, all are as
// RollingUpdate.
const (
	// RollingUpdate, also when empty, replaces tasks, a few at a time.
	RollingUpdate UpdateStrategy = "rolling"
	// CanaryUpdate first starts a few tasks of the new revision beside the old
	// ones, which all go on serving; see [Canary].
	CanaryUpdate UpdateStrategy = "canary"
	// BlueGreenUpdate starts a second set of all tasks without traffic, switches
	// the traffic at once, and then stops the old set; see [BlueGreen].
	BlueGreenUpdate UpdateStrategy = "blue-green"
)

// Canary is how a new revision is tried by a few. Until it is promoted, the old
// revision is kept up in full: canaries come in addition to Replicas, so that to
// give them up costs no old task, and take as large a share of the traffic as
// they are of all. When they are promoted they are replicas of the service, and
// the rest follows as in a rolling update.
type Canary struct {
	// Tasks is how many canaries there are; "1" when empty. A share is rounded
	// up. Not 0.
	Tasks Amount `json:"tasks,omitempty"`
	// Bake is for how long all canaries must stay ready, beyond Monitor, until
	// they are promoted without a call. When 0 they wait for [Fleet.Promote].
	Bake time.Duration `json:"bake,omitempty"`
}

// BlueGreen is how one set of tasks takes the place of another. Each has as many
// tasks as Replicas, so there must be room for twice as many. The traffic of
// virtual addresses, published ports and the service's name is switched once all
// of the second set have stayed ready for Monitor, in one write that all nodes
// follow; connections that exist go on. Until the old set goes, a failure or
// [Fleet.Abort] switches it back as fast.
type BlueGreen struct {
	// Manual has a second set that is ready wait for [Fleet.Promote] before it
	// gets the traffic.
	Manual bool `json:"manual,omitempty"`
	// Bake is how long the old set is kept after the switch: 5 min when 0, not
	// at all when negative. When by their own doing fewer of the second set serve
	// than MaxUnavailable allows, and more of the old set would, the rollout
	// fails with [ReasonBake].
	Bake time.Duration `json:"bake,omitempty"`
}

// UpdatePolicy is how a new revision is rolled out.
type UpdatePolicy struct {
	// Strategy is [RollingUpdate] when empty. The others need two tasks at a time,
	// so they exclude whatever stops first.
	Strategy UpdateStrategy `json:"strategy,omitempty"`
	// Canary and BlueGreen are for the strategies of that name.
	Canary    Canary    `json:"canary,omitzero"`
	BlueGreen BlueGreen `json:"blueGreen,omitzero"`
	// Parallelism is how many replicas are changed at a time: of those that
	// have an old task, or a new one that has yet to stay ready for Monitor. A
	// share is rounded up. When empty it is what MaxSurge and MaxUnavailable
	// allow together where one of them is given, and else "25%". Not 0.
	Parallelism Amount `json:"parallelism,omitempty"`
	// Order is [OrderAuto] when empty.
	Order UpdateOrder `json:"order,omitempty"`
	// MaxSurge is how many tasks there may be above Replicas, those that are
	// told to stop aside; a share is rounded up. Where tasks start first it is at
	// least 1 and when empty Parallelism, or "25%" where that is empty too. Where
	// they stop first there is no surge, and "0" asks for that.
	MaxSurge Amount `json:"maxSurge,omitempty"`
	// MaxUnavailable is how many replicas fewer than Replicas may serve because
	// of the rollout, and no more ever do; a share is rounded down. When empty
	// it is "0" where tasks start first, so that as many serve as ever. Where they
	// stop first it is at least 1 and when empty Parallelism, or "25%".
	MaxUnavailable Amount `json:"maxUnavailable,omitempty"`
	// Monitor is how long a new task must stay ready before it counts; 10 s
	// when 0, none when negative.
	Monitor time.Duration `json:"monitor,omitempty"`
	// ProgressDeadline fails the rollout when no further task became ready
	// for so long, image pulls and placing included; 10 min when 0. It is
	// longer than Monitor.
	ProgressDeadline time.Duration `json:"progressDeadline,omitempty"`
	// MaxFailures is how many tasks of the new revision may fail in a row
	// before the rollout does: max(3, half of the replicas) when 0.
	MaxFailures int `json:"maxFailures,omitempty"`
	// OnFailure is what follows when the tasks of a new revision fail, or do
	// not get ready in time; [RollBack] when empty. A rollout that fails for
	// want of room or of a network is not the revision's fault: its missing
	// tasks start once they can.
	OnFailure FailureAction `json:"onFailure,omitempty"`
}

// FailureAction is what follows when a rollout fails because of its revision.
type FailureAction string

// The failure actions.
const (
	// RollBack goes back to the template of the last revision that completed,
	// by the same update policy. The rollout has failed nevertheless, and its
	// [Result] says in Rollback what became of that. Where no revision has
	// completed, and when the rollback fails in turn, it is as [Pause]. The
	// spec stays as it was applied: a later change of it, a Scale too, tries
	// its template again; [Fleet.Rollback] makes the earlier one the spec.
	RollBack FailureAction = "rollback"
	// Pause starts nothing new and stops nothing: what serves is kept up, and
	// what does not can be looked at, until the next Apply.
	Pause FailureAction = "pause"
	// Continue does not end the rollout for failures, however many: it goes on
	// trying until ProgressDeadline has passed without progress, and then it
	// is as [Pause].
	Continue FailureAction = "continue"
)
