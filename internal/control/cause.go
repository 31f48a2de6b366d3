package control

import (
	"cmp"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// This file says why. A step is somebody's doing, who is named with it: of who
// applied the spec that is being made true, of who drained the node, or of the
// planner itself, which replaces what failed or was lost and goes back from a
// revision that failed.

// cause is why something is done for svc, as far as nothing more is known: its
// spec says so, or the revision that is gone back to.
func (s *State) cause(svc *service, v *view) record.Cause {
	if svc.spec == 0 {
		by := s.kept.removals[svc.key]
		return record.Cause{Actor: cmp.Or(by.actor, record.ActorApplication), Reason: record.ReasonRemoved, Parent: by.revision}
	}
	c := record.Cause{Actor: cmp.Or(svc.actor, record.ActorApplication), Revision: svc.work.Revision, Parent: svc.spec}
	if v != nil && v.rollout.Rollback != nil {
		c.Actor, c.Revision = record.ActorPlanner, v.rollout.Rollback.Revision
	}
	if d := svc.directive; v != nil && d != nil && d.Action == record.Abort && v.rollout.Reason == record.WhyAborted {
		c.Actor = cmp.Or(d.Actor, record.ActorApplication)
	}
	return c
}

// whyStop is why t is told to stop.
func (w *writer) whyStop(t *task, reason string) record.Cause {
	c := w.cause
	switch c.Reason = reason; reason {
	case record.ReasonDrained:
		c.Actor, c.Trigger = cmp.Or(t.node.spec.Actor, record.ActorApplication), "node/"+t.node.id
		if t.evicted && !t.node.leaving() {
			c.Actor, c.Trigger = w.evictor(t), ""
		}
	case record.ReasonNodeLost:
		c.Actor, c.Trigger = record.ActorPlanner, "node/"+t.node.id
	case record.ReasonReturned:
		c.Actor = record.ActorPlanner
		if o := t.replacedWho(); o != nil {
			c.Trigger = "node/" + o.node.id
		}
	case record.ReasonRolled, record.ReasonFailed, record.ReasonUnhealthy:
		c.Actor = record.ActorPlanner
	case record.ReasonScaled:
		if w.service.scaling() {
			c.Actor = record.ActorAutoscaler
		}
	}
	return c
}

// evictor is who asked for t to be moved.
func (w *writer) evictor(t *task) string { return cmp.Or(t.evictor, record.ActorApplication) }

// whyStart is why a task is started in a slot.
func (w *writer) whyStart(v *view, t *record.Task) record.Cause {
	c := w.cause
	c.Reason = record.ReasonWanted
	var before *task // that t takes the place of
	if s := v.slot(t.Slot); s != nil {
		for _, o := range s.tasks {
			if before == nil || o.rec.Created.After(before.rec.Created) {
				before = o
			}
		}
	}
	failed := v.rollout.Slots[t.Slot]
	if v.trying() && t.Hash == v.work.Hash {
		failed = v.rollout.Trial[t.Slot]
	}
	switch {
	case before != nil && before.lost() && !before.over():
		c.Actor, c.Reason, c.Trigger = record.ActorPlanner, record.ReasonNodeLost, "node/"+before.node.id
	case failed.Failures > 0 && (before == nil || before.over()):
		c.Actor, c.Reason, c.Trigger = record.ActorPlanner, record.ReasonFailed, "task/"+failed.Task
	case before == nil && w.service.scaling():
		c.Actor = record.ActorAutoscaler
	case before == nil:
	case before.over() && before.rec.Stop == nil:
		c.Actor, c.Reason, c.Trigger = record.ActorPlanner, record.ReasonFailed, "task/"+before.rec.ID
	case before.rec.Hash != t.Hash && v.rollout.Rollback != nil:
		c.Reason, c.Trigger = record.ReasonRolled, "task/"+before.rec.ID
	case before.rec.Hash != t.Hash:
		c.Reason, c.Trigger = record.ReasonUpdated, "task/"+before.rec.ID
	case before.evicted:
		c.Actor, c.Reason, c.Trigger = w.evictor(before), record.ReasonDrained, "task/"+before.rec.ID
	case before.node.leaving():
		c.Actor, c.Reason, c.Trigger = cmp.Or(before.node.spec.Actor, record.ActorApplication), record.ReasonDrained, "node/"+before.node.id
	case before.rec.Stop != nil && before.rec.Stop.Reason == record.ReasonPreempted:
		c.Actor, c.Reason, c.Trigger = record.ActorPlanner, record.ReasonPreempted, "task/"+before.rec.ID
	}
	return c
}
