package health

import (
	"errors"
	"fmt"
	"sync"
)

// Probes are the checks of one container, each of which may be absent.
type Probes struct {
	// Startup gates the others: they begin once it is healthy. When it
	// becomes unhealthy the container is dead.
	Startup *Check `json:"startup,omitempty"`
	// Readiness says whether the container may take traffic. Without it, it
	// may once it has started.
	Readiness *Check `json:"readiness,omitempty"`
	// Liveness becoming unhealthy makes the container dead.
	Liveness *Check `json:"liveness,omitempty"`
}

// Probe names one of [Probes].
type Probe string

// The probes.
const (
	Startup   Probe = "startup"
	Readiness Probe = "readiness"
	Liveness  Probe = "liveness"
)

// check returns the check of p, or nil.
func (p Probes) check(probe Probe) *Check {
	switch probe {
	case Startup:
		return p.Startup
	case Readiness:
		return p.Readiness
	case Liveness:
		return p.Liveness
	}
	return nil
}

// Validate returns every mistake in p, each with its probe before the field,
// such as "liveness.http.port".
func (p Probes) Validate() []*SpecError {
	var errs []*SpecError
	for _, probe := range []Probe{Startup, Readiness, Liveness} {
		check := p.check(probe)
		if check == nil {
			continue
		}
		for _, e := range check.Validate() {
			field := string(probe)
			if e.Field != "" {
				field += "." + e.Field
			}
			errs = append(errs, &SpecError{Field: field, Reason: e.Reason})
		}
	}
	return errs
}

// Begin returns the gate of a container that has just been started.
func (p Probes) Begin() Gate {
	return Gate{probes: p, started: p.Startup == nil, ready: p.Startup == nil && p.Readiness == nil}
}

// Resume returns the gate of a container that was ready when its watching was
// interrupted. It stays so until a probe says otherwise.
func (p Probes) Resume() Gate { return Gate{probes: p, started: true, ready: true} }

// Gate is the state of one container by its probes. It is a pure value:
// [Gate.Observe] returns the next. The zero value is a container that has not
// started.
type Gate struct {
	probes               Probes
	started, ready, dead bool
}

// Started reports whether the container has passed its startup probe.
func (g Gate) Started() bool { return g.started }

// Ready reports whether the container may take traffic.
func (g Gate) Ready() bool { return g.ready }

// Dead reports whether the container is to be restarted. That is final.
func (g Gate) Dead() bool { return g.dead }

// Active lists the probes that run in this state.
func (g Gate) Active() []Probe {
	var active []Probe
	switch {
	case g.dead:
	case !g.started:
		if g.probes.Startup != nil {
			active = append(active, Startup)
		}
	default:
		if g.probes.Readiness != nil {
			active = append(active, Readiness)
		}
		if g.probes.Liveness != nil {
			active = append(active, Liveness)
		}
	}
	return active
}

// Observe returns the state after a probe was found in a status. A result of a
// probe that is not active came late and changes nothing.
func (g Gate) Observe(probe Probe, status Status) Gate {
	active := false
	for _, p := range g.Active() {
		active = active || p == probe
	}
	if !active {
		return g
	}
	switch {
	case probe == Readiness:
		g.ready = status == Healthy
	case status == Unhealthy:
		g.dead, g.ready = true, false
	case probe == Startup && status == Healthy:
		g.started, g.ready = true, g.probes.Readiness == nil
	}
	return g
}

// Events are what a [Watch] tells. Each may be nil. The calls of one Watch come
// one at a time, must return soon, and must not call [Watch.Stop].
type Events struct {
	// Started is called once, when the container has passed its startup
	// probe.
	Started func()
	// Ready is called when the container may take traffic, and when it may
	// not any more, with the reason; and with the reason when readiness was
	// never had and its probe has failed. A container that dies is not ready
	// first.
	Ready func(ready bool, reason error)
	// Dead is called once, when a probe found that the container is to be
	// restarted. No event follows it.
	Dead func(probe Probe, reason error)
}

// Watch is the watching of one container by a [Monitor].
type Watch struct {
	m      *Monitor
	target Target
	on     Events

	mu      sync.Mutex // guards what follows, and is held during events
	gate    Gate
	stopped bool
}

// Watch begins to watch a container that has just been started. Its targets in
// the monitor are t.ID with "/startup", "/readiness" and "/liveness" appended.
// A container with nothing to wait for is ready before Watch returns.
//
// The errors are those of [Monitor.Add]. On an error nothing is watched.
func (m *Monitor) Watch(t Target, p Probes, on Events) (*Watch, error) {
	return m.watch(t, p, p.Begin(), on)
}

// Resume is Watch for a container that was ready when an earlier Watch of it
// ended, such as by a restart of the program.
func (m *Monitor) Resume(t Target, p Probes, on Events) (*Watch, error) {
	return m.watch(t, p, p.Resume(), on)
}

func (m *Monitor) watch(t Target, p Probes, gate Gate, on Events) (*Watch, error) {
	if mistakes := p.Validate(); len(mistakes) > 0 {
		errs := make([]error, len(mistakes))
		for i, e := range mistakes {
			errs[i] = e
		}
		return nil, fmt.Errorf("watch %q: %w", t.ID, errors.Join(errs...))
	}
	for _, probe := range []Probe{Startup, Readiness, Liveness} {
		if check := p.check(probe); check != nil {
			if _, err := m.checkerFor(*check); err != nil { // later ones too, now
				return nil, fmt.Errorf("watch %q: %s: %w", t.ID, probe, err)
			}
		}
	}
	w := &Watch{m: m, target: t, on: on}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.move(gate, "", nil); err != nil {
		return nil, err
	}
	return w, nil
}

// Stop ends the watch. When it has returned, no event follows. It is
// idempotent.
func (w *Watch) Stop() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	for _, probe := range []Probe{Startup, Readiness, Liveness} {
		w.m.Drop(w.id(probe))
	}
}

// Gate returns the present state.
func (w *Watch) Gate() Gate {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gate
}

func (w *Watch) id(probe Probe) string { return w.target.ID + "/" + string(probe) }

// move goes to the next state: it adapts what the monitor watches and tells
// what changed. w.mu is held.
func (w *Watch) move(next Gate, by Probe, reason error) error {
	before := w.gate
	w.gate = next
	run := map[Probe]bool{}
	for _, probe := range before.Active() {
		run[probe] = true
	}
	var added []Probe
	for _, probe := range next.Active() {
		if run[probe] {
			delete(run, probe)
			continue
		}
		t := w.target
		t.ID = w.id(probe)
		if err := w.m.add(t, *next.probes.check(probe), func(r Result) { w.observe(probe, r) }); err != nil {
			for _, p := range added {
				w.m.Drop(w.id(p))
			}
			return err
		}
		added = append(added, probe)
	}
	for probe := range run {
		w.m.Drop(w.id(probe))
	}
	if !before.started && next.started && w.on.Started != nil {
		w.on.Started()
	}
	refused := by == Readiness && reason != nil // it may be not for the first time
	if (before.ready != next.ready || refused) && w.on.Ready != nil {
		w.on.Ready(next.ready, reason)
	}
	if !before.dead && next.dead && w.on.Dead != nil {
		w.on.Dead(by, reason)
	}
	return nil
}

func (w *Watch) observe(probe Probe, r Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	if err := w.move(w.gate.Observe(probe, r.Status), probe, r.Reason); err != nil {
		// The monitor has stopped, or another target took the name: the
		// container cannot be watched, which is not being healthy.
		w.move(Gate{dead: true}, probe, err)
	}
}
