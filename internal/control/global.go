package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// A global service has one task on each node that takes its tasks: what is
// wanted follows from the nodes, not from a number. Each node has a slot of its
// own for as long as it has a task or a back-off, so that all that is done slot
// by slot is done node by node: a new task goes where the slot's old one is.
//
// Three kinds of nodes are told apart. Those that take the service's tasks are
// to have one. Those that do not fit, because they are drained or a constraint
// refuses them, are to have none. All others, which are cordoned, tainted or
// silent, keep what they have as it is: nothing there is started, updated,
// stopped or waited for, so one dead machine holds up no rollout.

// global is where the tasks of a global service belong.
type global struct {
	nodes []string       // that are to have a task, in order
	slot  map[string]int // of each of them
	node  map[int]string // of each of their slots
}

func (g *global) wants(n *node) bool {
	_, ok := g.slot[n.id]
	return ok
}

// globalize returns where the tasks of w belong, w for that many replicas, and
// of the tasks those that are anybody's business.
func (s *State) globalize(svc *service, w *Workload, slots map[int]record.Slot) (*global, *Workload, []*task, error) {
	r := w.Request
	r.Namespace, r.Service = w.Namespace, w.Name
	nodes, err := s.cluster.Eligible(&r)
	if err != nil {
		return nil, nil, nil, err
	}
	g := &global{nodes: nodes, slot: make(map[string]int, len(nodes)), node: make(map[int]string, len(nodes))}
	eligible := make(map[string]bool, len(nodes))
	for _, id := range nodes {
		eligible[id] = true
	}
	give := func(node string, slot int) {
		if _, has := g.slot[node]; !has && eligible[node] && g.node[slot] == "" {
			g.slot[node], g.node[slot] = slot, node
		}
	}
	used := map[int]bool{}
	for _, alive := range []bool{true, false} {
		for _, t := range svc.tasks {
			used[t.rec.Slot] = true
			if t.live() == alive {
				give(t.node.id, t.rec.Slot)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(slots)) {
		if !used[n] {
			give(slots[n].Node, n)
		}
		used[n] = true
	}
	free := 0
	for _, id := range nodes {
		if _, has := g.slot[id]; has {
			continue
		}
		for used[free] {
			free++
		}
		give(id, free)
		free++
	}
	many := *w
	many.Replicas = len(nodes)
	many.Update = w.given.withDefaults(len(nodes))
	return g, &many, s.concerned(svc, g, &r), nil
}

// concerned leaves away the tasks that nodes keep as they are.
func (s *State) concerned(svc *service, g *global, r *scheduler.Request) []*task {
	kept := func(t *task) bool {
		if t.live() && t.node.leaving() && !t.node.forced() && !t.last() {
			return true
		}
		return !g.wants(t.node) && !t.over() && t.rec.Stop == nil && t.node.rec != nil && s.fits(r, t.node)
	}
	if !slices.ContainsFunc(svc.tasks, kept) {
		return svc.tasks
	}
	return slices.DeleteFunc(slices.Clone(svc.tasks), kept)
}

// fits reports whether tasks of r belong on n, if it takes any.
func (s *State) fits(r *scheduler.Request, n *node) bool {
	view, ok := s.cluster.Node(n.id)
	if !ok {
		return false
	}
	spec := *view.Spec()
	spec.Ready, spec.Paused, spec.Taints = true, false, nil
	return r.Allows(&spec) == nil
}

// dropNodes stops what runs where it does not belong, and what is on a node
// twice.
func (v *view) dropNodes() {
	for i := range v.slots {
		s := &v.slots[i]
		stay := false
		for _, t := range s.tasks {
			if !t.live() {
				continue
			}
			switch own := v.global.node[s.number]; {
			case own == t.node.id:
				stay = true
			case t.node.leaving():
				v.stop(t, record.ReasonDrained)
			case own == "" && !v.global.wants(t.node):
				v.stop(t, record.ReasonIneligible)
			default:
				v.stop(t, record.ReasonScaled)
			}
		}
		s.dropped = s.live > 0 && !stay
	}
	// The back-off of a node that is gone is nobody's.
	for n := range v.rollout.Slots {
		if v.global.node[n] == "" && v.slot(n) == nil {
			delete(v.rollout.Slots, n)
		}
	}
}

// fillNodes starts the tasks that nodes lack.
func (v *view) fillNodes() {
	for _, id := range v.global.nodes {
		n := v.global.slot[id]
		if s := v.slot(n); s == nil || s.live == 0 {
			v.startIn(n, nil)
		}
	}
}

// pin has a group of starts placed on their own nodes. Only starts of nodes that
// have nothing of the service are grouped, one for each.
func pin(r *scheduler.Request, group []start) {
	if group[0].node == "" {
		return
	}
	c := scheduler.Constraint{Key: "node.id", Op: scheduler.OpIn}
	for _, st := range group {
		c.Values = append(c.Values, st.node)
	}
	r.Constraints = append(r.Constraints[:len(r.Constraints):len(r.Constraints)], c)
	r.MaxPerNode = 0
	if len(group) > 1 {
		r.MaxPerNode = 1
	}
}

// noRoom says why nodes have no task, of the nodes that should have one alone.
func noRoom(d *scheduler.Decision, group []start) string {
	lacks := map[string]bool{}
	for _, st := range group {
		lacks[st.node] = true
	}
	for _, id := range d.Nodes {
		delete(lacks, id)
	}
	var why []string
	for _, refused := range d.Refused {
		for _, e := range refused.Examples {
			if lacks[e.Node] {
				delete(lacks, e.Node)
				why = append(why, fmt.Sprintf("%s: %s", e.Node, e.Reason))
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(lacks)) {
		why = append(why, id)
	}
	slices.Sort(why)
	const most = 5
	if more := len(why) - most; more > 0 {
		why = append(why[:most], fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("%s/%s: no room on %d of the nodes that should have a task: %s", d.Namespace, d.Service, d.Unplaced, strings.Join(why, "; "))
}
