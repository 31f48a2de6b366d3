package orchestrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

func isCompacted(err error) bool { return errors.Is(err, store.ErrCompacted) }

// LogLine is a line of a task's output.
type LogLine struct {
	runtime.LogLine
	Task      string
	Container string // as it was asked for
}

// Logs calls each for the lines of a service's tasks, or of one task when name
// is a task's ID: of one container, or the first main one with "". Lines of
// one task come in order; each is never called from two goroutines at once.
// With Follow it returns when all tasks it began with have ended. An error of
// each ends it and is returned. Of a container that is restarted again and
// again, the lines of its last two runs are kept. A container that no task has
// is [ErrNotFound].
func (f *Fleet) Logs(ctx context.Context, name, container string, opts runtime.LogOptions, each func(LogLine) error) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	tasks, err := f.named(ctx, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var missing error // of the last task that was not found
	found := false    // whether one was
	var mu sync.Mutex // guards both, and holds each
	read := func(t Task) error {
		access, err := f.reach(t.Node)
		if err != nil {
			return err
		}
		err = access.Logs(ctx, t.ID, container, opts, func(l runtime.LogLine) error {
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return each(LogLine{LogLine: l, Task: t.ID, Container: container})
		})
		mu.Lock()
		defer mu.Unlock()
		if errors.Is(err, ErrNotFound) { // it may have ended a moment ago
			missing = err
			return nil
		}
		found = true
		if err != nil {
			return fmt.Errorf("logs of %s: %w", t.ID, err)
		}
		return nil
	}
	// A container that no task has is a mistake of the caller's.
	nobody := func() error {
		if found {
			return nil
		}
		return missing
	}
	if !opts.Follow {
		for _, t := range tasks {
			if err := read(t); err != nil {
				return err
			}
		}
		return nobody()
	}
	var wg sync.WaitGroup
	errs := make([]error, len(tasks))
	for i, t := range tasks {
		wg.Go(func() {
			if errs[i] = read(t); errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return nobody()
}

// Exec runs a process in a running container of a task, the first main one
// with "", and returns its exit code. Task is an ID, or a service's name for
// any of its ready tasks.
func (f *Fleet) Exec(ctx context.Context, task, container string, exec runtime.Exec) (exitCode int, err error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	t, access, err := f.one(ctx, task)
	if err != nil {
		return 0, err
	}
	return access.Exec(ctx, t.ID, container, exec)
}

// Stats measures a running container of a task, the first main one with "".
func (f *Fleet) Stats(ctx context.Context, task, container string) (runtime.Stats, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return runtime.Stats{}, err
	}
	defer done()
	t, access, err := f.one(ctx, task)
	if err != nil {
		return runtime.Stats{}, err
	}
	return access.Stats(ctx, t.ID, container)
}

// named returns the tasks that a service's name or a task's ID stands for.
func (f *Fleet) named(ctx context.Context, name string) ([]Task, error) {
	all, err := f.tasks(ctx, "")
	if err != nil {
		return nil, err
	}
	ns, base := splitName(name)
	var tasks []Task
	for _, t := range all {
		if t.ID == name {
			return []Task{t}, nil
		}
		if t.Namespace == ns && t.Service == base {
			tasks = append(tasks, t)
		}
	}
	if len(tasks) > 0 {
		return tasks, nil
	}
	if !strings.Contains(name, ".") {
		if _, err := f.service(ctx, name); err == nil {
			return nil, nil // it runs nothing
		}
		if ns, base := splitName(name); true {
			if _, found, err := getKey(ctx, f.store, record.Key(record.Jobs, ns, base)); err == nil && found {
				return nil, nil // nor has it an ended task that is kept
			}
		}
	}
	return nil, &NameError{"service or task", name}
}

// one returns the task that a call is for and the way to it.
func (f *Fleet) one(ctx context.Context, name string) (Task, Access, error) {
	tasks, err := f.named(ctx, name)
	if err != nil {
		return Task{}, nil, err
	}
	for _, t := range tasks {
		if t.ID == name || t.State == Ready {
			access, err := f.reach(t.Node)
			return t, access, err
		}
	}
	return Task{}, nil, fmt.Errorf("service %q has no ready task: %w", name, ErrNotRunning)
}

func (f *Fleet) reach(node string) (Access, error) {
	if f.opts.access == nil {
		return nil, fmt.Errorf("node %s: %w; open the fleet with WithAccess", node, ErrNoAccess)
	}
	return f.opts.access(node)
}
