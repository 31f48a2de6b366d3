package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
)

var _ orchestrate.Access = (*Agent)(nil)

// Logs calls each for the lines of a task's container in order, over its last
// restarts; with Follow until the task has ended. An empty container name
// means the first main one.
func (a *Agent) Logs(ctx context.Context, task, container string, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
	logs, ok := a.opts.Runtime.(runtime.LogReader)
	if !ok {
		return fmt.Errorf("logs of %s: %w", task, errors.ErrUnsupported)
	}
	m, err := a.find(task, container)
	if err != nil {
		return err
	}
	ids := m.logIDs()
	if opts.Tail > 0 && len(ids) > 1 {
		// The last n lines may be of several runs: those of the earlier ones
		// are shown here, and the newest is asked for what is left of n.
		newest, err := count(ctx, logs, ids[len(ids)-1], opts)
		if err != nil {
			return err
		}
		for i, id := range ids[:len(ids)-1] {
			older := opts
			older.Follow, older.Tail = false, opts.Tail-newest
			for _, between := range ids[i+1 : len(ids)-1] {
				n, err := count(ctx, logs, between, opts)
				if err != nil {
					return err
				}
				older.Tail -= n
			}
			if older.Tail <= 0 {
				continue
			}
			if err := logs.Logs(ctx, id, older, each); err != nil && !errors.Is(err, runtime.ErrNotFound) {
				return err
			}
		}
		ids = ids[len(ids)-1:]
	}
	for {
		last := ""
		for i, id := range ids {
			one := opts
			one.Follow = opts.Follow && i == len(ids)-1
			if err := logs.Logs(ctx, id, one, each); err != nil && !errors.Is(err, runtime.ErrNotFound) {
				return err
			}
			last = id
		}
		if !opts.Follow {
			return nil
		}
		// The container has ended; its successor's lines follow.
		next, err := m.after(ctx, last)
		if err != nil || next == "" {
			return err
		}
		ids, opts.Tail = []string{next}, 0
	}
}

// count returns how many lines a container's log has, at most opts.Tail.
func count(ctx context.Context, logs runtime.LogReader, id string, opts runtime.LogOptions) (n int, err error) {
	opts.Follow = false
	err = logs.Logs(ctx, id, opts, func(runtime.LogLine) error {
		n++
		return nil
	})
	if errors.Is(err, runtime.ErrNotFound) {
		err = nil
	}
	return n, err
}

// after waits for the container that follows id, or returns "" when the task
// has ended without one.
func (m *member) after(ctx context.Context, id string) (string, error) {
	for {
		m.task.mu.Lock()
		now, changed := m.id, m.changed
		m.task.mu.Unlock()
		if now != id {
			return now, nil
		}
		select {
		case <-changed:
		case <-m.task.ended:
			return "", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// Exec runs a process in a task's running container; see [runtime.Execer].
func (a *Agent) Exec(ctx context.Context, task, container string, exec runtime.Exec) (exitCode int, err error) {
	execer, ok := a.opts.Runtime.(runtime.Execer)
	if !ok {
		return 0, fmt.Errorf("exec in %s: %w", task, errors.ErrUnsupported)
	}
	id, err := a.current(task, container)
	if err != nil {
		return 0, err
	}
	return execer.Exec(ctx, id, exec)
}

// Stats measures a task's running container; see [runtime.StatsReader].
func (a *Agent) Stats(ctx context.Context, task, container string) (runtime.Stats, error) {
	stats, ok := a.opts.Runtime.(runtime.StatsReader)
	if !ok {
		return runtime.Stats{}, fmt.Errorf("stats of %s: %w", task, errors.ErrUnsupported)
	}
	id, err := a.current(task, container)
	if err != nil {
		return runtime.Stats{}, err
	}
	return stats.Stats(ctx, id)
}

// find returns a task's member by its container's name.
func (a *Agent) find(task, container string) (*member, error) {
	a.mu.Lock()
	t := a.tasks[task]
	a.mu.Unlock()
	if t == nil {
		return nil, fmt.Errorf("task %q on node %s: %w", task, a.id(), orchestrate.ErrNotFound)
	}
	if container == "" && len(t.mains) > 0 {
		return t.mains[0], nil
	}
	if m := t.member(container); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("container %q of task %s: %w", container, task, orchestrate.ErrNotFound)
}

// current returns the ID of a container that runs.
func (a *Agent) current(task, container string) (string, error) {
	m, err := a.find(task, container)
	if err != nil {
		return "", err
	}
	m.task.mu.Lock()
	defer m.task.mu.Unlock()
	if !m.running {
		return "", fmt.Errorf("container %q of task %s: %w", m.spec.Name, task, orchestrate.ErrNotRunning)
	}
	return m.id, nil
}
