package node

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// maxAcks is up to how many other nodes acknowledge that an endpoint has been
// withdrawn. Each withdrawal costs a write of each of them; in a larger fleet the
// drain delay alone gives the others their time.
const maxAcks = 64

// recount is after what time a fleet that was found too large is counted again.
const recount = 10 * time.Minute

// acks has the withdrawal of this node's endpoints acknowledged by the balancers
// of other nodes. Nobody coordinates it: an endpoint that is leaving says so in
// its record, each other node writes, in a record of its own, up to which change
// it has programmed, and whoever stops the task reads these.
type acks struct {
	agent *Agent

	mu    sync.Mutex // guards what follows
	large time.Time  // when the fleet was last found to be too large

	// Guarded by traffic.mu: what this node has told the others.
	told bool
	at   int64
}

// others are the nodes whose acknowledgement is worth waiting for, and how far
// they are; nil when there are none, or too many.
func (a *acks) others(ctx context.Context) (map[string]int64, int64) {
	a.mu.Lock()
	large := !a.large.IsZero() && time.Since(a.large) < recount
	a.mu.Unlock()
	if large || !a.agent.traffic.used() || a.agent.traffic.spread() > maxAcks+1 {
		return nil, 0
	}
	snapshot, err := a.agent.store.List(ctx, record.Acks) // without the lock: the store may take its time
	if err != nil {
		return nil, 0 // what the store does not tell is not waited for
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.large = time.Time{}
	if len(snapshot.Items) > maxAcks+1 {
		a.large = time.Now()
		return nil, 0
	}
	others := map[string]int64{}
	for _, item := range snapshot.Items {
		a.read(others, store.Change{Item: item})
	}
	return others, snapshot.Revision
}

// spread is how many nodes have endpoints: there are at least so many.
func (t *traffic) spread() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.endpoints.nodes)
}

// read takes in what another node has acknowledged, or that it is gone.
func (a *acks) read(others map[string]int64, c store.Change) {
	parts := record.Split(c.Item.Key, record.Acks, 1)
	if parts == nil || parts[0] == a.agent.id() {
		return
	}
	var rec record.Ack
	switch err := json.Unmarshal(c.Item.Value, &rec); {
	case c.Deleted:
		delete(others, parts[0])
	case err != nil:
		a.agent.log.Error("cannot read what a node has acknowledged", "key", c.Item.Key, "error", err)
		delete(others, parts[0])
	default:
		others[parts[0]] = rec.Revision
	}
}

// wait returns when all other nodes that are alive have programmed the change of
// endpoints at a revision. It gives up when ctx ends, or the store says nothing.
func (a *acks) wait(ctx context.Context, revision int64) {
	others, seen := a.others(ctx)
	behind := func() bool {
		for _, at := range others {
			if at < revision {
				return true
			}
		}
		return false
	}
	if !behind() {
		return
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	batches, err := a.agent.store.Watch(watching, record.Acks, seen)
	if err != nil {
		return
	}
	for batch := range batches {
		if batch.Err != nil {
			return
		}
		for _, c := range batch.Changes {
			a.read(others, c)
		}
		if !behind() {
			return
		}
	}
}

// takeLeave withdraws a task's endpoints on all nodes: it returns when no new
// connection goes to it from this one, nor from any other that is alive. It waits
// for the others no longer than a node without a sign of life is one. The error is
// that ctx ended.
func (t *traffic) takeLeave(ctx context.Context, task string) error {
	limited, cancel := context.WithTimeout(ctx, t.agent.opts.LeaseTTL)
	defer cancel()
	others, _ := t.acks.others(limited)
	ask := len(others) > 0
	done := t.remove(task, true, ask)
	if done == nil {
		return nil
	}
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if ask {
		if revision := t.left(limited, task); revision > 0 {
			t.acks.wait(limited, revision)
		}
		t.forget(task)
	}
	return ctx.Err()
}

// left waits until the store has it that a task's endpoints are leaving, and
// returns the revision of the last of them; 0 when that is not to be had.
func (t *traffic) left(ctx context.Context, task string) int64 {
	for {
		t.mu.Lock()
		keys, changed := t.leaving[task], t.endpoints.changed
		last, all := int64(0), true
		for _, key := range keys {
			e, ok := t.endpoints.all[key]
			all = all && ok && e.Leaving
			last = max(last, e.revision)
		}
		t.mu.Unlock()
		if all {
			return last
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0
		}
	}
}

// forget deletes the records of endpoints that have left.
func (t *traffic) forget(task string) {
	t.mu.Lock()
	keys := t.leaving[task]
	delete(t.leaving, task)
	t.mu.Unlock()
	for _, key := range keys {
		t.agent.out.delete(key)
	}
}

// acknowledge tells the others that this node has programmed the endpoints as they
// were at a revision, if one of them asked or it was never told. t.mu is held.
func (t *traffic) acknowledge(revision, asked int64) {
	if t.acks.told && (asked <= t.acks.at || revision <= t.acks.at) {
		return
	}
	t.acks.told, t.acks.at = true, revision
	t.agent.out.put(record.Key(record.Acks, t.agent.id()), record.Ack{Revision: revision}, true)
}
