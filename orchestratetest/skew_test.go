package orchestratetest_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
	"github.com/orchestrate-go/orchestrate/store"
)

// TestClockRate has the times that a node writes run away from those of the world,
// for as long as its clock is wrong.
func TestClockRate(t *testing.T) {
	began := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of all bubbles
	for name, tc := range map[string]struct {
		fault orchestratetest.ClockSkew
		want  []time.Duration // ahead at 30, 70 and 110 minutes
	}{
		"fast":          {orchestratetest.ClockSkew{Node: "n1", PPM: 10_000, For: 90 * time.Minute}, []time.Duration{12 * time.Second, 36 * time.Second, 0}},
		"slow and back": {orchestratetest.ClockSkew{Node: "n1", By: -time.Minute, PPM: -1000, For: 90 * time.Minute}, []time.Duration{-61200 * time.Millisecond, -63600 * time.Millisecond, 0}},
		"set":           {orchestratetest.ClockSkew{Node: "n1", By: time.Hour, For: 90 * time.Minute}, []time.Duration{time.Hour, time.Hour, 0}},
		"the leader's":  {orchestratetest.ClockSkew{Node: "control1", By: time.Hour, PPM: 10_000}, []time.Duration{0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			failed := map[time.Duration]time.Duration{} // how far ahead, by when
			s := orchestratetest.Scenario{
				For: 2 * time.Hour, Nodes: []orchestratetest.NodeGroup{{Count: 1}}, Objects: []orchestrate.Object{web(1)},
				Script: []orchestratetest.Step{
					{At: 10 * time.Minute, Do: tc.fault},
					{At: 30 * time.Minute, Do: orchestratetest.ContainerCrashes{Service: "web"}},
					{At: 70 * time.Minute, Do: orchestratetest.ContainerCrashes{Service: "web"}},
					{At: 110 * time.Minute, Do: orchestratetest.ContainerCrashes{Service: "web"}},
				},
			}
			orchestratetest.Run(t, s.Tamper(func(actor string, txn store.Txn) store.Txn {
				for _, w := range txn.Writes {
					var rec struct{ Failure *struct{ At time.Time } }
					if strings.HasPrefix(w.Key, "/status/n1/") && json.Unmarshal(w.Value, &rec) == nil && rec.Failure != nil {
						mu.Lock()
						if now := time.Since(began).Truncate(time.Second); failed[now] == 0 {
							failed[now] = rec.Failure.At.Sub(time.Now())
						}
						mu.Unlock()
					}
				}
				return txn
			}))
			for i, at := range []time.Duration{30 * time.Minute, 70 * time.Minute, 110 * time.Minute} {
				if got, ok := failed[at]; !ok || got.Round(time.Millisecond) != tc.want[i] {
					t.Errorf("at %v a failure is written %v ahead, want %v; all are %v", at, got, tc.want[i], failed)
				}
			}
		})
	}
}

// TestClockRateAndAtMostOnce has nodes that count too slowly fall silent. As slow as
// clocks may be for a node's promise to hold, nothing runs twice, though the leader
// waits for no longer than the promise; and if they are slower than that, it does, so
// it was the promise that it hung on.
func TestClockRateAndAtMostOnce(t *testing.T) {
	db := orchestrate.Service{Name: "db", Replicas: 3, Stateful: &orchestrate.Stateful{},
		Template: orchestrate.Template{StopGrace: time.Minute, Containers: []orchestrate.Container{{Image: "db:1"}}}}
	scenario := func(ppm int, fault orchestratetest.Action) orchestratetest.Scenario {
		return orchestratetest.Scenario{
			Nodes: []orchestratetest.NodeGroup{{Count: 4}}, Objects: []orchestrate.Object{db}, LostAfter: time.Second, Shrink: -1,
			Script: []orchestratetest.Step{
				{At: 5 * time.Minute, Do: orchestratetest.ClockSkew{Node: "n1", PPM: ppm}},
				{At: 10 * time.Minute, Do: fault},
			},
			Always: []orchestratetest.Invariant{orchestratetest.AtMostOnce()},
		}
	}
	for name, fault := range map[string]orchestratetest.Action{
		"cut off": orchestratetest.Partition{Nodes: []string{"n1"}, For: 5 * time.Minute},
		"hung":    orchestratetest.NodeHangs{Node: "n1", For: 5 * time.Minute},
		"dead":    orchestratetest.AgentRestarts{Node: "n1", For: 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ppm := range []int{0, -node.ClockDrift * 1_000_000, node.ClockDrift * 1_000_000} {
				r := orchestratetest.Run(t, scenario(ppm, fault))
				if n := r.Counts[orchestratetest.TaskPlaced]; n != 4 {
					t.Errorf("at a rate of %d millionths %d tasks were placed, want the one of n1 again", ppm, n)
				}
			}
			if name == "cut off" {
				return // the agent ends it by a timer of the bubble
			}
			r := orchestratetest.Explore(t, scenario(-480_000, fault))
			if r.Failure == nil || r.Failure.Invariant != "at most once" {
				t.Errorf("of a clock that runs half as fast: %v, want the slot to run twice", r.Failure)
			}
		})
	}
}

// TestClocksRunAway has all clocks be wrong in their own ways, those of the control
// planes too, each time the same.
func TestClocksRunAway(t *testing.T) {
	s := chaos(9)
	s.Random.Mix = orchestratetest.Mix{ClockSkew: 10, NodeDies: 3, ContainerCrashes: 10, AgentRestarts: 3, LeaderDies: 1}
	s.Script = []orchestratetest.Step{
		{At: 0, Do: orchestratetest.ClockSkew{Node: "control1", By: time.Hour, PPM: 500}},
		{At: 0, Do: orchestratetest.ClockSkew{Node: "control2", By: -20 * time.Minute, PPM: -50_000}},
		{At: 20 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{revised(web(12))}}},
	}
	s.Always = orchestratetest.Ready()
	same(t, s, same(t, s, nil))
}
