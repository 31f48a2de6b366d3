package node

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// bounds are what the containers of a task may use, of one revision.
type bounds struct {
	hash string
	of   map[*member]orchestrate.Resources
}

// boundsOf reads them from a task's record.
func (t *task) boundsOf(rec *record.Task) (bounds, error) {
	var tmpl orchestrate.Template
	if err := json.Unmarshal(rec.Template, &tmpl); err != nil {
		return bounds{}, err
	}
	b := bounds{rec.Hash, map[*member]orchestrate.Resources{}}
	for _, list := range []struct {
		members []*member
		specs   []orchestrate.Container
	}{{t.init, tmpl.Init}, {t.sidecars, tmpl.Sidecars}, {t.mains, tmpl.Containers}} {
		for i, m := range list.members {
			if i < len(list.specs) {
				b.of[m] = list.specs[i].Resources
			}
		}
	}
	return b, nil
}

// resources are those that a container is started with now, and their hash.
// task.mu is held.
func (m *member) resources() (orchestrate.Resources, string) {
	if r, ok := m.task.bounds.of[m]; ok {
		return r, m.task.bounds.hash
	}
	return m.spec.Resources, m.task.rec.Hash
}

// runtimeResources is r as the runtime sets it.
func runtimeResources(r orchestrate.Resources) runtime.Resources {
	return runtime.Resources{
		CPU: r.CPULimit, CPUShares: r.CPU, CPUSet: r.CPUSet,
		Memory: r.MemoryLimit, MemoryRequest: r.Memory, Pids: max(r.Pids, 0),
	}
}

// resize makes the bounds of a changed record those of the task's containers,
// which run on. It is done in the background, one change after the other, and
// again after a restart of the agent: what is in force is in the status.
func (t *task) resize(ctx context.Context, rec *record.Task) {
	updater, ok := t.agent.opts.Runtime.(runtime.Updater)
	if !ok || rec.Resized.IsZero() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status.InForce == rec.Hash || t.status.Refused == rec.Hash || t.resizing == rec.Hash {
		return
	}
	want, err := t.boundsOf(rec)
	if err != nil {
		t.log.Error("cannot read the task's new template", "error", err)
		return
	}
	t.resizing = rec.Hash
	t.agent.wg.Go(func() {
		t.resizeTurn.Lock()
		defer t.resizeTurn.Unlock()
		delay := firstFetchDelay
		for {
			done, err := t.resizeTo(ctx, updater, want)
			if done || ctx.Err() != nil {
				return
			}
			t.log.Warn("cannot change the task's resources; trying again", "error", err, "in", delay)
			if !sleep(ctx, delay) {
				return
			}
			delay = min(2*delay, maxFetchDelay)
		}
	})
}

// resizeTo applies bounds to all containers, or to none. It is done when that is
// settled, one way or the other, or nobody wants it any more.
func (t *task) resizeTo(ctx context.Context, updater runtime.Updater, want bounds) (done bool, err error) {
	select {
	case <-t.halted:
		return true, nil
	default:
	}
	t.mu.Lock()
	if t.resizing != want.hash {
		t.mu.Unlock()
		return true, nil
	}
	before := t.bounds
	t.bounds = want // what starts from now on starts with them
	members := slices.Concat(t.init, t.sidecars, t.mains)
	old := map[*member]orchestrate.Resources{}
	for _, m := range members {
		old[m] = m.spec.Resources
		if r, ok := before.of[m]; ok {
			old[m] = r
		}
	}
	t.mu.Unlock()
	for i, m := range members {
		if err = m.update(ctx, updater, want.of[m]); err == nil {
			continue
		}
		var refused *runtime.ResourceError
		var bad *runtime.SpecError
		if !errors.As(err, &refused) && !errors.As(err, &bad) {
			return false, err
		}
		t.mu.Lock()
		t.bounds = before
		t.mu.Unlock()
		for _, m := range members[:i] {
			if err := m.update(ctx, updater, old[m]); err != nil {
				t.log.Warn("cannot bring back a container's resources", "container", m.spec.Name, "error", err)
			}
		}
		t.log.Warn("the task's resources cannot be changed while it runs", "error", err)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.status.Refused = want.hash
		t.refusedLocked(&record.Failure{Kind: record.FailedStart, Message: "its resources cannot be changed while it runs: " + err.Error(), At: time.Now().UTC()})
		t.report()
		return true, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status.InForce, t.status.InForceSince, t.status.Refused = want.hash, time.Now().UTC(), ""
	t.report()
	return true, nil
}

// update changes the bounds of the member's container, if one runs. One that
// has ended is followed by one that has them from its start.
func (m *member) update(ctx context.Context, updater runtime.Updater, r orchestrate.Resources) error {
	m.task.mu.Lock()
	id, running := m.id, m.running
	m.task.mu.Unlock()
	if id == "" || !running {
		return nil
	}
	err := updater.Update(ctx, id, runtimeResources(r))
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	return err
}

// catchUp gives a container that was just started the bounds that the task came
// to have meanwhile.
func (m *member) catchUp(ctx context.Context, started string) {
	updater, ok := m.task.agent.opts.Runtime.(runtime.Updater)
	if !ok {
		return
	}
	m.task.mu.Lock()
	r, hash := m.resources()
	m.task.mu.Unlock()
	if hash == started {
		return
	}
	if err := m.update(ctx, updater, r); err != nil {
		m.task.log.Warn("a container runs with the resources that its task had when it was started", "container", m.spec.Name, "error", err)
	}
}
