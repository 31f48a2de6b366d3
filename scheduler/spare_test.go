package scheduler_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Whoever is preempted, in one Place or in many, in gangs that come about or not:
// never more of a service than it can spare.
func TestPreemptionSparesServices(t *testing.T) {
	s, err := scheduler.New(scheduler.Options{Preempt: true})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		c := scheduler.NewCluster()
		nodes := rapid.IntRange(1, 4).Draw(rt, "nodes")
		for i := range nodes {
			n := scheduler.Node{ID: fmt.Sprint("n", i), Ready: true, Capacity: scheduler.Resources{Memory: 10}}
			if err := c.SetNode(n); err != nil {
				rt.Fatal(err)
			}
		}
		spare := map[string]int{}
		for i := range rapid.IntRange(1, 3).Draw(rt, "services") {
			name := fmt.Sprint("low", i)
			r := scheduler.Request{Service: name, Resources: scheduler.Resources{Memory: rapid.Int64Range(1, 4).Draw(rt, "memory")}, Priority: int32(i)}
			for k := range rapid.IntRange(0, 8).Draw(rt, "tasks") {
				if err := c.Bind(fmt.Sprint(name, ".", k), fmt.Sprint("n", rapid.IntRange(0, nodes-1).Draw(rt, "on")), &r); err != nil {
					rt.Fatal(err)
				}
			}
			if n := rapid.IntRange(-1, 3).Draw(rt, "spare"); n >= 0 {
				spare[name] = n
				c.Spare("", name, n)
			}
		}
		gone := map[string]int{}
		for round := range rapid.IntRange(1, 4).Draw(rt, "rounds") {
			var reqs []scheduler.Request
			for i := range rapid.IntRange(1, 2).Draw(rt, "requests") {
				r := scheduler.Request{Service: fmt.Sprint("high", round, i), Count: rapid.IntRange(1, 4).Draw(rt, "count"),
					Resources: scheduler.Resources{Memory: rapid.Int64Range(1, 9).Draw(rt, "needs")}, Priority: int32(rapid.IntRange(1, 5).Draw(rt, "priority"))}
				if rapid.Bool().Draw(rt, "gang") {
					r.Gang = &scheduler.Gang{}
				}
				reqs = append(reqs, r)
			}
			copied := c.Clone()
			decisions, err := s.Place(c, reqs)
			if err != nil {
				rt.Fatal(err)
			}
			if _, err := s.Place(copied, reqs); err != nil { // which has a count of its own
				rt.Fatal(err)
			}
			for _, d := range decisions {
				for _, v := range d.Victims {
					for name := range spare {
						if len(v.Task) > len(name) && v.Task[:len(name)+1] == name+"." {
							gone[name]++
						}
					}
				}
			}
			for name, n := range spare {
				if gone[name] > n {
					rt.Fatalf("%d tasks of %s were stopped in %d rounds, which can spare %d", gone[name], name, round+1, n)
				}
			}
			if err := c.Verify(); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// What cannot be spared on one node is taken elsewhere, and what is bounded by
// nothing goes as before.
func TestPreemptionGoesWhereItIsSpared(t *testing.T) {
	s, err := scheduler.New(scheduler.Options{Preempt: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spare  int
		placed int
	}{{-1, 2}, {0, 1}, {1, 2}} {
		cluster := scheduler.NewCluster()
		for _, id := range []string{"n1", "n2"} {
			if err := cluster.SetNode(scheduler.Node{ID: id, Ready: true, Capacity: scheduler.Resources{Memory: 4}}); err != nil {
				t.Fatal(err)
			}
			r := scheduler.Request{Service: "kept", Resources: scheduler.Resources{Memory: 3}}
			if id == "n2" {
				r.Service = "spared"
			}
			if err := cluster.Bind(r.Service+".0", id, &r); err != nil {
				t.Fatal(err)
			}
		}
		cluster.Spare("", "kept", c.spare)
		decisions, err := s.Place(cluster, []scheduler.Request{{Service: "high", Count: 2, Priority: 1, Resources: scheduler.Resources{Memory: 3}}})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(decisions[0].Tasks); n != c.placed {
			t.Errorf("with %d to spare, %d are placed, want %d: %v", c.spare, n, c.placed, &decisions[0])
		}
	}
}
