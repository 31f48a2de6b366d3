package control

import (
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// A task that differs from what is wanted in resources alone is not replaced,
// where its node can change them and has the room: its record is rewritten, its
// processes run on, and its agent says when the new bounds are in force. It is a
// change like another: it takes its turn within the pace, it counts once it has
// stayed ready for the monitor time with the new bounds, and a process that the
// kernel kills for them is a failure of the revision, after which the old bounds
// are brought back in the same way. What the kernel refuses is replaced.

// resize has the outdated task of a slot changed in place, if that can be.
func (v *view) resize(s *slot) bool {
	t := v.bestOutdated(s)
	if t == nil || s.live != 1 || v.anyTemplate || !v.resizable(t) || v.adopt == nil || !v.adopt(t) {
		return false
	}
	v.resizes = append(v.resizes, t)
	return true
}

// resizable reports whether t differs in nothing but what can be changed while
// it runs, and its node has not refused that.
func (v *view) resizable(t *task) bool {
	w := v.work
	switch {
	case w.Shape == "" || t.rec.Shape != w.Shape || t.rec.Hash == w.Hash || v.spared(t.rec.Slot):
		return false
	case t.node.rec == nil || !t.node.rec.Resizes || !t.node.alive || t.node.leaving():
		return false
	case v.global != nil && v.global.node[t.rec.Slot] != t.node.id, w.Stateful != nil && !t.rec.Fenced():
		return false
	}
	return t.status == nil || t.status.Refused != w.Hash
}

// adopt gives t what a task of w takes, if its node has room for that.
func (s *State) adopt(t *task, w *Workload) bool {
	n, ok := s.cluster.Node(t.node.id)
	if !ok {
		return false
	}
	free, had, want := n.Free(), t.rec.Request.Resources, w.Request.Resources
	if want.CPU > had.CPU+max(free.CPU, 0) || want.Memory > had.Memory+max(free.Memory, 0) || want.Disk > had.Disk+max(free.Disk, 0) {
		return false
	}
	t.own().Request.Resources = want
	s.rebind(t)
	return true
}

// rebind tells the scheduler that a task takes something else than before.
func (s *State) rebind(t *task) {
	if s.cluster.Release(t.rec.ID) == nil {
		s.bind(t)
		s.feed()
	}
}

// resize rewrites the record of a task that is changed in place.
func (w *writer) resize(t *task, work *Workload) {
	rec := t.own()
	rec.Revision, rec.Hash, rec.Template, rec.Resized, rec.Next = work.Revision, work.Hash, work.Template, w.now, nil
	t.since = time.Time{}
	w.put(record.Key(record.Tasks, rec.Node, rec.ID), rec)
	w.about(t, Event{Kind: TaskResized, Reason: record.ReasonUpdated})
}

// inForce reports whether the task runs with the bounds that its record has.
func (t *task) inForce() bool {
	return t.rec.Resized.IsZero() || t.status != nil && t.status.InForce == t.rec.Hash
}

// refused reports whether its node cannot give the task the bounds that its
// record has: it runs on with those from before, until it is replaced.
func (t *task) refused() bool {
	return !t.rec.Resized.IsZero() && t.status != nil && t.status.Refused == t.rec.Hash
}

// choked notes processes that were killed for bounds that were just changed. It
// reports whether that is so of the only ones that have them.
func (v *view) choked() (hopeless bool) {
	a := v.attempt()
	if a.State != record.Progressing {
		return false
	}
	for _, t := range v.tasks {
		if t.rec.Resized.IsZero() || !t.live() || t.rec.Hash != v.work.Hash || !t.inForce() || v.settles(t) {
			continue
		}
		if f := t.status.Failure; f != nil && f.Kind == record.FailedOOM && f.At.After(t.status.InForceSince) {
			own := *f
			own.Message = fmt.Sprintf("%s, with the memory limit of revision %d", f.Message, v.work.Revision)
			a.Failure = &own
			hopeless = hopeless || a.Settled == 0
		}
	}
	return hopeless
}
