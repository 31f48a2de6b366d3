package control

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// Clone returns a copy that can be played with: what happens to either is not
// seen by the other. Of the history of events it has only what deciding takes,
// and it forgets none. It costs some copying for each service and task, and
// reads no record again.
func (s *State) Clone() *State {
	d := *s
	d.brake.given = slices.Clone(s.brake.given)
	d.cluster = s.cluster.Clone()
	d.events = slices.Clone(s.events)
	d.slots = nil
	d.kept = s.kept.clone()
	d.ids = maps.Clone(s.ids)
	d.evictions = maps.Clone(s.evictions)
	d.timers = make(timers, len(s.timers))
	d.services = make(map[string]*service, len(s.services))
	d.nodes = make(map[string]*node, len(s.nodes))
	d.tasks = make(map[string]*task, len(s.tasks))
	d.volumes = make(map[string]*slotVolume, len(s.volumes))

	nodes, next := make([]node, len(s.nodes)), 0
	for id, n := range s.nodes {
		c := &nodes[next]
		next++
		*c = *n
		c.tasks, c.volumes = make([]*task, len(n.tasks)), make(map[*slotVolume]struct{}, len(n.volumes))
		n.twin, d.nodes[id] = c, c
		c.timer.due, c.drain.due = func() { d.listen(c) }, func() { d.endDrain(c) }
		d.timers.take(&c.timer)
		d.timers.take(&c.drain)
	}
	services, next := make([]service, len(s.services)), 0
	for key, svc := range s.services {
		c := &services[next]
		next++
		*c = *svc
		svc.twin, d.services[key] = c, c
		c.tasks = slices.Clone(svc.tasks)
		c.volumes = nil
		c.awaits = slices.Clone(svc.awaits)
		if svc.job != nil {
			own := *svc.job
			c.job = &own
		}
		c.timer.due = func() { d.mark(c) }
		d.timers.take(&c.timer)
	}
	tasks, next := make([]task, len(s.tasks)), 0
	for key, t := range s.tasks {
		c := &tasks[next]
		next++
		*c = *t
		c.service, c.node = t.service.twin, t.node.twin
		c.node.tasks[c.place] = c
		t.twin, d.tasks[key] = c, c
	}
	for _, c := range d.services {
		for i, t := range c.tasks {
			c.tasks[i] = t.twin
		}
		restless := make([]*task, 0, len(c.restless))
		for _, t := range c.restless {
			if !t.gone {
				restless = append(restless, t.twin)
			}
		}
		c.restless = restless
	}
	for _, svc := range s.services {
		for _, v := range svc.volumes { // in their order
			own := *v
			own.service, own.node = svc.twin, v.node.twin
			own.service.volumes = append(own.service.volumes, &own)
			own.node.volumes[&own] = struct{}{}
			v.twin = &own
		}
	}
	for key, v := range s.volumes {
		d.volumes[key] = v.twin
	}
	d.networks = make(map[string]*network, len(s.networks))
	for name, n := range s.networks {
		c := &network{rec: n.rec, taken: maps.Clone(n.taken), freed: maps.Clone(n.freed)}
		for a, svc := range c.taken {
			c.taken[a] = svc.twin
		}
		d.networks[name] = c
	}
	d.globals, d.dirty, d.hungry = twins(s.globals), twins(s.dirty), twins(s.hungry)
	d.awaited = make(map[string]map[*service]struct{}, len(s.awaited))
	for key, who := range s.awaited {
		d.awaited[key] = twins(who)
	}
	// Twins are known for as long as the copy is made, and not kept alive after.
	for _, n := range s.nodes {
		n.twin = nil
	}
	for _, svc := range s.services {
		svc.twin = nil
	}
	for _, t := range s.tasks {
		t.twin = nil
	}
	for _, v := range s.volumes {
		v.twin = nil
	}
	return &d
}

func twins(set map[*service]struct{}) map[*service]struct{} {
	out := make(map[*service]struct{}, len(set))
	for svc := range set {
		if svc.twin != nil { // one that was forgotten has none
			out[svc.twin] = struct{}{}
		}
	}
	return out
}

// take puts a copied timer where the one that it was copied of is.
func (h timers) take(t *timer) {
	if t.index > 0 {
		h[t.index-1] = t
	}
}

// clone copies what deciding takes.
func (k *kept) clone() *kept {
	c := newKept(k.each, k.all)
	c.lost, c.removals = maps.Clone(k.lost), maps.Clone(k.removals)
	c.term, c.decided, c.forgotten = k.term, k.decided, k.forgotten
	return c
}

// Rest has services at rest, which are most after a Load, not looked at before
// something happens to them: planning them would change nothing.
func (s *State) Rest() {
	for svc := range s.dirty {
		if svc.atRest() {
			delete(s.dirty, svc)
		}
	}
}

// Decided is how many commits with decisions of a leader's term the state has
// seen: the next one's record of events is [record.LeaderEvents] of that number.
func (s *State) Decided(term int64) int {
	if s.kept.term != term {
		return 0
	}
	return s.kept.decided
}

// decide takes note of a record of a leader's events.
func (k *kept) decide(key string) {
	if !strings.HasPrefix(key, leaderEvents) {
		return
	}
	if term, n, ok := record.LeaderEventsOf(key); ok && term >= k.term {
		if term > k.term {
			k.term, k.decided = term, 0
		}
		k.decided = max(k.decided, n+1)
	}
}

const leaderEvents = record.Kept + "leader/"

// Holds reports whether a key that is decided by is in the state as it was last
// written at a revision, 0 for not there. Of other keys nothing is known, so
// that they do not hold is not said of them.
func (s *State) Holds(key string, revision int64) bool {
	at := func(prefix string) (string, bool) { return strings.CutPrefix(key, prefix) }
	if name, ok := at(record.Services); ok {
		svc := s.services[name]
		return revision == 0 && svc == nil || svc != nil && svc.spec == revision
	}
	if name, ok := at(record.Jobs); ok {
		svc := s.services[name]
		if svc == nil || svc.job == nil {
			return revision == 0
		}
		return svc.job.spec == revision
	}
	if name, ok := at(record.Networks); ok {
		n := s.networks[name]
		return (n != nil && n.rec != nil) == (revision != 0)
	}
	return true
}

// NodeConditions are those under which a node is as the state has it.
func (s *State) NodeConditions(id string) []store.Condition {
	n := s.nodes[id]
	if n == nil {
		n = &node{}
	}
	return []store.Condition{
		{Key: record.Key(record.Nodes, id), Revision: n.written},
		{Key: record.Key(record.NodeSpecs, id), Revision: n.asked},
		{Key: record.Key(record.Alive, id), Revision: n.seen},
	}
}

// forks are the requests for copies of a leader's state.
type forks struct {
	asked chan fork
	ended chan struct{} // closed when the term ends
}

// fork asks for a copy at a revision or later. Reply has room for it.
type fork struct {
	after int64
	reply chan *State
}

// Fork returns a copy of what a loop that leads decides by, at a revision of the
// store or later: nil when it does not lead, or that revision does not come in
// time. What a Mirror has is then to be asked.
func (l *Loop) Fork(ctx context.Context, after int64) *State {
	term := l.forks.Load()
	if term == nil {
		return nil
	}
	f := fork{after, make(chan *State, 1)}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case term.asked <- f:
	case <-term.ended:
		return nil
	case <-ctx.Done():
		return nil
	}
	select {
	case state := <-f.reply:
		return state
	case <-term.ended:
		return nil
	case <-ctx.Done():
		return nil
	}
}

// forked answers those requests that the state has come far enough for.
func forked(state *State, waiting []fork) []fork {
	return slices.DeleteFunc(waiting, func(f fork) bool {
		if state.Revision() < f.after {
			return false
		}
		f.reply <- state.Clone()
		return true
	})
}
