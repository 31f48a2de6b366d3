package orchestratetest

import (
	"fmt"
	"slices"
	"strings"
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
	// Script is, after a failure, the shortest that was found to break the same
	// invariant, and Test a Go test of it.
	Script []Step
	Test   string
}

// Run simulates a scenario, in virtual time, in the test that calls it, and
// fails that when an invariant does not hold, with the shortest script that was
// found to break it as a test in Go.
func Run(t *testing.T, s Scenario) Report {
	t.Helper()
	r := Explore(t, s)
	if r.Failure != nil {
		t.Error(explain(s, &r))
	}
	return r
}

// Explore is [Run] without a test that fails: what does not hold is in the report.
func Explore(t *testing.T, s Scenario) Report {
	t.Helper()
	given := s
	s = s.withDefaults()
	r := simulate(t, s)
	if r.Failure != nil && s.Shrink > 0 {
		short, failure := shrink(t, s, r.Failure)
		given.Script, given.Random, given.For, given.Shrink = short.Script, Random{}, short.For, 0
		given.Nodes = slices.Clone(given.Nodes)
		for i := range given.Nodes {
			given.Nodes[i].FailsEvery = 0 // they are in the script
		}
		r.Script, r.Test = short.Script, goTest(given, failure)
	}
	return r
}

// explain tells of a failure.
func explain(s Scenario, r *Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %v\n", s.Seed, r.Failure)
	last := r.Events[max(0, len(r.Events)-20):]
	b.WriteString("the last events:\n")
	for _, e := range last {
		fmt.Fprintf(&b, "  %v\n", e)
	}
	if r.Test != "" && len(s.steps()) > 0 { // else it is the test that failed
		fmt.Fprintf(&b, "of %d steps these %d break it; as a test:\n\n%s", len(s.steps()), len(r.Script), r.Test)
	}
	return b.String()
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
