package autoscale

import (
	"fmt"
	"time"
)

// Input is what a decision is made from.
type Input struct {
	Now time.Time
	// Current is how many tasks the service is to have until now.
	Current int
	// Tasks are those that run and are not to stop.
	Tasks []Task
	// Readings are of the policy's metrics, in their order; one that is missing
	// at the end could not be read.
	Readings []Reading
	// History is of the decision before; see [History.Resume].
	History History
}

// Task is a task of the service.
type Task struct {
	ID      string
	Started time.Time
	Ready   bool      // now
	Since   time.Time // when it last became ready; zero if it never was
}

// Reading is what was measured of one metric.
type Reading struct {
	// Err says why there is none; the rest is not looked at then.
	Err string
	// Total is of the whole service, where Tasks is nil.
	Total float64
	// Tasks holds the measures of single tasks by their ID.
	Tasks map[string]Sample
}

// Sample is a measure of one task.
type Sample struct {
	Value   float64
	Request float64   // what utilization is of; 0 is none
	Begin   time.Time // of the time that it was measured over
}

// Reason is what decided about the number of tasks.
type Reason string

// The reasons.
const (
	ByMetrics   Reason = "metrics"      // it is what they ask for
	ByTolerance Reason = "tolerance"    // no metric is far enough from its target
	ByWindow    Reason = "stabilizing"  // of late, something else was asked for
	ByLimit     Reason = "rate-limited" // it may not change faster
	ByDisabled  Reason = "disabled"     // it may not change in this direction
	ByMin       Reason = "minimum"
	ByMax       Reason = "maximum"
	ByMissing   Reason = "metrics-missing" // it stays, since a metric cannot be read
	ByIdle      Reason = "idle"            // nothing was active for long enough, or still is not
	ByActivity  Reason = "active"          // there is something to do again
)

// Decision is how many tasks a service is to have, and why.
type Decision struct {
	Replicas int
	// Wanted is what the metrics ask for, before windows, limits and bounds.
	Wanted int
	Reason Reason
	// Message says it for a person, with numbers.
	Message string
	Metrics []Proposal
	// History is to be given to the next decision.
	History History
}

// Proposal is what one metric asks for.
type Proposal struct {
	Name string `json:"name"`
	// Value is in the unit of Target: a percentage for Utilization, the average
	// of a task for Average, of the service for Value.
	Value    float64 `json:"value"`
	Target   float64 `json:"target"`
	Replicas int     `json:"replicas"`
	// Err says why the metric asks for nothing.
	Err string `json:"error,omitempty"`
}

func (p Proposal) String() string {
	if p.Err != "" {
		return fmt.Sprintf("%s: %s", p.Name, p.Err)
	}
	return fmt.Sprintf("%s is %.4g of %.4g, which asks for %d", p.Name, p.Value, p.Target, p.Replicas)
}

// Decide returns how many tasks there are to be. The same input gives the same
// decision, whatever the order of tasks and of time in between.
func (p Policy) Decide(in Input) Decision {
	p = p.WithDefaults()
	d := Decision{Replicas: in.Current, Wanted: in.Current, History: in.History.clone()}
	if d.History.Active.IsZero() {
		d.History.Active = in.Now
	}
	active, unknown, missing := false, false, ""
	best := -1
	for i, m := range p.Metrics {
		r := Reading{Err: "was not read"}
		if i < len(in.Readings) {
			r = in.Readings[i]
		}
		if r.Err == "" && m.active(r) {
			active = true
		}
		q := p.propose(m, r, &in)
		d.Metrics = append(d.Metrics, q)
		switch {
		case q.Err != "" && m.PerTask() && in.Current == 0: // there is nothing to measure
		case q.Err != "":
			if missing == "" {
				missing = q.String()
			}
			unknown = unknown || !m.PerTask() // and so whether it is active
		case best < 0 || q.Replicas > d.Metrics[best].Replicas:
			best = i
		}
	}
	if active || unknown && in.Current > 0 {
		d.History.Active = in.Now
	}
	p.settle(&in, &d, best, missing, active)
	d.History.note(&p, in.Now, in.Current, d.Replicas)
	return d
}

// settle turns the proposals into a number.
func (p *Policy) settle(in *Input, d *Decision, best int, missing string, active bool) {
	low := max(p.Min, 0)
	say := func(n int, why Reason, format string, args ...any) {
		d.Replicas, d.Reason, d.Message = n, why, fmt.Sprintf(format, args...)
	}
	switch {
	case in.Current > p.Max:
		d.Wanted = p.Max
		say(p.Max, ByMax, "at most %d are allowed", p.Max)
		return
	case in.Current < low:
		d.Wanted = low
		say(low, ByMin, "at least %d are to be", low)
		return
	case in.Current == 0 && best < 0:
		say(0, ByMissing, "%s", missing)
		return
	case in.Current == 0 && !active:
		d.Wanted = 0
		say(0, ByIdle, "no metric is above its activation")
		return
	}
	quiet := in.Now.Sub(d.History.Active)
	if in.Current > 0 && p.Min == None && quiet >= p.Idle && p.Down.Select != SelectDisabled {
		d.Wanted = 0
		d.History.Recommendations = nil // what was asked for before is over
		say(0, ByIdle, "no metric was above its activation for %v", quiet.Round(time.Second))
		return
	}
	if best < 0 {
		d.History.recommend(p, in.Now, in.Current) // once they can be read again, it is not shrunk at once
		say(in.Current, ByMissing, "%s", missing)
		return
	}
	q := d.Metrics[best]
	d.Wanted = q.Replicas
	if d.Wanted < in.Current && missing != "" {
		say(in.Current, ByMissing, "%s; so it does not fall to %d", missing, d.Wanted)
		d.Wanted = in.Current
		d.History.recommend(p, in.Now, d.Wanted)
		return
	}
	if in.Current == 0 { // the first task is waited for by somebody
		n := 1
		if p.Up.Window <= 0 && p.Up.Select != SelectDisabled {
			n = min(max(d.Wanted, n), p.Max, max(d.History.upLimit(&p.Up, in.Now, 0), n))
		}
		d.History.recommend(p, in.Now, d.Wanted)
		say(n, ByActivity, "%s", q)
		return
	}
	floor := max(low, 1) // to none it is only by being idle
	n, why, what := d.History.stabilize(p, in.Now, in.Current, d.Wanted)
	switch {
	case n > p.Max:
		n, why, what = p.Max, ByMax, fmt.Sprintf("at most %d are allowed", p.Max)
	case n < floor:
		n, why, what = floor, ByMin, fmt.Sprintf("at least %d are to be", floor)
	}
	if limited, how, text := d.History.limit(p, in.Now, in.Current, n); limited != n {
		n, why, what = limited, how, text
	}
	switch {
	case what != "":
		say(n, why, "%s; %s", q, what)
	case n == in.Current && d.Wanted == in.Current:
		say(n, ByTolerance, "%s", q)
	default:
		say(n, ByMetrics, "%s", q)
	}
}

// active reports whether a reading keeps the service from being idle.
func (m Metric) active(r Reading) bool {
	if m.PerTask() {
		return false
	}
	total, err := r.total()
	return err == "" && total > m.Activation
}
