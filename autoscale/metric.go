package autoscale

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// propose is what one metric asks for. Ceil(ratio × tasks) is the algorithm of
// the Kubernetes horizontal pod autoscaler, with what pkg/controller/podautoscaler's
// ReplicaCalculator does about tasks that are not ready and measures that are
// missing.
func (p *Policy) propose(m Metric, r Reading, in *Input) Proposal {
	q := Proposal{Name: m.Name, Target: m.target(), Replicas: in.Current}
	if m.Container != "" {
		q.Name += " of " + m.Container
	}
	if r.Err != "" {
		q.Err = r.Err
		return q
	}
	if r.Tasks != nil && m.Value == 0 {
		p.byTask(m, r, in, &q)
		return q
	}
	total, err := r.total()
	if err != "" {
		q.Err = err
		return q
	}
	if m.Value > 0 {
		q.Value = total
		ratio := total / m.Value
		switch ready := min(in.ready(), in.Current); {
		case in.Current == 0:
			q.Replicas = ceil(ratio)
		case !p.within(ratio):
			q.Replicas = ceil(ratio * float64(ready))
		}
		if in.Current > 0 && in.ready() == 0 {
			q.Err, q.Replicas = "no task is ready to change it", in.Current
		}
		return q
	}
	q.Value = total
	if in.Current > 0 {
		q.Value = total / float64(in.Current)
	}
	if in.Current == 0 || !p.within(q.Value/m.Average) {
		q.Replicas = ceil(total / m.Average)
	}
	return q
}

func (m Metric) target() float64 {
	return max(float64(m.Utilization), m.Average, m.Value) // one of them is set
}

// within reports whether a ratio of value and target is near enough to 1.
func (p *Policy) within(ratio float64) bool {
	up, down := p.Up.Tolerance, p.Down.Tolerance
	if up == 0 {
		up = p.Tolerance
	}
	if down == 0 {
		down = p.Tolerance
	}
	// A quotient such as 1.1 is not exact in binary; 1.1 of 1 is within 0.1.
	const inexact = 1e-9
	return 1-max(down, 0)-inexact <= ratio && ratio <= 1+max(up, 0)+inexact
}

// byTask is for what is measured in each task.
func (p *Policy) byTask(m Metric, r Reading, in *Input, q *Proposal) {
	measured, missing, unready := map[string]Sample{}, []string{}, []string{}
	requests := 0.0
	for _, t := range in.Tasks {
		s, ok := r.Tasks[t.ID]
		requests = max(requests, s.Request)
		switch {
		case !p.counts(t, in):
			unready = append(unready, t.ID)
		case !ok || !valid(s.Value):
			missing = append(missing, t.ID)
		case m.Name == CPU && s.Begin.Before(t.Since):
			unready = append(unready, t.ID) // it is what its start took
		default:
			measured[t.ID] = s
		}
	}
	if len(measured) == 0 {
		q.Err = fmt.Sprintf("there is no measure of any of %d tasks", len(in.Tasks))
		if len(unready) > 0 {
			q.Err += fmt.Sprintf("; %d are not ready", len(unready))
		}
		return
	}
	var bare []string
	for id, s := range measured {
		if m.Utilization > 0 && s.Request <= 0 {
			bare = append(bare, id)
		}
	}
	if len(bare) > 0 {
		slices.Sort(bare)
		q.Err = fmt.Sprintf("tasks request no %s, of which utilization is a share: %s", m.Name, strings.Join(bare[:min(3, len(bare))], ", "))
		return
	}
	ratio := m.ratio(measured)
	q.Value = ratio * q.Target
	growing := ratio > 1
	if len(missing) == 0 && (!growing || len(unready) == 0) {
		if !p.within(ratio) {
			q.Replicas = ceil(ratio * float64(len(measured)))
		}
		return
	}
	assumed := len(measured)
	add := func(ids []string, value float64) {
		for _, id := range ids {
			measured[id] = Sample{Value: value, Request: requests}
			assumed++
		}
	}
	switch {
	case ratio < 1 && m.Utilization > 0:
		add(missing, requests*float64(max(100, m.Utilization))/100)
	case ratio < 1:
		add(missing, m.Average)
	case growing:
		add(missing, 0)
		add(unready, 0)
	}
	again := m.ratio(measured)
	if p.within(again) || ratio < 1 && again > 1 || ratio > 1 && again < 1 {
		return // what is assumed must not turn the direction
	}
	n := ceil(again * float64(assumed))
	if again < 1 && n > in.Current || again > 1 && n < in.Current {
		return
	}
	q.Replicas = n
}

// ratio is of value and target over all measures.
func (m Metric) ratio(measured map[string]Sample) float64 {
	// In a fixed order, so that the sum is the same each time.
	values, requests := make([]float64, 0, len(measured)), 0.0
	for _, s := range measured {
		values = append(values, s.Value)
		requests += s.Request
	}
	slices.Sort(values)
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	if m.Utilization > 0 {
		return 100 * sum / requests / float64(m.Utilization)
	}
	return sum / float64(len(measured)) / m.Average
}

// counts reports whether a task belongs into an average: one that is not ready
// may be starting.
func (p *Policy) counts(t Task, in *Input) bool {
	if t.Ready {
		return true
	}
	return !t.Since.IsZero() && !t.Started.Add(max(p.Warmup, 0)).After(in.Now)
}

func (in *Input) ready() int {
	n := 0
	for _, t := range in.Tasks {
		if t.Ready {
			n++
		}
	}
	return n
}

// total is the value of the whole service, or why there is none.
func (r Reading) total() (float64, string) {
	if r.Tasks == nil {
		if !valid(r.Total) {
			return 0, fmt.Sprintf("%v is no measure; want a number of 0 or more", r.Total)
		}
		return r.Total, ""
	}
	values := make([]float64, 0, len(r.Tasks))
	for _, s := range r.Tasks {
		if valid(s.Value) {
			values = append(values, s.Value)
		}
	}
	slices.Sort(values)
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum, ""
}

func valid(x float64) bool { return x >= 0 && !math.IsNaN(x) && !math.IsInf(x, 0) }

// ceil rounds up, except what is above a whole number only because a quotient
// is not exact in binary.
func ceil(x float64) int { return int(min(math.Ceil(x-1e-9), MaxTasks)) }
