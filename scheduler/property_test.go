package scheduler_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/scheduler/schedulertest"
	"pgregory.net/rapid"
)

// With ORCHESTRATE_LONG set, each property sees 100,000 cases.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		if err := flag.Set("rapid.checks", "100000"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	os.Exit(m.Run())
}

func intn(t *rapid.T) func(int) int {
	return func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "n") }
}

// anyScenario keeps the many small draws that make a scenario out of the report.
var anyScenario = rapid.Custom(func(t *rapid.T) schedulertest.Scenario { return schedulertest.Generate(intn(t)) })

// TestProperties asks every promise of the conformance suite of scenarios that
// rapid makes, and shrinks when one is broken.
func TestProperties(t *testing.T) {
	for _, name := range []string{scheduler.Spread, scheduler.BinPack, scheduler.Random} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				s := anyScenario.Draw(t, "scenario")
				preempt := rapid.Bool().Draw(t, "preempt")
				err := schedulertest.Property(schedulertest.Harness{
					Strategy: name,
					New: func(seed uint64) (schedulertest.Placer, error) {
						return scheduler.New(scheduler.Options{Seed: seed, Preempt: preempt})
					},
				}, s)
				if err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestHistory runs a long history of deltas and placements on one cluster. All
// along, what is kept by deltas, indexes too, must be what would be built anew.
func TestHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := intn(t)
		s, err := scheduler.New(scheduler.Options{Preempt: n(2) == 1, Seed: 7})
		if err != nil {
			t.Fatal(err)
		}
		c := scheduler.NewCluster()
		stock := anyScenario.Draw(t, "scenario")
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			if n(4) == 0 {
				stock = anyScenario.Draw(t, "scenario")
			}
			var tasks []scheduler.Task
			for x := range c.Tasks() {
				tasks = append(tasks, x)
			}
			switch n(6) {
			case 0:
				for _, node := range stock.Nodes {
					if err := c.SetNode(node); err != nil {
						t.Fatal(err)
					}
				}
			case 1:
				node := stock.Nodes[n(len(stock.Nodes))].ID
				if _, known := c.Node(node); known && n(2) == 0 {
					if _, err := c.RemoveNode(node); err != nil {
						t.Fatal(err)
					}
				}
			case 2:
				for i, b := range stock.Bound {
					if _, known := c.Node(b.Node); known {
						if err := c.Bind(fmt.Sprintf("bound-%d-%d", step, i), b.Node, &b.Request); err != nil {
							t.Fatal(err)
						}
					}
				}
			case 3:
				for _, x := range tasks {
					if n(3) == 0 {
						if err := c.Release(x.ID); err != nil {
							t.Fatal(err)
						}
					}
				}
			default:
				before := c.Clone()
				ds, err := s.Place(c, stock.Requests)
				if err != nil {
					t.Fatal(err)
				}
				if err := schedulertest.Check(before, c, stock.Requests, ds); err != nil {
					t.Fatal(err)
				}
				if n(5) == 0 {
					c = before // a what-if that was given up
				}
			}
			if err := c.Verify(); err != nil {
				t.Fatal(err)
			}
			if err := c.VerifyIndexes(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestRebalanceProperties: a plan keeps every rule, moves nothing twice, stays
// within its bounds and changes nothing by itself.
func TestRebalanceProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sc := anyScenario.Draw(t, "scenario")
		c, err := sc.Cluster()
		if err != nil {
			t.Fatal(err)
		}
		s, err := scheduler.New(scheduler.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Place(c, sc.Requests); err != nil {
			t.Fatal(err)
		}
		if len(sc.Nodes) > 1 {
			sc.Nodes[0].Capacity.CPU *= 3
			if err := c.SetNode(sc.Nodes[0]); err != nil {
				t.Fatal(err)
			}
		}
		before := describe(c)
		moves, err := s.Rebalance(c, scheduler.RebalanceOptions{MaxMoves: 3, MaxPerService: 2})
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(c); got != before {
			t.Fatalf("Rebalance changed the cluster from\n%s to\n%s", before, got)
		}
		if len(moves) > 3 {
			t.Fatalf("%d moves, allowed are 3", len(moves))
		}
		seen := map[string]bool{}
		for _, m := range moves {
			x, ok := c.Task(m.Task)
			if !ok || x.Node != m.From || m.From == m.To || seen[m.Task] || m.Gain < 0.1 {
				t.Fatalf("bad move %+v: the task is on %s", m, x.Node)
			}
			seen[m.Task] = true
			step := c.Clone()
			r := *x.Request
			r.Count, r.Tasks = 1, []string{m.Task}
			if err := c.Release(m.Task); err != nil {
				t.Fatal(err)
			}
			if err := step.Release(m.Task); err != nil {
				t.Fatal(err)
			}
			if err := c.Bind(m.Task, m.To, x.Request); err != nil {
				t.Fatal(err)
			}
			d := []scheduler.Decision{{Service: r.Service, Count: 1, Tasks: r.Tasks, Nodes: []string{m.To}, Evaluated: 1}}
			if err := schedulertest.Check(step, c, []scheduler.Request{r}, d); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func describe(c *scheduler.Cluster) string {
	s := ""
	for n := range c.Nodes() {
		s += fmt.Sprintln(n.ID(), n.Tasks(), n.Free())
	}
	for t := range c.Tasks() {
		s += fmt.Sprintln(t.ID, t.Node)
	}
	return s
}

// TestEligible: what is worked out for all nodes at once is what each node is
// told by itself, also after nodes have changed.
func TestEligible(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sc := anyScenario.Draw(t, "scenario")
		c, err := sc.Cluster()
		if err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			for i := range sc.Requests {
				r := &sc.Requests[i]
				got, err := c.Eligible(r)
				if err != nil {
					t.Fatal(err)
				}
				var want []string
				for n := range c.Nodes() {
					if r.Allows(n.Spec()) == nil {
						want = append(want, n.ID())
					}
				}
				if !slices.Equal(got, want) {
					t.Fatalf("round %d: eligible %v, one by one %v, for %+v", round, got, want, r)
				}
			}
			other := anyScenario.Draw(t, "changes")
			for _, n := range other.Nodes {
				if err := c.SetNode(n); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
