package orchestratetest_test

import (
	"fmt"
	"os"
	"runtime/debug"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
)

// week is a large fleet whose services roll, with a fault each minute.
func week(nodes, tasks int, d time.Duration) orchestratetest.Scenario {
	s := orchestratetest.Scenario{
		Seed: 1, For: d, ControlPlanes: 2,
		Nodes:  []orchestratetest.NodeGroup{{Count: nodes, CPU: 32_000, Memory: 64 << 30, Zones: []string{"a", "b", "c"}}},
		Random: orchestratetest.Random{Every: time.Minute, Regular: true, Quiet: time.Minute},
	}
	s.Objects = append(s.Objects, orchestrate.Network{Name: "wide", Subnets: []string{"10.0.0.0/13"}})
	for i := range 10 {
		svc := web(tasks / 10)
		svc.Name, svc.Networks = fmt.Sprintf("web%d", i), []string{"wide"}
		s.Objects = append(s.Objects, svc)
		next := svc
		next.Containers = []orchestrate.Container{svc.Containers[0]}
		next.Containers[0].Image = "web:2"
		s.Script = append(s.Script, orchestratetest.Step{At: d * time.Duration(i+1) / 12, Do: orchestratetest.Apply{Objects: []orchestrate.Object{next}}})
	}
	return s
}

// TestWeek is the large fleet of BENCHMARKS.md: in the short mode a tenth of it for some hours, in
// the long one all of it for a week.
func TestWeek(t *testing.T) {
	nodes, tasks, d := 100, 2000, 4*time.Hour
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		nodes, tasks, d = 1000, 20_000, 7*24*time.Hour
		defer debug.SetGCPercent(debug.SetGCPercent(400)) // it is given the memory
	}
	began := time.Now()
	r := orchestratetest.Run(t, week(nodes, tasks, d))
	t.Logf("seed 1: %d nodes, %d tasks, %v, %d faults, %d steps, %d calls, %d commits in %.1f s; hash %s; %v",
		nodes, tasks, r.Simulated, r.Faults, r.Steps, r.Calls, r.Commits, time.Since(began).Seconds(), r.Hash, r.Counts)
	if want := int(d/time.Minute) - 2; r.Faults < want {
		t.Errorf("%d faults, want one in each of %d minutes", r.Faults, want)
	}
	if r.Counts[orchestratetest.RolloutDone] < 20 {
		t.Errorf("%d rollouts ended, want two of each of ten services", r.Counts[orchestratetest.RolloutDone])
	}
}

// TestRest has a fleet do nothing for a week, which must cost nothing.
func TestRest(t *testing.T) {
	nodes := 1000
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		nodes = 10_000
	}
	began := time.Now()
	r := orchestratetest.Run(t, orchestratetest.Scenario{For: 7 * 24 * time.Hour, Nodes: []orchestratetest.NodeGroup{{Count: nodes}}})
	t.Logf("%d nodes at rest for %v: %d steps, %d calls in %.1f s", nodes, r.Simulated, r.Steps, r.Calls, time.Since(began).Seconds())
	if r.Simulated != 7*24*time.Hour || r.Counts[orchestratetest.NodeUp] != nodes {
		t.Errorf("simulated %v of %d nodes", r.Simulated, r.Counts[orchestratetest.NodeUp])
	}
	// What happens is that they register: nothing ticks.
	if most := 25 * nodes; r.Calls > most {
		t.Errorf("%d calls of %d nodes at rest, want at most %d", r.Calls, nodes, most)
	}
}
