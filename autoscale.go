package orchestrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// metricFunc reads a metric of a service.
type metricFunc func(ctx context.Context, service string, tasks []autoscale.Task) autoscale.Reading

// WithMetric registers a metric of the application's for [Service.Autoscale]:
// read returns its value for a whole service, NAMESPACE/NAME, such as the length
// of its queue. It is called by the leading control plane alone, each time that
// a service which names it is decided about, perhaps for several at once, and
// its context ends in time for the next. An error, like no number, keeps the
// number of tasks from falling. "requests" may be given a function, in place of
// what the nodes count; "cpu" and "memory" may not.
func WithMetric(name string, read func(ctx context.Context, service string) (float64, error)) Option {
	return withMetric(name, func(ctx context.Context, service string, _ []autoscale.Task) autoscale.Reading {
		x, err := read(ctx, service)
		if err != nil {
			return autoscale.Reading{Err: err.Error()}
		}
		return autoscale.Reading{Total: x}
	})
}

// WithTaskMetric is as [WithMetric], with values of single tasks by their ID,
// such as each says of itself. Tasks without one count as [package autoscale]
// says: as at their target when there are to be fewer, as idle when there are to
// be more.
//
// [package autoscale]: https://pkg.go.dev/github.com/orchestrate-go/orchestrate/autoscale
func WithTaskMetric(name string, read func(ctx context.Context, service string, tasks []string) (map[string]float64, error)) Option {
	return withMetric(name, func(ctx context.Context, service string, tasks []autoscale.Task) autoscale.Reading {
		ids := make([]string, len(tasks))
		for i, t := range tasks {
			ids[i] = t.ID
		}
		values, err := read(ctx, service, ids)
		if err != nil {
			return autoscale.Reading{Err: err.Error()}
		}
		r := autoscale.Reading{Tasks: map[string]autoscale.Sample{}}
		for id, x := range values {
			r.Tasks[id] = autoscale.Sample{Value: x}
		}
		return r
	})
}

func withMetric(name string, read metricFunc) Option {
	return func(o *options) {
		if o.metrics == nil {
			o.metrics = map[string]metricFunc{}
		}
		o.metrics[name] = read
	}
}

// Scale is how many tasks an autoscaled service is to have, and why.
type Scale struct {
	Replicas int
	Wanted   int // what its metrics ask for, before windows, limits and bounds
	Reason   autoscale.Reason
	Message  string // with numbers, for people
	Metrics  []autoscale.Proposal
	At       time.Time // of the decision; what changes nothing is noted once a minute
	Changed  time.Time // when Replicas last changed; zero if it never has
}

// Scaling is a change that an autoscaler made, with what every metric asked for.
type Scaling struct {
	From    int                  `json:"from"`
	To      int                  `json:"to"`
	Wanted  int                  `json:"wanted"`
	Metrics []autoscale.Proposal `json:"metrics,omitempty"`
}

// ErrAutoscaled is matched by [*AutoscaledError].
var ErrAutoscaled = errors.New("scaled by its policy")

// AutoscaledError is a number of tasks that was to be set for a service whose
// autoscaler decides about it. It matches [ErrAutoscaled].
type AutoscaledError struct {
	Service  string // NAMESPACE/NAME
	Min, Max int
}

func (e *AutoscaledError) Error() string {
	return fmt.Sprintf("service %s is scaled by its policy, from %d to %d tasks; apply it with other bounds, or without Autoscale", e.Service, e.Min, e.Max)
}

// Is reports whether target is [ErrAutoscaled].
func (e *AutoscaledError) Is(target error) bool { return target == ErrAutoscaled }

// scaled completes a workload that an autoscaler decides about. s has its
// defaults filled in.
func (s *Service) scaled(w *control.Workload) {
	p := s.Autoscale
	if p == nil || s.Mode == Global {
		return
	}
	w.Scaled = &control.Bounds{Min: max(p.Min, 0), Max: p.Max}
	for _, m := range p.Metrics {
		switch {
		case m.PerTask():
			w.Measure = p.Interval
		case m.Name == autoscale.Requests:
			w.MeasureFrontend = p.Interval
		}
	}
}

// checkMetrics refuses metrics that nobody could read.
func (f *Fleet) checkMetrics(s *Service) error {
	if s.Autoscale == nil {
		return nil
	}
	var problems []Problem
	for i, m := range s.Autoscale.Metrics {
		if !m.PerTask() && m.Name != autoscale.Requests && f.opts.metrics[m.Name] == nil {
			problems = append(problems, Problem{Path: at("autoscale.metrics", i) + ".name", Value: show(m.Name),
				Reason: "is no metric: no function is registered under that name; see WithMetric"})
		}
	}
	if problems == nil {
		return nil
	}
	return &ValidationError{Object: s.object(), Problems: problems}
}

// autoscale checks the policy of a service, and that it fits the rest.
func (c *checks) autoscale(s *Service) {
	p := s.Autoscale
	if p == nil {
		return
	}
	for _, e := range p.Validate() {
		c.add("autoscale."+e.Field, nil, "%s", e.Reason)
	}
	if s.Mode == Global {
		c.add("autoscale", nil, "contradicts mode %q, with which the nodes decide how many tasks there are; remove one of the two", Global)
	}
	for _, v := range s.Volumes {
		if v.Exclusive && p.Max > 1 {
			c.add("autoscale.max", p.Max, "is more than one task, which cannot share the exclusive volume %s; use 1, or a volume that is not exclusive", show(v.Name))
		}
	}
	for i, m := range p.Metrics {
		path := at("autoscale.metrics", i)
		if m.Name == autoscale.Requests && (len(s.Ports) == 0 || s.HostNetwork) {
			c.add(path+".name", m.Name, "are counted where a service has ports, and not on the node's own network; give it one, or another metric")
		}
		if !m.PerTask() {
			continue
		}
		found, requested := false, false
		for _, list := range [][]Container{s.Sidecars, s.Containers} {
			for _, k := range list {
				if m.Container != "" && m.Container != k.Name {
					continue
				}
				found = true
				requested = requested || m.Name == autoscale.CPU && k.Resources.CPU > 0 || m.Name == autoscale.Memory && k.Resources.Memory > 0
			}
		}
		switch {
		case !found:
			c.add(path+".container", m.Container, "is no container of the task that is there all the time")
		case m.Utilization > 0 && !requested:
			c.add(path+".utilization", m.Utilization, "is of the %s that the containers request, and none requests any; set resources.%s, or use average", m.Name, m.Name)
		}
	}
}

// readScale adds what the autoscaler has decided.
func (f *Fleet) readScale(ctx context.Context, st *ServiceStatus) error {
	if st.Autoscale == nil {
		return nil
	}
	item, found, err := store.Get(ctx, f.store, record.Key(record.Scales, st.Namespace, st.Name))
	if err != nil || !found {
		return err
	}
	var rec record.Scale
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return fmt.Errorf("read %s: %w", item.Key, err)
	}
	if rec.Created.Equal(st.Created) {
		st.Scale = &Scale{
			Replicas: rec.Replicas, Wanted: rec.Wanted, Reason: rec.Reason, Message: rec.Message,
			Metrics: rec.Metrics, At: rec.At, Changed: rec.Changed,
		}
	}
	return nil
}
