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
	silence
	tasks   []*task // in no order; each knows its place
	volumes map[*slotVolume]struct{}
	timer   timer
	// late says that the deadline of its drain, for which there is the timer, has
	// passed.
	late  bool
	drain timer
	// The store revisions of its record, of what is wanted of it, and of its sign
	// of life; 0 for what is not there.
	written, asked, seen int64
	twin                 *node // see State.Clone
}

func (s *State) node(id string) *node {
	if n := s.nodes[id]; n != nil {
		return n
	}
	n := &node{id: id, volumes: map[*slotVolume]struct{}{}}
	n.grace = s.config.LostAfter
	n.timer.due = func() { s.listen(n) }
	n.drain.due = func() { s.endDrain(n) }
	s.nodes[id] = n
	return n
}

func (n *node) add(t *task) {
	t.place = len(n.tasks)
	n.tasks = append(n.tasks, t)
}

func (n *node) drop(t *task) {
	last := len(n.tasks) - 1
	n.tasks[t.place] = n.tasks[last]
	n.tasks[t.place].place = t.place
	n.tasks[last] = nil
	n.tasks = n.tasks[:last]
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
	for _, t := range n.tasks {
		t.disturb()
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
	n.written = written(c)
	if c.Deleted {
		if n.rec != nil {
			n.rec = nil
			s.registered--
			s.watchSilence(n)
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
		for _, t := range n.tasks {
			s.bind(t)
		}
		s.markTasks(n)
		s.watchSilence(n)
	}
	s.rearm(n)
	return err
}

func (s *State) changeNodeSpec(id string, c store.Change) error {
	n := s.node(id)
	n.asked = written(c)
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

func (s *State) changeAlive(id string, c store.Change) {
	n, alive := s.node(id), !c.Deleted
	n.seen = written(c)
	if n.alive == alive {
		return
	}
	n.alive = alive
	if _, lost := s.kept.lost[id]; alive && lost { // of which also an earlier leader may have told
		delete(s.kept.lost, id)
		s.see(Event{Kind: NodeReturned, Node: id, Cause: record.Cause{Actor: record.ActorAgent(id)}})
	}
	s.watchSilence(n)
	s.markTasks(n)
	if n.rec != nil {
		_ = s.offer(n) // the same record was accepted before
	}
	s.forgetNode(n)
}

// written is the revision of what a change leaves; 0 for nothing.
func written(c store.Change) int64 {
	if c.Deleted {
		return 0
	}
	return c.Item.Revision
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
