package control

import (
	"log/slog"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Event is a decision of the planner that has been committed, or something it
// saw, with its reason. Those that Kept reports true for are written in the
// commit of the decision.
type Event = record.Event

// EventKind says what happened.
type EventKind = record.EventKind

// The kinds of event.
const (
	TaskPlaced        EventKind = "task-placed"        // a task has a node
	TaskUnplaced      EventKind = "task-unplaced"      // no node fits; Message says why
	TaskResized       EventKind = "task-resized"       // it gets other resources while it runs
	TaskStopping      EventKind = "task-stopping"      // a task was told to stop
	TaskFailed        EventKind = "task-failed"        // a task gave up, and was counted
	TaskDeleted       EventKind = "task-gone"          // a task's record was deleted: it is over
	RolloutStarted    EventKind = "rollout-started"    // the first of a spec, or it supersedes another
	RolloutAdvanced   EventKind = "rollout-phase"      // it is at another phase: Message
	RolloutSucceeded  EventKind = "rollout-completed"  // the spec is true
	RolloutStopped    EventKind = "rollout-failed"     // the spec could not be made true
	RollbackStarted   EventKind = "rollback-started"   // that failed, and an earlier revision is made true again: Revision
	RollbackSucceeded EventKind = "rollback-completed" // it is
	RollbackStopped   EventKind = "rollback-failed"    // it could not be
	JobStarted        EventKind = "job-started"        // a run of a job begins
	JobSucceeded      EventKind = "job-completed"      // as many of its indexes completed as are to
	JobStopped        EventKind = "job-failed"         // it has failed: Reason and Failure say why
	JobSuspended      EventKind = "job-suspended"      // its tasks stop until it is resumed
	JobResumed        EventKind = "job-resumed"        // it goes on
	DependencyAwaited EventKind = "dependency-awaited" // nothing is started until it holds: Message
	DependencyMet     EventKind = "dependency-met"     // it holds
	FrontendChanged   EventKind = "frontend-changed"   // a service's addresses or ports
	ServiceGone       EventKind = "service-gone"       // nothing is left of a service that was removed
	VolumesErased     EventKind = "volumes-erased"     // the volumes of a slot are to be deleted
	NodeLost          EventKind = "node-lost"          // a node was silent for too long
	NodeHeld          EventKind = "node-held"          // the same, but so many were lost that this one is waited for
	NodeReturned      EventKind = "node-returned"      // a lost node is alive again
	NodeDrained       EventKind = "node-drained"       // the last task of a node that is drained is gone
	DrainEnded        EventKind = "drain-ended"        // its deadline has passed before that
	RecordIgnored     EventKind = "record-ignored"     // a record cannot be read; Message says which
)

// Kept reports whether e is written to the store. What is not is no decision:
// each leader sees it anew.
func Kept(e *Event) bool { return e.Kind != RecordIgnored }

// attributes are what a log says of e: what is not empty.
func attributes(e *Event) slog.Attr {
	var attrs []any
	for _, a := range []slog.Attr{
		slog.String("namespace", e.Namespace), slog.String("service", e.Service), slog.String("task", e.Task),
		slog.String("node", e.Node), slog.String("reason", e.Reason), slog.String("message", e.Message),
		slog.String("actor", e.Cause.Actor), slog.String("trigger", e.Cause.Trigger),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	if e.Revision != 0 {
		attrs = append(attrs, slog.Int64("revision", e.Revision))
	}
	return slog.Group("event", attrs...)
}
