package autoscale_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// long ago tasks started and became ready.
func tasks(ready ...bool) []autoscale.Task {
	var out []autoscale.Task
	for i, r := range ready {
		t := autoscale.Task{ID: fmt.Sprint(i), Started: epoch.Add(-time.Hour), Ready: r}
		if r {
			t.Since = epoch.Add(-time.Hour)
		}
		out = append(out, t)
	}
	return out
}

func allReady(n int) []autoscale.Task {
	ready := make([]bool, n)
	for i := range ready {
		ready[i] = true
	}
	return tasks(ready...)
}

// usage is a reading of tasks that each request 1000, or what is said.
func usage(values []float64, requests ...float64) autoscale.Reading {
	r := autoscale.Reading{Tasks: map[string]autoscale.Sample{}}
	for i, v := range values {
		s := autoscale.Sample{Value: v, Request: 1000, Begin: epoch.Add(-time.Minute)}
		if i < len(requests) {
			s.Request = requests[i]
		}
		if v >= 0 {
			r.Tasks[fmt.Sprint(i)] = s
		}
	}
	return r
}

func total(x float64) autoscale.Reading { return autoscale.Reading{Total: x} }

// TestProposals holds the decisions that Kubernetes' own tests of the
// algorithm expect (pkg/controller/podautoscaler/replica_calculator_test.go),
// and the examples of its documentation.
func TestProposals(t *testing.T) {
	cpu := func(percent int) autoscale.Metric { return autoscale.Metric{Name: "cpu", Utilization: percent} }
	average := func(x float64) autoscale.Metric { return autoscale.Metric{Name: "jobs", Average: x} }
	value := func(x float64) autoscale.Metric { return autoscale.Metric{Name: "latency", Value: x} }
	for _, c := range []struct {
		name    string
		metric  autoscale.Metric
		tasks   []autoscale.Task
		reading autoscale.Reading
		current int
		want    int
		value   float64
	}{
		{"documentation: 200m of 100m doubles", autoscale.Metric{Name: "cpu", Average: 100}, allReady(2), usage([]float64{200, 200}), 2, 4, 200},
		{"documentation: 50m of 100m halves", autoscale.Metric{Name: "cpu", Average: 100}, allReady(4), usage([]float64{50, 50, 50, 50}), 4, 2, 50},
		{"ScaleUp", cpu(30), allReady(3), usage([]float64{300, 500, 700}), 3, 5, 50},
		{"ScaleUpUnreadyLessScale", cpu(30), tasks(false, true, true), usage([]float64{300, 500, 700}), 3, 4, 60},
		{"ScaleUpUnreadyNoScale", cpu(30), tasks(true, false, false), usage([]float64{400, 500, 700}), 3, 3, 40},
		{"ScaleUpCM", average(15000), allReady(3), usage([]float64{20000, 10000, 30000}), 3, 4, 20000},
		{"ScaleDown", cpu(50), allReady(5), usage([]float64{100, 300, 500, 250, 250}), 5, 3, 28},
		{"ScaleDownIncludeUnreadyPods", cpu(50), tasks(true, true, true, false, false), usage([]float64{100, 300, 500, 250, 250}), 5, 2, 30},
		{"Tolerance", cpu(100), allReady(3), usage([]float64{1010, 1030, 1020}, 900, 1000, 1100), 3, 3, 102},
		{"ToleranceCM", average(20000), allReady(3), usage([]float64{20000, 21000, 21000}), 3, 3, 20666.666},
		{"MissingMetrics", cpu(100), allReady(4), usage([]float64{400, 95}), 4, 3, 24.75},
		{"MissingMetricsNoChangeEq", cpu(100), allReady(2), usage([]float64{1000}), 2, 2, 100},
		{"MissingMetricsNoChangeGt", cpu(100), allReady(2), usage([]float64{1900}), 2, 2, 190},
		{"MissingMetricsNoChangeLt", cpu(100), allReady(2), usage([]float64{600}), 2, 2, 60},
		{"MissingMetricsUnreadyNoChange", cpu(50), tasks(false, true, true), usage([]float64{100, 450}), 3, 3, 45},
		{"external average", average(10), allReady(2), total(55), 2, 6, 27.5},
		{"external average within the tolerance", average(10), allReady(2), total(21), 2, 2, 10.5},
		{"external average, from none", average(10), nil, total(55), 0, 6, 55},
		{"external value", value(100), allReady(4), total(150), 4, 6, 150},
		{"external value, from none", value(100), nil, total(150), 0, 2, 150},
		{"a value does not count the surplus of an update", value(100), allReady(6), total(150), 4, 6, 150},
		{"a sum is not exact", average(0.1), allReady(1), total(0.1 + 0.2), 1, 3, 0.3},
		{"exactly the tolerance", average(10), allReady(1), total(11), 1, 1, 11},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := autoscale.Policy{Min: autoscale.None, Max: 100, Metrics: []autoscale.Metric{c.metric, {Name: "alive", Value: 1}},
				Up: autoscale.Rules{Limits: []autoscale.Limit{{Tasks: 1000}}}, Down: autoscale.Rules{Window: -1}}
			if c.current > 0 {
				p.Min, p.Metrics = 1, p.Metrics[:1]
			}
			d := p.Decide(autoscale.Input{Now: epoch, Current: c.current, Tasks: c.tasks, Readings: []autoscale.Reading{c.reading, total(0)}})
			q := d.Metrics[0]
			if d.Replicas != c.want || q.Err != "" || q.Value < c.value-0.01 || q.Value > c.value+0.01 {
				t.Errorf("%d tasks (%s: %s), value %v; want %d and %v", d.Replicas, d.Reason, d.Message, q.Value, c.want, c.value)
			}
		})
	}
}

// What cannot be decided by changes nothing downwards.
func TestMissing(t *testing.T) {
	cpu, queue := autoscale.Metric{Name: "cpu", Utilization: 50}, autoscale.Metric{Name: "queue", Average: 10}
	failed := autoscale.Reading{Err: "connection refused"}
	for _, c := range []struct {
		name     string
		metrics  []autoscale.Metric
		readings []autoscale.Reading
		want     int
		reason   autoscale.Reason
		message  string
	}{
		{"the only one fails", []autoscale.Metric{queue}, []autoscale.Reading{failed}, 4, autoscale.ByMissing, "queue: connection refused"},
		{"one fails, the other wants fewer", []autoscale.Metric{queue, cpu}, []autoscale.Reading{failed, usage([]float64{1, 1, 1, 1})}, 4, autoscale.ByMissing, "it does not fall to 1"},
		{"one fails, the other wants more", []autoscale.Metric{queue, cpu}, []autoscale.Reading{failed, usage([]float64{750, 750, 750, 750})}, 6, autoscale.ByMetrics, "cpu is 75 of 50, which asks for 6"},
		{"the largest wins", []autoscale.Metric{queue, cpu}, []autoscale.Reading{total(75), usage([]float64{10, 10, 10, 10})}, 8, autoscale.ByMetrics, "queue is 18.75 of 10, which asks for 8"},
		{"nothing was read", []autoscale.Metric{queue}, nil, 4, autoscale.ByMissing, "was not read"},
		{"no number", []autoscale.Metric{queue}, []autoscale.Reading{total(-1)}, 4, autoscale.ByMissing, "-1 is no measure"},
		{"no task was measured", []autoscale.Metric{cpu}, []autoscale.Reading{usage(nil)}, 4, autoscale.ByMissing, "no measure of any of 4 tasks"},
		{"nothing is requested", []autoscale.Metric{cpu}, []autoscale.Reading{usage([]float64{5, 5, 5, 5}, 0, 0, 0, 0)}, 4, autoscale.ByMissing, "tasks request no cpu"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := autoscale.Policy{Max: 20, Metrics: c.metrics, Down: autoscale.Rules{Window: -1}}
			d := p.Decide(autoscale.Input{Now: epoch, Current: 4, Tasks: allReady(4), Readings: c.readings})
			if d.Replicas != c.want || d.Reason != c.reason || !strings.Contains(d.Message, c.message) {
				t.Errorf("%d tasks, %s: %s; want %d, %s: %s", d.Replicas, d.Reason, d.Message, c.want, c.reason, c.message)
			}
		})
	}
}

// What a task takes to start is no load.
func TestWarmup(t *testing.T) {
	p := autoscale.Policy{Max: 20, Metrics: []autoscale.Metric{{Name: "cpu", Utilization: 50}}, Down: autoscale.Rules{Window: -1}}
	decide := func(second autoscale.Task) autoscale.Decision {
		return p.Decide(autoscale.Input{Now: epoch, Current: 2, Tasks: []autoscale.Task{allReady(1)[0], second}, Readings: []autoscale.Reading{usage([]float64{500, 3000})}})
	}
	for _, c := range []struct {
		name string
		task autoscale.Task
		want int
	}{
		{"its measure began before it was ready", autoscale.Task{ID: "1", Started: epoch.Add(-2 * time.Minute), Ready: true, Since: epoch.Add(-time.Second)}, 2},
		{"it is not ready and new", autoscale.Task{ID: "1", Started: epoch.Add(-2 * time.Minute), Since: epoch.Add(-90 * time.Second)}, 2},
		{"it never was ready", autoscale.Task{ID: "1", Started: epoch.Add(-time.Hour)}, 2},
		{"it is old, and overloaded so that it is not ready", autoscale.Task{ID: "1", Started: epoch.Add(-time.Hour), Since: epoch.Add(-50 * time.Minute)}, 6},
	} {
		if d := decide(c.task); d.Replicas != c.want {
			t.Errorf("%s: %d tasks (%s), want %d", c.name, d.Replicas, d.Message, c.want)
		}
	}
}

// run decides again and again with a queue of the given lengths.
func run(t *testing.T, p autoscale.Policy, current int, step time.Duration, lengths ...float64) (numbers []int, reasons []autoscale.Reason) {
	t.Helper()
	in := autoscale.Input{Now: epoch, Current: current}
	for _, x := range lengths {
		in.Tasks, in.Readings = allReady(in.Current), []autoscale.Reading{total(x)}
		d := p.Decide(in)
		numbers, reasons = append(numbers, d.Replicas), append(reasons, d.Reason)
		data, err := json.Marshal(d.History) // as it is stored
		if err != nil {
			t.Fatal(err)
		}
		in.History = autoscale.History{}
		if err := json.Unmarshal(data, &in.History); err != nil {
			t.Fatal(err)
		}
		in.Now, in.Current = in.Now.Add(step), d.Replicas
	}
	return numbers, reasons
}

func queue(p autoscale.Policy) autoscale.Policy {
	p.Metrics = []autoscale.Metric{{Name: "queue", Average: 10}}
	return p
}

// TestBehavior holds the examples of Kubernetes' documentation of scaling
// behaviour, and the defaults that it names.
func TestBehavior(t *testing.T) {
	off := autoscale.Rules{Window: -1, Limits: []autoscale.Limit{{Percent: 100}}}
	for _, c := range []struct {
		name    string
		policy  autoscale.Policy
		current int
		step    time.Duration
		lengths []float64
		want    string
	}{
		{"documentation: 10% or 4 tasks a minute, the greater of the two", autoscale.Policy{Max: 100, Down: autoscale.Rules{
			Window: -1, Limits: []autoscale.Limit{{Tasks: 4, Period: time.Minute}, {Percent: 10, Period: time.Minute}},
		}}, 80, time.Minute, []float64{100, 100, 100, 100, 100, 100, 100, 100, 100, 100}, "[72 64 57 51 45 40 36 32 28 24]"},
		{"the lesser of the two", autoscale.Policy{Max: 100, Down: autoscale.Rules{
			Window: -1, Select: autoscale.SelectMin, Limits: []autoscale.Limit{{Tasks: 4, Period: time.Minute}, {Percent: 10, Period: time.Minute}},
		}}, 80, time.Minute, []float64{100, 100}, "[76 72]"},
		{"within one period it counts from the period's begin", autoscale.Policy{Max: 100, Up: autoscale.Rules{
			Limits: []autoscale.Limit{{Tasks: 3, Period: time.Minute}},
		}}, 1, 15 * time.Second, []float64{1000, 1000, 1000, 1000, 1000, 1000}, "[4 4 4 4 7 7]"},
		{"default up: the greater of 100% and 4 tasks in 15 s", autoscale.Policy{Max: 100}, 1, 15 * time.Second, []float64{1000, 1000, 1000, 1000, 1000}, "[5 10 20 40 80]"},
		{"default down: nothing for 5 minutes", autoscale.Policy{Max: 100}, 10, time.Minute, []float64{100, 20, 20, 20, 20, 20, 20}, "[10 10 10 10 10 2 2]"},
		{"a window up: the lowest of it", autoscale.Policy{Max: 100, Up: autoscale.Rules{Window: 2 * time.Minute}, Down: off}, 2, time.Minute, []float64{20, 90, 60, 60}, "[2 2 6 6]"},
		{"a dip within the window down is not followed", autoscale.Policy{Max: 100, Down: autoscale.Rules{Window: 2 * time.Minute}}, 10, time.Minute, []float64{100, 30, 100, 30, 30, 30}, "[10 10 10 10 3 3]"},
		{"down is disabled", autoscale.Policy{Max: 100, Down: autoscale.Rules{Select: autoscale.SelectDisabled, Window: -1}}, 10, time.Minute, []float64{10, 10}, "[10 10]"},
		{"up is disabled", autoscale.Policy{Max: 100, Up: autoscale.Rules{Select: autoscale.SelectDisabled}}, 10, time.Minute, []float64{1000}, "[10]"},
		{"the bounds", autoscale.Policy{Min: 2, Max: 12, Down: off}, 10, time.Minute, []float64{1000, 0, 0}, "[12 2 2]"},
		{"outside of the bounds it goes there at once", autoscale.Policy{Min: 2, Max: 12}, 50, time.Minute, []float64{1000, 1000}, "[12 12]"},
		{"a tolerance for each direction", autoscale.Policy{Max: 100, Up: autoscale.Rules{Tolerance: 0.5}, Down: autoscale.Rules{Window: -1, Tolerance: -1}}, 10, time.Minute, []float64{149, 99, 89}, "[10 10 9]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, reasons := run(t, queue(c.policy), c.current, c.step, c.lengths...); fmt.Sprint(got) != c.want {
				t.Errorf("tasks %v %v, want %s", got, reasons, c.want)
			}
		})
	}
}

// A service sleeps when nothing has been to do for long enough, and wakes up
// for the first thing there is.
func TestZero(t *testing.T) {
	p := queue(autoscale.Policy{Min: autoscale.None, Max: 100, Idle: 2 * time.Minute})
	got, reasons := run(t, p, 3, time.Minute, 25, 0, 0, 0, 0, 1, 0, 55, 0)
	if want := "[3 3 0 0 0 1 1 5 5]"; fmt.Sprint(got) != want {
		t.Errorf("tasks %v %v, want %s: down to none after 2 minutes, and up at once", got, reasons, want)
	}
	if want := "[idle active rate-limited]"; fmt.Sprint([]autoscale.Reason{reasons[2], reasons[5], reasons[7]}) != want {
		t.Errorf("reasons %v, want %s", reasons, want)
	}
	if d := p.Decide(autoscale.Input{Now: epoch, Readings: []autoscale.Reading{{Err: "down"}}}); d.Replicas != 0 || d.Reason != autoscale.ByMissing {
		t.Errorf("asleep, and its metric cannot be read: %d tasks, %s; want that nobody wakes it", d.Replicas, d.Reason)
	}
	awake := autoscale.Input{Now: epoch, Current: 1, Tasks: allReady(1), Readings: []autoscale.Reading{{Err: "down"}}, History: autoscale.History{Active: epoch.Add(-time.Hour)}}
	if d := p.Decide(awake); d.Replicas != 1 || !d.History.Active.Equal(epoch) {
		t.Errorf("awake, and its metric cannot be read: %d tasks, active at %v; want that it stays awake", d.Replicas, d.History.Active)
	}
	p.Metrics[0].Activation = 5
	if got, _ := run(t, p, 0, time.Minute, 5, 6); fmt.Sprint(got) != "[0 1]" {
		t.Errorf("with an activation of 5, a queue of 5 and then 6 makes %v tasks, want [0 1]", got)
	}
	slow := queue(autoscale.Policy{Min: autoscale.None, Max: 100, Up: autoscale.Rules{Window: time.Minute, Limits: []autoscale.Limit{{Percent: 50}}}})
	if got, _ := run(t, slow, 0, 30*time.Second, 100, 100, 100, 100); fmt.Sprint(got) != "[1 2 3 5]" {
		t.Errorf("from none with a window and 50%% a period: %v, want [1 2 3 5]", got)
	}
}

// Whoever takes over neither shrinks nor sleeps at once, and keeps the limits.
func TestResume(t *testing.T) {
	p := queue(autoscale.Policy{Min: autoscale.None, Max: 100})
	in := autoscale.Input{Now: epoch, Current: 4, Tasks: allReady(4), Readings: []autoscale.Reading{total(100)}}
	d := p.Decide(in)
	if d.Replicas != 8 {
		t.Fatalf("%d tasks (%s), want 8: 4 more in 15 s", d.Replicas, d.Message)
	}
	in = autoscale.Input{Now: epoch.Add(5 * time.Second), Current: 8, Tasks: allReady(8), Readings: []autoscale.Reading{total(1000)}}
	in.History = d.History.Resume(in.Now, in.Current)
	if d := p.Decide(in); d.Replicas != 8 || d.Reason != autoscale.ByLimit {
		t.Errorf("5 s later, of another leader: %d tasks, %s; want 8, rate-limited", d.Replicas, d.Reason)
	}
	in.Now, in.Readings = epoch.Add(time.Hour), []autoscale.Reading{total(0)}
	in.History = d.History.Resume(in.Now, in.Current)
	if d := p.Decide(in); d.Replicas != 8 || d.Reason != autoscale.ByWindow {
		t.Errorf("an hour later, of another leader: %d tasks, %s; want 8 for a window", d.Replicas, d.Reason)
	}
}

func TestValidate(t *testing.T) {
	good := autoscale.Policy{Max: 10, Metrics: []autoscale.Metric{{Name: "cpu", Utilization: 80}}}
	if bad := good.Validate(); len(bad) > 0 {
		t.Fatalf("%v, want no mistake", bad[0])
	}
	for _, c := range []struct {
		field string
		spoil func(*autoscale.Policy)
	}{
		{"min", func(p *autoscale.Policy) { p.Min = -2 }},
		{"min", func(p *autoscale.Policy) { p.Min = autoscale.None }},
		{"max", func(p *autoscale.Policy) { p.Max = 0 }},
		{"max", func(p *autoscale.Policy) { p.Min = 11 }},
		{"metrics", func(p *autoscale.Policy) { p.Metrics = nil }},
		{"metrics[0]", func(p *autoscale.Policy) { p.Metrics[0].Utilization = 0 }},
		{"metrics[0]", func(p *autoscale.Policy) { p.Metrics[0].Average = 3 }},
		{"metrics[0].name", func(p *autoscale.Policy) { p.Metrics[0].Name = "c p u" }},
		{"metrics[0].utilization", func(p *autoscale.Policy) { p.Metrics[0].Name = "queue" }},
		{"metrics[0].activation", func(p *autoscale.Policy) { p.Metrics[0].Activation = 1 }},
		{"metrics[1].container", func(p *autoscale.Policy) {
			p.Metrics = append(p.Metrics, autoscale.Metric{Name: "queue", Average: 1, Container: "main"})
		}},
		{"metrics[1].average", func(p *autoscale.Policy) {
			p.Metrics = append(p.Metrics, autoscale.Metric{Name: "queue", Average: -1})
		}},
		{"metrics[1].name", func(p *autoscale.Policy) { p.Metrics = append(p.Metrics, p.Metrics[0]) }},
		{"tolerance", func(p *autoscale.Policy) { p.Tolerance = 1 }},
		{"up.select", func(p *autoscale.Policy) { p.Up.Select = "some" }},
		{"up.window", func(p *autoscale.Policy) { p.Up.Window = 2 * time.Hour }},
		{"down.limits[0]", func(p *autoscale.Policy) { p.Down.Limits = []autoscale.Limit{{}} }},
		{"down.limits[0].percent", func(p *autoscale.Policy) { p.Down.Limits = []autoscale.Limit{{Percent: -5}} }},
		{"down.limits[0].period", func(p *autoscale.Policy) { p.Down.Limits = []autoscale.Limit{{Percent: 5, Period: time.Millisecond}} }},
		{"interval", func(p *autoscale.Policy) { p.Interval = time.Millisecond }},
		{"idle", func(p *autoscale.Policy) { p.Idle = -1 }},
		{"warmup", func(p *autoscale.Policy) { p.Warmup = 2 * time.Hour }},
	} {
		p := good.WithDefaults()
		c.spoil(&p)
		if bad := p.Validate(); len(bad) != 1 || bad[0].Field != c.field {
			t.Errorf("spoilt %s: %v, want one mistake there", c.field, bad)
		}
	}
}
