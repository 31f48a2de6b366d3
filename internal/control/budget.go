package control

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// Tasks are moved when their node is to be left, or when somebody asks for it:
// a successor starts first where it can, and its pace is that of an update. How
// many replicas serve at least meanwhile is for the service's budget to say. All
// that is moved of one service is decided in one place, so drains of many nodes
// and evictions keep it together.
//
// A node that has reached the deadline of its drain is left no longer, and takes
// no tasks; or, if it is forced, its tasks stop without a successor.

// Budget is how many replicas serve at least while tasks are moved.
type Budget struct {
	// Amount is how many; or, if Unavailable is set, how many need not.
	Amount      Amount
	Unavailable bool
}

// of is how many of n replicas are to serve. A share of those that are to is
// rounded up, of those that need not down.
func (b *Budget) of(n int) int {
	if b.Unavailable {
		return max(0, n-b.Amount.of(n, false))
	}
	return min(n, b.Amount.of(n, true))
}

// spare tells the scheduler how many tasks of a service a more important one may
// have stopped: as with an eviction, its budget is asked, if it has one.
func (s *State) spare(svc *service) {
	n := -1
	if b := svc.work.Budget; b != nil && svc.spec != 0 {
		serving := 0
		for _, t := range svc.tasks {
			if t.available() {
				serving++
			}
		}
		n = max(0, serving-b.of(svc.work.Replicas))
	}
	if n >= 0 || svc.spares {
		s.cluster.Spare(svc.namespace, svc.name, n)
	}
	svc.spares = n >= 0
}

// floor is how many replicas are to serve while t is replaced: what the budget
// says when t is only moved, and else what the update may leave.
func (v *view) floor(t *task, p pace) int {
	if b := v.work.Budget; b != nil && v.outdatedBy(t) == record.ReasonDrained {
		return b.of(v.work.Replicas)
	}
	return v.work.Replicas - p.unavailable
}

// leaving reports whether the task is to be moved.
func (t *task) leaving() bool { return t.node.leaving() || t.evicted }

// leaving reports whether the node is to have no tasks.
func (n *node) leaving() bool { return n.spec.Drain && (!n.late || n.forced()) }

// forced reports whether the node's tasks are to stop at once.
func (n *node) forced() bool {
	return n.spec.Drain && n.late && n.spec.Draining != nil && n.spec.Draining.Force
}

// evacuate stops what is on forced nodes, and reports whether there was any: the
// next plan sees what is left.
func (v *view) evacuate() bool {
	before := len(v.stops)
	for _, t := range v.tasks {
		if t.node.forced() && t.live() {
			v.stop(t, record.ReasonDrained)
		}
	}
	return len(v.stops) > before
}

// serving counts the replicas that serve, as retire does, without those that
// are told to stop by now.
func (v *view) serving() int {
	n := v.calm
	for i := range v.slots {
		s := &v.slots[i]
		if s.dropped {
			continue
		}
		if s.settled && v.serves(s.current) && !v.told[s.current] {
			n++
		}
		for _, t := range s.tasks {
			if v.outdated(t) && v.serves(t) && !v.told[t] {
				n++
			}
		}
	}
	return n
}

// yield stops tasks that are to be moved and for whose successors there is no
// place, as far as a budget allows that expressly: the node is left, and the
// successor starts once it can.
func (v *view) yield(placed []record.Task) {
	if v.work.Budget == nil || len(placed) == len(v.starts) {
		return
	}
	has := map[int]bool{}
	for i := range placed {
		has[placed[i].Slot] = true
	}
	p, serving := v.pace(), v.serving()
	for i := range v.slots {
		// Where there is no place for one there is none for the others, whose turn
		// it has not been yet.
		s := &v.slots[i]
		if s.dropped || s.current != nil || has[s.number] {
			continue
		}
		for _, t := range s.tasks {
			if !t.live() || !t.leaving() || v.told[t] {
				continue
			}
			if v.serves(t) {
				if serving-1 < v.floor(t, p) {
					continue
				}
				serving--
			}
			v.stop(t, record.ReasonDrained)
		}
	}
}

// watchDrain sets the timer of a node's drain.
func (s *State) watchDrain(n *node) {
	n.late = false
	d := n.spec.Draining
	switch {
	case !n.spec.Drain || d == nil || d.Deadline.IsZero():
		s.timers.set(&n.drain, time.Time{})
	case !d.Deadline.After(s.now):
		n.late = true
		s.timers.set(&n.drain, time.Time{})
	default:
		s.timers.set(&n.drain, d.Deadline)
	}
}

// endDrain is what is done at the deadline.
func (s *State) endDrain(n *node) {
	n.late = true
	e := Event{Kind: DrainEnded, Node: n.id, Reason: record.ReasonForced, Message: "its deadline has passed; what is left is stopped"}
	if !n.forced() {
		e.Reason, e.Message = record.WhyDeadline, "its deadline has passed; what is left stays, and the node takes no new tasks"
	}
	e.Cause.Actor = cmp.Or(n.spec.Actor, record.ActorApplication)
	s.see(e)
	s.markTasks(n)
	if n.rec != nil {
		_ = s.offer(n) // the same record was accepted before
	}
}

// left looks whether n, which has lost a task, is done with.
func (s *State) left(n *node) {
	if !n.leaving() {
		return
	}
	for _, t := range n.tasks {
		s.mark(t.service) // one of a global service, which is the last to go
	}
	if len(n.tasks) == 0 && !s.loading {
		s.see(Event{Kind: NodeDrained, Node: n.id, Reason: record.ReasonDrained, Cause: record.Cause{Actor: cmp.Or(n.spec.Actor, record.ActorApplication)}})
	}
}

// last reports whether a global service's task may leave its node: those of
// others may need it, such as one that collects their logs or balances their
// connections.
func (t *task) last() bool {
	for _, o := range t.node.tasks {
		applied := o.service.spec != 0 || o.service.job != nil && o.service.job.spec != 0
		if !o.over() && !o.service.work.Global && applied {
			return false
		}
	}
	return true
}

// changeEviction takes in that a task is to be moved.
func (s *State) changeEviction(key string, c store.Change) error {
	delete(s.evictions, key)
	if !c.Deleted {
		var rec record.Eviction
		if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
			return err
		}
		s.evictions[key] = rec
	}
	if t := s.tasks[key]; t != nil {
		e, evicted := s.evictions[key]
		t.evicted, t.evictor = evicted, e.Actor
		t.disturb()
		s.mark(t.service)
	}
	return nil
}

// forgetEvictions deletes those of tasks that are gone.
func (s *State) forgetEvictions() (writes []store.Write) {
	for _, key := range slices.Sorted(maps.Keys(s.evictions)) {
		if s.tasks[key] == nil {
			writes = append(writes, store.Delete(record.Evictions+key))
		}
	}
	slices.SortFunc(writes, func(a, b store.Write) int { return cmp.Compare(a.Key, b.Key) })
	return writes
}

// Why a task is still on a node that is drained, or cannot be moved.
const (
	BlockedStopping = "stopping"  // it was told to stop, and has not ended
	BlockedMoving   = "moving"    // its successor is about to serve
	BlockedBudget   = "budget"    // too few others serve
	BlockedPlace    = "no-place"  // there is no node for its successor
	BlockedNode     = "node-lost" // its node is silent; it is replaced as lost
	BlockedLast     = "last"      // of a global service: it waits for the others on its node
	BlockedTurn     = "turn"      // its service moves a few at a time, and others are first
	BlockedEnded    = "ended"     // the drain has reached its deadline
)

// Blocked is a task that has not been moved, and why.
type Blocked struct {
	Task, Node, Namespace, Service string
	Slot                           int
	Why, Message                   string
	// Of the service: how many replicas there are to be, how many serve, and how
	// many are to at least while tasks are moved.
	Replicas, Available, Least int
}

// Blocked says why the tasks of a node are there still, by service and slot.
func (s *State) Blocked(node string, now time.Time) []Blocked {
	s.now = now
	n := s.nodes[node]
	if n == nil {
		return nil
	}
	var out []Blocked
	for _, t := range n.tasks {
		out = append(out, s.blocked(t))
	}
	slices.SortFunc(out, func(a, b Blocked) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Task, b.Task))
	})
	return out
}

// Evictable says whether a task can be moved now: Why is empty, or what is in
// the way. Found is whether there is such a task.
func (s *State) Evictable(id string, now time.Time) (b Blocked, found bool) {
	s.now = now
	for _, t := range s.tasks {
		if t.rec.ID != id {
			continue
		}
		b = s.blocked(t)
		switch b.Why {
		case BlockedMoving, BlockedTurn, BlockedLast, BlockedEnded:
			b.Why, b.Message = "", "" // it is a matter of time
		}
		return b, true
	}
	return b, false
}

func (s *State) blocked(t *task) Blocked {
	svc := t.service
	b := Blocked{Task: t.rec.ID, Node: t.rec.Node, Namespace: t.rec.Namespace, Service: t.rec.Service, Slot: t.rec.Slot}
	because := func(why, format string, args ...any) Blocked {
		b.Why, b.Message = why, fmt.Sprintf(format, args...)
		return b
	}
	switch {
	case t.over():
		return because(BlockedStopping, "it has ended, and its record is about to go")
	case svc.job != nil && t.rec.Stop == nil && t.node.alive && t.leaving():
		return because(BlockedTurn, "it is about to be told to stop; its job runs the index again elsewhere")
	}
	v := s.view(svc)
	p := v.pace()
	if v.work.Stateful != nil && !v.work.Stateful.Parallel {
		p = pace{parallel: 1, unavailable: 1}
	}
	b.Replicas, b.Least = v.work.Replicas, max(0, v.work.Replicas-p.unavailable)
	if v.work.Budget != nil {
		b.Least = v.work.Budget.of(b.Replicas)
	}
	for _, o := range svc.tasks {
		if o.available() {
			b.Available++
		}
	}
	switch {
	case t.lost() || !t.node.alive:
		return because(BlockedNode, "node %s is lost: nobody knows what the task does, and %s", t.node.id, t.untilWhen())
	case t.rec.Stop != nil:
		return because(BlockedStopping, "it was told to stop %v ago", s.now.Sub(t.rec.Stop.At).Round(time.Second))
	case t.node.spec.Drain && !t.node.leaving():
		return because(BlockedEnded, "the drain has reached its deadline")
	}
	if v.global != nil || v.work.Global {
		if !t.last() {
			return because(BlockedLast, "it is of a global service, and waits for the other tasks of its node")
		}
		return because(BlockedTurn, "it is about to be told to stop")
	}
	if next := v.successorOf(t); next != nil {
		state := "not yet seen by its node"
		if next.status != nil {
			state = string(next.status.State)
		}
		return because(BlockedMoving, "its successor %s on %s is %s", next.rec.ID, next.rec.Node, state)
	}
	short := t.available() && b.Available-1 < b.Least
	switch {
	case svc.rollout != nil && svc.rollout.Unplaced != "":
		if short {
			return because(BlockedPlace, "%s; and it cannot stop before its successor starts, since of %d replicas %d serve and at least %d are to", svc.rollout.Unplaced, b.Replicas, b.Available, b.Least)
		}
		return because(BlockedPlace, "%s", svc.rollout.Unplaced)
	case v.work.Update.StopFirst && short:
		return because(BlockedBudget, "it has to stop before its successor starts, and of %d replicas %d serve, of which at least %d are to", b.Replicas, b.Available, b.Least)
	}
	return because(BlockedTurn, "its service moves up to %d tasks at a time", p.parallel)
}

// successorOf is the task that is to serve in t's place.
func (v *view) successorOf(t *task) *task {
	for _, o := range v.tasks {
		if o != t && o.rec.Slot == t.rec.Slot && o.live() && !o.leaving() {
			return o
		}
	}
	return nil
}

// view is a look at a service without a decision about it.
func (s *State) view(svc *service) *view {
	v := &view{work: svc.work, spec: svc.spec, created: svc.created, tasks: svc.tasks, now: s.now, rollout: new(record.Rollout)}
	if svc.rollout != nil {
		*v.rollout = *svc.rollout
	}
	if svc.spec != 0 {
		_ = s.shape(svc, v) // of one that has no shape, the numbers are as they are
	}
	v.survey()
	return v
}
