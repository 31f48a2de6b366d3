package control

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// The slots of a stateful service are identities: always those from 0 to the
// number of replicas. A slot is run at most once, and one function decides it:
// vacant, without which no task of a slot is started.
//
// A task on a node that is heard of has stopped when its agent says so. One on a
// node that is not has stopped when the node's own promise is due, see
// record.Node.Fence, or when someone vouches for it: by NodeSpec.Fenced, or by
// deleting the node's record. And then it is replaced in two steps. First it is
// told to stop, with the registration that is over; only a plan that has seen this
// commit, and that registration still silent, places the next. An agent that
// returns starts what is fenced only after it is registered and has read its
// tasks since. So either it registered before the first step, and the leader sees
// that with it and does not take the second; or it reads the first, and starts
// nothing, and what it had was over by then. That it was told to stop before, for
// whatever reason, proves nothing: the first step is taken in each silence anew.
// See node/tenure.go for the other half.

// vacant reports whether no task of a slot runs, for certain.
func (v *view) vacant(number int) bool {
	s := v.slot(number)
	return s == nil || !slices.ContainsFunc(s.tasks, (*task).mayRun)
}

// mayRun reports whether t may run, now or later. Its slot's next must wait.
func (t *task) mayRun() bool {
	switch {
	case t.over(), t.node.rec == nil:
		return false
	case !t.lost(), !t.node.stopped(t.rec.Fenced()):
		return true
	}
	return t.rec.Stop == nil || t.rec.Stop.Fenced != t.node.rec.Registration
}

// stopped reports whether a node that is lost runs nothing any more, or, if only
// that is asked, nothing that is fenced.
func (n *node) stopped(fenced bool) bool {
	return n.rec == nil || n.rec.Registration != "" && (n.vouched() || fenced && n.expired)
}

// vouched reports whether someone vouches that nothing of the node runs.
func (n *node) vouched() bool {
	return n.rec != nil && !n.alive && n.spec.Fenced != "" && n.spec.Fenced == n.rec.Registration
}

// fence takes the first step for tasks that have stopped without their agent
// saying so.
func (v *view) fence() {
	for _, t := range v.tasks {
		if t.mayRun() && t.lost() && t.node.stopped(t.rec.Fenced()) {
			v.fenced = append(v.fenced, t)
			if v.told == nil {
				v.told = map[*task]bool{}
			}
			v.told[t] = true
		}
	}
}

// waits notes why a slot has no task, where that is nobody's news to bring.
func (v *view) waits(number int) {
	for _, t := range v.slot(number).tasks {
		if !t.mayRun() || !t.lost() || v.told[t] || v.stuck != "" {
			continue
		}
		v.stuck = fmt.Sprintf("slot %d: its task may still run on node %s, which is lost", number, t.node.id)
		if t.node.rec.Fence == 0 || !t.rec.Fenced() {
			v.stuck += " and has not promised to stop it by itself; bring the node back, or Fence it if it is known to be dead"
		}
	}
}

// dropSlots stops the slots that are too many, from the highest down.
func (v *view) dropSlots() {
	for i := len(v.slots) - 1; i >= 0 && v.slots[i].number >= v.work.Replicas; i-- {
		s := &v.slots[i]
		s.dropped = s.live > 0
		for _, t := range s.tasks {
			v.stop(t, record.ReasonScaled)
		}
		if s.live+s.ending > 0 && !v.work.Stateful.Parallel {
			return
		}
	}
}

// surplus reports whether t is of a slot that is to be no more.
func (v *view) surplus(t *task) bool {
	return v.work.Stateful != nil && t.rec.Slot >= v.work.Replicas
}

// fillSlots starts the slots that have no task. In order, one that is new waits
// for all below it.
func (v *view) fillSlots() {
	below := true
	for n := range v.work.Replicas {
		s := v.slot(n)
		if s != nil && s.live > 0 {
			below = below && (s.settled || s.current == nil && s.available > 0)
			continue
		}
		if below || v.work.Stateful.Parallel || s != nil || v.rollout.Slots[n].Failures > 0 {
			v.startIn(n, nil)
		}
		below = false
	}
}

// rollSlots replaces outdated tasks, those that do not serve first, and then
// from the highest slot down: one at a time, or in parallel as many as the pace
// allows. The promise is that of converge.
func (v *view) rollSlots() {
	var candidates []*slot
	settled, serving := 0, 0
	for i := range v.slots {
		s := &v.slots[i]
		if s.dropped || s.live == 0 {
			continue
		}
		if s.settled {
			settled++
		}
		if s.settled || s.current == nil && s.available > 0 {
			serving++
		}
		if s.current == nil {
			candidates = append(candidates, s)
		}
	}
	slices.SortFunc(candidates, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(min(a.available, 1), min(b.available, 1)), b.number-a.number)
	})
	p := pace{parallel: 1, unavailable: 1}
	if v.work.Stateful.Parallel {
		p = v.pace()
	}
	budget := p.parallel - (v.work.Replicas - settled - len(candidates))
	for _, s := range candidates {
		if budget > 0 && v.resize(s) {
			budget--
			continue
		}
		if s.available > 0 {
			if budget <= 0 || serving-1 < v.floor(v.bestOutdated(s), p) {
				return
			}
			serving--
		}
		budget--
		if !v.fetched(s) {
			continue
		}
		for _, t := range s.tasks {
			if v.outdated(t) {
				v.stop(t, v.outdatedBy(t))
			}
		}
	}
}

// spared reports whether a slot keeps its revision in an update.
func (v *view) spared(slot int) bool {
	return v.work.Stateful != nil && v.rollout.Rollback == nil && slot < v.work.Stateful.Partition
}

// before is the workload that slots below the partition are started with: the
// last that completed, of all slots that is; nil when there is none but the
// present one.
func (s *State) before(svc *service, w *Workload, r *record.Rollout) *Workload {
	if w.Stateful == nil || w.Stateful.Partition == 0 || !r.Created.Equal(svc.created) || len(r.Completed) == 0 {
		return nil
	}
	last := r.Completed[len(r.Completed)-1]
	if last.Hash == w.Hash {
		return nil
	}
	if e := s.earlier(svc, last); e.err == nil {
		return &e.work
	}
	return nil
}

// tidySlots removes what is over. A lost task stays as it is until it is known
// to have stopped: it may come back as if nothing had been.
func (v *view) tidySlots() {
	for _, t := range v.tasks {
		if t.over() || t.lost() && t.node.rec == nil {
			v.removes = append(v.removes, t)
		}
	}
}

// changeVolume takes in where a slot's volume is.
func (s *State) changeVolume(key string, c store.Change) error {
	if old := s.volumes[key]; old != nil {
		delete(s.volumes, key)
		delete(old.node.volumes, old)
		old.service.volumes = slices.DeleteFunc(old.service.volumes, func(v *slotVolume) bool { return v == old })
		s.mark(old.service)
		s.forget(old.service)
		s.forgetNode(old.node)
	}
	if c.Deleted {
		return nil
	}
	var rec record.Volume
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return err
	}
	parts := record.Split(key, "", 2)
	if parts == nil {
		return fmt.Errorf("want a key of the form NODE/NAME, have %q", key)
	}
	svc, err := s.service(rec.Namespace + "/" + rec.Service)
	if err != nil {
		return err
	}
	v := &slotVolume{Volume: rec, service: svc, node: s.node(parts[0])}
	s.volumes[key] = v
	v.node.volumes[v] = struct{}{}
	svc.volumes = append(svc.volumes, v)
	s.mark(svc)
	return nil
}

// slotVolume is a slot's volume with the node that says so.
type slotVolume struct {
	record.Volume
	service *service
	node    *node
	twin    *slotVolume // see State.Clone
}

// reach is from where a start can reach the volumes that its slot has already.
func (v *view) reach(slot int) []scheduler.Volume {
	if v.work.Stateful == nil {
		return nil
	}
	var out []scheduler.Volume
	for _, template := range v.work.Stateful.Volumes {
		need := scheduler.Volume{}
		for _, have := range v.volumes {
			if have.Slot == slot && have.Template == template && have.node.rec != nil {
				need.Name = have.Name
				need.Accessible = append(need.Accessible, have.Reach)
			}
		}
		if len(need.Accessible) > 0 {
			slices.SortFunc(need.Accessible, func(a, b map[string]string) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			need.Accessible = slices.CompactFunc(need.Accessible, maps.Equal)
			out = append(out, need)
		}
	}
	return out
}

// erase deletes the volumes of slots that do not come back, one node at a time
// for each slot. The order to do it is a task that is to stop: its agent deletes
// what it holds, as of any other. So it needs no protocol of its own, and it
// keeps the slot until it is done.
func (s *State) erase(w *writer, svc *service, scaled bool, from int) {
	busy := map[int]bool{}
	for _, t := range svc.tasks {
		busy[t.rec.Slot] = true
	}
	at := map[int]*slotVolume{}
	for _, have := range svc.volumes {
		if have.Slot < from || busy[have.Slot] || !have.node.alive || have.node.rec == nil {
			continue
		}
		if o := at[have.Slot]; o == nil || have.node.id < o.node.id {
			at[have.Slot] = have
		}
	}
	reason := record.ReasonRemoved
	if scaled {
		reason = record.ReasonScaled
	}
	for _, n := range slices.Sorted(maps.Keys(at)) {
		t := record.Task{
			ID: s.newID(&Workload{Namespace: svc.namespace, Name: svc.name}, n, nil), Node: at[n].node.id,
			Namespace: svc.namespace, Service: svc.name, Slot: n, Hash: record.ReasonErase,
			Created: s.now, Template: json.RawMessage("{}"), Epoch: s.revision, Erase: true,
			Stop: &record.Stop{Reason: reason, At: s.now},
		}
		w.put(record.Key(record.Tasks, t.Node, t.ID), &t)
		w.event(Event{Kind: VolumesErased, Task: t.ID, Slot: n, Node: t.Node, Reason: reason})
	}
}

// doomed counts the slots without a task whose volumes are about to be deleted.
func (v *view) doomed() int {
	if v.work.Stateful == nil || !v.work.Stateful.EraseScaled {
		return 0
	}
	slots := map[int]bool{}
	for _, have := range v.volumes {
		if have.Slot >= v.work.Replicas && have.node.alive && v.slot(have.Slot) == nil {
			slots[have.Slot] = true
		}
	}
	return len(slots)
}

// erasable reports whether svc has volumes to be deleted before it is gone.
func (svc *service) erasable() bool {
	return svc.rollout != nil && svc.rollout.Erase && len(svc.volumes) > 0
}
