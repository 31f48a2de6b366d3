package autoscale_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/autoscale"
)

func drawRules(rt *rapid.T, name string) autoscale.Rules {
	r := autoscale.Rules{
		Window: time.Duration(rapid.SampledFrom([]int{-1, 0, 30, 300}).Draw(rt, name+" window")) * time.Second,
		Select: rapid.SampledFrom([]autoscale.Select{autoscale.SelectMax, autoscale.SelectMin, autoscale.SelectDisabled}).Draw(rt, name+" select"),
	}
	for range rapid.IntRange(0, 3).Draw(rt, name+" limits") {
		l := autoscale.Limit{Period: time.Duration(rapid.IntRange(1, 200).Draw(rt, name+" period")) * time.Second}
		if rapid.Bool().Draw(rt, name+" percent") {
			l.Percent = rapid.IntRange(1, 200).Draw(rt, name+" share")
		} else {
			l.Tasks = rapid.IntRange(1, 10).Draw(rt, name+" tasks")
		}
		r.Limits = append(r.Limits, l)
	}
	return r
}

// TestProperties lets any load meet any policy: the number is never outside of
// its bounds, never changes faster than the limits allow, never falls below
// what was asked for in the window, nor grows above it, and is none only after
// idleness.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := queue(autoscale.Policy{
			Min: rapid.SampledFrom([]int{autoscale.None, 1, 3}).Draw(rt, "min"),
			Max: rapid.IntRange(3, 60).Draw(rt, "max"),
			Up:  drawRules(rt, "up"), Down: drawRules(rt, "down"), Idle: 45 * time.Second,
		})
		if bad := p.Validate(); len(bad) > 0 {
			rt.Fatal(bad[0])
		}
		full := p.WithDefaults()
		low := max(full.Min, 0)
		in := autoscale.Input{Now: epoch, Current: rapid.IntRange(low, p.Max).Draw(rt, "current")}
		type moment struct {
			at         time.Time
			to, wanted int
			asked      bool // by the metrics, not by its sleep
		}
		past := []moment{{at: epoch.Add(-time.Hour), to: in.Current}}
		active := epoch
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			in.Tasks = allReady(in.Current)
			x := rapid.SampledFrom([]float64{0, 0, 5, 40, 100, 1000, -1}).Draw(rt, "queue")
			in.Readings = []autoscale.Reading{total(x)}
			if x > 0 || x < 0 && in.Current > 0 {
				active = in.Now
			}
			if rapid.IntRange(0, 15).Draw(rt, "leader") == 0 {
				in.History = in.History.Resume(in.Now, in.Current)
				active = in.Now
			}
			d := p.Decide(in)
			fail := func(format string, args ...any) {
				rt.Helper()
				rt.Fatalf("%v: %d becomes %d (%s: %s), but %s\n%+v\n%v", in.Now.Sub(epoch), in.Current, d.Replicas, d.Reason, d.Message, fmt.Sprintf(format, args...), full, past)
			}
			if d.Replicas < low || d.Replicas > p.Max {
				fail("there are to be %d to %d", low, p.Max)
			}
			if d.Replicas == 0 && in.Current > 0 && in.Now.Sub(active) < full.Idle {
				fail("it was active %v ago", in.Now.Sub(active))
			}
			asleep := d.Replicas == 0 || in.Current == 0
			// What there was at the beginning of a period.
			start := func(period time.Duration) int {
				n := past[0].to
				for _, m := range past {
					if !m.at.After(in.Now.Add(-period)) {
						n = m.to
					}
				}
				return n
			}
			changed, rules, sign := d.Replicas-in.Current, full.Up, 1
			if changed < 0 {
				changed, rules, sign = -changed, full.Down, -1
			}
			if changed > 0 && !asleep {
				if rules.Select == autoscale.SelectDisabled {
					fail("that is disabled")
				}
				any, all := false, true
				for _, l := range rules.Limits {
					from := start(l.Period)
					bound := l.Tasks
					if l.Percent > 0 {
						bound = (from*l.Percent + 99) / 100
					}
					ok := sign*(d.Replicas-from) <= bound
					any, all = any || ok, all && ok
				}
				if rules.Select == autoscale.SelectMax && !any || rules.Select == autoscale.SelectMin && !all {
					fail("the limits do not allow it")
				}
				for _, m := range past {
					if !m.asked || !m.at.After(in.Now.Add(-rules.Window)) {
						continue
					}
					if sign > 0 && d.Replicas > m.wanted || sign < 0 && d.Replicas < min(m.wanted, p.Max) && m.wanted <= in.Current {
						fail("%v before, %d was asked for", in.Now.Sub(m.at), m.wanted)
					}
				}
			}
			if n := len(d.History.Recommendations) + len(d.History.Changes); n > 800 {
				fail("it remembers %d things", n)
			}
			past = append(past, moment{in.Now, d.Replicas, d.Wanted, !asleep && d.Reason != autoscale.ByMissing && d.Reason != autoscale.ByIdle})
			if d.Replicas == 0 { // what was asked for before is over
				for i := range past {
					past[i].asked = false
				}
			}
			in.History, in.Current = d.History, d.Replicas
			in.Now = in.Now.Add(time.Duration(rapid.IntRange(1, 40).Draw(rt, "seconds")) * time.Second)
		}
	})
}

// TestNoise holds that a steady load with noise inside of the tolerance
// changes nothing, with no window to help.
func TestNoise(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 50).Draw(rt, "tasks")
		p := autoscale.Policy{Max: 100, Metrics: []autoscale.Metric{{Name: "cpu", Utilization: 60}, {Name: "queue", Average: 10}}, Down: autoscale.Rules{Window: -1}}
		in := autoscale.Input{Now: epoch, Current: n, Tasks: allReady(n)}
		for range 30 {
			values := make([]float64, n)
			for i := range values {
				values[i] = 600 * rapid.Float64Range(0.9, 1.1).Draw(rt, "noise")
			}
			in.Readings = []autoscale.Reading{usage(values), total(10 * float64(n) * rapid.Float64Range(0.9, 1.1).Draw(rt, "noise"))}
			d := p.Decide(in)
			if d.Replicas != n {
				rt.Fatalf("%d tasks become %d: %s", n, d.Replicas, d.Message)
			}
			in.History, in.Now = d.History, in.Now.Add(15*time.Second)
		}
	})
}

// TestConverges holds that a steady load is met: the number comes to rest, and
// there it is what the load needs.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		load := rapid.Float64Range(1, 900).Draw(rt, "load")
		p := queue(autoscale.Policy{Max: 100})
		in := autoscale.Input{Now: epoch, Current: rapid.IntRange(1, 100).Draw(rt, "current")}
		last := -1
		for range 60 { // 15 minutes
			in.Tasks, in.Readings = allReady(in.Current), []autoscale.Reading{total(load)}
			d := p.Decide(in)
			last, in.Current = in.Current, d.Replicas
			in.History, in.Now = d.History, in.Now.Add(15*time.Second)
		}
		if in.Current != last {
			rt.Fatalf("after 15 minutes of the same load %d tasks become %d", last, in.Current)
		}
		if each := load / float64(in.Current); each > 11.001 || in.Current > 1 && each < 8.999 && load/float64(in.Current-1) < 10 {
			rt.Fatalf("%d tasks for a load of %v: %v each, want 10 or as near as can be", in.Current, load, each)
		}
	})
}
