package control

import (
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// hold is what is done for a service whose rollout failed because of its
// template: nothing more of it is started, and what serves goes on serving.
//
// A task that had proved itself is replaced by a copy when it ends, when its
// node is lost or is to be left, whichever template it is of: copies are made
// from its own record, so old tasks stay old. A task that never proved itself
// is not replaced. Nothing that runs is stopped: tasks that struggle may yet
// recover, and show whoever looks what is wrong. A replica that had already
// given up its old task stays away until the next Apply; it counts against what
// may be stopped first, so it can keep a node from being drained.
//
// The alternative, to go on trying, would be a rollout that has not failed; to
// undo it is a decision of its own: see turnBack. A rollback that fails is held
// too.
//
// The record of a task that ended is kept until its copy has a place. So the
// demand is in the store, as that of a spec is.
func (v *view) hold() {
	u, p := &v.work.Update, v.pace()
	if v.evacuate() {
		return
	}
	budget, spare := min(p.parallel, p.surge), p.unavailable-v.work.Replicas
	if b := v.work.Budget; b != nil {
		spare = -b.of(v.work.Replicas)
	}
	for _, t := range v.tasks {
		if t.live() && t.leaving() && v.heir(t) != nil {
			budget--
		}
		if t.available() {
			spare++ // of those that serve, how many may be stopped first
		}
	}
	switch {
	case v.global != nil:
		v.dropNodes()
	case v.work.Stateful != nil:
		v.dropSlots()
	}
	gone := v.bereft()
	for _, t := range v.tasks {
		heir := v.heir(t)
		switch {
		case v.told[t]:
		case t.over() || t.lost():
			if gone[t.rec.Slot] == t {
				v.startIn(t.rec.Slot, t)
			} else if t.over() || t.node.rec == nil {
				v.removes = append(v.removes, t)
			} else if v.successor(t) != nil && !v.welcome(t) {
				v.stop(t, record.ReasonNodeLost)
			}
		case !t.live():
		case heir != nil && !t.leaving():
			// Both run: the older one was lost, and returned.
			other := heir
			if v.better(t, heir) {
				t, other = heir, t
			}
			if v.spare(t, other) {
				v.stop(t, v.second(t, other))
			}
		case !t.leaving():
			v.settles(t)
		case t.available() && !v.proven(t): // it is about to
		case !v.proven(t), heir != nil && v.settles(heir):
			v.stop(t, record.ReasonDrained)
		case heir == nil && u.StopFirst && (!t.available() || spare > 0):
			if t.available() {
				spare--
			}
			v.stop(t, record.ReasonDrained)
		case heir == nil && !u.StopFirst && budget > 0:
			budget--
			v.startIn(t.rec.Slot, t)
		}
	}
}

// bereft returns by slot the task that is gone and is to have a copy: the latest
// of those that deserve one, if there are several.
func (v *view) bereft() map[int]*task {
	gone := map[int]*task{}
	for _, t := range v.tasks {
		if !t.over() && !t.lost() || !v.proven(t) || dismissed(t) || v.replaced(t) {
			continue
		}
		if v.global != nil && v.global.node[t.rec.Slot] != t.node.id {
			continue // its node is to have none, and no other in its place
		}
		if v.surplus(t) {
			continue
		}
		if o := gone[t.rec.Slot]; o == nil || !t.rec.Created.Before(o.rec.Created) {
			gone[t.rec.Slot] = t
		}
	}
	return gone
}

// replaced reports whether a task of t's slot and template is there, be it an
// earlier one that has come back.
func (v *view) replaced(t *task) bool {
	return slices.ContainsFunc(v.slot(t.rec.Slot).tasks, func(h *task) bool {
		return h != t && h.live() && h.rec.Hash == t.rec.Hash
	})
}

// successor is the task that has taken t's place, if there is one: a later one
// of the same slot and template.
func (v *view) successor(t *task) *task {
	for _, h := range v.slot(t.rec.Slot).tasks {
		if h != t && h.live() && h.rec.Hash == t.rec.Hash && h.rec.Created.After(t.rec.Created) {
			return h
		}
	}
	return nil
}

// heir is t's successor, if that is there to stay.
func (v *view) heir(t *task) *task {
	if h := v.successor(t); h != nil && !h.leaving() {
		return h
	}
	return nil
}

// dismissed reports whether t is not to have a successor.
func dismissed(t *task) bool {
	return t.rec.Stop != nil && t.rec.Stop.Reason != record.ReasonDrained && t.rec.Stop.Reason != record.ReasonNodeLost
}

// proven reports whether t was worth keeping up: it has served, and, if it is
// of a template that failed, for as long as one must to count.
func (v *view) proven(t *task) bool {
	if !everReady(t) {
		return false
	}
	if t.rec.Hash != v.work.Hash && t.rec.Hash != v.rollout.Hash {
		return true
	}
	if t.available() {
		return v.settles(t)
	}
	until := v.now
	if t.over() {
		until = t.status.Since
	}
	return until.Sub(t.status.Ready) >= v.work.Update.Monitor
}

// fillUp is what is done for a service whose rollout failed for want of room, of
// a network or of what it depends on: nothing is wrong with its template, so missing replicas are
// started whenever that becomes possible. Tasks of older templates are left
// alone. The rollout stays failed: its result has been told.
func (v *view) fillUp() {
	v.anyTemplate = true
	v.survey()
	v.converge()
}
