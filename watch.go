package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// WatchOption changes what a Watch tells.
type WatchOption func(*watcher)

// WatchAfter has a Watch go on after an event that was seen before, by this
// process or an earlier one; "" is from the beginning of what is kept. All kept
// events since then come first, each once. Of what is not kept, such as the
// states of tasks, comes what has changed since then, as it is now. Should
// events have been forgotten meanwhile, an [EventsLost] comes before all others.
func WatchAfter(t Token) WatchOption { return func(w *watcher) { w.resume, w.after = true, t } }

// WatchOnly has a Watch tell only what a filter asks for. Its After is that of
// [WatchAfter], and its Last is not looked at.
func WatchOnly(filter EventFilter) WatchOption {
	return func(w *watcher) {
		w.filter = filter
		if filter.After != "" {
			w.resume, w.after = true, filter.After
		}
	}
}

// Watch returns a channel of what happens in the fleet from now on, in order
// and without gaps; see [WatchAfter] for what happened before. A reader that is
// slow does not hold up the fleet, and misses no kept event unless it falls
// behind all that are kept, of which an [EventsLost] tells. The channel is closed
// when ctx ends, or the fleet or its store is closed. A Token that no event can
// have is a [*TokenError].
func (f *Fleet) Watch(ctx context.Context, opts ...WatchOption) (<-chan Event, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	w := &watcher{fleet: f}
	for _, o := range opts {
		o(w)
	}
	if w.resume && w.after != "" {
		w.at, err = parseToken(w.after)
	}
	var past []Event
	var batches <-chan store.Batch
	if err == nil {
		past, batches, err = w.begin(ctx)
	}
	if err != nil {
		done()
		return nil, err
	}
	events := make(chan Event)
	go func() {
		defer done()
		defer close(events)
		for w.follow(ctx, past, batches, events) {
			if past, batches, err = w.begin(ctx); err != nil {
				return
			}
		}
	}()
	return events, nil
}

// watcher makes events of changes. It remembers what a deleted key does not
// say.
type watcher struct {
	fleet  *Fleet
	filter EventFilter
	resume bool
	after  Token

	at    token            // of what was told, or passed over, last
	tasks map[string]Event // the last of each task
}

// begin takes in what there is, and returns the events of it that are to be
// told, and the changes that follow.
func (w *watcher) begin(ctx context.Context) (past []Event, batches <-chan store.Batch, err error) {
	snapshot, err := w.fleet.store.List(ctx, "/")
	if err != nil {
		return nil, nil, err
	}
	w.tasks = map[string]Event{}
	// Tasks first: what else there is refers to them.
	slices.SortStableFunc(snapshot.Items, func(a, b store.Item) int {
		task := func(i store.Item) int {
			if strings.HasPrefix(i.Key, record.Tasks) {
				return 0
			}
			return 1
		}
		return task(a) - task(b)
	})
	for _, item := range snapshot.Items {
		for _, e := range w.events(store.Change{Item: item}) {
			if at, err := parseToken(e.Token); w.resume && err == nil && compareTokens(at, w.at) > 0 {
				past = append(past, e)
			}
		}
	}
	slices.SortStableFunc(past, func(a, b Event) int {
		x, _ := parseToken(a.Token)
		y, _ := parseToken(b.Token)
		return compareTokens(x, y)
	})
	if w.resume {
		forgotten, err := w.fleet.forgotten(ctx)
		if err != nil {
			return nil, nil, err
		}
		for _, item := range snapshot.Items {
			forgotten = max(forgotten, forgottenBy(item))
		}
		if forgotten > w.at.revision {
			past = append([]Event{{Kind: EventsLost, Token: Token(w.at.String()),
				Message: "events after this token have been forgotten; what follows is what is kept"}}, past...)
		}
	}
	w.resume, w.at = true, token{revision: snapshot.Revision, key: "\xff"}
	batches, err = w.fleet.store.Watch(ctx, "/", snapshot.Revision)
	return past, batches, err
}

// follow tells events until there are no more, and reports whether to begin
// again, because the reader was so slow that changes were lost. The kept events
// among them are not.
func (w *watcher) follow(ctx context.Context, past []Event, batches <-chan store.Batch, out chan<- Event) (again bool) {
	send := func(e Event) bool {
		if e.At.IsZero() {
			e.At = time.Now().UTC()
		}
		if e.Kind != EventsLost && !w.filter.matches(&e) {
			return true
		}
		select {
		case out <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for _, e := range past {
		if !send(e) {
			return false
		}
	}
	for batch := range batches {
		if batch.Err != nil {
			return isCompacted(batch.Err)
		}
		// One order in a commit, in which also what is read later is told.
		changes := slices.SortedFunc(slices.Values(batch.Changes), func(a, b store.Change) int { return cmp.Compare(a.Item.Key, b.Item.Key) })
		for _, c := range changes {
			for _, e := range w.events(c) {
				if !send(e) {
					return false
				}
			}
		}
		w.at = token{revision: batch.Revision, key: "\xff"}
	}
	return false
}

// events are what a change tells.
func (w *watcher) events(c store.Change) []Event {
	key := c.Item.Key
	prefix := key[:strings.IndexByte(key[1:]+"/", '/')+1]
	parts := strings.Split(strings.TrimPrefix(key[len(prefix):], "/"), "/")
	var e Event
	var news bool
	switch prefix + "/" {
	case record.Kept:
		return w.kept(c)
	case record.Tasks:
		w.task(c, parts)
		return nil
	case record.Rollouts:
		e, news = w.rollout(c, parts)
	case record.Statuses:
		e, news = w.status(c, parts)
	case record.Alive:
		e, news = Event{Kind: NodeJoined, Node: parts[0]}, true
		if c.Deleted {
			e.Kind = NodeSilent
		}
	}
	if !news {
		return nil
	}
	e.Token = Token(token{revision: c.Item.Revision, key: key}.String())
	return []Event{e}
}

// kept are the events of one commit, with what the node of a task said last.
func (w *watcher) kept(c store.Change) []Event {
	if c.Deleted {
		return nil
	}
	events, err := readEvents(c.Item)
	if err != nil {
		return nil
	}
	for i := range events {
		e := &events[i]
		if last, known := w.tasks[e.Task]; known && e.Task != "" {
			// What the node said last is of before a restart that this tells of.
			if e.Restarts == 0 || e.Restarts == last.Restarts {
				e.State = cmp.Or(e.State, last.State)
			}
			e.Restarts = cmp.Or(e.Restarts, last.Restarts)
		}
	}
	return events
}

// forgottenBy is up to which revision an agent has deleted events of its own, as
// one of its records says.
func forgottenBy(item store.Item) int64 {
	var rec struct {
		Forgotten int64 `json:"forgotten"`
	}
	if record.Teller(item.Key) == "" || json.Unmarshal(item.Value, &rec) != nil {
		return 0
	}
	return min(rec.Forgotten, item.Revision)
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

// task remembers what a task is.
func (w *watcher) task(c store.Change, parts []string) {
	if len(parts) != 2 {
		return
	}
	var rec record.Task
	if c.Deleted || json.Unmarshal(c.Item.Value, &rec) != nil {
		delete(w.tasks, parts[1])
		return
	}
	e := w.tasks[rec.ID]
	e.Namespace, e.Service, e.Task, e.Node, e.Slot, e.Revision = rec.Namespace, rec.Service, rec.ID, rec.Node, rec.Slot, rec.Revision
	w.tasks[rec.ID] = e
}

func (w *watcher) status(c store.Change, parts []string) (Event, bool) {
	var rec record.Status
	if c.Deleted || len(parts) != 2 || json.Unmarshal(c.Item.Value, &rec) != nil {
		return Event{}, false
	}
	id := parts[1]
	last, known := w.tasks[id]
	e := last
	e.Kind, e.Namespace, e.Service, e.Task, e.Node = TaskChanged, rec.Namespace, rec.Service, id, parts[0]
	e.State, e.Restarts, e.Failure, e.Reason = State(rec.State), rec.Restarts, readFailure(rec.Failure), ""
	e.Cause.Actor = record.ActorAgent(parts[0])
	if known { // else its task is gone already
		w.tasks[id] = e
	}
	sameFailure := (last.Failure == nil) == (e.Failure == nil) && (e.Failure == nil || last.Failure.At.Equal(e.Failure.At))
	return e, last.State != e.State || last.Restarts != e.Restarts || !sameFailure
}
