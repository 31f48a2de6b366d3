package control

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Most replicas of a large service are well most of the time, and there is nothing
// to decide about them. A task is calm when it was found to be the only one of its
// slot, as it is wanted, and settled. It stays so until something of it changes:
// its record, its status, whether it is to be moved, its node, or its service's
// spec. Where the rollout has completed, a plan looks at the others alone, and
// only counts the calm ones: so a task that fails costs the same in a service of
// ten and in one of ten thousand.

// disturb has a task looked at by the next plan of its service.
func (t *task) disturb() {
	if t.calm {
		t.calm = false
		t.service.restless = append(t.service.restless, t)
	}
}

// rest drops from the restless tasks of a service those that are calm, or gone.
func (svc *service) rest() {
	svc.restless = slices.DeleteFunc(svc.restless, func(t *task) bool { return t.calm || t.gone })
}

// disturbSlot does so for all tasks of a slot, of which one is at index at.
func (svc *service) disturbSlot(at int) {
	number := svc.tasks[at].rec.Slot
	for i := at; i >= 0 && svc.tasks[i].rec.Slot == number; i-- {
		svc.tasks[i].disturb()
	}
	for i := at + 1; i < len(svc.tasks) && svc.tasks[i].rec.Slot == number; i++ {
		svc.tasks[i].disturb()
	}
}

// disturbAll does so for all tasks of a service.
func (svc *service) disturbAll() {
	for _, t := range svc.tasks {
		t.disturb()
	}
}

// plain reports whether nothing is decided about the view but to keep up a
// service whose rollout has completed.
func (v *view) plain() bool {
	r := v.rollout
	return r.Spec == v.spec && r.State == record.RolloutCompleted && r.Rollback == nil && len(r.Held) == 0 && len(r.Waiting) == 0 &&
		v.work.Stateful == nil && !v.work.Global && v.global == nil && v.base == nil && v.work.Hash == r.Hash &&
		!v.trying() && v.directive == nil && v.blocked == nil && v.unmet == nil
}

// leaveCalm has the view look only at what is not calm.
func (v *view) leaveCalm(svc *service) {
	if !v.plain() {
		return
	}
	svc.rest()
	restless := slices.Clone(svc.restless)
	slices.SortFunc(restless, compareTasks)
	v.all = v.tasks
	v.calm, v.tasks = len(v.tasks)-len(restless), restless
}

// wake has the view look at all tasks.
func (v *view) rouse() {
	if v.calm > 0 {
		v.tasks, v.calm = v.all, 0
		v.survey()
	}
}

// calmSlots are the slots that the view does not look at.
func (v *view) calmSlots() map[int]bool {
	if v.calm == 0 {
		return nil
	}
	calm := make(map[int]bool, v.calm)
	for _, t := range v.all {
		if t.calm {
			calm[t.rec.Slot] = true
		}
	}
	return calm
}

// soothe finds out which tasks are calm from now on.
func (v *view) soothe(svc *service) {
	if !v.plain() {
		return
	}
	defer svc.rest()
	failed := *v.failures()
	for i := range v.slots {
		s := &v.slots[i]
		if len(s.tasks) != 1 || s.current != s.tasks[0] || !s.settled || s.dropped {
			continue
		}
		t := s.current
		_, remembered := failed[s.number]
		calm := !remembered && v.serves(t) && !v.told[t] && !v.started[s.number] && !t.evicted && !t.node.leaving() &&
			t.rec.Stop == nil && t.rec.Hash == v.work.Hash && t.rec.Measure == v.work.Measure && t.rec.Next == nil && !t.refused()
		if calm {
			t.calm = true
		} else {
			t.disturb()
		}
	}
}

// doubt decides about all tasks too, and says where that comes to something else.
// It is for tests.
func (v *view) doubt(svc *service, decided *view) string {
	v.decide()
	for _, x := range []struct {
		what      string
		all, some any
	}{
		{"starts", v.starts, decided.starts}, {"stops", v.stops, decided.stops}, {"removes", v.removes, decided.removes},
		{"failed", v.failed, decided.failed}, {"wake", v.wake, decided.wake}, {"rollout", v.rollout, decided.rollout},
	} {
		if !reflect.DeepEqual(x.all, x.some) && fmt.Sprintf("%+v", x.all) != fmt.Sprintf("%+v", x.some) {
			return fmt.Sprintf("%s of %s, with %d calm: %+v, and of all tasks %+v", x.what, svc.key, decided.calm, x.some, x.all)
		}
	}
	return ""
}
