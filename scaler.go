package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// scaler is the loop around [autoscale.Policy.Decide]: of each service that has
// a policy it reads the metrics, decides, and writes down what was decided, for
// the planner to make true. Only a leader has one.
//
// What a decision needs of those before it is in the service's record, as it was
// when the number last changed. Whoever comes to lead goes on from there, see
// [autoscale.History.Resume]: nothing shrinks until it has seen as much as the
// leader before it had.
type scaler struct {
	*Fleet
	log   *slog.Logger
	fence store.Condition
	told  atomic.Int64 // records of events

	mu       sync.Mutex // guards what follows
	services map[string]*scaledService
	tasks    map[string]*scaledTask // by NODE/ID
	usage    map[string]usage       // by node
	loading  int                    // mirrors of these that have not begun
	known    chan struct{}          // closed when none is left
	running  sync.WaitGroup

	// scaled has room for one: whether any service is scaled may have changed.
	scaled chan struct{}
}

// scaledService is a service that is scaled.
type scaledService struct {
	Service
	created  time.Time
	item     store.Item
	revision int64
	tasks    map[string]*scaledTask
	known    <-chan struct{} // closed when they are
	changed  chan struct{}   // has room for one
	cancel   context.CancelFunc
}

// scaledTask is what is looked at of a task, and of its status.
type scaledTask struct {
	ID        string
	Namespace string
	Service   string
	Created   time.Time
	Stop      *record.Stop
	Request   struct{ Resources scheduler.Resources }

	known  bool // there is a record, and not only a status
	status struct {
		State record.State
		Ready time.Time
	}
}

func (t *scaledTask) service() string { return t.Namespace + "/" + t.Service }

// usage is what a node has measured, and when that came to be known here: the
// clocks of nodes may be wrong.
type usage struct {
	record.Usage
	at time.Time
}

// autoscale runs the scaler of a term.
func (f *Fleet) autoscale(ctx context.Context, fence store.Condition) {
	s := &scaler{
		Fleet: f, log: f.opts.logger, fence: fence,
		services: map[string]*scaledService{}, tasks: map[string]*scaledTask{}, usage: map[string]usage{},
		known: make(chan struct{}), scaled: make(chan struct{}, 1),
	}
	s.running.Go(func() { s.followTasks(ctx) })
	s.follow(ctx, s.mirror(ctx, record.Services, s.changeService))
	s.running.Wait()
}

// followTasks mirrors what decisions look at, while any service is scaled: a fleet
// in which none is pays nothing for it.
func (s *scaler) followTasks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.scaled:
		}
		s.mu.Lock()
		wanted := len(s.services) > 0
		s.mu.Unlock()
		if wanted {
			s.mirrorTasks(ctx)
		}
	}
}

// mirrorTasks mirrors until no service is scaled, or ctx ends.
func (s *scaler) mirrorTasks(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var mirrors sync.WaitGroup
	defer mirrors.Wait()
	defer cancel()
	all := []*mirror{
		s.mirror(ctx, record.Tasks, s.changeTask),
		s.mirror(ctx, record.Statuses, s.changeStatus),
		s.mirror(ctx, record.Usages, s.changeUsage),
	}
	s.mu.Lock()
	s.loading = len(all)
	s.mu.Unlock()
	for _, m := range all {
		m.first = s.loaded
		mirrors.Go(func() { s.follow(ctx, m) })
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.scaled:
		}
		s.mu.Lock()
		if len(s.services) == 0 {
			// With the lock: nothing is mirrored any more once it is let go.
			cancel()
			clear(s.tasks)
			clear(s.usage)
			s.known = make(chan struct{})
		}
		s.mu.Unlock()
	}
}

// loaded is called by each mirror of what decisions look at, when it has it. mu is
// held.
func (s *scaler) loaded() {
	if s.loading--; s.loading == 0 {
		close(s.known)
	}
}

// mirror hands what is under a prefix to change, one record at a time, with nil
// for one that is gone.
type mirror struct {
	ctx    context.Context
	prefix string
	lock   *sync.Mutex
	change func(ctx context.Context, rest string, item *store.Item)
	keys   map[string]bool
	first  func() // when all is there for the first time; nil is nobody
}

func (s *scaler) mirror(ctx context.Context, prefix string, change func(context.Context, string, *store.Item)) *mirror {
	return &mirror{ctx: ctx, prefix: prefix, lock: &s.mu, change: change, keys: map[string]bool{}}
}

// Reset is part of store.Follower.
func (m *mirror) Reset(snapshot store.Snapshot) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	if err := m.ctx.Err(); err != nil {
		return err
	}
	now := map[string]bool{}
	for _, item := range snapshot.Items {
		now[item.Key] = true
		m.set(item, false)
	}
	for key := range m.keys {
		if !now[key] {
			m.set(store.Item{Key: key}, true)
		}
	}
	if m.first != nil {
		m.first()
		m.first = nil
	}
	return nil
}

// Apply is part of store.Follower.
func (m *mirror) Apply(batch store.Batch) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	if err := m.ctx.Err(); err != nil {
		return err
	}
	for _, c := range batch.Changes {
		m.set(c.Item, c.Deleted)
	}
	return nil
}

func (m *mirror) set(item store.Item, gone bool) {
	rest := strings.TrimPrefix(item.Key, m.prefix)
	if gone {
		delete(m.keys, item.Key)
		m.change(m.ctx, rest, nil)
		return
	}
	m.keys[item.Key] = true
	m.change(m.ctx, rest, &item)
}

// follow mirrors until ctx ends, over passing errors of the store.
func (s *scaler) follow(ctx context.Context, m *mirror) {
	for {
		err := store.Follow(ctx, s.store, m.prefix, m)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("autoscalers cannot follow the store; trying again", "prefix", m.prefix, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// changeService has a service scaled, or no longer.
func (s *scaler) changeService(ctx context.Context, key string, item *store.Item) {
	old := s.services[key]
	var svc *scaledService
	if item != nil {
		// Most services have no policy, and cost no more than this.
		var rec struct {
			Spec     json.RawMessage
			Created  time.Time
			Revision int64
		}
		if json.Unmarshal(item.Value, &rec) == nil && strings.Contains(string(rec.Spec), `"autoscale"`) {
			svc = &scaledService{created: rec.Created, revision: rec.Revision, item: *item, changed: make(chan struct{}, 1)}
			if json.Unmarshal(rec.Spec, &svc.Service) != nil || svc.Autoscale == nil || svc.Mode == Global {
				svc = nil
			}
		}
	}
	if svc != nil && old != nil && old.created.Equal(svc.created) {
		old.Service, old.item, old.revision = svc.Service, svc.item, svc.revision
		select {
		case old.changed <- struct{}{}:
		default:
		}
		return
	}
	if old != nil {
		old.cancel()
		delete(s.services, key)
	}
	if (old != nil) != (svc != nil) {
		select {
		case s.scaled <- struct{}{}:
		default:
		}
	}
	if svc == nil {
		return
	}
	svc.Namespace, svc.Name, _ = strings.Cut(key, "/")
	svc.tasks, svc.known = map[string]*scaledTask{}, s.known
	for at, t := range s.tasks {
		if t.service() == key {
			svc.tasks[at] = t
		}
	}
	s.services[key] = svc
	ctx, svc.cancel = context.WithCancel(ctx)
	s.running.Go(func() {
		defer svc.cancel()
		s.run(ctx, svc)
	})
}

func (s *scaler) task(key string) *scaledTask {
	if s.tasks[key] == nil {
		s.tasks[key] = &scaledTask{}
	}
	return s.tasks[key]
}

func (s *scaler) changeTask(_ context.Context, key string, item *store.Item) {
	t := s.task(key)
	if svc := s.services[t.service()]; svc != nil {
		delete(svc.tasks, key)
	}
	status := t.status
	*t = scaledTask{}
	t.status = status
	if item != nil && json.Unmarshal(item.Value, t) == nil {
		t.known = true
		if svc := s.services[t.service()]; svc != nil {
			svc.tasks[key] = t
		}
	}
	s.forgetTask(key, t)
}

func (s *scaler) changeStatus(_ context.Context, key string, item *store.Item) {
	t := s.task(key)
	t.status.State, t.status.Ready = "", time.Time{}
	if item != nil {
		_ = json.Unmarshal(item.Value, &t.status) // one that cannot be read is not ready
	}
	s.forgetTask(key, t)
}

func (s *scaler) forgetTask(key string, t *scaledTask) {
	if !t.known && t.status.State == "" {
		delete(s.tasks, key)
	}
}

func (s *scaler) changeUsage(_ context.Context, node string, item *store.Item) {
	u := usage{at: time.Now()}
	if item == nil || json.Unmarshal(item.Value, &u.Usage) != nil {
		delete(s.usage, node)
		return
	}
	s.usage[node] = u
}

// run decides about one service, every Interval, until ctx ends.
func (s *scaler) run(ctx context.Context, svc *scaledService) {
	select {
	case <-ctx.Done():
		return
	case <-svc.known:
	}
	var last record.Scale
	resumed := false
	for {
		s.mu.Lock()
		interval := svc.Autoscale.Interval
		s.mu.Unlock()
		var err error
		if !resumed {
			err = s.resume(ctx, svc, &last)
			resumed = err == nil
		}
		if err == nil {
			err = s.decide(ctx, svc, &last)
		}
		if errors.Is(err, store.ErrConflict) {
			resumed = false // the spec has changed, or another leads
		} else if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot scale a service; trying again", "service", svc.Namespace+"/"+svc.Name, "error", err)
			resumed = false
		}
		tick := time.NewTimer(interval)
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-svc.changed:
			tick.Stop()
		case <-tick.C:
		}
	}
}

// resume takes over from whoever decided before.
func (s *scaler) resume(ctx context.Context, svc *scaledService, last *record.Scale) error {
	item, found, err := store.Get(ctx, s.store, record.Key(record.Scales, svc.Namespace, svc.Name))
	if err != nil {
		return err
	}
	*last = record.Scale{}
	if found {
		if err := json.Unmarshal(item.Value, last); err != nil {
			*last = record.Scale{} // it is written anew
		}
	}
	if !last.Created.Equal(svc.created) {
		s.mu.Lock()
		p := svc.Autoscale
		n := min(max(svc.Replicas, p.Min, 0), p.Max)
		s.mu.Unlock()
		*last = record.Scale{Created: svc.created, Replicas: n}
		return nil
	}
	last.History = last.History.Resume(time.Now().UTC(), last.Replicas)
	return nil
}

// noted is how often a decision that changes nothing is written down.
const noted = time.Minute

// decide makes one decision. An [store.ErrConflict] is that what it was made
// for is no longer so.
func (s *scaler) decide(ctx context.Context, svc *scaledService, last *record.Scale) error {
	s.mu.Lock()
	spec, item, revision := svc.Service, svc.item, svc.revision
	in := autoscale.Input{Current: last.Replicas, History: last.History}
	requests := map[string]scheduler.Resources{}
	for _, t := range svc.tasks {
		if t.Stop != nil || t.status.State.Final() {
			continue
		}
		in.Tasks = append(in.Tasks, autoscale.Task{ID: t.ID, Started: t.Created, Ready: t.status.State == record.Ready, Since: t.status.Ready})
		requests[t.ID] = t.Request.Resources
	}
	s.mu.Unlock()
	p := spec.Autoscale
	in.Readings = s.read(ctx, &spec, in.Tasks, requests)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	in.Now = time.Now().UTC()
	d := p.Decide(in)
	next := record.Scale{
		Created: svc.created, Replicas: d.Replicas, Wanted: d.Wanted, Reason: d.Reason, Message: record.Clip(d.Message, record.MaxEventText),
		Metrics: d.Metrics, At: in.Now, Changed: last.Changed, History: d.History,
	}
	changed := d.Replicas != last.Replicas
	if changed {
		next.Changed = in.Now
	}
	if !changed && last.Reason == d.Reason && (in.Now.Sub(last.At) < noted || reflect.DeepEqual(last.Metrics, d.Metrics)) {
		last.History = d.History
		return nil
	}
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	txn := store.Txn{
		// The spec as it was decided for: not of a service that is gone.
		If:     []store.Condition{s.fence, {Key: item.Key, Revision: item.Revision}},
		Writes: []store.Write{store.Put(record.Key(record.Scales, spec.Namespace, spec.Name), data)},
	}
	if changed {
		e := record.Event{
			Kind: record.ServiceScaled, At: in.Now, Namespace: spec.Namespace, Service: spec.Name, Revision: revision,
			Reason: string(d.Reason), Message: fmt.Sprintf("%d to %d: %s", last.Replicas, d.Replicas, d.Message),
			Scale: &record.Scaling{From: last.Replicas, To: d.Replicas, Wanted: d.Wanted, Metrics: d.Metrics},
			Cause: record.Cause{Actor: record.ActorAutoscaler, Revision: revision, Parent: item.Revision},
		}
		txn.Writes = append(txn.Writes, store.Put(record.ScalerEvents(s.fence.Revision, s.told.Add(1)), record.EncodeEvents([]record.Event{e})))
		s.log.Info(string(e.Kind), "service", spec.Namespace+"/"+spec.Name, "reason", d.Reason, "message", e.Message)
	}
	if _, err := s.store.Commit(ctx, txn); err != nil {
		return fmt.Errorf("write the scale of %s/%s: %w", spec.Namespace, spec.Name, err)
	}
	*last = next
	return nil
}

// read reads the metrics of a service, those of functions at the same time.
func (s *scaler) read(ctx context.Context, spec *Service, tasks []autoscale.Task, requests map[string]scheduler.Resources) []autoscale.Reading {
	p := spec.Autoscale
	ctx, cancel := context.WithTimeout(ctx, p.Interval)
	defer cancel()
	readings := make([]autoscale.Reading, len(p.Metrics))
	var wg sync.WaitGroup
	for i, m := range p.Metrics {
		f := s.opts.metrics[m.Name]
		switch {
		case f != nil:
			wg.Go(func() { readings[i] = f(ctx, spec.Namespace+"/"+spec.Name, tasks) })
		case m.PerTask():
			readings[i] = s.used(m, spec, requests)
		case m.Name == autoscale.Requests:
			readings[i] = s.requests(spec)
		default:
			readings[i].Err = "no function is registered for it in the control plane that leads"
		}
	}
	wg.Wait()
	return readings
}

// stale is how old a measure may be, in intervals.
const stale = 3

// used is what the nodes say of the use of CPU or memory.
func (s *scaler) used(m autoscale.Metric, spec *Service, requests map[string]scheduler.Resources) autoscale.Reading {
	r := autoscale.Reading{Tasks: map[string]autoscale.Sample{}}
	oldest := time.Now().Add(-stale * spec.Autoscale.Interval)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.usage {
		if u.at.Before(oldest) {
			continue
		}
		for id, t := range u.Tasks {
			resources, ours := requests[id]
			if !ours {
				continue
			}
			sample := autoscale.Sample{Begin: t.Begin, Request: float64(resources.CPU)}
			if m.Name == autoscale.Memory {
				sample.Request = float64(resources.Memory)
			}
			if m.Container != "" {
				sample.Request = requestOf(spec, m)
			}
			found := false
			for name, c := range t.Containers {
				if m.Container != "" && name != m.Container {
					continue
				}
				found = true
				if m.Name == autoscale.Memory {
					sample.Value += float64(c.Memory)
				} else {
					sample.Value += c.CPU
				}
			}
			if found {
				r.Tasks[id] = sample
			}
		}
	}
	return r
}

// requestOf is what one container requests.
func requestOf(spec *Service, m autoscale.Metric) float64 {
	for _, list := range [][]Container{spec.Sidecars, spec.Containers} {
		for _, c := range list {
			switch {
			case c.Name != m.Container:
			case m.Name == autoscale.Memory:
				return float64(cmp.Or(c.Resources.Memory, c.Resources.MemoryLimit))
			default:
				return float64(cmp.Or(c.Resources.CPU, c.Resources.CPULimit))
			}
		}
	}
	return 0
}

// requests is the sum of new connections a second over the nodes that count.
func (s *scaler) requests(spec *Service) autoscale.Reading {
	r := autoscale.Reading{Err: "no node has counted connections yet"}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.usage {
		if x, ok := u.Requests[spec.Namespace+"/"+spec.Name]; ok {
			r.Err = ""
			r.Total += x
		}
	}
	return r
}
