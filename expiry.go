package orchestrate

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// expiry removes jobs whose TTL is over, while the fleet leads. It remembers of
// each job what that depends on, so a change costs the same however many jobs
// there are.
type expiry struct {
	fleet *Fleet
	fence store.Condition
	wake  chan struct{} // has room for one

	mu    sync.Mutex              // guards what follows
	specs map[string]expiringSpec // of jobs with a TTL, by NS/NAME
	ends  map[string]expiringEnd  // of runs that have ended
}

type expiringSpec struct {
	item store.Item
	run  int64
	ttl  time.Duration
}

type expiringEnd struct {
	run int64
	at  time.Time
}

// expire runs until ctx ends.
func (f *Fleet) expire(ctx context.Context, fence store.Condition) {
	e := &expiry{fleet: f, fence: fence, wake: make(chan struct{}, 1), specs: map[string]expiringSpec{}, ends: map[string]expiringEnd{}}
	var wg sync.WaitGroup
	defer wg.Wait()
	for prefix, follower := range map[string]store.Follower{
		record.Jobs: expirySide{e, e.forgetSpecs, e.readSpec}, record.Runs: expirySide{e, e.forgetEnds, e.readEnd},
	} {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := store.Follow(ctx, f.store, prefix, follower); ctx.Err() == nil {
					f.opts.logger.Warn("cannot follow jobs to expire; trying again", "error", err)
					pause(ctx, time.Second)
				}
			}
		})
	}
	for ctx.Err() == nil {
		key, spec, at := e.next()
		wait, cancel := ctx, context.CancelFunc(func() {})
		if key != "" {
			wait, cancel = context.WithDeadline(ctx, at)
		}
		select {
		case <-e.wake:
		case <-wait.Done():
			if ctx.Err() == nil {
				e.remove(ctx, key, spec)
			}
		}
		cancel()
	}
}

// next returns the job that expires next; no key when there is none.
func (e *expiry) next() (key string, spec expiringSpec, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, s := range e.specs {
		end, ended := e.ends[k]
		if due := end.at.Add(s.ttl); ended && end.run == s.run && (key == "" || due.Before(at)) {
			key, spec, at = k, s, due
		}
	}
	return key, spec, at
}

// remove deletes a job as it was seen to expire. What has changed meanwhile is
// looked at when it is heard of.
func (e *expiry) remove(ctx context.Context, key string, spec expiringSpec) {
	ns, name, _ := strings.Cut(key, "/")
	b := &batch{guarded: map[string]bool{}, reason: reasonExpired}
	b.If = append(b.If, e.fence)
	b.guard(spec.item, spec.item.Key)
	b.Writes = append(b.Writes, store.Delete(spec.item.Key))
	b.tell(WithActor(ctx, record.ActorPlanner), record.Event{Kind: record.JobGone, Namespace: ns, Service: name, Revision: spec.run})
	if err := e.fleet.commit(ctx, b); err != nil {
		if ctx.Err() == nil {
			e.fleet.opts.logger.Warn("cannot remove a job that has expired; trying again", "job", key, "error", err)
			pause(ctx, time.Second)
		}
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.specs[key].item.Revision == spec.item.Revision {
		delete(e.specs, key)
	}
}

func (e *expiry) forgetSpecs() { clear(e.specs) }
func (e *expiry) forgetEnds()  { clear(e.ends) }

func (e *expiry) readSpec(key string, item store.Item, deleted bool) {
	delete(e.specs, key)
	var rec record.Job
	var spec struct {
		TTL time.Duration `json:"ttl"`
	}
	if !deleted && json.Unmarshal(item.Value, &rec) == nil && json.Unmarshal(rec.Spec, &spec) == nil && spec.TTL > 0 {
		item.Value = nil                                     // what it is deleted under is all that is needed
		e.specs[key] = expiringSpec{item, rec.Run, spec.TTL} // of others the planner says what is wrong
	}
}

func (e *expiry) readEnd(key string, item store.Item, deleted bool) {
	delete(e.ends, key)
	var run record.Run
	if !deleted && json.Unmarshal(item.Value, &run) == nil && run.State.Final() {
		e.ends[key] = expiringEnd{run.Number, run.Ended}
	}
}

// expirySide follows one of the two prefixes. It is a [store.Follower].
type expirySide struct {
	*expiry
	forget func()
	read   func(key string, item store.Item, deleted bool)
}

// Reset takes the records of the snapshot.
func (s expirySide) Reset(snapshot store.Snapshot) error {
	var changes []store.Change
	for _, item := range snapshot.Items {
		changes = append(changes, store.Change{Item: item})
	}
	s.take(true, changes)
	return nil
}

// Apply follows one commit.
func (s expirySide) Apply(batch store.Batch) error {
	s.take(false, batch.Changes)
	return nil
}

func (s expirySide) take(anew bool, changes []store.Change) {
	s.mu.Lock()
	if anew {
		s.forget()
	}
	for _, c := range changes {
		_, key, _ := strings.Cut(c.Item.Key[1:], "/") // after the prefix
		s.read(key, c.Item, c.Deleted)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
