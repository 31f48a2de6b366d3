package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// journal is what this node tells of its tasks: events, which go out in the commits
// of the statuses, each page of them under a key of its own that is written once.
// The leader deletes what is too old; while none does, the journal bounds itself.
//
// Only the outbox's goroutine uses it, but for its queue.
type journal struct {
	node string

	opened    bool
	number    int64 // of the newest page
	pages     []store.Item
	forgotten int64 // revision of the newest page that it has deleted
	sealed    *page // a page that may be in the store or not

	queue   []record.Event // guarded by outbox.mu, as is dropped
	dropped int
}

// The bounds of a journal: of what waits for the store, of a page, and of the
// pages that nobody deletes.
const (
	maxQueued = 512
	maxPage   = 64
	maxPages  = 256
)

// page is a record of events on its way to the store.
type page struct {
	key     string
	value   []byte
	expired string // a page that is deleted with it; may be empty
}

// conditions have a page written once.
func (p *page) conditions() []store.Condition { return []store.Condition{store.Absent(p.key)} }

func (p *page) writes() []store.Write {
	writes := []store.Write{store.Put(p.key, p.value)}
	if p.expired != "" {
		writes = append(writes, store.Delete(p.expired))
	}
	return writes
}

// add queues an event. When the store takes none for long, the oldest go.
func (j *journal) add(e record.Event) {
	if len(j.queue) >= maxQueued {
		j.queue = j.queue[1:]
		j.dropped++
	}
	j.queue = append(j.queue, e)
}

// open reads which pages there are, before the first is written.
func (j *journal) open(ctx context.Context, s store.Store, mu *sync.Mutex) error {
	mu.Lock()
	idle := j.opened || len(j.queue) == 0
	mu.Unlock()
	if idle {
		return nil
	}
	snapshot, err := s.List(ctx, record.Key(record.Kept+"node/", j.node, ""))
	if err != nil {
		return fmt.Errorf("see what this node has told: %w", err)
	}
	j.pages = nil
	for _, item := range snapshot.Items {
		var rec record.Events
		if json.Unmarshal(item.Value, &rec) == nil {
			j.forgotten = max(j.forgotten, rec.Forgotten)
		}
		j.number = max(j.number, record.NodeEventsNumber(item.Key, j.node))
		j.pages = append(j.pages, store.Item{Key: item.Key, Revision: item.Revision})
	}
	j.opened = true
	return nil
}

// waits reports whether there is something to tell. outbox.mu is held.
func (j *journal) waits() bool { return j.sealed != nil || len(j.queue) > 0 }

// next is the page to write now; nil when there is nothing to tell. outbox.mu is
// held.
func (j *journal) next() *page {
	if j.sealed != nil || len(j.queue) == 0 {
		return j.sealed
	}
	var events []record.Event
	if j.dropped > 0 {
		events = append(events, record.Event{Kind: record.EventsDropped, At: time.Now().UTC(), Node: j.node, Reason: record.ReasonOverflow,
			Message: fmt.Sprintf("%d events of this node were not kept: the store did not take them in time", j.dropped),
			Cause:   record.Cause{Actor: record.ActorAgent(j.node), Reason: record.ReasonOverflow}})
		j.dropped = 0
	}
	// What tasks tell at one moment comes in the order of their goroutines.
	slices.SortStableFunc(j.queue, func(a, b record.Event) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Task, b.Task)) })
	n := min(len(j.queue), maxPage)
	events = append(events, j.queue[:n]...)
	j.queue = j.queue[n:]
	p := &page{key: record.NodeEvents(j.node, j.number+1)}
	if len(j.pages) >= maxPages {
		p.expired, j.forgotten = j.pages[0].Key, max(j.forgotten, j.pages[0].Revision)
	}
	p.value = record.EncodeNodeEvents(events, j.forgotten)
	j.sealed = p
	return p
}

// close notes that a page is in the store, at a revision.
func (j *journal) close(p *page, revision int64) {
	j.number++
	if p.expired != "" {
		j.pages = j.pages[1:]
	}
	j.pages = append(j.pages, store.Item{Key: p.key, Revision: revision})
	j.sealed = nil
}

// tell queues an event of the task. An event is said in words for people by its
// failure, where it has one.
func (t *task) tell(e record.Event) {
	e.At = time.Now().UTC()
	e.Namespace, e.Service, e.Task, e.Slot, e.Node, e.Revision = t.rec.Namespace, t.rec.Service, t.rec.ID, t.rec.Slot, t.agent.id(), t.revision.Load()
	e.Cause = record.Cause{Actor: record.ActorAgent(e.Node), Revision: e.Revision, Reason: e.Reason}
	if e.Failure != nil {
		f := *e.Failure
		e.Failure = &f
		if e.Message == "" {
			e.Message = f.Message
		}
	}
	t.agent.out.tell(e)
}

// refused tells of what keeps the task from running or from its traffic, once
// until that changes. t.mu is not held.
func (t *task) refused(f *record.Failure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refusedLocked(f)
}

func (t *task) refusedLocked(f *record.Failure) {
	why := string(f.Kind) + f.Message
	if t.refusal == why {
		return
	}
	t.refusal = why
	t.tell(record.Event{Kind: record.TaskRefused, Reason: string(f.Kind), Failure: f})
}
