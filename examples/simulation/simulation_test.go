// Package simulation tests a strategy of one's own on a simulated week of a fleet,
// and draws load and placements of it into week.svg:
//
//	go test -v ./examples/simulation -svg week.svg
package simulation

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

var svg = flag.String("svg", "", "file that the plot is written to")

// cheapest prefers nodes that cost little: those of one's own before rented ones.
type cheapest struct{}

func (cheapest) Name() string { return "cheapest" }
func (cheapest) Score(_ *scheduler.Request, n scheduler.NodeView) float64 {
	if n.Spec().Labels["rented"] == "yes" {
		return 0
	}
	return 1
}

func strategy() []orchestrate.Option {
	sched, err := scheduler.New(scheduler.Options{Strategies: []scheduler.Strategy{{
		Name: "cheap", Scorers: []scheduler.Weighted{{Scorer: cheapest{}, Weight: 3}, {Scorer: scheduler.LeastLoaded{}, Weight: 1}},
	}}})
	if err != nil {
		panic(err)
	}
	return []orchestrate.Option{orchestrate.WithScheduler(sched)}
}

// TestCheapStrategy has it hold what it is for, while machines fail and the load
// goes up and down: rented machines are used only when the others are full.
func TestCheapStrategy(t *testing.T) {
	web := orchestrate.Service{Name: "web", Replicas: 4}
	web.Containers = []orchestrate.Container{{Image: "web:1", Resources: orchestrate.Resources{CPU: 1000, Memory: 1 << 30}}}
	web.Ports = []orchestrate.Port{{Port: 8080}}
	web.Placement.Strategy = "cheap"
	web.Autoscale = &autoscale.Policy{Min: 4, Max: 28, Interval: time.Minute, Metrics: []autoscale.Metric{{Name: autoscale.Requests, Average: 100}}}
	plot := new(plot)
	r := orchestratetest.Run(t, orchestratetest.Scenario{
		Seed: 1, For: 7 * 24 * time.Hour, Options: strategy,
		Nodes: []orchestratetest.NodeGroup{
			{Name: "own", Count: 4, FailsEvery: 48 * time.Hour},
			{Name: "rented", Count: 4, Labels: map[string]string{"rented": "yes"}},
		},
		Objects: []orchestrate.Object{web},
		Traffic: map[string]orchestratetest.Load{"web": orchestratetest.Daily(300, 2200)},
		Always:  append(orchestratetest.Ready(), orchestratetest.AtLeast("web", 2), plot.watch("web")),
	})
	t.Logf("simulated %v: %d faults, %d tasks placed, hash %s", r.Simulated, r.Faults, r.Counts[orchestratetest.TaskPlaced], r.Hash)
	if night, noon := plot.rented(3*time.Hour), plot.rented(12*time.Hour); night > 0 || noon == 0 {
		t.Errorf("%d tasks run on rented machines in the night, and %d at noon; want none, and some", night, noon)
	}
	if *svg != "" {
		if err := os.WriteFile(*svg, plot.svg(orchestratetest.Daily(300, 2200)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
