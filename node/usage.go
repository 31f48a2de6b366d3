package node

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// meter measures what the leader's autoscalers want to know of this node, as
// often as the records of its tasks and of the frontends say, and puts it into
// one leased record. Where nothing is wanted nothing is measured or written.
type meter struct {
	agent *Agent
	wake  chan struct{}

	mu    sync.Mutex               // guards what follows
	tasks map[string]time.Duration // how often each is to be measured

	// Of run's goroutine alone: what was seen last.
	stats    map[string]runtime.Stats // by container
	counts   map[string]uint64        // by service
	counted  time.Time
	reported *record.Usage
}

func newMeter(a *Agent) *meter {
	return &meter{agent: a, wake: make(chan struct{}, 1), tasks: map[string]time.Duration{}}
}

// set says how often a task is to be measured; 0 is never.
func (m *meter) set(task string, every time.Duration) {
	m.mu.Lock()
	changed := m.tasks[task] != every
	if every > 0 {
		m.tasks[task] = every
	} else {
		delete(m.tasks, task)
	}
	m.mu.Unlock()
	if changed {
		m.kick()
	}
}

func (m *meter) kick() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// wanted returns the tasks to measure, the services to count connections of,
// and how often; 0 when there are none.
func (m *meter) wanted() (tasks []string, services []string, every time.Duration) {
	least := func(d time.Duration) {
		if every == 0 || d < every {
			every = d
		}
	}
	m.mu.Lock()
	for id, d := range m.tasks {
		tasks = append(tasks, id)
		least(d)
	}
	m.mu.Unlock()
	t := m.agent.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, f := range t.frontends.all {
		if f.Measure > 0 {
			services = append(services, name)
			least(f.Measure)
		}
	}
	return tasks, services, every
}

// run measures until ctx ends.
func (m *meter) run(ctx context.Context) error {
	var last time.Time
	for {
		tasks, services, every := m.wanted()
		var tick <-chan time.Time
		switch now := time.Now(); {
		case every == 0:
			m.forget()
		case !now.Before(last.Add(every)):
			last = now
			m.report(ctx, tasks, services)
			fallthrough
		default:
			tick = time.After(time.Until(last.Add(every)))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.wake:
		case <-tick:
		}
	}
}

// forget takes back what was reported.
func (m *meter) forget() {
	if m.reported != nil {
		m.agent.out.delete(record.Key(record.Usages, m.agent.id()))
	}
	m.reported, m.stats, m.counts = nil, nil, nil
}

func (m *meter) report(ctx context.Context, tasks, services []string) {
	u := record.Usage{Tasks: map[string]record.TaskUsage{}}
	next := map[string]runtime.Stats{}
	for _, id := range tasks {
		if t, ok := m.measure(ctx, id, next); ok {
			u.Tasks[id] = t
		}
	}
	m.stats = next
	if len(services) > 0 {
		u.Requests = m.count(ctx, services)
	} else {
		m.counts = nil
	}
	// That nobody has come is not told again and again.
	if m.reported != nil && len(u.Tasks) == 0 && reflect.DeepEqual(*m.reported, u) {
		return
	}
	m.reported = &u
	m.agent.out.put(record.Key(record.Usages, m.agent.id()), u, true)
}

// measure returns what a task's containers used since they were measured last;
// ok is false before the second time.
func (m *meter) measure(ctx context.Context, id string, next map[string]runtime.Stats) (use record.TaskUsage, ok bool) {
	reader, can := m.agent.opts.Runtime.(runtime.StatsReader)
	m.agent.mu.Lock()
	t := m.agent.tasks[id]
	m.agent.mu.Unlock()
	if t == nil || !can {
		return use, false
	}
	use.Containers = map[string]record.ContainerUsage{}
	for _, c := range slices.Concat(t.sidecars, t.mains) {
		t.mu.Lock()
		container, running := c.id, c.running
		t.mu.Unlock()
		if !running {
			continue
		}
		now, err := reader.Stats(ctx, container)
		if err != nil {
			continue // it ended a moment ago
		}
		next[container] = now
		last, seen := m.stats[container]
		if !seen || !now.At.After(last.At) {
			continue
		}
		use.Containers[c.spec.Name] = record.ContainerUsage{
			CPU:    1000 * float64(now.CPU-last.CPU) / float64(now.At.Sub(last.At)),
			Memory: now.Memory,
		}
		if use.Begin.IsZero() || last.At.Before(use.Begin) {
			use.Begin = last.At
		}
	}
	return use, len(use.Containers) > 0
}

// count returns new connections a second to services since the last time.
func (m *meter) count(ctx context.Context, services []string) map[string]float64 {
	counter, can := m.agent.opts.Balancer.(network.Counter)
	if !can {
		return nil
	}
	now := time.Now()
	counts, err := counter.Connections(ctx)
	if err != nil {
		m.agent.log.Warn("cannot count connections", "error", err)
		return nil
	}
	rates := map[string]float64{}
	for _, s := range services {
		last, seen := m.counts[s]
		n := counts[s]
		if n < last {
			last = 0
		}
		if d := now.Sub(m.counted).Seconds(); seen && d > 0 {
			rates[s] = float64(n-last) / d
		}
	}
	m.counts, m.counted = map[string]uint64{}, now
	for _, s := range services {
		m.counts[s] = counts[s]
	}
	return rates
}
