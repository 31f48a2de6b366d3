package autoscale

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// None is a [Policy.Min] that lets a service have no task while it is idle.
const None = -1

// The metrics that need no function of the application's.
const (
	// CPU and Memory are what the containers of a task use: thousandths of a
	// core and bytes. Their utilization is a percentage of what the task
	// requests.
	CPU    = "cpu"
	Memory = "memory"
	// Requests are new connections a second to the addresses and published
	// ports of a service, over all nodes; also those that find no task.
	Requests = "requests"
)

// The defaults that [Policy.WithDefaults] fills in, and bounds that
// [Policy.Validate] holds.
const (
	DefaultTolerance  = 0.1
	DefaultInterval   = 15 * time.Second
	DefaultWarmup     = 5 * time.Minute
	DefaultIdle       = 5 * time.Minute
	DefaultDownWindow = 5 * time.Minute
	DefaultPeriod     = 15 * time.Second

	MinInterval = time.Second
	MaxDuration = time.Hour // of Window and Period, as in Kubernetes
	MaxTasks    = 1_000_000
	MaxMetrics  = 16
	MaxLimits   = 8
)

// Policy is how a service is scaled by its metrics. The zero value of a field
// is its default, as its comment says.
type Policy struct {
	// Min and Max bound the number of tasks. Min is 1 when 0, and [None] lets
	// an idle service have none. Max must be given.
	Min int `json:"min,omitempty"`
	Max int `json:"max"`
	// Metrics are at least one; the one that asks for the most tasks wins.
	Metrics []Metric `json:"metrics"`
	// Tolerance is by how much of its target a value may be off without a
	// change; 0.1 when 0, none when negative.
	Tolerance float64 `json:"tolerance,omitempty"`
	// Up and Down are how fast the number may grow and fall.
	Up   Rules `json:"up,omitzero"`
	Down Rules `json:"down,omitzero"`
	// Interval is the time between two decisions; 15 s when 0, at least 1 s.
	Interval time.Duration `json:"interval,omitempty"`
	// Warmup is for how long after its start a task that is not ready is left
	// out of the average; 5 min when 0, none when negative. One that has never
	// been ready is left out for ever.
	Warmup time.Duration `json:"warmup,omitempty"`
	// Idle is for how long no metric may have been above its activation before
	// a service with a Min of [None] has no task; 5 min when 0. It then goes
	// there at once: neither a window nor a limit of Down is asked.
	Idle time.Duration `json:"idle,omitempty"`
}

// Metric is a value and what it is to be. Exactly one of Utilization, Average
// and Value is set.
type Metric struct {
	// Name is [CPU], [Memory], [Requests], or that of a function which the
	// application registered.
	Name string `json:"name"`
	// Container narrows [CPU] and [Memory] to one container of each task; all
	// count when empty.
	Container string `json:"container,omitempty"`
	// Utilization is a percentage of what tasks request, over all of them;
	// more than 100 is allowed.
	Utilization int `json:"utilization,omitempty"`
	// Average is the value for each task.
	Average float64 `json:"average,omitempty"`
	// Value is for all tasks together, such as a latency that more tasks bring
	// down: the number of tasks is changed in proportion.
	Value float64 `json:"value,omitempty"`
	// Activation is the value of the whole service above which it is not idle;
	// see Policy.Idle. [CPU] and [Memory] wake nobody and have none.
	Activation float64 `json:"activation,omitempty"`
}

// PerTask reports whether the metric is measured in the tasks themselves, so
// that without a task there is none.
func (m Metric) PerTask() bool { return m.Name == CPU || m.Name == Memory }

// Rules bound how fast the number of tasks changes in one direction.
type Rules struct {
	// Window is how far back recommendations count: the number falls only to
	// the highest of them, and grows only to the lowest. When 0, it is 5 min
	// for Down and none for Up; negative is none.
	Window time.Duration `json:"window,omitempty"`
	// Tolerance is the policy's when 0, none when negative.
	Tolerance float64 `json:"tolerance,omitempty"`
	// Limits are when empty 100 % in 15 s down, and up the larger of 100 % and
	// 4 tasks in 15 s.
	Limits []Limit `json:"limits,omitempty"`
	// Select says which of several limits holds; [SelectMax] when empty.
	Select Select `json:"select,omitempty"`
}

// Limit is the greatest change in a period of time. Exactly one of Tasks and
// Percent is set.
type Limit struct {
	Tasks int `json:"tasks,omitempty"`
	// Percent of the tasks at the beginning of the period, which may be more
	// than 100.
	Percent int `json:"percent,omitempty"`
	// Period is 15 s when 0, at most an hour.
	Period time.Duration `json:"period,omitempty"`
}

// Select chooses among limits.
type Select string

// The choices.
const (
	SelectMax      Select = "max"      // the one that allows the greatest change
	SelectMin      Select = "min"      // the one that allows the least
	SelectDisabled Select = "disabled" // no change in this direction
)

// WithDefaults returns p with every unset field that has a default set to it.
// It shares no memory with p.
func (p Policy) WithDefaults() Policy {
	fill(&p.Min, 1)
	p.Metrics = slices.Clone(p.Metrics)
	fill(&p.Tolerance, DefaultTolerance)
	fill(&p.Interval, DefaultInterval)
	fill(&p.Warmup, DefaultWarmup)
	fill(&p.Idle, DefaultIdle)
	p.Up.fill(0, []Limit{{Percent: 100}, {Tasks: 4}})
	p.Down.fill(DefaultDownWindow, []Limit{{Percent: 100}})
	return p
}

func (r *Rules) fill(window time.Duration, limits []Limit) {
	fill(&r.Window, window)
	fill(&r.Select, SelectMax)
	if len(r.Limits) == 0 {
		r.Limits = limits
	}
	r.Limits = slices.Clone(r.Limits)
	for i := range r.Limits {
		fill(&r.Limits[i].Period, DefaultPeriod)
	}
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// SpecError is a mistake in a [Policy]: the field and what would be right.
type SpecError struct {
	Field  string // such as "metrics[0].average"
	Reason string
}

func (e *SpecError) Error() string { return "autoscale: " + e.Field + ": " + e.Reason }

// Validate returns every mistake in p, in the order of its fields; none when it
// can be decided by. Unset fields that have a default are no mistake.
func (p Policy) Validate() []*SpecError {
	p = p.WithDefaults()
	var v mistakes
	if p.Min < None || p.Min > MaxTasks {
		v.add("min", "%d is out of range; from 1 to %d, or None (%d) for no task while idle", p.Min, MaxTasks, None)
	}
	if p.Max < 1 || p.Max > MaxTasks {
		v.add("max", "%d is out of range; from 1 to %d", p.Max, MaxTasks)
	} else if p.Max < p.Min {
		v.add("max", "%d is less than min, which is %d", p.Max, p.Min)
	}
	v.metrics(&p)
	v.share("tolerance", p.Tolerance)
	v.rules("up", p.Up)
	v.rules("down", p.Down)
	if p.Interval < MinInterval || p.Interval > MaxDuration {
		v.add("interval", "%v is out of range; from %v to %v", p.Interval, MinInterval, MaxDuration)
	}
	if p.Warmup > MaxDuration {
		v.add("warmup", "%v is more than %v", p.Warmup, MaxDuration)
	}
	if p.Idle < time.Second || p.Idle > 7*24*time.Hour {
		v.add("idle", "%v is out of range; from 1s to 7 days", p.Idle)
	}
	return v
}

type mistakes []*SpecError

func (v *mistakes) add(field, reason string, args ...any) {
	*v = append(*v, &SpecError{field, fmt.Sprintf(reason, args...)})
}

func (v *mistakes) metrics(p *Policy) {
	if len(p.Metrics) == 0 || len(p.Metrics) > MaxMetrics {
		v.add("metrics", "are %d; give 1 to %d", len(p.Metrics), MaxMetrics)
	}
	wakes := false
	seen := map[Metric]bool{}
	for i, m := range p.Metrics {
		path := fmt.Sprintf("metrics[%d]", i)
		v.metric(path, m)
		same := Metric{Name: m.Name, Container: m.Container}
		if seen[same] {
			v.add(path+".name", "%q is used twice; give each metric once", m.Name)
		}
		seen[same] = true
		wakes = wakes || !m.PerTask()
	}
	if p.Min == None && !wakes && len(p.Metrics) > 0 {
		v.add("min", "is None, but without a task there is neither cpu nor memory to wake the service by; add another metric, such as requests")
	}
}

func (v *mistakes) metric(path string, m Metric) {
	if !isName(m.Name) {
		v.add(path+".name", "%q is not the name of a metric; use 1 to 63 letters, digits and . _ -", m.Name)
	}
	if m.Container != "" && !m.PerTask() {
		v.add(path+".container", "is for cpu and memory alone; remove it")
	}
	if m.Utilization < 0 {
		v.add(path+".utilization", "%d is negative; give a percentage of the request", m.Utilization)
	} else if m.Utilization > 0 && !m.PerTask() && isName(m.Name) {
		v.add(path+".utilization", "is of what a task requests, which there is of cpu and memory alone; use average or value")
	}
	positive := func(field string, x float64) {
		if x < 0 || math.IsNaN(x) || math.IsInf(x, 0) {
			v.add(path+"."+field, "%v is not a number above 0", x)
		}
	}
	positive("average", m.Average)
	positive("value", m.Value)
	positive("activation", m.Activation)
	if m.Activation > 0 && m.PerTask() {
		v.add(path+".activation", "cannot be: without a task there is no %s to wake the service by", m.Name)
	}
	targets := 0
	for _, set := range []bool{m.Utilization != 0, m.Average != 0, m.Value != 0} {
		if set {
			targets++
		}
	}
	if targets != 1 {
		v.add(path, "has %d targets; give exactly one of utilization, average and value", targets)
	}
}

func isName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for _, b := range []byte(s) {
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '.' && b != '_' && b != '-' {
			return false
		}
	}
	return true
}

func (v *mistakes) share(path string, x float64) {
	if math.IsNaN(x) || x >= 1 || math.IsInf(x, 0) {
		v.add(path, "%v is out of range; below 1, such as 0.1 for a tenth of the target", x)
	}
}

func (v *mistakes) rules(path string, r Rules) {
	if r.Window > MaxDuration {
		v.add(path+".window", "%v is more than %v", r.Window, MaxDuration)
	}
	v.share(path+".tolerance", r.Tolerance)
	if len(r.Limits) > MaxLimits {
		v.add(path+".limits", "are %d; at most %d", len(r.Limits), MaxLimits)
	}
	for i, l := range r.Limits {
		at := fmt.Sprintf("%s.limits[%d]", path, i)
		switch {
		case l.Tasks < 0:
			v.add(at+".tasks", "%d is negative", l.Tasks)
		case l.Percent < 0:
			v.add(at+".percent", "%d is negative", l.Percent)
		case (l.Tasks == 0) == (l.Percent == 0):
			v.add(at, "needs exactly one of tasks and percent")
		case l.Tasks > MaxTasks || l.Percent > MaxTasks:
			v.add(at, "is more than %d", MaxTasks)
		}
		if l.Period < time.Second || l.Period > MaxDuration {
			v.add(at+".period", "%v is out of range; from 1s to %v", l.Period, MaxDuration)
		}
	}
	if r.Select != SelectMax && r.Select != SelectMin && r.Select != SelectDisabled {
		v.add(path+".select", "%q is unknown; use %q, %q or %q", r.Select, SelectMax, SelectMin, SelectDisabled)
	}
}
