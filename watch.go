package orchestrate

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// EventKind says what happened.
type EventKind string

// The kinds of event.
const (
	ServiceApplied EventKind = "service-applied" // its spec was written
	ServiceRemoved EventKind = "service-removed" // its spec was deleted; its tasks stop
	RolloutChanged EventKind = "rollout-changed" // it began, went on or ended: see Rollout
	TaskPlaced     EventKind = "task-placed"     // it has a node
	TaskStopping   EventKind = "task-stopping"   // it was told to stop: see Reason
	TaskChanged    EventKind = "task-changed"    // its node reports another state, restart or failure
	TaskGone       EventKind = "task-gone"       // it is over, and nothing of it is left to decide
	NodeJoined     EventKind = "node-joined"     // its agent has a lease
	NodeLost       EventKind = "node-lost"       // its agent has none any more
)

// Event is a change of the fleet.
type Event struct {
	Kind      EventKind
	At        time.Time // when this fleet saw it
	Namespace string
	Service   string
	Task      string // ID
	Node      string
	Slot      int
	Revision  int64 // of the service
	// State of the task, and its restarts, in a TaskChanged.
	State    State
	Restarts int
	// Reason says why a task is to stop or has stopped, or why a rollout
	// failed.
	Reason  string
	Failure *Failure
	Rollout *Rollout
}

// Watch returns a channel of what happens in the fleet from now on, in order
// and without gaps. A reader that is slow does not hold up the fleet. The
// channel is closed when ctx ends or the fleet is closed, or when history was
// lost to a reader that fell too far behind: a caller that needs to know the
// state then asks for it and watches again.
func (f *Fleet) Watch(ctx context.Context) (<-chan Event, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	w := watcher{tasks: map[string]Event{}, stopping: map[string]string{}}
	snapshot, err := f.store.List(ctx, "/")
	if err == nil {
		for _, item := range snapshot.Items {
			w.event(store.Change{Item: item}) // what is so already is no event
		}
	}
	var batches <-chan store.Batch
	if err == nil {
		batches, err = f.store.Watch(ctx, "/", snapshot.Revision)
	}
	if err != nil {
		done()
		return nil, err
	}
	events := make(chan Event)
	go func() {
		defer done()
		defer close(events)
		for batch := range batches {
			for _, c := range batch.Changes {
				e, ok := w.event(c)
				if !ok {
					continue
				}
				e.At = time.Now().UTC()
				select {
				case events <- e:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return events, nil
}

// watcher makes events of changes. It remembers what a deleted key does not
// say.
type watcher struct {
	tasks    map[string]Event  // the last of each task
	stopping map[string]string // why, of those that are to stop
}

func (w *watcher) event(c store.Change) (Event, bool) {
	key := c.Item.Key
	prefix := key[:strings.IndexByte(key[1:]+"/", '/')+1]
	parts := strings.Split(strings.TrimPrefix(key[len(prefix):], "/"), "/")
	switch prefix + "/" {
	case record.Services:
		return w.service(c, parts)
	case record.Rollouts:
		return w.rollout(c, parts)
	case record.Tasks:
		return w.task(c, parts)
	case record.Statuses:
		return w.status(c, parts)
	case record.Alive:
		e := Event{Kind: NodeJoined, Node: parts[0]}
		if c.Deleted {
			e.Kind = NodeLost
		}
		return e, true
	}
	return Event{}, false
}

func (w *watcher) service(c store.Change, parts []string) (Event, bool) {
	if len(parts) != 2 {
		return Event{}, false
	}
	e := Event{Kind: ServiceApplied, Namespace: parts[0], Service: parts[1]}
	if c.Deleted {
		e.Kind = ServiceRemoved
		return e, true
	}
	var rec record.Service
	if json.Unmarshal(c.Item.Value, &rec) != nil {
		return e, false
	}
	e.Revision = rec.Revision
	return e, true
}

func (w *watcher) rollout(c store.Change, parts []string) (Event, bool) {
	var rec record.Rollout
	if c.Deleted || len(parts) != 2 || json.Unmarshal(c.Item.Value, &rec) != nil {
		return Event{}, false
	}
	return Event{
		Kind: RolloutChanged, Namespace: parts[0], Service: parts[1], Revision: rec.Revision,
		Reason: rec.Reason, Failure: readFailure(rec.Failure), Rollout: readRollout(rec),
	}, true
}

func (w *watcher) task(c store.Change, parts []string) (Event, bool) {
	if len(parts) != 2 {
		return Event{}, false
	}
	id := parts[1]
	if c.Deleted {
		e := w.tasks[id]
		e.Kind, e.Task, e.Node, e.Failure, e.Reason = TaskGone, id, parts[0], nil, w.stopping[id]
		delete(w.tasks, id)
		delete(w.stopping, id)
		return e, true
	}
	var rec record.Task
	if json.Unmarshal(c.Item.Value, &rec) != nil {
		return Event{}, false
	}
	last, known := w.tasks[id]
	e := Event{
		Kind: TaskPlaced, Namespace: rec.Namespace, Service: rec.Service, Task: id, Node: rec.Node,
		Slot: rec.Slot, Revision: rec.Revision, State: last.State, Restarts: last.Restarts,
	}
	if rec.Stop != nil {
		e.Kind, e.Reason = TaskStopping, rec.Stop.Reason
	}
	news := !known || e.Reason != w.stopping[id]
	w.tasks[id], w.stopping[id] = e, e.Reason
	return e, news
}

func (w *watcher) status(c store.Change, parts []string) (Event, bool) {
	var rec record.Status
	if c.Deleted || len(parts) != 2 || json.Unmarshal(c.Item.Value, &rec) != nil {
		return Event{}, false
	}
	id := parts[1]
	last := w.tasks[id]
	e := last
	e.Kind, e.Namespace, e.Service, e.Task, e.Node = TaskChanged, rec.Namespace, rec.Service, id, parts[0]
	e.State, e.Restarts, e.Failure, e.Reason = State(rec.State), rec.Restarts, readFailure(rec.Failure), ""
	sameFailure := (last.Failure == nil) == (e.Failure == nil) && (e.Failure == nil || last.Failure.At.Equal(e.Failure.At))
	w.tasks[id] = e
	return e, last.State != e.State || last.Restarts != e.Restarts || !sameFailure
}
