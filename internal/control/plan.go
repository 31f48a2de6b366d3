package control

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// Plan is what is to be done.
type Plan struct {
	// Writes make the decisions true. Committed in this order, in transactions
	// of any size, each prefix of them leaves a state from which the next plan
	// comes to the same end.
	Writes []store.Write
	// Events say what was decided, and seen, and why.
	Events []Event
	// after says of each event how many of the writes come before it: the last
	// of them is what it tells of.
	after []int
	// Wake is when to plan again if nothing changes before; zero is never.
	Wake time.Time
}

// Plan decides about all services that something has changed for since the
// last Plan, and costs nothing for the others. The state then expects to see
// the writes by Apply before it is planned again; if they cannot be committed,
// it is void.
func (s *State) Plan(now time.Time) Plan {
	s.now = now
	s.timers.expire(now)
	p := Plan{Events: s.events, after: make([]int, len(s.events))}
	s.events = nil
	order := s.inOrder()
	for _, svc := range order {
		s.spare(svc)
	}
	for _, svc := range order {
		s.plan(svc, &p)
	}
	clear(s.dirty)
	p.Writes = append(p.Writes, s.forgetEvictions()...)
	p.Writes = append(p.Writes, s.kept.forget()...)
	p.Writes = append(p.Writes, s.resize()...)
	p.Wake = s.timers.next()
	return p
}

// inOrder returns the services to be planned, the more important ones first:
// they get the room there is.
func (s *State) inOrder() []*service {
	return slices.SortedFunc(maps.Keys(s.dirty), func(a, b *service) int {
		return cmp.Or(cmp.Compare(b.work.Request.Priority, a.work.Request.Priority), cmp.Compare(a.key, b.key))
	})
}

func (s *State) plan(svc *service, p *Plan) {
	s.timers.set(&svc.timer, time.Time{})
	delete(s.hungry, svc)
	s.unawait(svc)
	if svc.job != nil && svc.spec == 0 {
		s.planJob(svc, p)
		return
	}
	if svc.spec == 0 {
		s.remove(svc, p)
		return
	}
	v := &view{
		work: svc.work, spec: svc.spec, created: svc.created, tasks: svc.tasks, now: s.now, slots: s.slots,
		rollout: new(record.Rollout), directive: svc.directive, rehearsed: s.rehearsed,
	}
	invalid := svc.invalid
	if svc.rollout != nil {
		*v.rollout = *svc.rollout
	}
	if r := v.rollout.Rollback; r != nil && v.rollout.Spec == svc.spec {
		back := s.earlier(svc, record.Mark{Revision: r.Revision, Hash: r.Hash})
		v.work, invalid = &back.work, back.err
		own := *r
		v.rollout.Rollback = &own
	} else {
		v.last = s.lastCompleted(svc)
	}
	if err := s.shape(svc, v); err != nil && invalid == nil {
		invalid = err
	}
	var frontend *record.Frontend
	frontend, v.blocked = s.front(svc, v.work, invalid)
	fronts := v.work
	v.adopt = func(t *task) bool { return s.adopt(t, v.work) }
	s.depend(svc, v)
	var doubter *view
	if s.config.doubt != nil {
		all, rollout := *v, *v.rollout
		doubter = &all
		doubter.rollout, doubter.slots = &rollout, nil
	}
	v.leaveCalm(svc)
	v.decide()
	if doubter != nil && v.calm > 0 {
		if why := doubter.doubt(svc, v); why != "" {
			s.config.doubt(why)
		}
	}
	if now := v.fronts(); now != fronts {
		if f, blocked := s.front(svc, now, nil); blocked == nil {
			frontend = f
		}
	}
	frontend = s.share(svc, v, frontend)
	frontend, ceded := s.cede(svc, frontend)
	if r := v.rollout.Rollback; r != nil && r.Message == "" {
		r.Message = ceded
	}
	s.slots = v.slots
	placed := s.place(v)
	v.yield(placed.tasks)
	switch {
	case placed.invalid && v.attempt().State == record.Progressing:
		a := v.attempt()
		a.State, a.Ended, a.Reason, a.Message = record.RolloutFailed, s.now, record.WhySpec, placed.unplaced
	case placed.unplaced != "":
		s.hungry[svc] = struct{}{}
	}
	v.rollout.Unplaced = cmp.Or(placed.unplaced, v.stuck)
	v.rollout.Erase = v.work.Stateful != nil && v.work.Stateful.EraseRemoved
	v.tally(placed.tasks)
	s.timers.set(&svc.timer, v.wake)

	w := &writer{plan: p, service: svc, now: s.now, cause: s.cause(svc, v), unplaced: placed.decision}
	if svc.unscaled() {
		w.delete(record.Scales + svc.key)
	}
	w.frontend(frontend)
	w.rollout(v.rollout, svc.rollout)
	for i := range v.failed {
		w.failed(v.failed[i])
	}
	for i := range placed.tasks {
		w.place(&placed.tasks[i], w.whyStart(v, &placed.tasks[i]), placed.decisions[placed.tasks[i].ID])
	}
	w.measure(v, v.work.Measure)
	for _, t := range v.resizes {
		if !v.told[t] {
			w.resize(t, v.work)
		}
	}
	for _, t := range v.fetches {
		if !v.told[t] {
			w.fetch(t, v.work)
		}
	}
	for _, st := range v.stops {
		w.stop(st)
	}
	for _, t := range v.fenced {
		w.fence(t)
	}
	w.preempt(&placed)
	for _, t := range v.removes {
		w.remove(t)
	}
	if st := svc.work.Stateful; st != nil && st.EraseScaled {
		s.erase(w, svc, true, svc.work.Replicas)
	}
	v.soothe(svc)
}

// preempt stops the tasks that what was placed needs the room of.
func (w *writer) preempt(placed *placement) {
	for _, t := range placed.victims {
		cause := w.cause
		cause.Actor, cause.Trigger = record.ActorPlanner, "task/"+placed.makesRoom[t]
		victim := &writer{plan: w.plan, service: t.service, now: w.now, cause: cause}
		// Its own service, less important and so yet to be planned, must not
		// stop it once more.
		t.own().Stop = victim.stop(stop{t, record.ReasonPreempted})
	}
}

// shape completes a view of a service that is more than a number of replicas.
func (s *State) shape(svc *service, v *view) (err error) {
	if v.work.Global {
		if v.global, v.work, v.tasks, err = s.globalize(svc, v.work, v.rollout.Slots); err != nil {
			v.work, v.tasks = svc.work, svc.tasks
			return err
		}
	}
	if v.last != nil && v.last.Global {
		if v.globalBack, v.last, _, err = s.globalize(svc, v.last, v.rollout.Slots); err != nil {
			v.last = nil // there is nothing to go back to
		}
	}
	if v.work.Stateful != nil {
		v.epoch, v.volumes, v.base = s.revision, svc.volumes, s.before(svc, v.work, v.rollout)
	}
	return nil
}

// remove plans a service whose record is gone: its tasks stop, and when the
// last is over what was derived from the record goes too.
func (s *State) remove(svc *service, p *Plan) {
	w := &writer{plan: p, service: svc, now: s.now, cause: s.cause(svc, nil)}
	if len(svc.tasks) == 0 && svc.erasable() {
		s.erase(w, svc, false, 0)
		return
	}
	if len(svc.tasks) == 0 {
		if svc.scale != nil {
			w.delete(record.Scales + svc.key)
		}
		if svc.frontend == nil && svc.frontendRaw == nil && svc.rollout == nil {
			return // volumes are kept
		}
		if svc.frontend != nil || svc.frontendRaw != nil {
			w.delete(record.Frontends + svc.key)
		}
		if svc.rollout != nil {
			w.delete(record.Rollouts + svc.key)
		}
		w.event(Event{Kind: ServiceGone, Reason: record.ReasonRemoved})
		return
	}
	for _, t := range svc.tasks {
		switch {
		case t.over(), t.lost() && t.node.rec == nil:
			w.remove(t)
		case t.rec.Stop == nil:
			w.stop(stop{t, record.ReasonRemoved})
		}
	}
}

// writer turns decisions about one service into writes and events.
type writer struct {
	plan    *Plan
	service *service
	now     time.Time
	cause   record.Cause // of events that do not say their own
	// unplaced is the scheduler's decision that left replicas without a place.
	unplaced *scheduler.Decision
}

// event tells of what was written last.
func (w *writer) event(e Event) {
	e.At, e.Namespace, e.Service = w.now, w.service.namespace, w.service.name
	if e.Cause.Actor == "" {
		e.Cause = w.cause
	}
	e.Cause.Reason = cmp.Or(e.Reason, e.Cause.Reason)
	e.Reason = cmp.Or(e.Reason, e.Cause.Reason)
	w.plan.Events = append(w.plan.Events, e)
	w.plan.after = append(w.plan.after, len(w.plan.Writes))
}

func (w *writer) put(key string, value any) {
	w.plan.Writes = append(w.plan.Writes, store.Put(key, encode(value)))
}

func (w *writer) delete(key string) {
	w.plan.Writes = append(w.plan.Writes, store.Delete(key))
}

// encode is JSON. The records are plain data, of which nothing can fail: their
// raw parts came out of a JSON document.
func encode(value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("control: encode %T: %v", value, err))
	}
	return data
}

func (w *writer) frontend(f *record.Frontend) {
	svc := w.service
	switch {
	case f == nil && svc.frontend != nil:
		w.delete(record.Frontends + svc.key)
	case f == nil:
		return
	default:
		data := encode(f)
		if bytes.Equal(data, svc.frontendRaw) {
			return
		}
		w.plan.Writes = append(w.plan.Writes, store.Put(record.Frontends+svc.key, data))
	}
	w.event(Event{Kind: FrontendChanged, Revision: svc.work.Revision})
}

func (w *writer) rollout(r, old *record.Rollout) {
	data := encode(r)
	if bytes.Equal(data, w.service.rolloutRaw) {
		return
	}
	w.plan.Writes = append(w.plan.Writes, store.Put(record.Rollouts+w.service.key, data))
	began := old == nil || old.Spec != r.Spec
	e := Event{Revision: r.Revision}
	if began {
		e.Kind = RolloutStarted
		w.event(e)
	}
	if !began && r.Phase != old.Phase && r.State == record.Progressing {
		e.Kind, e.Message, e.Cause = RolloutAdvanced, string(r.Phase), w.cause
		e.Cause.Actor = record.ActorPlanner
		if d := w.service.directive; d != nil && d.Action == record.Promote && d.From == old.Phase {
			e.Cause.Actor = cmp.Or(d.Actor, record.ActorApplication)
		}
		w.event(e)
		e.Message, e.Cause = "", record.Cause{}
	}
	var waited []record.Unmet
	if old != nil {
		waited = old.Waiting
	}
	w.waiting(r.Revision, waited, r.Waiting)
	if r.Unplaced != "" && (old == nil || old.Unplaced != r.Unplaced) {
		e.Kind, e.Message, e.Decision = TaskUnplaced, r.Unplaced, w.unplaced
		w.event(e)
		e.Message, e.Decision = "", nil
	}
	if r.State != record.Progressing && (began || old.State != r.State) {
		w.ended(&r.Attempt, RolloutSucceeded, RolloutStopped)
	}
	if r.Rollback == nil {
		return
	}
	began = began || old.Rollback == nil
	if began {
		w.event(Event{Kind: RollbackStarted, Revision: r.Rollback.Revision})
	}
	if r.Rollback.State != record.Progressing && (began || old.Rollback.State != r.Rollback.State) {
		w.ended(r.Rollback, RollbackSucceeded, RollbackStopped)
	}
}

func (w *writer) ended(a *record.Attempt, completed, failed EventKind) {
	e := Event{Kind: completed, Revision: a.Revision, Reason: a.Reason, Message: a.Message, Failure: a.Failure}
	if a.State == record.RolloutFailed {
		e.Kind = failed
	}
	w.event(e)
}

func (w *writer) place(t *record.Task, cause record.Cause, d *scheduler.Decision) {
	w.put(record.Key(record.Tasks, t.Node, t.ID), t)
	w.event(Event{Kind: TaskPlaced, Task: t.ID, Slot: t.Slot, Node: t.Node, Revision: t.Revision, Cause: cause, Decision: d})
}

func (w *writer) about(t *task, e Event) {
	e.Task, e.Slot, e.Node, e.Revision = t.rec.ID, t.rec.Slot, t.rec.Node, t.rec.Revision
	w.event(e)
}

func (w *writer) failed(t *task) {
	cause := w.cause
	cause.Actor, cause.Trigger = record.ActorAgent(t.rec.Node), ""
	w.about(t, Event{Kind: TaskFailed, Reason: record.ReasonFailed, Failure: failure(t), Message: failure(t).Message, Cause: cause})
}

func (w *writer) stop(st stop) *record.Stop {
	t := *st.task.rec
	t.Stop = &record.Stop{Reason: st.reason, At: w.now}
	w.put(record.Key(record.Tasks, t.Node, t.ID), &t)
	w.about(st.task, Event{Kind: TaskStopping, Reason: st.reason, Cause: w.whyStop(st.task, st.reason)})
	return t.Stop
}

// fence tells a task to stop whose node runs it no more, whatever it was told
// before.
func (w *writer) fence(t *task) {
	rec := *t.rec
	rec.Stop = &record.Stop{Reason: record.ReasonNodeLost, At: w.now}
	if t.rec.Stop != nil {
		*rec.Stop = *t.rec.Stop
	}
	rec.Stop.Fenced = t.node.rec.Registration
	w.put(record.Key(record.Tasks, rec.Node, rec.ID), &rec)
	w.about(t, Event{Kind: TaskStopping, Reason: record.ReasonNodeLost})
}

func (w *writer) remove(t *task) {
	w.delete(record.Key(record.Tasks, t.rec.Node, t.rec.ID))
	e := Event{Kind: TaskDeleted, Cause: w.cause}
	e.Cause.Actor = record.ActorPlanner
	if t.status != nil {
		e.State = t.status.State
	}
	switch {
	case t.rec.Stop != nil:
		e.Reason = t.rec.Stop.Reason
	case t.over() && t.status.State == record.Completed:
		e.Reason = record.ReasonFinished
	case t.over():
		e.Reason = record.ReasonFailed
	default:
		e.Reason = record.ReasonNodeLost
	}
	w.about(t, e)
}
