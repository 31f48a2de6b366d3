package orchestratetest

import (
	"testing"
	"testing/synctest"
	"time"
)

// Report is what became of a run.
type Report struct {
	// Hash is of the whole history: each event, and each write to the store.
	Hash string
	// Events are the last, and Counts how many there were of each kind.
	Events []Event
	Counts map[EventKind]int
	// Simulated is how much virtual time went by.
	Simulated time.Duration
	// Steps is how often something was let happen, Calls how many calls went
	// through the gate, Commits how many were made, and Faults how many began.
	Steps, Calls, Commits, Faults int
	// Failure is nil when all held.
	Failure *Violation
}

// Run simulates a scenario, in virtual time, in the test that calls it, and
// fails that when an invariant does not hold, with the shortest script that was
// found to break it as a test in Go.
func Run(t *testing.T, s Scenario) Report {
	t.Helper()
	s = s.withDefaults()
	r := simulate(t, s)
	if r.Failure != nil {
		t.Errorf("seed %d: %v", s.Seed, r.Failure)
	}
	return r
}

// simulate runs a scenario, which has its defaults, once.
func simulate(t *testing.T, s Scenario) (r Report) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(s)
		if err != nil {
			t.Fatal(err)
		}
		err = w.run()
		r = Report{
			Hash: w.history.hash(), Events: w.history.last(), Counts: w.history.counts, Simulated: w.since(),
			Steps: w.steps, Calls: w.admitted, Commits: w.shared.commits, Faults: w.faults, Failure: w.failure,
		}
		w.close()
		if err != nil {
			t.Fatal(err)
		}
	})
	return r
}
