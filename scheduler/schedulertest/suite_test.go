package schedulertest_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/scheduler/schedulertest"
)

// cases is how many scenarios each property sees: many when ORCHESTRATE_LONG is
// set.
func cases() int {
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		return 20_000
	}
	return 300
}

func TestBuiltInStrategies(t *testing.T) {
	for _, name := range []string{scheduler.Spread, scheduler.BinPack, scheduler.Random} {
		for _, preempt := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/preempt=%v", name, preempt), func(t *testing.T) {
				schedulertest.Run(t, schedulertest.Harness{
					Strategy: name, Cases: cases(),
					New: func(seed uint64) (schedulertest.Placer, error) {
						return scheduler.New(scheduler.Options{Seed: seed, Preempt: preempt})
					},
				})
			})
		}
	}
}

// inOrder is a Placer of one's own: it fills one node after the other.
type inOrder struct{}

func (inOrder) Place(g *scheduler.Group) error {
	for n := range g.Candidates() {
		for g.Left() > 0 && g.Assign(n.ID()) == nil {
		}
	}
	return nil
}

// odd is a Filter and a Scorer of one's own.
type odd struct{}

func (odd) Name() string { return "odd" }

func (odd) Refuse(_ *scheduler.Request, n scheduler.NodeView) string {
	if n.Tasks() > 5 {
		return "has enough"
	}
	return ""
}

func (odd) Score(_ *scheduler.Request, n scheduler.NodeView) float64 {
	return float64(len(n.Spec().Labels)) / float64(1+n.ServiceTasks())
}

func TestOwnStrategies(t *testing.T) {
	for _, x := range []struct {
		st       scheduler.Strategy
		declines bool
	}{
		{scheduler.Strategy{Name: "in-order", Placer: inOrder{}}, false},
		{scheduler.Strategy{Name: "scored", Scorers: []scheduler.Weighted{{Scorer: odd{}, Weight: 1}, {Scorer: scheduler.MostLoaded{}, Weight: 2}}}, false},
		{scheduler.Strategy{Name: "filtered", LevelNodes: true, Filters: []scheduler.Filter{odd{}}}, true},
	} {
		t.Run(x.st.Name, func(t *testing.T) {
			schedulertest.Run(t, schedulertest.Harness{
				Strategy: x.st.Name, Cases: cases(), Declines: x.declines,
				New: func(seed uint64) (schedulertest.Placer, error) {
					return scheduler.New(scheduler.Options{Seed: seed, Strategies: []scheduler.Strategy{x.st}})
				},
			})
		})
	}
}

// wrong wraps a scheduler and spoils what it does.
type wrong func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error)

type spoiled struct {
	s *scheduler.Scheduler
	f wrong
}

func (p spoiled) Place(c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
	return p.f(p.s, c, reqs)
}

// forgets places without a rule, and then pretends that it was there.
func forgets(rule func(*scheduler.Request)) wrong {
	return func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
		if _, err := s.Place(c.Clone(), reqs); err != nil {
			return nil, err
		}
		bare := slices.Clone(reqs)
		for i := range bare {
			rule(&bare[i])
		}
		ds, err := s.Place(c, bare)
		if err != nil {
			return nil, err
		}
		for i := range ds {
			for k, id := range ds[i].Tasks {
				if _, ok := c.Task(id); !ok {
					continue // a victim
				}
				if err := c.Release(id); err != nil {
					return nil, err
				}
				if err := c.Bind(id, ds[i].Nodes[k], &reqs[i]); err != nil {
					return nil, err
				}
			}
		}
		return ds, nil
	}
}

// looseSkew keeps the rule that nodes must have the key.
func looseSkew(r *scheduler.Request) {
	r.Spread = slices.Clone(r.Spread)
	for i := range r.Spread {
		if r.Spread[i].MaxSkew > 0 {
			r.Spread[i].MaxSkew = 1000
		}
	}
}

// TestCatches plants mistakes, each of which the suite must find, under the
// right name.
func TestCatches(t *testing.T) {
	calls := 0 // state that a Placer must not have
	mistakes := map[string]struct {
		want string
		f    wrong
	}{
		"overcommit memory":    {"overcommit: memory", forgets(func(r *scheduler.Request) { r.Resources.Memory = 0 })},
		"overcommit cpu":       {"overcommit: cpu", forgets(func(r *scheduler.Request) { r.Resources.CPU = 0 })},
		"overcommit disk":      {"overcommit: disk", forgets(func(r *scheduler.Request) { r.Resources.Disk = 0 })},
		"overcommit devices":   {"overcommit: gpu", forgets(func(r *scheduler.Request) { r.Resources.Devices = nil })},
		"ignore constraints":   {"constraint ", forgets(func(r *scheduler.Request) { r.Constraints = nil })},
		"ignore taints":        {"taint ", forgets(func(r *scheduler.Request) { r.Tolerations = []scheduler.Toleration{{}} })},
		"ignore platforms":     {"wrong platform", forgets(func(r *scheduler.Request) { r.Platforms = nil })},
		"ignore drivers":       {"no driver", forgets(func(r *scheduler.Request) { r.Drivers = nil })},
		"ignore volumes":       {"out of reach", forgets(func(r *scheduler.Request) { r.Volumes = nil })},
		"ignore ports":         {"port ", forgets(func(r *scheduler.Request) { r.Ports = nil })},
		"ignore max per node":  {"allowed are", forgets(func(r *scheduler.Request) { r.MaxPerNode = 0 })},
		"ignore skew":          {"in its domain", forgets(looseSkew)},
		"ignore affinity":      {"affinity: no such task", forgets(func(r *scheduler.Request) { r.Affinity = nil })},
		"ignore anti-affinity": {"anti-affinity", forgets(func(r *scheduler.Request) { r.AntiAffinity = nil })},
		"break gangs":          {"gang of", forgets(func(r *scheduler.Request) { r.Gang = nil })},
		"leave a replica over": {"has room", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			for i := range ds {
				if n := ds[i].Placed(); n > 0 && reqs[i].Gang == nil {
					if err := c.Release(ds[i].Tasks[n-1]); err != nil {
						return nil, err
					}
					ds[i].Tasks, ds[i].Nodes = ds[i].Tasks[:n-1], ds[i].Nodes[:n-1]
					ds[i].Unplaced++
				}
			}
			return ds, err
		}},
		"leak a task": {"conservation", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			if err == nil && len(ds[0].Nodes) > 0 {
				err = c.Bind("leaked", ds[0].Nodes[0], &scheduler.Request{Service: "x"})
			}
			return ds, err
		}},
		"count on what was before": {"determinism", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			calls++
			t, err := scheduler.New(scheduler.Options{Seed: uint64(calls), Default: scheduler.Random})
			if err != nil {
				return nil, err
			}
			return t.Place(c, reqs)
		}},
		"place before checking": {"refusal", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			var all []scheduler.Decision
			for i := range reqs {
				ds, err := s.Place(c, reqs[i:i+1])
				if err != nil {
					return nil, err
				}
				all = append(all, ds...)
			}
			return all, nil
		}},
		"accept anything": {"refusal", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			if err != nil {
				return make([]scheduler.Decision, len(reqs)), nil
			}
			return ds, nil
		}},
		"do less with more": {"monotonicity", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			if _, ok := c.Node("one-more"); ok {
				reqs = slices.Clone(reqs)
				for i := range reqs {
					reqs[i].MaxPerNode = 1
				}
			}
			return s.Place(c, reqs)
		}},
		"use nodes that take no tasks": {"takes no tasks", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			if err != nil {
				return nil, err
			}
			for n := range c.Nodes() {
				if n.Spec().Ready && !n.Spec().Drained && !n.Spec().Paused {
					continue
				}
				for i := range ds {
					for k, id := range ds[i].Tasks {
						if _, ok := c.Task(id); !ok || c.Release(id) != nil {
							continue
						}
						ds[i].Nodes[k] = n.ID()
						return ds, c.Bind(id, n.ID(), &reqs[i])
					}
				}
			}
			return ds, nil
		}},
		"stop what is as important": {"for one of", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			for i := range ds {
				for k := range ds[i].Victims {
					ds[i].Victims[k].Priority = reqs[i].Priority
				}
			}
			return ds, err
		}},
		"stop for nobody": {"which was not placed", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			for i := range ds {
				for k := range ds[i].Victims {
					ds[i].Victims[k].For = "nobody"
				}
			}
			return ds, err
		}},
		"say less than there is": {"placed and", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			for i := range ds {
				ds[i].Unplaced = 0
			}
			return ds, err
		}},
		"go by what it saw first": {"agreement", func() wrong {
			seen := map[*scheduler.Scheduler]*scheduler.Cluster{}
			return func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
				first := seen[s]
				if seen[s] = c.Clone(); first == nil {
					return s.Place(c, reqs)
				}
				// The second time it avoids what was in use the first time.
				reqs = slices.Clone(reqs)
				for n := range first.Nodes() {
					if n.Tasks() > 0 {
						for i := range reqs {
							reqs[i].Avoid = append(slices.Clone(reqs[i].Avoid), n.ID())
						}
					}
				}
				return s.Place(c, reqs)
			}
		}()},
		"change the requests": {"changed the requests", func(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
			ds, err := s.Place(c, reqs)
			reqs[0].Priority++
			return ds, err
		}},
	}
	for name, m := range mistakes {
		t.Run(name, func(t *testing.T) {
			strategy := ""
			err := schedulertest.Test(schedulertest.Harness{
				Strategy: strategy, Cases: 250,
				New: func(seed uint64) (schedulertest.Placer, error) {
					s, err := scheduler.New(scheduler.Options{Seed: seed, Preempt: strings.HasPrefix(name, "stop ")})
					return spoiled{s, m.f}, err
				},
			})
			if err == nil || !strings.Contains(err.Error(), m.want) {
				t.Errorf("the suite found %v, want something about %q", err, m.want)
			}
		})
	}
}
