package control

import (
	"log/slog"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Event is a decision of the planner that has been committed, or something it
// saw, with its reason.
type Event struct {
	At        time.Time
	Kind      EventKind
	Namespace string // of the service; empty in an event about a node
	Service   string
	Task      string // ID
	Slot      int    // of Task
	Node      string
	Revision  int64 // of the service
	// Reason is a record.Reason constant where a task is stopped, a
	// record.Why constant where a rollout failed.
	Reason  string
	Message string          // for people; may be empty
	Failure *record.Failure // of the task that failed
}

// EventKind says what happened.
type EventKind string

// The kinds of event.
const (
	TaskPlaced        EventKind = "task-placed"        // a task has a node
	TaskUnplaced      EventKind = "task-unplaced"      // no node fits; Message says why
	TaskStopping      EventKind = "task-stopping"      // a task was told to stop
	TaskFailed        EventKind = "task-failed"        // a task gave up, and was counted
	TaskDeleted       EventKind = "task-deleted"       // a task's record was deleted: it is over
	RolloutStarted    EventKind = "rollout-started"    // the first of a spec, or it supersedes another
	RolloutSucceeded  EventKind = "rollout-completed"  // the spec is true
	RolloutStopped    EventKind = "rollout-failed"     // the spec could not be made true
	RollbackStarted   EventKind = "rollback-started"   // that failed, and an earlier revision is made true again: Revision
	RollbackSucceeded EventKind = "rollback-completed" // it is
	RollbackStopped   EventKind = "rollback-failed"    // it could not be
	FrontendChanged   EventKind = "frontend-changed"   // a service's addresses or ports
	ServiceRemoved    EventKind = "service-removed"    // nothing is left of a service
	NodeLost          EventKind = "node-lost"          // a node was silent for too long
	NodeReturned      EventKind = "node-returned"      // a lost node is alive again
	RecordIgnored     EventKind = "record-ignored"     // a record cannot be read; Message says which
)

// LogValue is e without what is empty.
func (e Event) LogValue() slog.Value {
	var attrs []slog.Attr
	for _, a := range []slog.Attr{
		slog.String("namespace", e.Namespace), slog.String("service", e.Service), slog.String("task", e.Task),
		slog.String("node", e.Node), slog.String("reason", e.Reason), slog.String("message", e.Message),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	if e.Revision != 0 {
		attrs = append(attrs, slog.Int64("revision", e.Revision))
	}
	return slog.GroupValue(attrs...)
}
