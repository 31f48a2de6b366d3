package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/volume"
)

// assignments follows the tasks of the node. It is a [store.Follower].
type assignments struct {
	*Agent
	ctx context.Context
}

// Reset makes the supervised tasks those of the snapshot. The first time, it
// adopts what runs already and releases what no task owns.
func (a assignments) Reset(snapshot store.Snapshot) error {
	want := map[string]record.Task{}
	for _, item := range snapshot.Items {
		if rec, ok := a.decode(item); ok {
			want[rec.ID] = rec
		}
	}
	first := false
	select {
	case <-a.adopted:
	default:
		first = true
		if err := a.slots.sync(a.ctx); err != nil {
			return fmt.Errorf("see what volumes there are: %w", err)
		}
	}
	var found map[string]*prior
	if first {
		var err error
		if found, err = a.observe(a.ctx); err != nil {
			return fmt.Errorf("see what runs: %w", err)
		}
	}
	// gofail: var leftoversSeen struct{}
	// die()
	for _, id := range a.supervised() {
		if _, ok := want[id]; !ok {
			a.unassign(a.ctx, id)
		}
	}
	for id, rec := range want {
		a.assign(a.ctx, rec, found[id])
	}
	if first {
		for id, p := range found {
			if _, ok := want[id]; !ok {
				a.sweep(id, p)
			}
		}
		close(a.adopted)
	}
	return nil
}

// Apply follows one commit.
func (a assignments) Apply(batch store.Batch) error {
	for _, c := range batch.Changes {
		if c.Deleted {
			if parts := record.Split(c.Item.Key, record.Tasks, 2); parts != nil {
				a.unassign(a.ctx, parts[1])
			}
			continue
		}
		if rec, ok := a.decode(c.Item); ok {
			a.assign(a.ctx, rec, nil)
		}
	}
	return nil
}

// decode reads a task's record. One that cannot be read is left alone: it may
// be of a newer version, and what runs for it must not be harmed.
func (a assignments) decode(item store.Item) (record.Task, bool) {
	var rec record.Task
	parts := record.Split(item.Key, record.Tasks, 2)
	if parts == nil {
		return rec, false
	}
	if err := record.ReadTask(item.Value, &rec); err != nil || rec.ID != parts[1] {
		a.log.Error("cannot read a task's record", "key", item.Key, "error", err)
		return record.Task{}, false
	}
	return rec, true
}

// prior is what a starting agent finds of a task of an earlier one.
type prior struct {
	containers []runtime.Container
	status     *record.Status
	held       holdings // but for the containers
}

// observe finds all that exists for tasks on this node.
func (a *Agent) observe(ctx context.Context) (map[string]*prior, error) {
	found := map[string]*prior{}
	of := func(id string) *prior {
		if found[id] == nil {
			found[id] = new(prior)
		}
		return found[id]
	}
	containers, err := a.opts.Runtime.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		if id := c.Labels[runtime.LabelTask]; id != "" {
			of(id).containers = append(of(id).containers, c)
		}
	}
	if a.opts.Network != nil {
		namespaces, err := a.opts.Namespaces.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, id := range namespaces {
			of(id).held.namespace = true
		}
		attachments, err := a.opts.Network.Attachments(ctx)
		if err != nil {
			return nil, err
		}
		for _, at := range attachments {
			h := &of(at.Task).held
			h.attachments = append(h.attachments, at)
		}
	}
	if a.opts.Volumes != nil {
		volumes, err := a.opts.Volumes.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, v := range volumes {
			for _, id := range v.Tasks {
				h := &of(id).held
				h.mounts = append(h.mounts, volume.Mount{Volume: v.Name, Task: id})
			}
		}
	}
	if a.opts.Binds != nil {
		binds, err := a.opts.Binds.Binds(ctx)
		if err != nil {
			return nil, err
		}
		for _, b := range binds {
			h := &of(b.Task).held
			h.binds = append(h.binds, b)
		}
	}
	snapshot, err := a.store.List(ctx, record.Key(record.Statuses, a.id(), ""))
	if err != nil {
		return nil, err
	}
	for _, item := range snapshot.Items {
		parts := record.Split(item.Key, record.Statuses, 2)
		if parts == nil {
			continue
		}
		st := new(record.Status)
		if err := json.Unmarshal(item.Value, st); err != nil {
			st = new(record.Status)
		}
		of(parts[1]).status = st
	}
	return found, nil
}

// sweep releases what belongs to a task that is not assigned any more.
func (a assignments) sweep(id string, p *prior) {
	a.log.Info("releasing what an ended task left", "task", id)
	h := p.held
	logs := map[string]bool{}
	for _, c := range p.containers {
		h.containers = append(h.containers, c.ID)
		logs[c.ID] = true
	}
	if p.status != nil {
		for _, c := range p.status.Containers {
			logs[c.ID] = true
		}
	}
	a.wg.Go(func() {
		if a.release(a.ctx, id, &h) != nil {
			return
		}
		if reader, ok := a.opts.Runtime.(runtime.LogReader); ok {
			for c := range logs {
				if err := reader.RemoveLogs(a.ctx, c); err != nil {
					a.log.Warn("cannot delete logs", "container", c, "error", err)
				}
			}
		}
		a.out.delete(statusKey(a.id(), id))
	})
}

func (a *Agent) supervised() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids := make([]string, 0, len(a.tasks))
	for id := range a.tasks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// assign begins to supervise a task, or hands a changed record to its
// supervisor.
func (a *Agent) assign(ctx context.Context, rec record.Task, found *prior) {
	a.mu.Lock()
	t := a.tasks[rec.ID]
	if t == nil {
		if found == nil {
			found = new(prior)
		}
		t = newTask(a, rec, found)
		a.tasks[rec.ID] = t
		t.revision.Store(rec.Revision)
		if rec.Stop != nil {
			t.stop(rec.Stop.Reason) // before it runs: of what is to stop nothing is begun
		}
		if found.status == nil || !found.status.State.Final() {
			a.wg.Go(func() { t.run(ctx) })
		} else {
			close(t.ended)
		}
	}
	a.mu.Unlock()
	// gofail: var taskAssigned struct{}
	// die()
	a.meter.set(rec.ID, rec.Measure)
	t.revision.Store(rec.Revision)
	if rec.Stop != nil {
		t.stop(rec.Stop.Reason)
	} else {
		t.resize(ctx, &rec)
		if rec.Next != nil {
			t.fetch(ctx, rec.Next)
		}
	}
}

// unassign ends a task whose record is gone. Its last traces go when it has
// ended: its status is what a later start would find it by.
func (a *Agent) unassign(ctx context.Context, id string) {
	a.mu.Lock()
	t := a.tasks[id]
	a.mu.Unlock()
	a.meter.set(id, 0)
	if t == nil {
		return
	}
	t.stop(record.ReasonRemoved)
	a.wg.Go(func() {
		select {
		case <-t.ended:
		case <-ctx.Done():
			return
		}
		t.forget(ctx)
	})
}
