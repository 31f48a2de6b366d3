package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// down stops the task and releases all it holds. It returns an error only when
// ctx ended before.
func (t *task) down(ctx context.Context) error {
	t.mu.Lock()
	wasReady := t.ready
	t.ready = false
	t.enterLocked(record.Stopping)
	t.mu.Unlock()

	// Nothing new may arrive before the signal is sent, from no node.
	leave := t.agent.traffic.takeLeave
	if !wasReady || t.expelled.Load() {
		leave = t.agent.traffic.withdrawn
	}
	if err := leave(ctx, t.rec.ID); err != nil {
		return err
	}
	// gofail: var endpointWithdrawn struct{}
	// die()
	if wasReady && !t.expelled.Load() && !sleep(ctx, t.tmpl.DrainDelay) {
		return ctx.Err()
	}
	// gofail: var taskDrained struct{}
	// die()
	t.stopAll(ctx, t.mains)
	for _, m := range slices.Backward(t.sidecars) {
		t.stopAll(ctx, []*member{m})
	}
	t.stopAll(ctx, t.init)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// gofail: var containersStopped struct{}
	// die()
	t.mu.Lock()
	held := t.held
	for _, m := range t.members() {
		held.containers = append(held.containers, m.ids()...)
	}
	t.mu.Unlock()
	if err := t.agent.release(ctx, t.rec.ID, &held); err != nil || !t.rec.Erase {
		return err
	}
	return t.agent.again(ctx, t.rec.ID, "delete the volumes of its slot", func() error { return t.erase(ctx) })
}

// stopAll stops members side by side: the stop signal, the grace, SIGKILL.
func (t *task) stopAll(ctx context.Context, members []*member) {
	var wg sync.WaitGroup
	for _, m := range members {
		t.mu.Lock()
		id, running := m.id, m.running
		t.mu.Unlock()
		if running {
			wg.Go(func() { m.stopContainer(ctx, id) })
		}
	}
	wg.Wait()
}

// stopContainer signals a container, waits for its end, and kills it when the
// grace is over. It returns when the container has exited or ctx ended.
func (m *member) stopContainer(ctx context.Context, id string) {
	rt := m.task.agent.opts.Runtime
	if err := rt.Kill(ctx, id, m.stopSignal()); err != nil {
		m.task.log.Warn("cannot signal", "container", id, "error", err)
	}
	// From now on, and not from before the signal: a machine that was slow to send it
	// takes nothing from the container's time.
	grace, cancel := context.WithTimeout(ctx, m.task.stopGrace())
	defer cancel()
	if _, err := rt.Wait(grace, id); err == nil || errors.Is(err, runtime.ErrNotFound) {
		return
	}
	if ctx.Err() != nil {
		return
	}
	m.task.tell(record.Event{Kind: record.TaskKilled, Reason: record.ReasonGrace,
		Message: fmt.Sprintf("container %q did not end within %v and is killed", m.spec.Name, m.task.stopGrace())})
	if err := rt.Kill(ctx, id, runtime.SIGKILL); err != nil {
		m.task.log.Warn("cannot kill", "container", id, "error", err)
		return // release tries again
	}
	rt.Wait(ctx, id)
}

// release frees what a task holds, in the order that makes each step possible,
// again and again until all of it is free. It returns an error only when ctx
// ended before.
func (a *Agent) release(ctx context.Context, id string, h *holdings) error {
	return a.again(ctx, id, "release everything of it", func() error { return a.releaseOnce(ctx, id, h) })
}

// again does a step of a task's end until it succeeds. It returns an error only
// when ctx ended before.
func (a *Agent) again(ctx context.Context, id, what string, step func() error) error {
	for attempt := 0; ; attempt++ {
		err := step()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		delay := delayAfter(attempt+1, 100*time.Millisecond, time.Minute)
		a.log.Warn("cannot "+what+"; trying again", "task", id, "error", err, "in", delay)
		if !sleep(ctx, delay) {
			return ctx.Err()
		}
	}
}

func (a *Agent) releaseOnce(ctx context.Context, id string, h *holdings) error {
	var errs []error
	for _, c := range h.containers {
		if err := a.opts.Runtime.Remove(ctx, c); err != nil {
			errs = append(errs, fmt.Errorf("remove container %s: %w", c, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // what follows may be in use by it
	}
	// gofail: var containersRemoved struct{}
	// die()
	for _, m := range h.mounts {
		if err := a.opts.Volumes.Unmount(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("unmount volume %s: %w", m.Volume, err))
		}
	}
	for _, b := range h.binds {
		if err := a.opts.Binds.Unbind(ctx, b); err != nil {
			errs = append(errs, fmt.Errorf("unbind %s: %w", b.Source, err))
		}
	}
	// gofail: var volumesUnmounted struct{}
	// die()
	for _, at := range h.attachments {
		if err := a.opts.Network.Detach(ctx, at); err != nil {
			errs = append(errs, fmt.Errorf("detach from network %s: %w", at.Network, err))
		}
	}
	// gofail: var networksDetached struct{}
	// die()
	if h.namespace {
		if err := a.opts.Namespaces.Delete(ctx, id); err != nil {
			errs = append(errs, err)
		}
	}
	// gofail: var namespaceDeleted struct{}
	// die()
	if !fileless(a.opts.Runtime) {
		errs = append(errs, os.RemoveAll(a.filesDir(id)))
	}
	return errors.Join(errs...)
}

// forget deletes a task that has ended and whose record is gone: its logs and
// then its status.
func (t *task) forget(ctx context.Context) {
	if logs, ok := t.agent.opts.Runtime.(runtime.LogReader); ok {
		for _, m := range t.members() {
			for _, id := range m.logIDs() {
				if err := logs.RemoveLogs(ctx, id); err != nil {
					t.log.Warn("cannot delete logs", "container", id, "error", err)
				}
			}
		}
	}
	// gofail: var logsDeleted struct{}
	// die()
	t.agent.mu.Lock()
	delete(t.agent.tasks, t.rec.ID)
	t.agent.mu.Unlock()
	t.agent.out.delete(statusKey(t.agent.id(), t.rec.ID))
}
