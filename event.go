package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// EventKind says what happened.
type EventKind string

// The kinds of event that are kept; see [Fleet.Events].
const (
	ServiceApplied    EventKind = "service-applied"    // its spec was written: Cause says by whom, Message which fields
	ServiceRemoved    EventKind = "service-removed"    // its spec was deleted; its tasks stop
	ServiceGone       EventKind = "service-gone"       // nothing is left of a service that was removed
	NetworkApplied    EventKind = "network-applied"    // see Network
	NetworkRemoved    EventKind = "network-removed"    //
	RolloutStarted    EventKind = "rollout-started"    // the way to a spec, which supersedes the one before
	RolloutSucceeded  EventKind = "rollout-completed"  // the spec is true
	RolloutStopped    EventKind = "rollout-failed"     // it could not be made true: see Reason, Message and Failure
	RollbackStarted   EventKind = "rollback-started"   // an earlier revision is made true again
	RollbackSucceeded EventKind = "rollback-completed" // it is
	RollbackStopped   EventKind = "rollback-failed"    // it could not be
	TaskPlaced        EventKind = "task-placed"        // it has a node: see Decision
	TaskUnplaced      EventKind = "task-unplaced"      // replicas have no place: see Decision and Message
	TaskResized       EventKind = "task-resized"       // it gets other resources while it runs
	TaskStopping      EventKind = "task-stopping"      // it was told to stop: see Reason
	TaskFailed        EventKind = "task-failed"        // it gave up, and was counted: see Failure
	TaskGone          EventKind = "task-gone"          // it is over, and nothing of it is left to decide
	VolumesErased     EventKind = "volumes-erased"     // the volumes of a slot are to be deleted
	JobApplied        EventKind = "job-applied"        // a job's spec was written: Cause says by whom; Service is its name
	JobGone           EventKind = "job-removed"        // it was deleted, or expired; its tasks stop
	JobStarted        EventKind = "job-started"        // a run of it begins
	JobSucceeded      EventKind = "job-completed"      // enough of its indexes completed
	JobStopped        EventKind = "job-failed"         // it has failed: see Reason, Message and Failure
	JobPaused         EventKind = "job-suspended"      // its tasks stop until it is resumed
	JobResumed        EventKind = "job-resumed"        // it goes on
	DependencyAwaited EventKind = "dependency-awaited" // a revision or run waits for what it depends on: see Message
	DependencyMet     EventKind = "dependency-met"     // it waits no more
	CronApplied       EventKind = "cron-applied"       // a cron job's spec was written: Service is its name
	CronRemoved       EventKind = "cron-removed"       // it was deleted; its runs are removed
	CronMissed        EventKind = "cron-missed"        // times of its schedule passed without a run: see Message
	FrontendChanged   EventKind = "frontend-changed"   // a service's addresses or ports
	NodeLost          EventKind = "node-lost"          // it was silent for so long that its tasks are replaced
	NodeHeld          EventKind = "node-held"          // it was, but so many were lost at once that it is waited for: see WithLossLimit
	NodeReturned      EventKind = "node-returned"      // a lost node is alive again
	NodeChanged       EventKind = "node-changed"       // it was cordoned, drained or given back: see Reason
	NodeDrained       EventKind = "node-drained"       // the last task of a node that is drained is gone
	DrainEnded        EventKind = "drain-ended"        // its deadline has passed before that: see Reason
	ServiceScaled     EventKind = "service-scaled"     // its autoscaler changed the number of tasks: see Scale and Message
)

// The kinds of event that the agents of nodes tell of their tasks, and that are
// kept too. Their Cause names the agent and the revision of the task, and Reason is
// a word for what happened: the kind of a Failure, or why the task was to stop.
const (
	TaskStarted   EventKind = "task-started"   // the first of its containers runs
	TaskRestarted EventKind = "task-restarted" // a container ended, and is started again: see Failure and Restarts
	TaskUnhealthy EventKind = "task-unhealthy" // a container is stopped because its liveness or startup check failed: see Failure
	TaskKilled    EventKind = "task-killed"    // a container did not end within its grace, and was killed
	TaskRefused   EventKind = "task-refused"   // the node cannot do what it takes to run it, or to send it traffic: see Failure
	TaskEnded     EventKind = "task-ended"     // it has ended, and its node has released all of it: see State, Reason and Failure
	EventsDropped EventKind = "events-dropped" // more happened on a node than it could write down: see Message
)

// The kinds of event that only [Fleet.Watch] tells: what is, which the store
// keeps in other records.
const (
	TaskChanged    EventKind = "task-changed"    // its node reports another state, restart or failure
	RolloutChanged EventKind = "rollout-changed" // it began, went on or ended: see Rollout
	NodeJoined     EventKind = "node-joined"     // its agent has a lease
	NodeSilent     EventKind = "node-silent"     // its agent has none any more
	// EventsLost comes first in a Watch that goes on from a token, when events
	// after it have been forgotten, perhaps not of what is watched.
	EventsLost EventKind = "events-lost"
)

// Event is something that happened in the fleet, with who or what made it
// happen and why. It is plain data.
type Event struct {
	Kind      EventKind `json:"kind"`
	At        time.Time `json:"at"` // of the decision; of what is not kept, when this fleet saw it
	Namespace string    `json:"namespace,omitempty"`
	Service   string    `json:"service,omitempty"`
	Task      string    `json:"task,omitempty"` // ID
	Node      string    `json:"node,omitempty"`
	Network   string    `json:"network,omitempty"`
	Slot      int       `json:"slot,omitempty"`
	Revision  int64     `json:"revision,omitempty"` // of the service; of a task, its own
	// State of the task, and the restarts of its containers, as far as is known.
	State    State `json:"state,omitempty"`
	Restarts int   `json:"restarts,omitempty"`
	// Reason says in a word why a task is started, is to stop or has stopped,
	// or why a rollout failed; Message says it to people.
	Reason  string   `json:"reason,omitempty"`
	Message string   `json:"message,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
	Rollout *Rollout `json:"rollout,omitempty"`
	Scale   *Scaling `json:"scale,omitempty"`
	Cause   Cause    `json:"cause,omitzero"`
	// Decision is the scheduler's about the replicas that a task was placed
	// together with, or that it found no place for. Its lists of Tasks and Nodes
	// are left out.
	Decision *scheduler.Decision `json:"decision,omitempty"`
	// Token is the place of the event in the fleet's history: [Fleet.Watch]
	// goes on after it.
	Token Token `json:"token,omitempty"`
}

// Cause is who or what made something happen.
type Cause struct {
	// Actor is who asked for it, see [WithActor], or the part of the fleet that
	// acted by itself: [ActorPlanner], or the agent of a node.
	Actor string `json:"actor,omitempty"`
	// Revision of the service that is being made true.
	Revision int64 `json:"revision,omitempty"`
	// Reason is the event's.
	Reason string `json:"reason,omitempty"`
	// Trigger names what set it off, where that is not the spec alone, such as
	// "task/web.0.k2xq7c1abc", which failed, or "node/n1", which was drained.
	Trigger string `json:"trigger,omitempty"`
	// Parent is the store revision of the change of the spec behind it: the one
	// that begins the Token of that change's own event.
	Parent int64 `json:"parent,omitempty"`
}

// String is the event in a line.
func (e Event) String() string {
	var b strings.Builder
	b.WriteString(string(e.Kind))
	if e.Service != "" {
		fmt.Fprintf(&b, " %s/%s", e.Namespace, e.Service)
	}
	if e.Revision != 0 {
		fmt.Fprintf(&b, " revision %d", e.Revision)
	}
	for _, p := range []struct{ before, text string }{
		{" task ", e.Task}, {" on ", e.Node}, {" network ", e.Network}, {" ", string(e.State)}, {": ", e.Reason}, {" by ", e.Cause.Actor}, {" because of ", e.Cause.Trigger}, {": ", e.Message},
	} {
		if p.text != "" {
			b.WriteString(p.before + p.text)
		}
	}
	return b.String()
}

// Token is a place in the history of a fleet, after one event and before the
// next. It is opaque, lasts as long as the store, and means nothing in another.
type Token string

// token is what a Token says: the event of a commit that is the n-th of a key.
// Within one commit events are in the order of the keys.
type token struct {
	revision int64
	key      string
	n        int
}

func (t token) String() string { return fmt.Sprintf("%d:%d:%s", t.revision, t.n, t.key) }

func compareTokens(a, b token) int {
	return cmp.Or(cmp.Compare(a.revision, b.revision), strings.Compare(a.key, b.key), cmp.Compare(a.n, b.n))
}

// TokenError is a Token that no event has.
type TokenError struct{ Token Token }

func (e *TokenError) Error() string {
	return fmt.Sprintf("%q is no place in a fleet's history; use the Token of an Event as it is", string(e.Token))
}

func parseToken(text Token) (t token, err error) {
	parts := strings.SplitN(string(text), ":", 3)
	if len(parts) == 3 {
		var errs [2]error
		t.revision, errs[0] = strconv.ParseInt(parts[0], 10, 64)
		t.n, errs[1] = strconv.Atoi(parts[1])
		t.key = parts[2]
		if errs == [2]error{} && t.revision >= 0 {
			return t, nil
		}
	}
	return t, &TokenError{text}
}

// MaxEventsEach is how many of its latest events are kept of each service, node
// and network, at least, as long as the fleet has no more than MaxEvents of
// them; see [WithEventHistory].
const (
	MaxEventsEach = control.KeepEventsEach
	MaxEvents     = control.KeepEvents
)

// WithEventHistory sets how many events are kept: of each service, node and
// network at least as many as each, and of the fleet about as many as all. The
// oldest go first. An event takes about 250 bytes in the store; 0 leaves a bound
// as it is, [MaxEventsEach] and [MaxEvents].
func WithEventHistory(each, all int) Option {
	return func(o *options) { o.keepEach, o.keepAll = each, all }
}

// EventFilter says which events are asked for; the zero value asks for all.
type EventFilter struct {
	Service string      // "NAME" or "NAMESPACE/NAME"
	Task    string      // ID
	Node    string      // also those of tasks on it
	Actor   string      // who caused it
	Kinds   []EventKind // nil is all
	Since   time.Time   // at or after; zero is from the beginning
	After   Token       // later than this event; "" is from the beginning
	Last    int         // only so many, the latest; 0 is all
}

// matches reports whether e is asked for, its place in history aside.
func (f *EventFilter) matches(e *Event) bool {
	if f.Service != "" {
		if ns, name := splitName(f.Service); e.Namespace != ns || e.Service != name {
			return false
		}
	}
	return (f.Task == "" || f.Task == e.Task) && (f.Node == "" || f.Node == e.Node) &&
		(f.Actor == "" || f.Actor == e.Cause.Actor) && !e.At.Before(f.Since) &&
		(f.Kinds == nil || slices.Contains(f.Kinds, e.Kind))
}

// Events returns the kept events that a filter asks for, the oldest first. A
// Token that no event can have is a [*TokenError].
func (f *Fleet) Events(ctx context.Context, filter EventFilter) ([]Event, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var after token
	if filter.After != "" {
		if after, err = parseToken(filter.After); err != nil {
			return nil, err
		}
	}
	snapshot, err := f.store.List(ctx, record.Kept)
	if err != nil {
		return nil, err
	}
	items := slices.DeleteFunc(slices.Clone(snapshot.Items), func(i store.Item) bool { return i.Revision < after.revision })
	slices.SortFunc(items, func(a, b store.Item) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), strings.Compare(a.Key, b.Key))
	})
	var events []Event
	for _, item := range items {
		kept, err := readEvents(item)
		if err != nil {
			return nil, err
		}
		for i := range kept {
			at, err := parseToken(kept[i].Token)
			if err != nil {
				return nil, err
			}
			if filter.matches(&kept[i]) && compareTokens(at, after) > 0 {
				events = append(events, kept[i])
			}
		}
	}
	if filter.Last > 0 {
		events = events[max(0, len(events)-filter.Last):]
	}
	return events, nil
}

// readEvents reads the events of one commit.
func readEvents(item store.Item) ([]Event, error) {
	recs, err := record.DecodeEvents(item.Value)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", item.Key, err)
	}
	events := make([]Event, 0, len(recs))
	for i := range recs {
		r := &recs[i]
		if !record.Testimony(item.Key, r) {
			continue
		}
		events = append(events, Event{
			Kind: EventKind(r.Kind), At: r.At, Namespace: r.Namespace, Service: r.Service, Task: r.Task, Node: r.Node,
			Network: r.Network, Slot: r.Slot, Revision: r.Revision, State: State(r.State), Reason: r.Reason, Message: r.Message,
			Failure: readFailure(r.Failure), Cause: Cause(r.Cause), Decision: r.Decision, Scale: (*Scaling)(r.Scale),
			Restarts: r.Restarts, Token: Token(token{item.Revision, item.Key, i}.String()),
		})
	}
	return events, nil
}

// forgotten is the revision up to which events may be missing.
func (f *Fleet) forgotten(ctx context.Context) (int64, error) {
	item, found, err := store.Get(ctx, f.store, record.Oblivion)
	if err != nil || !found {
		return 0, err
	}
	var rec record.Forgotten
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return 0, fmt.Errorf("read %s: %w", item.Key, err)
	}
	return rec.Revision, nil
}
