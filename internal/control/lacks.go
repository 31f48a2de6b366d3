package control

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Lack is a node on which a global service has no task, and why.
type Lack struct{ Node, Why string }

// Lacks lists the nodes on which a global service has no task, by ID; nil of any
// other service, and of one that lacks none.
func (s *State) Lacks(key string, now time.Time) (lacks []Lack) {
	svc := s.services[key]
	if svc == nil || !svc.work.Global {
		return nil
	}
	has := map[*node]bool{}
	for _, t := range svc.tasks {
		has[t.node] = has[t.node] || t.live()
	}
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		if n := s.nodes[id]; n.rec != nil && !has[n] {
			lacks = append(lacks, Lack{id, s.lacks(svc, n, now)})
		}
	}
	return lacks
}

// lacks says why a global service has no task on n.
func (s *State) lacks(svc *service, n *node, now time.Time) string {
	r := svc.work.Request
	r.Namespace, r.Service, r.Count = svc.namespace, svc.name, 1
	view, ok := s.cluster.Node(n.id)
	if !ok {
		return "is not known to the scheduler"
	}
	var refused *scheduler.RefusedError
	switch err := r.Allows(view.Spec()); {
	case !n.alive:
		return "is not heard of"
	case n.spec.Drain:
		return "is drained"
	case n.spec.Cordoned:
		return "is cordoned"
	case errors.As(err, &refused):
		return refused.Reason
	case err != nil:
		return err.Error()
	}
	pin(&r, []start{{node: n.id}})
	decisions, err := s.config.Place.Place(s.cluster.Clone(), []scheduler.Request{r})
	if err != nil {
		return err.Error()
	}
	for _, refusal := range decisions[0].Refused {
		for _, e := range refusal.Examples {
			if e.Node == n.id && decisions[0].Unplaced > 0 {
				return e.Reason
			}
		}
	}
	if svc.rollout != nil {
		for _, slot := range svc.rollout.Slots {
			if slot.Node == n.id && slot.Failures > 0 {
				return fmt.Sprintf("had a task that failed, %d times in a row; another is tried in %v", slot.Failures, max(0, slot.Last.Add(delay(slot.Failures)).Sub(now)).Round(time.Second))
			}
		}
	}
	return "has room for one, which is yet to come"
}
