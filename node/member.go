package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// member is one container of a task, through all its restarts. Each start is a
// container of its own in the runtime, so that the next can start before the
// last is deleted.
type member struct {
	task  *task
	role  byte // 'i'nit, 's'idecar, 'c'ontainer
	index int
	spec  orchestrate.Container

	wasReady chan struct{} // closed when it was ready for the first time
	once     sync.Once

	// Of the running container, and of the loop's goroutine alone.
	checks *health.Watch
	ill    chan illness // why it must be restarted; nil without checks

	// Guarded by task.mu.
	id      string          // of the newest container; empty before the first start
	attempt int             // of id, from 0
	made    map[string]bool // containers that may exist in the runtime
	image   runtime.Image
	pid     int
	since   time.Time // when id was started
	running bool
	started bool // running, and startup succeeded
	ready   bool
	exit    runtime.Exit  // of the last container that ended
	changed chan struct{} // closed and made anew with each new id
}

func newMembers(t *task, role byte, specs []orchestrate.Container) []*member {
	var members []*member
	for i, spec := range specs {
		members = append(members, &member{
			task: t, role: role, index: i, spec: spec,
			wasReady: make(chan struct{}), made: map[string]bool{}, changed: make(chan struct{}),
		})
	}
	return members
}

// containerID names the container of an attempt.
func (m *member) containerID(attempt int) string {
	return fmt.Sprintf("%s.%c%d.%d", m.task.rec.ID, m.role, m.index, attempt)
}

// adopt takes over a container of an earlier agent; the newest one counts.
func (m *member) adopt(c runtime.Container, attempt int) {
	m.made[c.ID] = true
	if m.id != "" && attempt < m.attempt {
		return
	}
	m.id, m.attempt = c.ID, attempt
	m.pid, m.since, m.exit = c.PID, c.Started, c.Exit
	m.running = c.State == runtime.Running
}

// ids returns what may exist in the runtime. task.mu is held.
func (m *member) ids() []string { return slices.Sorted(maps.Keys(m.made)) }

// keptLogs is of how many attempts the output is kept.
const keptLogs = 2

// logIDs returns the containers whose logs may be kept, in the order of time.
func (m *member) logIDs() []string {
	m.task.mu.Lock()
	defer m.task.mu.Unlock()
	if m.id == "" {
		return nil
	}
	var ids []string
	for a := max(0, m.attempt-keptLogs+1); a <= m.attempt; a++ {
		ids = append(ids, m.containerID(a))
	}
	return ids
}

// observe is the member's part of the status. task.mu is held.
func (m *member) observe() record.ContainerStatus {
	return record.ContainerStatus{
		Name: m.spec.Name, ID: m.id, Running: m.running, Ready: m.ready, PID: m.pid,
		Restarts: m.attempt, Started: m.since, ExitCode: m.exit.Code, OOM: m.exit.OOMKilled,
	}
}

// runToEnd runs an init container until it ends with exit code 0.
func (m *member) runToEnd(ctx context.Context, env environment) error {
	policy := m.task.tmpl.Restart
	policy.Condition = orchestrate.RestartOnFailure
	return m.loop(ctx, env, policy)
}

// serve runs a container and restarts it by the task's policy. It returns nil
// when the policy says that it is done.
func (m *member) serve(ctx context.Context, env environment) error {
	policy := m.task.tmpl.Restart
	if m.role == 's' {
		policy.Condition = orchestrate.RestartAlways
	}
	return m.loop(ctx, env, policy)
}

func (m *member) loop(ctx context.Context, env environment, policy orchestrate.RestartPolicy) error {
	var background sync.WaitGroup
	defer background.Wait()
	m.task.mu.Lock()
	b := backoff{failures: m.attempt}
	adopted := m.id != ""
	running, wasReady := m.running, m.ready
	if adopted {
		m.image = env.images[m.spec.Image]
	}
	var old []string // which the agent before did not come to remove
	if adopted {
		old = slices.DeleteFunc(m.ids(), func(id string) bool { return id == m.id })
	}
	attempt := m.attempt
	m.task.mu.Unlock()
	defer m.unprobe()
	if len(old) > 0 {
		background.Go(func() { m.bury(ctx, old, attempt) })
	}
	if adopted && running {
		m.probe(m.id, wasReady)
	}
	for {
		if !adopted {
			if err := m.start(ctx, env, &background); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				v, delay := b.again(policy, 0)
				var failure *failureError
				if errors.As(err, &failure) {
					m.task.refused(&failure.Failure)
					m.task.fail(&failure.Failure)
					if failure.Permanent {
						return err
					}
				}
				if v == giveUp {
					return err
				}
				if !sleep(ctx, delay) {
					return context.Cause(ctx)
				}
				continue
			}
		}
		adopted = false
		exit, why, err := m.watch(ctx)
		if err != nil {
			return err
		}
		// gofail: var containerEnded struct{}
		// die()
		ran := m.ended(exit)
		v, delay := b.next(policy, exit, why != nil, ran)
		if v == done {
			return nil
		}
		failure := m.failure(exit, why)
		if v == giveUp {
			failure.Log = m.tail(ctx, m.id)
			failure.Message += fmt.Sprintf("; gave up after %d restarts", m.attempt)
			return &failureError{*failure}
		}
		m.restarts(failure, delay)
		// The successor does not wait for the reading of the log.
		id := m.id
		background.Go(func() {
			failure.Log = m.tail(ctx, id)
			m.task.fail(failure)
		})
		m.task.log.Info("container ended", "container", m.spec.Name, "exit", exit.String(), "restart in", delay)
		if !sleep(ctx, delay) {
			return context.Cause(ctx)
		}
	}
}

// start starts the next container, and removes the ones before in the
// background.
func (m *member) start(ctx context.Context, env environment, background *sync.WaitGroup) error {
	t := m.task
	if err := t.may(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	attempt := m.attempt
	if m.id != "" {
		attempt++
	}
	id := m.containerID(attempt)
	before := m.ids()
	m.made[id] = true
	m.image = env.images[m.spec.Image]
	t.mu.Unlock()

	spec, err := m.runtimeSpec(ctx, env, id, attempt)
	if err != nil {
		return err
	}
	// gofail: var startBegun struct{}
	// die()
	if err := t.agent.opts.Runtime.Start(ctx, spec); err != nil {
		permanent := false
		var start *runtime.StartError
		if errors.As(err, &start) {
			permanent = start.Permanent
		}
		var bad *runtime.SpecError
		kind := record.FailedStart
		if errors.Is(err, runtime.ErrImageNotFound) {
			kind = record.FailedImage
		}
		return &failureError{record.Failure{
			Kind: kind, Container: m.spec.Name, Message: err.Error(), At: time.Now().UTC(),
			Permanent: permanent || errors.As(err, &bad),
		}}
	}
	// gofail: var containerStarted struct{}
	// die()
	pid := 0
	if found, err := t.agent.opts.Runtime.List(ctx, map[string]string{runtime.LabelTask: t.rec.ID}); err == nil {
		for _, c := range found {
			if c.ID == id {
				pid = c.PID
			}
		}
	}
	t.mu.Lock()
	m.id, m.attempt = id, attempt
	close(m.changed)
	m.changed = make(chan struct{})
	m.since, m.running, m.pid = time.Now().UTC(), true, pid
	if !t.began {
		t.began = true
		t.tell(record.Event{Kind: record.TaskStarted, Reason: record.ReasonWanted})
	}
	t.mu.Unlock()
	m.catchUp(ctx, spec.Labels[runtime.LabelHash])
	m.probe(id, false)
	if len(before) > 0 {
		background.Go(func() { m.bury(ctx, before, attempt) })
	}
	return nil
}

// bury removes ended containers, and the logs of all but the last attempts.
func (m *member) bury(ctx context.Context, ids []string, attempt int) {
	rt := m.task.agent.opts.Runtime
	for _, id := range ids {
		if err := rt.Remove(ctx, id); err != nil {
			m.task.log.Warn("cannot remove an ended container", "container", id, "error", err)
			continue // release tries again
		}
		// gofail: var containerBuried struct{}
		// die()
		m.task.mu.Lock()
		delete(m.made, id)
		m.task.mu.Unlock()
	}
	if logs, ok := rt.(runtime.LogReader); ok && attempt >= keptLogs {
		if err := logs.RemoveLogs(ctx, m.containerID(attempt-keptLogs)); err != nil {
			m.task.log.Warn("cannot delete old logs", "container", m.spec.Name, "error", err)
		}
	}
}

// watch waits for the end of the running container, and restarts one that is
// ill. An error is the end of ctx.
func (m *member) watch(ctx context.Context) (runtime.Exit, *illness, error) {
	type ended struct {
		exit runtime.Exit
		err  error
	}
	id := m.id
	exits := make(chan ended, 1)
	waiting, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		exit, err := m.task.agent.opts.Runtime.Wait(waiting, id)
		exits <- ended{exit, err}
	})
	var why *illness
	for {
		select {
		case e := <-exits:
			if ctx.Err() != nil {
				return e.exit, nil, context.Cause(ctx)
			}
			if e.err != nil {
				// It is gone without a trace: someone removed it, or the
				// machine was restarted.
				e.exit = runtime.Exit{Code: 255, At: time.Now().UTC()}
				why = &illness{kind: record.FailedExit, reason: "its container is gone: " + e.err.Error()}
			}
			return e.exit, why, nil
		case ill := <-m.ill:
			why = &ill // the only one: no check follows
			m.task.mu.Lock()
			m.task.tell(record.Event{Kind: record.TaskUnhealthy, Reason: string(ill.kind), Failure: m.failure(runtime.Exit{At: time.Now().UTC()}, &ill)})
			m.ready = false
			m.task.evaluate()
			m.task.mu.Unlock()
			wg.Go(func() { m.stopContainer(waiting, id) })
		}
	}
}

// restarts tells that the container has failed and is started again.
func (m *member) restarts(f *record.Failure, delay time.Duration) {
	m.task.mu.Lock()
	defer m.task.mu.Unlock()
	e := record.Event{Kind: record.TaskRestarted, Reason: string(f.Kind), Failure: f, Restarts: m.task.status.Restarts + 1}
	if e.Message = f.Message + "; it is started again"; delay > 0 {
		e.Message += fmt.Sprintf(" after %v", delay)
	}
	m.task.tell(e)
}

// ended notes the end of the container and returns for how long it ran.
func (m *member) ended(exit runtime.Exit) time.Duration {
	m.unprobe()
	m.task.mu.Lock()
	defer m.task.mu.Unlock()
	m.running, m.started, m.ready, m.pid = false, false, false, 0
	m.exit = exit
	m.task.evaluate()
	return exit.At.Sub(m.since)
}

// failure describes an end that was not wanted.
func (m *member) failure(exit runtime.Exit, why *illness) *record.Failure {
	f := &record.Failure{
		Kind: record.FailedExit, Container: m.spec.Name, ExitCode: exit.Code, At: exit.At,
		Message: fmt.Sprintf("container %q ended with %s", m.spec.Name, exit),
	}
	switch {
	case why != nil:
		f.Kind = why.kind
		f.Message = fmt.Sprintf("container %q: %s", m.spec.Name, why.reason)
	case exit.OOMKilled:
		f.Kind = record.FailedOOM
	case m.role == 'i':
		f.Kind = record.FailedInit
	}
	return f
}

// tail returns the container's last lines, for whoever asks why it failed.
func (m *member) tail(ctx context.Context, id string) []string {
	logs, ok := m.task.agent.opts.Runtime.(runtime.LogReader)
	if !ok {
		return nil
	}
	var lines []string
	_ = logs.Logs(ctx, id, runtime.LogOptions{Tail: 10}, func(l runtime.LogLine) error {
		lines = append(lines, strings.ToValidUTF8(string(l.Text), "\uFFFD"))
		return nil
	})
	return lines
}

// stopSignal is the spec's, the image's or SIGTERM.
func (m *member) stopSignal() runtime.Signal {
	for _, name := range []string{m.spec.StopSignal, m.image.StopSignal} {
		if s, err := orchestrate.ParseSignal(name); name != "" && err == nil {
			return s
		}
	}
	return runtime.SIGTERM
}
