package control

import (
	"encoding/json"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Workload is what the planner needs to know of a service. It is plain data;
// Options.Decode makes it from the record in the store.
type Workload struct {
	Namespace string
	Name      string
	// Replicas is the number of tasks wanted; 0 is none.
	Replicas int
	// Template is copied into each task as it is.
	Template json.RawMessage
	// Hash identifies the template: tasks of another hash are replaced.
	Hash     string
	Revision int64
	// Request is what each replica asks of the scheduler. Count, Tasks, Avoid
	// and Failures are set by the planner.
	Request scheduler.Request
	// Networks are those on which the service gets a virtual address, if it
	// has Ports. A service on the host's network has none.
	Networks []string
	Ports    []record.Port
	Update   Update
	// Budget is how many replicas serve at least while tasks are moved; nil is as
	// many as while they are updated. See budget.go.
	Budget *Budget

	// Global is one task on each eligible node; Replicas is their number then,
	// which the planner sets. See global.go.
	Global bool
	// Stateful, when not nil, makes slots identities, each run at most once.
	// StopFirst must be set. See stateful.go.
	Stateful *Stateful

	// Scaled, when not nil, has an autoscaler decide about Replicas, within these
	// bounds; see scale.go. Until it has, Replicas is as given.
	Scaled *Bounds
	// Measure is how often agents report what the tasks use, and MeasureFrontend
	// how many connections there are to the service; 0 is never.
	Measure, MeasureFrontend time.Duration

	// Shape is the hash of the template without resources: a task of the same
	// Shape may be changed in place. Empty has every task replaced.
	Shape string
	// Images are what its containers run.
	Images []record.NextImage
	// Unpinned, when not empty, says why it is not known yet what an image
	// means: nothing is started before it is.
	Unpinned string

	// LostAfter is how long a node may be silent before tasks there are replaced:
	// Config's when 0, and never when negative. KeepOriginal has a task stay that
	// was replaced and comes back with its node; else its replacement stays. See
	// silence.go.
	LostAfter    time.Duration
	KeepOriginal bool

	// DependsOn gates the first start of each revision; see depends.go.
	DependsOn []Dependency

	fixed int    // Replicas as it was decoded
	given Update // as it was decoded, for as many replicas as there turn out to be
}

// Stateful is how the slots of a service are dealt with.
type Stateful struct {
	// Parallel does not wait for one slot before it starts, updates or stops
	// the next.
	Parallel bool
	// Partition keeps the slots below it at the last completed revision.
	Partition int
	// Volumes names the volumes that each slot has of its own.
	Volumes []string
	// EraseScaled and EraseRemoved delete a slot's volumes when there are fewer
	// replicas, and when the service is removed.
	EraseScaled, EraseRemoved bool
}

// fronted reports whether the service has a frontend.
func (w *Workload) fronted() bool { return len(w.Ports) > 0 && len(w.Networks) > 0 }

// Update is how a new template is rolled out.
type Update struct {
	// Parallelism is how many replicas are changed at a time, MaxSurge how many
	// tasks there may be above their number, and MaxUnavailable how many
	// replicas need not serve in the meantime; see Update.pace for what 0 is.
	Parallelism, MaxSurge, MaxUnavailable Amount
	// Strategy is how a new template is tried before it replaces the last that
	// completed; see trial.go. It is as Rolling with StopFirst, and where there
	// is nothing to try it beside.
	Strategy record.Strategy
	// Canaries is how many tasks try it; 0 is 1.
	Canaries Amount
	// Manual has what was tried wait for a call: the canaries for their
	// promotion, the second set for the traffic.
	Manual bool
	// Bake is how long canaries stay ready before they are promoted, and how
	// long the old set is kept once the second has the traffic.
	Bake time.Duration
	// StopFirst stops an old task before its successor starts. Otherwise the
	// successor is ready first.
	StopFirst bool
	// Monitor is how long a task must stay ready before it counts.
	Monitor time.Duration
	// ProgressDeadline fails the rollout when nothing got better for so long;
	// 0 is DefaultProgressDeadline. A rollout always has one: it must end.
	ProgressDeadline time.Duration
	// MaxFailures is how many failures in a row fail the rollout; 0 is
	// max(3, half of the replicas).
	MaxFailures int
	// OnFailure is what follows when tasks fail or the deadline passes.
	OnFailure Action
}

// Action is what is done when a rollout fails because of its template. It then
// has failed, whatever follows.
type Action string

// The actions.
const (
	// Pause keeps up what serves and starts nothing new.
	Pause Action = ""
	// RollBack makes the last completed revision true again. Where there is
	// none, or that fails in turn, it is as Pause.
	RollBack Action = "rollback"
	// Continue does not end the rollout for failures: only its deadline does,
	// and then it is as Pause.
	Continue Action = "continue"
)

// DefaultProgressDeadline is what Update.ProgressDeadline is when 0.
const DefaultProgressDeadline = 10 * time.Minute

// withDefaults returns u with its zero fields filled in, for n replicas. What
// depends on their number besides is for pace to say.
func (u Update) withDefaults(n int) Update {
	if u.Monitor < 0 {
		u.Monitor = 0
	}
	if u.ProgressDeadline <= 0 {
		u.ProgressDeadline = DefaultProgressDeadline
	}
	if u.MaxFailures <= 0 {
		u.MaxFailures = max(3, (n+1)/2)
	}
	return u
}

// deadline is when an attempt fails if it does not get any further. What waits
// for the end of Monitor is in time.
func (u *Update) deadline(a *record.Attempt) time.Time {
	return a.Progressed.Add(u.ProgressDeadline + u.Monitor)
}
