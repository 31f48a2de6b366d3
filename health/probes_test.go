package health_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/health"
)

// container is a fake whose probes answer what is set for them.
type container struct {
	mu    sync.Mutex
	sick  map[string]error // by the custom check's parameter "probe"
	ran   map[string]int
	log   []string
	began time.Time
}

func newContainer() *container {
	return &container{sick: map[string]error{}, ran: map[string]int{}, began: time.Now()}
}

func (c *container) check(_ context.Context, _ health.Target, check health.Check) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	probe := check.Custom.Params["probe"]
	c.ran[probe]++
	return c.sick[probe]
}

func (c *container) set(probe string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sick[probe] = err
}

func (c *container) count(probe string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ran[probe]
}

func (c *container) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, fmt.Sprintf(format, args...)+fmt.Sprintf(" at %v", time.Since(c.began)))
}

func (c *container) events() health.Events {
	return health.Events{
		Ready: func(ready bool, reason error) { c.note("ready %v (%v)", ready, reason) },
		Dead:  func(probe health.Probe, reason error) { c.note("dead by %s (%v)", probe, reason) },
	}
}

func (c *container) tells(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.log, want) {
		t.Errorf("events\n %q, want\n %q", c.log, want)
	}
}

func probeCheck(probe string) *health.Check {
	return &health.Check{
		Custom:   &health.Custom{Name: "test", Params: map[string]string{"probe": probe}},
		Interval: time.Second, Failures: 2,
	}
}

func TestWatchGates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newContainer()
		m, _, end := start(t, c.check, health.Options{Stagger: -1})
		c.set("startup", errSick)
		startup := probeCheck("startup")
		startup.Failures = 10
		w, err := m.Watch(health.Target{ID: "c"}, health.Probes{
			Startup: startup, Readiness: probeCheck("readiness"), Liveness: probeCheck("liveness"),
		}, c.events())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(4500 * time.Millisecond)
		if n := c.count("readiness") + c.count("liveness"); n != 0 {
			t.Errorf("%d probes ran that the startup probe gates, want none before it is healthy", n)
		}
		c.set("startup", nil) // seen at 5 s
		time.Sleep(5 * time.Second)
		if got := c.count("startup"); got != 6 {
			t.Errorf("%d startup probes, want 6: none after the first success", got)
		}
		c.set("readiness", errSick) // at 9.5 s; seen at 10 and 11 s
		time.Sleep(3 * time.Second)
		c.set("readiness", nil) // at 12.5 s
		time.Sleep(3 * time.Second)
		c.set("liveness", errSick) // at 15.5 s; seen at 16 and 17 s
		time.Sleep(10 * time.Second)
		c.tells(t, "ready true (<nil>) at 5s", "ready false (sick) at 11s", "ready true (<nil>) at 13s",
			"ready false (sick) at 17s", "dead by liveness (sick) at 17s")
		if g := w.Gate(); !g.Dead() || g.Ready() || !g.Started() {
			t.Errorf("the gate is %+v, want started, dead and not ready", g)
		}
		if got := c.count("readiness"); got != 13 {
			t.Errorf("%d readiness probes, want 13: none after death", got)
		}
		w.Stop()
		w.Stop()
		mustEnd(t, end)
	})
}

// A container that was never ready says why, and one whose watching is resumed
// is ready until it is not.
func TestWatchTellsWhyNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newContainer()
		m, _, end := start(t, c.check, health.Options{Stagger: -1})
		c.set("readiness", errSick)
		w, err := m.Watch(health.Target{ID: "c"}, health.Probes{Readiness: probeCheck("readiness")}, c.events())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		c.tells(t, "ready false (sick) at 1s")
		w.Stop()

		if w, err = m.Resume(health.Target{ID: "c"}, health.Probes{Readiness: probeCheck("readiness")}, c.events()); err != nil {
			t.Fatal(err)
		}
		if g := w.Gate(); !g.Started() || !g.Ready() {
			t.Errorf("the resumed gate is %+v, want started and ready", g)
		}
		time.Sleep(5 * time.Second)
		c.tells(t, "ready false (sick) at 1s", "ready true (<nil>) at 5s", "ready false (sick) at 6s")
		w.Stop()
		mustEnd(t, end)
	})
}

func TestWatchWithoutProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newContainer()
		m, _, end := start(t, c.check, health.Options{})
		w, err := m.Watch(health.Target{ID: "c"}, health.Probes{}, c.events())
		if err != nil {
			t.Fatal(err)
		}
		c.tells(t, "ready true (<nil>) at 0s")
		w.Stop()
		mustEnd(t, end)
	})
}

func TestWatchStartupFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newContainer()
		c.set("startup", errSick)
		m, _, end := start(t, c.check, health.Options{})
		w, err := m.Watch(health.Target{ID: "c"}, health.Probes{Startup: probeCheck("startup")}, c.events())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c.tells(t, "dead by startup (sick) at 1s")
		w.Stop()
		// The name is free again: the next container of the task has it.
		c.set("startup", nil)
		w, err = m.Watch(health.Target{ID: "c"}, health.Probes{Startup: probeCheck("startup")}, c.events())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.Stop()
		time.Sleep(time.Minute)
		c.tells(t, "dead by startup (sick) at 1s", "ready true (<nil>) at 1m0s")
		mustEnd(t, end)
	})
}

func TestWatchRefusesWhole(t *testing.T) {
	m := health.NewMonitor(health.Options{})
	ok := &health.Check{TCP: &health.TCP{Port: 80}}
	var spec *health.SpecError
	_, err := m.Watch(health.Target{ID: "c"}, health.Probes{Startup: ok, Liveness: &health.Check{TCP: &health.TCP{}}}, health.Events{})
	if !errors.As(err, &spec) || spec.Field != "liveness.tcp.port" {
		t.Errorf("a bad liveness check: %v, want a *SpecError of liveness.tcp.port", err)
	}
	_, err = m.Watch(health.Target{ID: "c"}, health.Probes{Startup: ok, Readiness: &health.Check{GRPC: &health.GRPC{Port: 1}}}, health.Events{})
	if !errors.Is(err, health.ErrNoChecker) {
		t.Errorf("a check without a checker: %v, want ErrNoChecker now and not when it is due", err)
	}
	if err := m.Add(health.Target{ID: "c/liveness"}, *ok); err != nil {
		t.Fatal(err)
	}
	_, err = m.Watch(health.Target{ID: "c"}, health.Probes{Readiness: ok, Liveness: ok}, health.Events{})
	if !errors.Is(err, health.ErrDuplicate) {
		t.Errorf("a name that is taken: %v, want ErrDuplicate", err)
	}
	for _, id := range []string{"c/startup", "c/readiness"} {
		if _, watched := m.Status(id); watched {
			t.Errorf("%s is watched after its Watch was refused", id)
		}
	}
}

// The gate against its rules, for any order of results.
func TestGateRules(t *testing.T) {
	check := &health.Check{TCP: &health.TCP{Port: 1}}
	rapid.Check(t, func(t *rapid.T) {
		maybe := func(name string) *health.Check {
			if rapid.Bool().Draw(t, name) {
				return check
			}
			return nil
		}
		p := health.Probes{Startup: maybe("startup"), Readiness: maybe("readiness"), Liveness: maybe("liveness")}
		g := p.Begin()
		started, lastReady := p.Startup == nil, p.Readiness == nil
		dead := false
		for range rapid.IntRange(0, 12).Draw(t, "results") {
			probe := rapid.SampledFrom([]health.Probe{health.Startup, health.Readiness, health.Liveness}).Draw(t, "probe")
			status := rapid.SampledFrom([]health.Status{health.Unknown, health.Healthy, health.Unhealthy}).Draw(t, "status")
			has := map[health.Probe]bool{health.Startup: p.Startup != nil && !started, health.Readiness: p.Readiness != nil && started, health.Liveness: p.Liveness != nil && started}[probe] && !dead
			g = g.Observe(probe, status)
			if has {
				switch {
				case probe == health.Readiness:
					lastReady = status == health.Healthy
				case status == health.Unhealthy:
					dead = true
				case probe == health.Startup && status == health.Healthy:
					started = true
				}
			}
			if g.Started() != started || g.Dead() != dead || g.Ready() != (started && lastReady && !dead) {
				t.Fatalf("after %s %s the gate has started %v, ready %v, dead %v; want %v, %v, %v",
					probe, status, g.Started(), g.Ready(), g.Dead(), started, started && lastReady && !dead, dead)
			}
			for _, a := range g.Active() {
				if dead || (a == health.Startup) == started {
					t.Fatalf("%s is active with started %v and dead %v", a, started, dead)
				}
			}
		}
	})
}
