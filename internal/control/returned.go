package control

import (
	"cmp"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// A node that was given up may come back, with its tasks at work as if nothing
// had been. Where a task was replaced there are two then, and its workload says
// which stays: the replacement, and then the original is told to stop as soon as
// it is replaced, to read it when it returns; or the original, and then it is told
// nothing, and the replacement goes once the original has served for as long as
// one must to count. An original that does not serve is waited for as long as for
// any progress of a rollout.
//
// A slot that is run at most once has no choice: its next is started only when the
// original has stopped for certain, so there are never two.

// welcome reports whether t, which is lost and replaced, stays if it returns.
func (v *view) welcome(t *task) bool {
	return v.work.KeepOriginal && t.rec.Stop == nil && v.wanted(t)
}

// original reports whether a was there before b.
func original(a, b *task) bool {
	return cmp.Or(a.rec.Created.Compare(b.rec.Created), cmp.Compare(a.rec.ID, b.rec.ID)) < 0
}

// homecoming is how long an agent has, after its node has returned, to say what
// of its tasks is still there: until then their statuses are of before.
const homecoming = 5 * time.Second

// spare reports whether t can go now, where kept stays in its slot.
func (v *view) spare(t, kept *task) bool {
	var until time.Time
	switch {
	case !v.work.KeepOriginal || kept == nil:
		return true
	case original(kept, t):
		until = kept.node.back.Add(max(v.work.Update.Monitor, homecoming))
	case t.available():
		return true
	case !t.node.alive:
		return false // it went away again, and is lost soon
	default:
		until = t.node.back.Add(v.work.Update.ProgressDeadline)
	}
	if until.After(v.now) {
		v.wakeAt(until)
		return false
	}
	return true
}

// second is the reason for which t goes, where kept stays in its slot.
func (v *view) second(t, kept *task) string { return v.work.second(t, kept) }

func (v *jobView) second(t, kept *task) string { return v.work.second(t, kept) }

func (w *Workload) second(t, kept *task) string {
	if w.KeepOriginal && kept != nil && original(kept, t) {
		return record.ReasonReturned
	}
	return record.ReasonScaled
}

// replacedWho is the task that t took the place of and that is back.
func (t *task) replacedWho() *task {
	for _, o := range t.service.tasks {
		if o != t && o.rec.Slot == t.rec.Slot && o.live() && original(o, t) {
			return o
		}
	}
	return nil
}

// kept is the task of each index that stays, where several run.
func (v *jobView) kept() map[int]*task {
	kept := map[int]*task{}
	for _, t := range v.tasks {
		if !t.live() || !v.mine(t) || t.leaving() {
			continue
		}
		if o := kept[t.rec.Slot]; o == nil || original(t, o) == v.work.KeepOriginal {
			kept[t.rec.Slot] = t
		}
	}
	return kept
}

// untilWhen says what becomes of a task whose node is silent, and when.
func (t *task) untilWhen() string {
	global := t.service.job == nil && t.service.work.Global
	switch p := t.patience(); {
	case t.rec.Stop != nil:
		return "it was told to stop, which it does when the node returns"
	case global:
		return "the task of a global service waits for the node"
	case t.lost():
		return "it is replaced"
	case p < 0:
		return "it is replaced only when the node is fenced or deleted: its service waits for it"
	default:
		return "it is replaced once that has lasted for " + p.Round(time.Millisecond).String()
	}
}
