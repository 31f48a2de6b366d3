package schedulertest

import (
	"errors"
	"fmt"
	"slices"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Check judges one outcome: before is the cluster as it was, after as Place
// left it. It returns everything that is wrong, joined, or nil.
func Check(before, after *scheduler.Cluster, reqs []scheduler.Request, decisions []scheduler.Decision) error {
	if len(decisions) != len(reqs) {
		return fmt.Errorf("%d decisions for %d requests", len(decisions), len(reqs))
	}
	k := checker{before: before, after: after, reqs: reqs, decisions: decisions, state: stateOf(after)}
	k.conservation()
	for i := range decisions {
		k.decision(&reqs[i], &decisions[i])
	}
	if err := after.Verify(); err != nil {
		k.fail("the cluster disagrees with itself: %v", err)
	}
	return errors.Join(k.errs...)
}

type checker struct {
	before, after *scheduler.Cluster
	reqs          []scheduler.Request
	decisions     []scheduler.Decision
	state         *state
	errs          []error
}

func (k *checker) fail(format string, args ...any) {
	k.errs = append(k.errs, fmt.Errorf(format, args...))
}

// state is a cluster in plain words.
type state struct {
	nodes  map[string]*scheduler.Node
	tasks  map[string]scheduler.Task
	byNode map[string][]scheduler.Task
}

func stateOf(c *scheduler.Cluster) *state {
	s := &state{map[string]*scheduler.Node{}, map[string]scheduler.Task{}, map[string][]scheduler.Task{}}
	for n := range c.Nodes() {
		s.nodes[n.ID()] = n.Spec()
	}
	for t := range c.Tasks() {
		s.tasks[t.ID] = t
		s.byNode[t.Node] = append(s.byNode[t.Node], t)
	}
	return s
}

// conservation: the tasks after are those before, less the victims, plus the
// placed.
func (k *checker) conservation() {
	want := map[string]string{}
	for t := range k.before.Tasks() {
		want[t.ID] = t.Node
	}
	for _, d := range k.decisions {
		for _, v := range d.Victims {
			if want[v.Task] != v.Node {
				k.fail("victim %s of %s is not on %s", v.Task, d.Service, v.Node)
			}
			delete(want, v.Task)
		}
	}
	for _, d := range k.decisions {
		if len(d.Tasks) != len(d.Nodes) {
			k.fail("%s: %d tasks on %d nodes", d.Service, len(d.Tasks), len(d.Nodes))
			continue
		}
		for i, id := range d.Tasks {
			if _, ok := want[id]; ok {
				k.fail("%s: task %s is there twice", d.Service, id)
			}
			want[id] = d.Nodes[i]
		}
	}
	for id, t := range k.state.tasks {
		if want[id] != t.Node {
			k.fail("conservation: task %s is on %q, want %q", id, t.Node, want[id])
		}
		delete(want, id)
	}
	for id, node := range want {
		k.fail("conservation: task %s should be on %s and is not bound", id, node)
	}
}

func (k *checker) decision(r *scheduler.Request, d *scheduler.Decision) {
	if d.Service != r.Service || d.Namespace != r.Namespace || d.Count != r.Count {
		k.fail("decision for %d of %s/%s, want %d of %s/%s", d.Count, d.Namespace, d.Service, r.Count, r.Namespace, r.Service)
	}
	if d.Placed()+d.Unplaced != r.Count {
		k.fail("%s: %d placed and %d unplaced of %d", r.Service, d.Placed(), d.Unplaced, r.Count)
	}
	if (d.Err() != nil) != (d.Unplaced > 0) || d.String() == "" {
		k.fail("%s: error %v with %d unplaced", r.Service, d.Err(), d.Unplaced)
	}
	if r.Tasks != nil && !slices.Equal(d.Tasks, r.Tasks[:min(d.Placed(), len(r.Tasks))]) {
		k.fail("%s: tasks %v, want the first of %v", r.Service, d.Tasks, r.Tasks)
	}
	if r.Gang != nil {
		need := r.Gang.Min
		if need == 0 {
			need = r.Count
		}
		if d.Placed() != 0 && d.Placed() < need {
			k.fail("%s: gang of %d has %d", r.Service, need, d.Placed())
		}
	}
	for i, id := range d.Tasks {
		t, ok := k.state.tasks[id]
		if !ok || i >= len(d.Nodes) || t.Node != d.Nodes[i] {
			continue // conservation has said so
		}
		if why := k.state.broken(t, r); why != "" {
			k.fail("%s: task %s on %s: %s", r.Service, id, t.Node, why)
		}
	}
	for _, v := range d.Victims {
		if v.Priority >= r.Priority {
			k.fail("%s: stops %s of priority %d for one of %d", r.Service, v.Task, v.Priority, r.Priority)
		}
		if !slices.Contains(d.Tasks, v.For) {
			k.fail("%s: stops %s for %q, which was not placed", r.Service, v.Task, v.For)
		}
	}
	k.skew(r, d)
}

// complete reports replicas left over although a node has room for them. It
// only knows when nothing in the call gives room back.
func (k *checker) complete() {
	for _, d := range k.decisions {
		if len(d.Victims) > 0 {
			return
		}
	}
	for _, r := range k.reqs {
		if r.Gang != nil || len(r.Affinity)+len(r.AntiAffinity) > 0 {
			return
		}
		for _, s := range r.Spread {
			if s.MaxSkew > 0 {
				return
			}
		}
	}
	for i, d := range k.decisions {
		if d.Unplaced == 0 {
			continue
		}
		r := k.reqs[i]
		for id := range k.state.nodes {
			t := scheduler.Task{ID: "one more", Node: id, Request: &r}
			more := k.state.with(t)
			if more.broken(t, &r) == "" {
				k.fail("%s: %d replicas unplaced, and %s has room: %s", r.Service, d.Unplaced, id, d.String())
			}
		}
	}
}

// with returns the state and one task more.
func (s *state) with(t scheduler.Task) *state {
	m := &state{s.nodes, map[string]scheduler.Task{t.ID: t}, map[string][]scheduler.Task{}}
	for id, x := range s.tasks {
		m.tasks[id] = x
	}
	for id, list := range s.byNode {
		m.byNode[id] = list
	}
	m.byNode[t.Node] = append(slices.Clone(m.byNode[t.Node]), t)
	return m
}

// skew replays the replicas of a service that is asked for once.
func (k *checker) skew(r *scheduler.Request, d *scheduler.Decision) {
	hard := false
	for _, s := range r.Spread {
		hard = hard || s.MaxSkew > 0
	}
	same := 0
	for i := range k.reqs {
		if k.reqs[i].Namespace == r.Namespace && k.reqs[i].Service == r.Service {
			same++
		}
	}
	if !hard || same > 1 || len(d.Victims) > 0 {
		return
	}
	var domains func(n *scheduler.Node, depth int) string
	domains = func(n *scheduler.Node, depth int) string {
		path := ""
		for _, s := range r.Spread[:depth] {
			v, _ := attribute(n, s.Key)
			path += v + "\x00"
		}
		return path
	}
	counts := map[string]int{}
	add := func(node string) {
		if n := k.state.nodes[node]; n != nil {
			for depth := range len(r.Spread) + 1 {
				counts[domains(n, depth)]++
			}
		}
	}
	for t := range k.before.Tasks() {
		if t.Request.Service != r.Service || t.Request.Namespace != r.Namespace {
			continue
		}
		if _, stays := k.state.tasks[t.ID]; !stays {
			return // a victim of some group, before this one or after it
		}
		add(t.Node)
	}
	for i, id := range d.Nodes {
		n := k.state.nodes[id]
		add(id)
		for depth, s := range r.Spread {
			if s.MaxSkew == 0 || n == nil {
				continue
			}
			least := -1
			for _, other := range k.state.nodes {
				if domains(other, depth) == domains(n, depth) && staticallyBroken(other, r) == "" {
					if c := counts[domains(other, depth+1)]; least < 0 || c < least {
						least = c
					}
				}
			}
			if c := counts[domains(n, depth+1)]; least >= 0 && c-least > s.MaxSkew {
				k.fail("%s: replica %d on %s makes %d in its domain of %s where another has %d; allowed are %d more", r.Service, i, id, c, s.Key, least, s.MaxSkew)
			}
		}
	}
}
