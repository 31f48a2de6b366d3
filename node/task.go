package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/moment"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/volume"
)

// errStopped is why a supervisor's work ends when its task is to stop.
var errStopped = errors.New("the task is to stop")

// task supervises one task. Its run is one straight line up, a wait, and the
// same line down; everything in it can run again.
type task struct {
	agent *Agent
	rec   record.Task
	tmpl  orchestrate.Template
	bad   error // why nothing of it can be run
	log   *slog.Logger

	halted chan struct{} // closed by stop
	halt   sync.Once
	why    string // the reason of the stop, once halted
	// grace, once halted, bounds the stop of a task that is expelled; see tenure.
	expelled atomic.Bool
	grace    time.Duration
	ended    chan struct{} // closed when run is over and everything is released

	init, sidecars, mains []*member
	adopted               bool // containers of an earlier agent were found

	mu     sync.Mutex // guards what follows, and the members' fields
	status record.Status
	// registration is that under which a fenced task was last found to be the
	// node's; see tenure.admit.
	registration string
	ready        bool // wants traffic
	held         holdings

	bounds     bounds     // instead of the template's, once they were changed
	resizing   string     // hash of the bounds that are being set, or were
	resizeTurn sync.Mutex // held by what sets them; taken before mu

	// revision is the record's: a change of resources in place makes it another.
	revision atomic.Int64

	began   bool   // that its first container runs has been told
	refusal string // what was told last of why it cannot run

	fetching string // hash of the Next that is under way, or was
	endFetch func() // ends that
}

// holdings is what a task holds on its node, for release.
type holdings struct {
	containers  []string // in the order of their stopping
	namespace   bool
	attachments []network.Attachment
	mounts      []volume.Mount
	binds       []volume.Bind
}

// newTask makes the supervisor of a task, of which an earlier agent may have
// left something.
func newTask(a *Agent, rec record.Task, found *prior) *task {
	t := &task{
		agent:  a,
		rec:    rec,
		log:    a.log.With("task", rec.ID),
		halted: make(chan struct{}),
		ended:  make(chan struct{}),
	}
	if err := json.Unmarshal(rec.Template, &t.tmpl); err != nil {
		t.bad = fmt.Errorf("the task's template cannot be read: %w", err)
	} else if rec.Fenced() {
		t.bad = a.slots.newest(&rec)
	}
	t.status = record.Status{
		Task: rec.ID, Namespace: rec.Namespace, Service: rec.Service, Node: a.id(),
		State: record.Preparing, Since: time.Now().UTC(),
	}
	if found.status != nil {
		t.status = *found.status
		t.status.Task, t.status.Namespace, t.status.Service, t.status.Node = rec.ID, rec.Namespace, rec.Service, a.id()
	}
	t.revision.Store(rec.Revision)
	t.init = newMembers(t, 'i', t.tmpl.Init)
	t.sidecars = newMembers(t, 's', t.tmpl.Sidecars)
	t.mains = newMembers(t, 'c', t.tmpl.Containers)
	t.held = found.held
	t.adopt(found.containers)
	return t
}

func (t *task) members() []*member { return slices.Concat(t.init, t.sidecars, t.mains) }

// stop asks the supervisor to stop the task, for a reason. It does not wait.
func (t *task) stop(reason string) {
	t.halt.Do(func() {
		t.why = reason
		close(t.halted)
	})
}

// adopt takes over the containers that an earlier agent started. A task that
// was ready and whose containers all run still takes traffic at once: a
// restart of the agent must not be seen from outside.
func (t *task) adopt(containers []runtime.Container) {
	if len(containers) == 0 {
		return
	}
	t.adopted, t.began = true, true
	for _, c := range containers {
		attempt, err := strconv.Atoi(c.Labels[runtime.LabelAttempt])
		m := t.member(c.Labels[runtime.LabelContainer])
		if m == nil || err != nil {
			t.held.containers = append(t.held.containers, c.ID) // not ours to run; goes with the task
			continue
		}
		m.adopt(c, attempt)
	}
	if t.status.State != record.Ready {
		return
	}
	for _, m := range slices.Concat(t.sidecars, t.mains) {
		if !m.running {
			return
		}
	}
	for _, m := range slices.Concat(t.sidecars, t.mains) {
		m.started, m.ready = true, true
	}
	t.ready = true
	t.agent.traffic.set(t.rec, t.status.Addresses, nil)
}

// expel stops a task that must not run on, and does not wait: not for requests
// under way, nor longer than grace for its processes.
func (t *task) expel(grace time.Duration) {
	t.halt.Do(func() {
		t.grace, t.why = grace, record.ReasonFenced
		t.expelled.Store(true)
		close(t.halted)
	})
}

// stopGrace is how long a container has from its stop signal to SIGKILL.
func (t *task) stopGrace() time.Duration {
	if t.expelled.Load() {
		return min(t.tmpl.StopGrace, t.grace)
	}
	return t.tmpl.StopGrace
}

// admit and admitted keep the registration under which the task was read.
func (t *task) admit(registration string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.registration = registration
}

func (t *task) admitted(registration string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.registration == registration
}

// may waits until the task may start something.
func (t *task) may(ctx context.Context) error {
	if !t.rec.Fenced() {
		return nil
	}
	return t.agent.tenure.admit(ctx, t)
}

func (t *task) member(name string) *member {
	for _, m := range t.members() {
		if m.spec.Name == name {
			return m
		}
	}
	return nil
}

// run is the life of the task. It returns when the task has ended and
// everything it held is released, or when ctx ends: then its containers run
// on, and the next agent adopts them.
func (t *task) run(ctx context.Context) {
	ctx = moment.About(ctx, t.rec.ID)
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopWatch := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-t.halted:
			cancel(errStopped)
		case <-stopWatch:
		}
	})
	err := t.up(work)
	close(stopWatch)
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	final := record.Completed
	var failure *failureError
	switch {
	case t.expelled.Load():
		final = record.Failed
		t.fail(&record.Failure{Kind: record.FailedNode, At: time.Now().UTC(),
			Message: "the node's lease could not be renewed, and the task must not run twice"})
	case errors.Is(err, errStopped) || errors.Is(context.Cause(work), errStopped):
		final = record.Stopped
	case errors.As(err, &failure):
		final = record.Failed
		t.fail(&failure.Failure)
		t.log.Warn("task failed", "error", err)
	case err != nil:
		final = record.Failed
		t.fail(&record.Failure{Kind: record.FailedStart, Message: err.Error(), At: time.Now().UTC()})
		t.log.Error("task failed", "error", err)
	}
	// gofail: var taskOver struct{}
	// die()
	if t.down(ctx) != nil {
		return // ctx ended: the next agent goes on from here
	}
	// gofail: var taskReleased struct{}
	// die()
	t.end(final)
	close(t.ended)
}

// end enters the final state, and tells of it.
func (t *task) end(final record.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := record.Event{Kind: record.TaskEnded, State: final, Restarts: t.status.Restarts, Reason: record.ReasonCompleted}
	switch final {
	case record.Stopped:
		e.Reason = t.why
	case record.Failed:
		if e.Failure, e.Reason = t.status.Failure, record.ReasonFailed; e.Failure != nil {
			e.Reason = string(e.Failure.Kind)
		}
	}
	t.tell(e)
	t.enterLocked(final)
}

// up brings the task up and serves until it is to stop, has completed (nil) or
// has failed.
func (t *task) up(ctx context.Context) error {
	if t.bad != nil {
		f := record.Failure{Kind: record.FailedStart, Permanent: true, Message: t.bad.Error(), At: time.Now().UTC()}
		t.refused(&f)
		return &failureError{f}
	}
	select {
	case <-t.halted:
		return errStopped // before anything was made
	default:
	}
	if !t.adopted {
		if err := t.may(ctx); err != nil {
			return err
		}
		t.enter(record.Preparing)
	}
	var env environment
	err := t.retry(ctx, func(ctx context.Context) error {
		var err error
		env, err = t.prepare(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if !t.adopted {
		t.enter(record.Starting)
	}
	served := slices.ContainsFunc(slices.Concat(t.sidecars, t.mains), func(m *member) bool { return m.id != "" })
	if !served {
		for _, m := range t.init {
			if err := m.runToEnd(ctx, env); err != nil {
				return err
			}
		}
	}
	return t.serve(ctx, env)
}

// serve runs sidecars and main containers until all main ones are done.
func (t *task) serve(ctx context.Context, env environment) error {
	group, ctx := errgroup.WithContext(ctx)
	side, endSide := context.WithCancel(ctx)
	defer endSide()
	group.Go(func() error {
		for _, m := range t.sidecars {
			group.Go(func() error {
				if err := m.serve(side, env); err != nil && side.Err() == nil {
					return err
				}
				return nil
			})
			select {
			case <-m.wasReady:
			case <-side.Done():
				return nil
			}
		}
		mains, ctx := errgroup.WithContext(ctx)
		for _, m := range t.mains {
			mains.Go(func() error { return m.serve(ctx, env) })
		}
		err := mains.Wait()
		endSide() // without the main ones, sidecars have nothing to do
		return err
	})
	return group.Wait()
}

// adoptedRetry is how often what comes before the containers is tried again for a
// task whose containers run already.
const adoptedRetry = 10 * time.Second

// retry does step until it succeeds, by the task's restart policy. A task that was
// adopted does not end for it as long as it runs: it was started with all of that.
func (t *task) retry(ctx context.Context, step func(context.Context) error) error {
	var b backoff
	for {
		began := time.Now()
		err := step(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var failure *failureError
		if errors.As(err, &failure) {
			t.refused(&failure.Failure)
			t.fail(&failure.Failure)
		}
		v, delay := b.again(t.tmpl.Restart, time.Since(began))
		if v == giveUp || failure != nil && failure.Permanent {
			if !t.adopted || !t.runs(ctx) {
				return err
			}
			delay = adoptedRetry
		}
		t.log.Info("trying again", "error", err, "in", delay)
		if !sleep(ctx, delay) {
			return context.Cause(ctx)
		}
	}
}

// runs reports whether a main container of the task runs, by the runtime's word; it
// does as long as that is not to be had.
func (t *task) runs(ctx context.Context) bool {
	list, err := t.agent.opts.Runtime.List(ctx, map[string]string{runtime.LabelTask: t.rec.ID})
	return err != nil || slices.ContainsFunc(list, func(c runtime.Container) bool {
		return c.State == runtime.Running && slices.ContainsFunc(t.mains, func(m *member) bool { return m.spec.Name == c.Labels[runtime.LabelContainer] })
	})
}

// sleep waits for d and reports whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// failureError is a step's failure on its way up to the status.
type failureError struct{ record.Failure }

func (e *failureError) Error() string { return e.Message }

// failed wraps an error of a step.
func failed(kind record.FailureKind, err error, permanent bool) error {
	return &failureError{record.Failure{Kind: kind, Message: err.Error(), At: time.Now().UTC(), Permanent: permanent}}
}

// environment is what prepare made for the containers.
type environment struct {
	namespace string // path
	files     files
	images    map[string]runtime.Image
	volumes   map[string]string // volume name to host path
}

// prepare does everything that comes before the first container. Images,
// network and volumes do not need each other, so they are got side by side.
func (t *task) prepare(ctx context.Context) (environment, error) {
	env := environment{images: map[string]runtime.Image{}, volumes: map[string]string{}}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.pull(ctx, env.images) })
	group.Go(func() (err error) {
		env.namespace, err = t.attach(ctx)
		return err
	})
	group.Go(func() error { return t.mount(ctx, env.volumes) })
	if err := group.Wait(); err != nil {
		return env, err
	}
	// gofail: var everythingPrepared struct{}
	// die()
	var err error
	if env.files, err = t.writeFiles(); err != nil {
		return env, failed(record.FailedStart, fmt.Errorf("write resolv.conf and hosts: %w", err), false)
	}
	return env, nil
}

func (t *task) pull(ctx context.Context, images map[string]runtime.Image) error {
	for _, m := range t.members() {
		if _, ok := images[m.spec.Image]; ok {
			continue
		}
		policy := m.spec.Pull
		if t.adopted {
			policy = runtime.PullMissing // what runs was pulled as asked
		}
		image, err := t.agent.opts.Runtime.Pull(ctx, m.spec.Image, runtime.PullOptions{
			Policy: policy, Credentials: t.agent.opts.Credentials,
		})
		if err != nil && t.adopted {
			// What runs does not need its image, so it must not end for it.
			t.log.Warn("the image of an adopted container is gone", "image", m.spec.Image, "error", err)
			continue
		}
		if err != nil {
			return failed(record.FailedImage, fmt.Errorf("image %q: %w", m.spec.Image, err), lasting(err))
		}
		// gofail: var imagePulled struct{}
		// die()
		images[m.spec.Image] = image
	}
	return nil
}

// attach makes the task's namespace and connects it to its networks.
func (t *task) attach(ctx context.Context) (string, error) {
	a := t.agent
	if t.tmpl.HostNetwork || a.opts.Network == nil {
		return "", nil
	}
	t.hold(func(h *holdings) { h.namespace = true })
	path, err := a.opts.Namespaces.Create(ctx, t.rec.ID, nil)
	if err != nil {
		return "", failed(record.FailedNetwork, fmt.Errorf("make the network namespace: %w", err), false)
	}
	// gofail: var namespaceCreated struct{}
	// die()
	addresses := map[string][]netip.Addr{}
	for i, name := range t.tmpl.Networks {
		if err := a.nets.ensure(ctx, name); err != nil {
			return "", failed(record.FailedNetwork, err, false)
		}
		at := network.Attachment{
			Network: name, Task: t.rec.ID, Namespace: path,
			Interface: fmt.Sprintf("eth%d", i), Default: i == 0,
		}
		t.hold(func(h *holdings) {
			h.attachments = slices.DeleteFunc(h.attachments, func(o network.Attachment) bool { return o.Network == name })
			h.attachments = append(h.attachments, at)
		})
		iface, err := a.opts.Network.Attach(ctx, at)
		if err != nil {
			return "", failed(record.FailedNetwork, fmt.Errorf("attach to network %q: %w", name, err), false)
		}
		// gofail: var networkAttached struct{}
		// die()
		for _, p := range iface.Addresses {
			addresses[name] = append(addresses[name], p.Addr())
		}
	}
	t.mu.Lock()
	t.status.Addresses = addresses
	t.mu.Unlock()
	if t.rec.Fenced() {
		a.traffic.name(t.rec, addresses)
	}
	return path, nil
}

// volumeName is the name of a namespace's volume at the node's driver.
func volumeName(namespace, name string) string { return namespace + "." + name }

func (t *task) mount(ctx context.Context, paths map[string]string) error {
	for _, m := range t.members() {
		for _, mnt := range m.spec.Mounts {
			if mnt.Volume == "" || paths[mnt.Volume] != "" {
				continue
			}
			if t.agent.opts.Volumes == nil {
				return failed(record.FailedVolume, fmt.Errorf("volume %q: this node has no volume driver", mnt.Volume), true)
			}
			spec, err := t.provide(ctx, mnt.Volume)
			if err != nil {
				return failed(record.FailedVolume, err, errors.Is(err, volume.ErrExists) || errors.Is(err, volume.ErrFenced))
			}
			// gofail: var volumeProvided struct{}
			// die()
			use := volume.Mount{Volume: spec.Name, Task: t.rec.ID}
			t.hold(func(h *holdings) {
				if !slices.Contains(h.mounts, use) {
					h.mounts = append(h.mounts, use)
				}
			})
			path, err := t.agent.opts.Volumes.Mount(ctx, use)
			if err != nil {
				return failed(record.FailedVolume, err, false)
			}
			// gofail: var volumeMounted struct{}
			// die()
			paths[mnt.Volume] = path
		}
	}
	return nil
}

// provide makes the volume that a mount refers to.
func (t *task) provide(ctx context.Context, name string) (volume.Volume, error) {
	for _, v := range t.tmpl.SlotVolumes {
		if v.Name == name {
			spec := slotVolume(&t.rec, v)
			return spec, t.agent.slots.provide(ctx, t, spec)
		}
	}
	spec := volume.Volume{}
	for _, v := range t.tmpl.Volumes {
		if v.Name == name {
			spec = v
		}
	}
	spec.Name = volumeName(t.rec.Namespace, name)
	return spec, t.agent.opts.Volumes.Create(ctx, spec)
}

func (t *task) hold(change func(*holdings)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.held)
}

// enter moves the task to a state and reports it.
func (t *task) enter(s record.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.enterLocked(s)
}

func (t *task) enterLocked(s record.State) {
	if t.status.State != s {
		t.log.Debug("task state", "state", s)
		t.status.State, t.status.Since = s, time.Now().UTC()
		if s == record.Ready {
			t.status.Ready = t.status.Since
		}
	}
	t.report()
}

// fail notes the last failure.
func (t *task) fail(f *record.Failure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status.Failure = f
	t.report()
}

// report queues the status as it is now. t.mu is held.
func (t *task) report() {
	st := t.status
	st.Addresses = maps.Clone(st.Addresses)
	st.Containers = nil
	st.Restarts = 0
	for _, m := range t.members() {
		if m.id != "" {
			st.Containers = append(st.Containers, m.observe())
			st.Restarts += m.attempt
		}
	}
	t.status.Containers, t.status.Restarts = st.Containers, st.Restarts
	t.agent.out.put(statusKey(t.agent.id(), t.rec.ID), st, false)
}

// evaluate recomputes whether the task takes traffic. t.mu is held.
func (t *task) evaluate() {
	running, ready := true, true
	for _, m := range slices.Concat(t.sidecars, t.mains) {
		running = running && m.started
		ready = ready && m.ready
	}
	select {
	case <-t.halted:
		return // the way down has withdrawn it
	default:
	}
	switch {
	case ready && !t.ready:
		t.ready = true
		t.agent.traffic.set(t.rec, t.status.Addresses, t.serving)
	case !ready && t.ready:
		t.ready = false
		t.agent.traffic.withdraw(t.rec.ID)
	}
	switch {
	case ready && t.status.State == record.Ready:
		t.report()
	case running && !ready:
		t.enterLocked(record.Running)
	case !running && t.status.State == record.Ready:
		t.enterLocked(record.Starting)
	default:
		t.report()
	}
}

// serving is called when the node's balancer sends traffic to the task, or
// with the reason why it cannot.
func (t *task) serving(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ready {
		return
	}
	select {
	case <-t.halted:
		return
	default:
	}
	if err != nil {
		t.status.Failure = &record.Failure{Kind: record.FailedConflict, Message: err.Error(), At: time.Now().UTC()}
		t.refusedLocked(t.status.Failure)
		t.enterLocked(record.Running)
		return
	}
	t.refusal = "" // the next is another
	t.enterLocked(record.Ready)
}
