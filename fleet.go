package orchestrate

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// Fleet is a control plane: what an application holds and calls. Any number of
// fleets can be open over one store; one of those that [Fleet.Run] leads, and
// all of them serve calls. Make one with [New], or with package local, which
// also runs it.
//
// A service's name in a call is "NAME" in the namespace "default" or
// "NAMESPACE/NAME". All methods may be called from many goroutines, and end
// with their context.
type Fleet struct {
	store store.Store
	opts  options

	// What rehearsals are played on: the state of the loop, nil while there is
	// none, when that leads, and else a mirror of the store.
	loop   atomic.Pointer[control.Loop]
	mirror *control.Mirror

	mu      sync.Mutex // guards what follows
	closed  bool
	cancels map[*context.CancelFunc]struct{}
	removed map[string]string // what this fleet has removed, with its kind
	running sync.WaitGroup

	triggers atomic.Int64 // made by this fleet, for their names
}

type options struct {
	id        string
	logger    *slog.Logger
	scheduler *scheduler.Scheduler
	leaseTTL  time.Duration
	lostAfter time.Duration
	lossLimit Amount
	renewals  int
	ranges    ranges
	access    func(node string) (Access, error)

	keepEach, keepAll int // events

	metrics map[string]metricFunc // by name

	resolver runtime.Resolver

	recorder io.Writer

	schedules func(expr string, zone *time.Location) (next func(time.Time) time.Time, err error)
}

// Option changes a Fleet at its making.
type Option func(*options)

// WithID names this control plane among those of the fleet; random by default.
func WithID(id string) Option { return func(o *options) { o.id = id } }

// WithLogger sets where the fleet logs to; by default nowhere.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithScheduler replaces the scheduler, and with it the strategies that
// services can name; see [scheduler.New].
func WithScheduler(s *scheduler.Scheduler) Option { return func(o *options) { o.scheduler = s } }

// WithLeaseTTL sets after how long without a sign of life another control
// plane takes over; 10 s by default.
func WithLeaseTTL(d time.Duration) Option { return func(o *options) { o.leaseTTL = d } }

// WithLostAfter sets how long a node may be away before its tasks are replaced
// elsewhere; 30 s by default. Services and jobs can say otherwise for their own,
// see [LossPolicy]. No node is given up by a fleet that has led for less.
func WithLostAfter(d time.Duration) Option { return func(o *options) { o.lostAfter = d } }

// WithLossLimit sets how many nodes, or what share of them, are given up within
// a minute when they are silent; "10%" by default, and at least one. When more
// vanish at once it is mostly not they that failed but a network, and replacing
// all of their tasks would do more harm than waiting: the rest are given up
// minute by minute, unless they return. The tasks of a node whose record is
// deleted are replaced at once. "100%" is no limit. [New] refuses what is no
// Amount.
func WithLossLimit(perMinute Amount) Option { return func(o *options) { o.lossLimit = perMinute } }

// WithRenewalLimit sets how many renewals of nodes' leases a second the store is
// to bear, of all nodes together: 1000 when 0, no limit when negative. The leases
// of a fleet with more nodes last longer than their agents ask for, so a node that
// dies is noticed later: with the agents' default of 5 s, beyond 1333 nodes; 5000
// have 19 to 24 s. It is the leader's to say, so give it to all control planes.
func WithRenewalLimit(perSecond int) Option { return func(o *options) { o.renewals = perSecond } }

// WithAccess tells how to reach nodes for Logs, Exec and Stats.
func WithAccess(f func(node string) (Access, error)) Option {
	return func(o *options) { o.access = f }
}

// Access reaches into the tasks of one node. A node.Agent is one. An empty
// container name means the first of the task's main containers. Unknown tasks
// and containers are [ErrNotFound], containers that do not run
// [ErrNotRunning].
type Access interface {
	// Logs calls each for every line that opts ask for, oldest first, and
	// ends with its first error. With Follow it goes on, over restarts of the
	// container, until the task has ended.
	Logs(ctx context.Context, task, container string, opts runtime.LogOptions, each func(runtime.LogLine) error) error
	// Exec runs another process in the container and returns its exit code.
	// One that ends with another code than 0 is no error.
	Exec(ctx context.Context, task, container string, exec runtime.Exec) (exitCode int, err error)
	// Stats measures the container once.
	Stats(ctx context.Context, task, container string) (runtime.Stats, error)
}

// New returns a fleet over a store. It decides nothing until [Fleet.Run].
func New(s store.Store, opts ...Option) (*Fleet, error) {
	if s == nil {
		return nil, errors.New("orchestrate: the store is nil; open one with store/bolt, or use package local")
	}
	f := &Fleet{store: s, cancels: map[*context.CancelFunc]struct{}{}, removed: map[string]string{}}
	for _, o := range opts {
		o(&f.opts)
	}
	f.opts.lossLimit = cmp.Or(f.opts.lossLimit, "10%")
	if value, _, err := f.opts.lossLimit.parse(); err != nil {
		return nil, fmt.Errorf("orchestrate: the loss limit %q %w", f.opts.lossLimit, err)
	} else if value < 1 {
		return nil, fmt.Errorf("orchestrate: the loss limit is %q; want 1 or more, or a share", f.opts.lossLimit)
	}
	f.opts.id = cmp.Or(f.opts.id, "fleet-"+rand.Text()[:10])
	for _, name := range []string{autoscale.CPU, autoscale.Memory} {
		if f.opts.metrics[name] != nil {
			return nil, fmt.Errorf("orchestrate: the metric %q is what nodes measure; register the function under another name", name)
		}
	}
	if f.opts.logger == nil {
		f.opts.logger = slog.New(slog.DiscardHandler)
	}
	if f.opts.scheduler == nil {
		sched, err := scheduler.New(scheduler.Options{})
		if err != nil {
			return nil, err
		}
		f.opts.scheduler = sched
	}
	f.mirror = control.NewMirror(s, f.plannerConfig())
	return f, nil
}

// Run campaigns to lead and, while it leads, makes true what was applied. It
// blocks until ctx ends or [Fleet.Close], and then returns nil, or until it
// cannot go on, and then says why.
func (f *Fleet) Run(ctx context.Context) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	recording, recorded := f.record()
	defer func() {
		if e := recorded(); e != nil {
			f.opts.logger.Error("the log of what was decided by ends early", "error", e)
		}
	}()
	opts := control.Options{
		Store: f.store, ID: f.opts.id, Scheduler: f.opts.scheduler, Decode: decodeWorkload, DecodeJob: decodeJobWork,
		Logger: f.opts.logger, LeaseTTL: f.opts.leaseTTL, LostAfter: f.opts.lostAfter,
		LossLimit:      f.opts.lossLimit.control(),
		Renewals:       f.opts.renewals,
		KeepEventsEach: f.opts.keepEach, KeepEvents: f.opts.keepAll,
		Beside: func(ctx context.Context, fence store.Condition) { f.beside(ctx, fence, recording) },
	}
	if recording != nil {
		opts.Record = recording
	}
	loop, err := control.New(opts)
	if err != nil {
		return err
	}
	f.loop.Store(loop)
	err = loop.Run(ctx)
	f.loop.CompareAndSwap(loop, nil)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// beside is what a fleet does while it leads, other than planning.
func (f *Fleet) beside(ctx context.Context, fence store.Condition, recording *recorder) {
	var wg sync.WaitGroup
	wg.Go(func() { f.autoscale(ctx, fence) })
	wg.Go(func() { f.follow(ctx, fence) })
	wg.Go(func() { f.expire(ctx, fence) })
	wg.Go(func() { f.keepSchedules(ctx, fence, recording) })
	wg.Wait()
}

// plannerConfig is what the planner decides by, in a rehearsal as when it leads.
func (f *Fleet) plannerConfig() control.Config {
	return control.Config{Decode: decodeWorkload, DecodeJob: decodeJobWork, Place: f.opts.scheduler,
		LostAfter: f.opts.lostAfter, LossLimit: f.opts.lossLimit.control()}
}

// fork returns a copy of what the planner decides by, that has seen all that was
// written before, and the record of who leads.
func (f *Fleet) fork(ctx context.Context) (*control.State, store.Item, error) {
	snapshot, err := f.store.List(ctx, record.Leader)
	if err != nil {
		return nil, store.Item{}, err
	}
	leader := itemAt(snapshot, record.Leader)
	if loop := f.loop.Load(); loop != nil {
		if state := loop.Fork(ctx, snapshot.Revision); state != nil {
			return state, leader, nil
		}
	}
	state, err := f.mirror.Fork(ctx, snapshot.Revision)
	return state, leader, err
}

// Close ends Run and every call under way, and waits for them. It leaves the
// store and the nodes alone: tasks run on. Closing twice is no error.
func (f *Fleet) Close() error {
	f.mu.Lock()
	f.closed = true
	for cancel := range f.cancels {
		(*cancel)()
	}
	f.mu.Unlock()
	f.running.Wait()
	f.mirror.Close()
	return nil
}

// begin ties a call's context to the life of the fleet.
func (f *Fleet) begin(ctx context.Context) (context.Context, func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil, ErrClosed
	}
	ctx, cancelCause := context.WithCancelCause(ctx)
	cancel := context.CancelFunc(func() { cancelCause(ErrClosed) })
	f.cancels[&cancel] = struct{}{}
	f.running.Add(1)
	return ctx, func() {
		f.mu.Lock()
		delete(f.cancels, &cancel)
		f.mu.Unlock()
		cancelCause(context.Canceled)
		f.running.Done()
	}, nil
}

// decodeWorkload is what the planner needs of a service's record,
// where at is not nil with the template that it had then.
func decodeWorkload(namespace, name string, rec record.Service, at *record.Revision) (control.Workload, error) {
	var s Service
	if err := json.Unmarshal(rec.Spec, &s); err != nil {
		return control.Workload{}, fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	if at != nil {
		rec.Revision, rec.Hash, s.Template = at.Revision, at.Hash, Template{}
		rec.Digests, rec.Unresolved = at.Digests, nil
		if err := json.Unmarshal(at.Template, &s.Template); err != nil {
			return control.Workload{}, fmt.Errorf("service %s/%s, revision %d: %w", namespace, name, at.Revision, err)
		}
	}
	s.Namespace, s.Name = namespace, name
	s = s.WithDefaults()
	if s.Replicas > MaxReplicas { // Apply writes none; of this many not even a list can be made
		return control.Workload{}, fmt.Errorf("service %s/%s: %d replicas; want at most %d", namespace, name, s.Replicas, MaxReplicas)
	}
	s.Template = s.Template.pinned(rec.Digests)
	template, err := json.Marshal(s.Template)
	if err != nil {
		return control.Workload{}, fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	request, err := s.request()
	if err != nil {
		return control.Workload{}, fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	w := control.Workload{
		Namespace: namespace, Name: name,
		Replicas: max(s.Replicas, 0),
		Revision: rec.Revision, Hash: rec.Hash, Template: template,
		Request:  request,
		Networks: s.Networks,
		Shape:    s.Template.shape(),
		Images:   nextImages(&s.Template), Unpinned: unpinned(rec.Unresolved),
		DependsOn: dependencies(s.DependsOn, namespace),
		Update: control.Update{
			Parallelism:      s.Update.Parallelism.control(),
			MaxSurge:         s.Update.MaxSurge.control(),
			MaxUnavailable:   s.Update.MaxUnavailable.control(),
			StopFirst:        s.stopFirst(),
			Monitor:          max(s.Update.Monitor, 0),
			ProgressDeadline: s.Update.ProgressDeadline,
			MaxFailures:      s.Update.MaxFailures,
		},
	}
	switch u := &s.Update; u.Strategy {
	case CanaryUpdate:
		w.Update.Strategy, w.Update.Canaries = record.Canary, u.Canary.Tasks.control()
		w.Update.Bake, w.Update.Manual = u.Canary.Bake, u.Canary.Bake == 0
	case BlueGreenUpdate:
		w.Update.Strategy = record.BlueGreen
		w.Update.Bake, w.Update.Manual = max(u.BlueGreen.Bake, 0), u.BlueGreen.Manual
	}
	s.scaled(&w)
	s.LossPolicy.control(&w)
	w.Budget = s.Budget.control()
	w.Global = s.Mode == Global
	if st := s.Stateful; st != nil {
		w.Stateful = &control.Stateful{
			Parallel: st.Order == ParallelSlots, Partition: st.Partition,
			EraseScaled: st.WhenScaled == DeleteVolumes, EraseRemoved: st.WhenRemoved == DeleteVolumes,
		}
		for _, v := range s.SlotVolumes {
			w.Stateful.Volumes = append(w.Stateful.Volumes, v.Name)
		}
	}
	switch s.Update.OnFailure {
	case RollBack:
		w.Update.OnFailure = control.RollBack
	case Continue:
		w.Update.OnFailure = control.Continue
	}
	if !s.HostNetwork {
		for _, p := range s.Ports {
			w.Ports = append(w.Ports, record.Port{
				Name: p.Name, Protocol: string(p.Protocol), Port: p.Port, Virtual: p.Virtual,
				Published: p.Published, HostIP: p.HostIP, Local: p.Ingress == IngressLocal,
			})
		}
	}
	return w, nil
}

// stopFirst resolves OrderAuto. s has its defaults filled in.
func (s *Service) stopFirst() bool {
	if s.Stateful != nil {
		return true // no slot is run twice
	}
	if s.Update.Order != OrderAuto {
		return s.Update.Order == StopFirst
	}
	for _, v := range s.Volumes {
		if v.Exclusive {
			return true
		}
	}
	return s.Update.MaxSurge.none() || s.HostNetwork && len(s.Ports) > 0
}

// request is what one task of s asks of a node. s has its defaults filled in.
func (s *Service) request() (scheduler.Request, error) {
	r := scheduler.Request{
		Namespace: s.Namespace, Service: s.Name, Labels: s.Labels,
		MaxPerNode: s.Placement.MaxPerNode,
		Priority:   int32(s.Placement.Priority),
		Strategy:   s.Placement.Strategy,
	}
	for _, list := range [][]Container{s.Sidecars, s.Containers} {
		for _, c := range list {
			r.Resources.CPU += cmp.Or(c.Resources.CPU, c.Resources.CPULimit)
			r.Resources.Memory += cmp.Or(c.Resources.Memory, c.Resources.MemoryLimit)
			r.Images = append(r.Images, c.Image)
		}
	}
	// Init containers run alone, one at a time: the greatest of them counts
	// where it is more than the rest together.
	for _, c := range s.Init {
		r.Resources.CPU = max(r.Resources.CPU, cmp.Or(c.Resources.CPU, c.Resources.CPULimit))
		r.Resources.Memory = max(r.Resources.Memory, cmp.Or(c.Resources.Memory, c.Resources.MemoryLimit))
	}
	for i, text := range s.Placement.Constraints {
		c, err := scheduler.ParseConstraint(text)
		if err != nil {
			return r, fmt.Errorf("placement.constraints[%d]: %w", i, err)
		}
		r.Constraints = append(r.Constraints, c)
	}
	if s.HostNetwork {
		for _, p := range s.Ports {
			r.Ports = append(r.Ports, scheduler.HostPort{Port: p.Port, Protocol: string(p.Protocol)})
		}
	}
	return r, nil
}
