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

// UpdatePolicy is how a new revision is rolled out.
type UpdatePolicy struct {
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
