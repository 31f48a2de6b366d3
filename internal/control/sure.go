package control

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// A rehearsal has all agents answer at once. In a fleet each takes its time, and
// the leader decides between their answers; what it decides depends on which tasks
// are there at that moment, and so on who was first.
//
// What the first plan decides depends on no answer, if nothing was going on
// before. What comes later is sure when one service alone moves after that, and
// the other orders that are tried lead to the same end: two that are opposite to
// each other, and of the nodes that most tasks leave each one first, and each one
// last, since a node's answers come together. What is left to differ is in which
// order its own tasks come and go. Where several move, the orders are too many to
// try, so that is said to be approximate. Services that wait for others move after
// these, and not at the same time.
//
// It goes without saying that nothing fails, and that what is told to stop has
// stopped before time goes on: within the monitor window of what came after it.

// order is one in which agents answer.
type order struct {
	way  way
	node string // of nodeFirst and nodeLast
}

type way int

const (
	atOnce way = iota
	// startsFirst has tasks get ready one at a time, in the order of their IDs,
	// before any stops, and stopsFirst the other way round.
	startsFirst
	stopsFirst
	// nodeFirst has one node answer before all others, and nodeLast after them.
	nodeFirst
	nodeLast
)

// triedNodes is of how many nodes it is tried that they are first, and last.
const triedNodes = 4

// answer is what an agent has to say.
type answer struct {
	task   *task
	key    string // of the status, NODE/ID
	status record.Status
}

// next are those of the answers, which are by task, that come next.
func (o order) next(answers []answer) []answer {
	if o.way == atOnce || len(answers) == 0 {
		return answers
	}
	first := slices.DeleteFunc(slices.Clone(answers), func(a answer) bool {
		switch o.way {
		case nodeFirst:
			return a.task.node.id != o.node
		case nodeLast:
			return a.task.node.id == o.node
		}
		return a.status.State.Final() != (o.way == stopsFirst)
	})
	if len(first) == 0 {
		first = answers
	}
	if o.way == stopsFirst {
		return first[len(first)-1:]
	}
	return first[:1]
}

// orders are those that are tried of what a rehearsal came to.
func (r *Rehearsal) orders() []order {
	leaves := map[string]int{}
	for i := range r.Services {
		for _, s := range r.Services[i].Steps {
			if s.From != "" {
				leaves[s.From]++
			}
		}
	}
	nodes := slices.SortedFunc(maps.Keys(leaves), func(a, b string) int {
		return cmp.Or(leaves[b]-leaves[a], strings.Compare(a, b))
	})
	all := []order{{way: startsFirst}, {way: stopsFirst}}
	for _, n := range nodes[:min(len(nodes), triedNodes)] {
		all = append(all, order{nodeFirst, n}, order{nodeLast, n})
	}
	return all
}

// sureness is what a rehearsal knows of how sure it is.
type sureness struct {
	order order
	// restless says that somebody may have answered by now.
	restless bool
	// placers are the services that place tasks, change them in place, or have no
	// place for some, since then; movers those of which tasks have ended.
	placers, movers map[string]bool
	// mixed says that several moved at a time, and waited that a task was placed
	// that had no place before.
	mixed, waited bool
	later         map[string]bool // tasks that were placed, or changed, since then
}

// unsteady reports whether somebody is about to answer for what the first plan
// looks at.
func (r *rehearsal) unsteady() bool {
	for t := range r.unready {
		if !t.node.alive || t.node.rec == nil {
			continue
		}
		c, svc := r.cast[t.service.key], t.service
		if t.rec.Stop != nil || c != nil && c.asked || svc.rollout != nil && svc.rollout.Current().State == record.Progressing {
			return true
		}
	}
	return false
}

// moves takes in that a task is placed, or changed in place.
func (r *rehearsal) moves(e *Event) {
	key := e.Namespace + "/" + e.Service
	if svc := r.state.services[key]; svc != nil && svc.unplaced() != "" {
		r.waited = true
	}
	if r.restless {
		r.later[e.Task], r.placers[key] = true, true
	}
}

// unplaced is why replicas, or indexes, have no place.
func (svc *service) unplaced() string {
	switch {
	case svc.rollout != nil:
		return svc.rollout.Unplaced
	case svc.job != nil && svc.job.run != nil:
		return svc.job.run.Unplaced
	}
	return ""
}

// several reports whether several services have moved at a time so far.
func (r *rehearsal) several() bool {
	for key := range r.placers {
		r.mixed = r.mixed || len(r.movers) > 1 || len(r.placers) > 1 || len(r.movers) == 1 && !r.movers[key]
	}
	return r.mixed
}

// rest takes in that everything has come to rest: what moves from now on moves
// after what has moved before.
func (r *rehearsal) rest() {
	r.several()
	clear(r.placers)
	clear(r.movers)
}

// met takes in that a service waits no more. If nothing else is going on, all that
// it waited for is behind it in any order.
func (r *rehearsal) met(key string) {
	for t := range r.unready {
		if t.node.alive && t.node.rec != nil && t.rec.Stop != nil {
			return
		}
	}
	for other := range r.cast {
		if svc := r.state.services[other]; svc != nil && other != key && svc.waits() == nil && svc.underWay() {
			return
		}
	}
	r.rest()
}

// underWay reports whether a service, or a job that was asked for, has yet to come
// to its end.
func (svc *service) underWay() bool {
	if svc.spec != 0 {
		return svc.rollout == nil || svc.rollout.Spec != svc.spec || svc.rollout.Current().State == record.Progressing
	}
	j := svc.job
	return j != nil && j.asked && (j.run == nil || j.run.Number != j.work.Revision || j.run.State == record.RunActive)
}

// Rehearse plays change through, beginning at now. The state is used up.
func (s *State) Rehearse(change []store.Write, now time.Time, opts RehearseOptions) Rehearsal {
	if now.Before(s.now) {
		now = s.now // by the clock of who leads
	}
	out, r := s.Clone().rehearse(change, now, opts, order{})
	out.Approximate = r.several() || r.waited
	if out.Approximate || len(r.later) == 0 {
		return out
	}
	for i := range out.Services { // unless it turns out to be
		for k := range out.Services[i].Steps {
			out.Services[i].Steps[k].Likely = false
		}
	}
	orders := out.orders()
	for i, o := range orders {
		state := s
		if i < len(orders)-1 {
			state = s.Clone()
		}
		other, r := state.rehearse(change, now, opts, o)
		if out.Approximate = out.differs(&other) || r.waited; out.Approximate {
			break
		}
	}
	return out
}

// differs reports whether another order leads elsewhere, and marks the steps that
// do.
func (r *Rehearsal) differs(other *Rehearsal) bool {
	type at struct {
		service string
		slot    int
		task    string
	}
	steps := map[at]Step{}
	for _, svc := range other.Services {
		for _, s := range svc.Steps {
			steps[at{svc.Namespace + "/" + svc.Name, s.Slot, s.Task}] = s
		}
	}
	differs, count := len(r.Services) != len(other.Services), 0
	for i := range r.Services {
		svc := &r.Services[i]
		for k := range svc.Steps {
			s := &svc.Steps[k]
			count++
			if o, ok := steps[at{svc.Namespace + "/" + svc.Name, s.Slot, s.Task}]; !ok || o.Kind != s.Kind || o.To != s.To {
				s.Likely, differs = true, true
			}
		}
		if !differs && svc.ends() != other.Services[i].ends() {
			differs = true
		}
	}
	return differs || count != len(steps)
}

// ends is how it ends, in words that can be compared.
func (r *Rehearsed) ends() string {
	end := r.Namespace + "/" + r.Name + " " + r.Blocked
	if r.Rollout != nil {
		a := r.Rollout.Current()
		end += " " + string(a.State) + " " + a.Reason
	}
	if r.Run != nil {
		end += " " + string(r.Run.State) + " " + r.Run.Reason
	}
	return end
}
