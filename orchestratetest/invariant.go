package orchestratetest

import (
	"fmt"
	"time"
)

// Invariant is what must hold at all times.
type Invariant struct {
	// Name says what must hold, such as "web has three tasks".
	Name string
	// Check returns why it does not hold now, or nil. It is called after every
	// step in which something has changed; see [View.Touched].
	Check func(v *View) error
	// source is how it is made, in Go; empty where that is not known.
	source string
	// state, when not nil, makes a Check that remembers, one for each run.
	state func() func(v *View) error
	// end, when not nil, is checked when the run is over.
	end func(v *View) error
}

// Always is an invariant of your own.
func Always(name string, check func(v *View) error) Invariant {
	return Invariant{Name: name, Check: check}
}

// Eventual is what must become true again, within a time of being false.
type Eventual struct {
	Name   string
	Within time.Duration
	Check  func(v *View) error
	source string
}

// Eventually is what may be false for as long as Within, and no longer.
func Eventually(name string, within time.Duration, check func(v *View) error) Eventual {
	return Eventual{Name: name, Within: within, Check: check}
}

// Violation is an invariant that did not hold.
type Violation struct {
	Invariant string
	At        time.Duration // since the begin
	Err       error
	end       bool // it is one of the end
}

// Error is what did not hold, when and why.
func (v *Violation) Error() string { return fmt.Sprintf("%v: %s: %v", v.At, v.Invariant, v.Err) }

// Unwrap returns what the check returned.
func (v *Violation) Unwrap() error { return v.Err }

// violated ends the run. mu is held.
func (w *world) violated(name string, err error) {
	if w.failure == nil {
		w.failure = &Violation{Invariant: name, At: w.since(), Err: err}
		w.note(Event{Kind: Violated, Subject: name, Detail: err.Error()})
	}
}

// check looks whether all holds that must.
func (w *world) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps++
	v := w.view
	if w.failure != nil || len(v.touchedTasks)+len(v.touchedServices)+len(v.touchedNodes) == 0 {
		return
	}
	for i := range w.scenario.Always {
		inv := &w.scenario.Always[i]
		check := inv.Check
		if inv.state != nil {
			if w.checks == nil {
				w.checks = map[int]func(*View) error{}
			}
			if w.checks[i] == nil {
				w.checks[i] = inv.state()
			}
			check = w.checks[i]
		}
		if err := check(v); err != nil {
			w.violated(inv.Name, err)
			return
		}
	}
	for i := range w.scenario.Eventually {
		e := &w.scenario.Eventually[i]
		err := e.Check(v)
		switch d := w.bounds[e]; {
		case err == nil:
			w.cancel(d)
			delete(w.bounds, e)
		case d == nil:
			w.bounds[e] = w.after(e.Within, -1, "bound", func() {
				delete(w.bounds, e) // it may be false anew
				if err := e.Check(v); err != nil {
					w.violated(e.Name, fmt.Errorf("not within %v: %w", e.Within, err))
				}
			})
		}
	}
	v.settle()
}

// checkEnd looks whether all holds that must at the end.
func (w *world) checkEnd() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.scenario.Always {
		if inv := &w.scenario.Always[i]; inv.end != nil {
			if err := inv.end(w.view); err != nil {
				w.violated(inv.Name, err)
				w.failure.end = true
			}
		}
	}
}
