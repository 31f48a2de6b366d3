package orchestratetest

import (
	"testing"
	"time"
)

// shrink finds a shorter script that breaks the same invariant, by leaving out
// half of the steps, then a quarter and so on (delta debugging: Zeller and
// Hildebrandt, "Simplifying and isolating failure-inducing input", 2002). It
// stops when leaving out any one step mends it, or at the deadline. What a step
// draws follows from the seed and its own name, so the others stay as they were.
func shrink(t *testing.T, s Scenario, failure *Violation) (Scenario, *Violation) {
	t.Helper()
	deadline := time.Now().Add(s.Shrink)
	fixed := s
	fixed.Script, fixed.Random = nil, Random{}
	fixed.Nodes = append([]NodeGroup(nil), s.Nodes...)
	for i := range fixed.Nodes {
		fixed.Nodes[i].FailsEvery = 0
	}
	var steps []Step
	for _, step := range s.steps() {
		if step.At <= failure.At {
			steps = append(steps, step)
		}
	}
	if !failure.end {
		fixed.For = min(s.For, (failure.At + failure.At/4 + 10*time.Minute).Truncate(time.Second))
	}
	try := func(some []Step) *Violation {
		c := fixed
		c.Script = some
		r := simulate(t, c)
		if r.Failure == nil || r.Failure.Invariant != failure.Invariant {
			return nil
		}
		return r.Failure
	}
	best := failure
	for n := 2; len(steps) > 0 && time.Now().Before(deadline); {
		size := (len(steps) + n - 1) / n
		found := false
		for from := 0; from < len(steps) && time.Now().Before(deadline); from += size {
			rest := append(append([]Step(nil), steps[:from]...), steps[min(from+size, len(steps)):]...)
			if v := try(rest); v != nil {
				steps, best, found = rest, v, true
				n = max(n-1, 2)
				break
			}
		}
		if found {
			continue
		}
		if size == 1 {
			break
		}
		n = min(2*n, len(steps))
	}
	fixed.Script = steps
	return fixed, best
}
