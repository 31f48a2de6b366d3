package control

import (
	"encoding/json"
	"maps"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// node is a machine. It has an entry as long as there is a record or a task.
type node struct {
	id    string
	rec   *record.Node // nil when it was deleted
	spec  record.NodeSpec
	alive bool
	// silent says that it was not alive for LostAfter.
	silent bool
	// expired says that it was not alive for so long that by its own promise
	// nothing that is fenced runs on it any more.
	expired bool
	quiet   time.Time // since when it is not alive
	held    bool      // it was silent for too long, and the brake keeps it from being lost
	tasks   map[*task]struct{}
	volumes map[*slotVolume]struct{}
	timer   timer
	// late says that the deadline of its drain, for which there is the timer, has
	// passed.
	late  bool
	drain timer
}

// lost reports whether the node's tasks are to be replaced.
func (n *node) lost() bool { return n.rec == nil || n.silent || n.vouched() }

func (s *State) node(id string) *node {
	if n := s.nodes[id]; n != nil {
		return n
	}
	n := &node{id: id, tasks: map[*task]struct{}{}, volumes: map[*slotVolume]struct{}{}}
	n.timer.due = func() { s.silence(n) }
	n.drain.due = func() { s.endDrain(n) }
	s.nodes[id] = n
	return n
}

func (s *State) forgetNode(n *node) {
	if n.rec == nil && !n.alive && len(n.tasks)+len(n.volumes) == 0 && !n.spec.Drain && !n.spec.Cordoned && n.spec.Labels == nil && n.spec.Taints == nil {
		delete(s.nodes, n.id)
		s.timers.set(&n.timer, time.Time{})
		s.timers.set(&n.drain, time.Time{})
	}
}

// markTasks has the services looked at that have tasks on n.
func (s *State) markTasks(n *node) {
	for t := range n.tasks {
		s.mark(t.service)
	}
	for v := range n.volumes {
		s.mark(v.service)
	}
}

// markGlobals has the services looked at whose tasks follow the nodes.
func (s *State) markGlobals() {
	for svc := range s.globals {
		s.mark(svc)
	}
}

// feed has the services looked at that lack a place: there may be one now.
func (s *State) feed() {
	for svc := range s.hungry {
		s.mark(svc)
	}
}

func (s *State) changeNode(id string, c store.Change) error {
	n := s.node(id)
	if c.Deleted {
		if n.rec != nil {
			n.rec, n.held = nil, false
			s.registered--
			s.timers.set(&n.timer, time.Time{})
			n.silent, n.expired = false, false
			_, _ = s.cluster.RemoveNode(id) // it is there, or never was valid
			s.markTasks(n)
			s.markGlobals()
			s.lose(n, "its record was deleted")
		}
		s.forgetNode(n)
		return nil
	}
	var rec record.Node
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return err
	}
	rec.ID = id
	known := n.rec != nil
	if !known {
		s.registered++
	}
	if known && n.rec.Registration != rec.Registration {
		s.markTasks(n) // nobody vouches for this one
	}
	n.rec = &rec
	err := s.offer(n) // of a node that the scheduler refuses, the tasks still count
	if !known {
		for t := range n.tasks {
			s.bind(t)
		}
		s.markTasks(n)
		s.watchSilence(n)
	}
	return err
}

func (s *State) changeNodeSpec(id string, c store.Change) error {
	n := s.node(id)
	var spec record.NodeSpec
	if !c.Deleted {
		if err := json.Unmarshal(c.Item.Value, &spec); err != nil {
			return err
		}
	}
	left, forced, fenced := n.leaving(), n.forced(), n.spec.Fenced
	n.spec = spec
	s.watchDrain(n)
	if n.leaving() != left || n.forced() != forced || spec.Fenced != fenced {
		s.markTasks(n)
		if !left {
			s.left(n)
		}
	}
	if n.rec == nil {
		s.forgetNode(n)
		return nil
	}
	return s.offer(n)
}

func (s *State) changeAlive(id string, alive bool) {
	n := s.node(id)
	if n.alive == alive {
		return
	}
	n.alive = alive
	if alive && s.kept.lost[id] { // of which also an earlier leader may have told
		s.kept.lost[id] = false
		s.see(Event{Kind: NodeReturned, Node: id, Cause: record.Cause{Actor: record.ActorAgent(id)}})
	}
	n.silent, n.expired, n.held = false, false, false
	s.watchSilence(n)
	s.markTasks(n)
	if n.rec != nil {
		_ = s.offer(n) // the same record was accepted before
	}
	s.forgetNode(n)
}

// watchSilence sets the timer that makes n lost.
func (s *State) watchSilence(n *node) {
	if n.alive || n.rec == nil {
		s.timers.set(&n.timer, time.Time{})
		return
	}
	n.quiet = s.now
	s.timers.set(&n.timer, s.now.Add(s.config.LostAfter))
}

// silence makes n lost, and expired when it has been silent for as long as it
// promised. It is called for both.
func (s *State) silence(n *node) {
	if !n.silent && !s.kept.lost[n.id] { // what an earlier leader gave up stays so
		if again, ok := s.brake.giveUp(s.registered, s.now); !ok {
			s.held(n, again)
			return
		}
	}
	s.markTasks(n)
	if n.rec.Fence > 0 {
		if at := n.quiet.Add(n.rec.Fence); at.After(s.now) {
			s.timers.set(&n.timer, at)
		} else {
			n.expired = true
		}
	}
	if n.silent {
		return
	}
	n.silent = true
	if !s.kept.lost[n.id] {
		s.lose(n, "silent for "+s.config.LostAfter.String())
	}
}

func (s *State) lose(n *node, why string) {
	s.kept.lost[n.id] = true
	s.see(Event{Kind: NodeLost, Node: n.id, Reason: record.ReasonNodeLost, Message: why, Cause: record.Cause{Actor: record.ActorPlanner}})
}

// offer tells the scheduler what n is and what the application wants of it.
func (s *State) offer(n *node) error {
	spec := n.rec.Node
	spec.Ready = n.alive
	spec.Paused = spec.Paused || n.spec.Cordoned || n.spec.Drain
	spec.Drained = spec.Drained || n.leaving()
	if len(n.spec.Labels) > 0 {
		labels := maps.Clone(spec.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, n.spec.Labels)
		spec.Labels = labels
	}
	spec.Taints = append(spec.Taints[:len(spec.Taints):len(spec.Taints)], n.spec.Taints...)
	s.feed()
	s.markGlobals()
	err := usable(n.id)
	if err == nil {
		err = s.cluster.SetNode(spec)
	}
	if err != nil {
		// What it was before must not stand: the node may have been drained,
		// and would be given tasks that it is then to give up. It gets none.
		_ = s.cluster.SetNode(scheduler.Node{ID: n.id})
		return err
	}
	return nil
}

// bind tells the scheduler what t takes. Whatever cannot be bound, because its
// node is gone, takes nothing.
func (s *State) bind(t *task) {
	if !t.over() {
		_ = s.cluster.Bind(t.rec.ID, t.rec.Node, &t.rec.Request)
	}
}

// release gives back what t took, if it has not been given back already.
func (s *State) release(t *task) {
	if s.cluster.Release(t.rec.ID) == nil {
		s.feed()
	}
}
