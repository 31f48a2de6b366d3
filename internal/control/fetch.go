package control

import (
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Where an old task stops before its successor starts, nobody serves while the
// successor's images are pulled, and if they cannot be, the old task has been
// stopped for nothing. So its agent is asked to have them ready first, by the
// task's own record, and answers in its status: what is asked for has the life
// of the task, and nothing is left to clear up.
//
// The successor is expected on the same node, which has the room that the old
// task gives back. One that goes elsewhere pulls there, as it always did.

// fetched reports whether nothing speaks against stopping the outdated tasks of
// a slot before their successor is there, as far as its images are concerned,
// and has their agents asked for these.
func (v *view) fetched(s *slot) bool {
	if v.rehearsed {
		return true
	}
	all := true
	for _, t := range s.tasks {
		if v.outdated(t) && !v.ready(t) {
			all = false
		}
	}
	return all
}

// ready reports whether the images of t's successor are on its node, or will not
// be asked for there.
func (v *view) ready(t *task) bool {
	switch {
	case !t.available(): // it is not missed
		return true
	case t.node.rec == nil || !t.node.rec.Fetches, t.node.leaving(), t.rec.Hash == v.work.Hash, v.spared(t.rec.Slot):
		return true
	case !v.work.fetches(t):
		return true
	}
	if t.rec.Next == nil || t.rec.Next.Hash != v.work.Hash {
		v.fetches = append(v.fetches, t)
		return false
	}
	f := t.status.Next
	return f != nil && f.Hash == v.work.Hash && f.Done
}

// fetches reports whether a task of w needs an image that t does not run, or one
// that is to be asked for each time.
func (w *Workload) fetches(t *task) bool {
	return slices.ContainsFunc(w.Images, func(i record.NextImage) bool {
		return i.Pull == "always" || !slices.Contains(t.rec.Request.Images, i.Ref)
	})
}

// misfetched notes why images cannot be had that tasks wait for, which counts as
// a failure of theirs would: it reports whether trying again is in vain, with
// none of this template that ever worked. Nothing has been stopped for it.
func (v *view) misfetched() (hopeless bool) {
	a := v.attempt()
	if a.State != record.Progressing {
		return false
	}
	for _, t := range v.tasks {
		if t.rec.Next == nil || !t.live() || t.rec.Next.Hash != v.work.Hash || t.status == nil {
			continue
		}
		if f := t.status.Next; f != nil && f.Hash == v.work.Hash && f.Failure != nil {
			a.Failure = f.Failure
			hopeless = hopeless || f.Failure.Permanent && a.Settled == 0
		}
	}
	return hopeless
}

// fetch asks a task's agent for what is to come after it.
func (w *writer) fetch(t *task, work *Workload) {
	t.own().Next = &record.Next{Hash: work.Hash, Images: work.Images}
	w.put(record.Key(record.Tasks, t.rec.Node, t.rec.ID), t.rec)
}
