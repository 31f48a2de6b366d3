package control_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
)

// promises are what every plan must keep, whatever happens. They are computed
// from the store alone, apart from how the planner reasons.
type promises struct {
	s *sim
	// broken is the first that was not kept.
	broken string
}

// watch has every plan of s checked.
func watch(s *sim) *promises {
	p := &promises{s: s}
	s.planned = p.check
	return p
}

func (p *promises) breaks(format string, args ...any) {
	if p.broken == "" {
		p.broken = fmt.Sprintf(format, args...)
	}
}

// serves reports whether a task is ready, on a node that is alive, and not told
// to stop, and whether its template is given traffic.
func (s *sim) serves(t record.Task) bool {
	return s.ready(t) && !slices.Contains(s.rollout(t.Service).Held, t.Hash)
}

func (s *sim) ready(t record.Task) bool {
	st, ok := s.status(t)
	_, alive := s.kv[record.Key(record.Alive, t.Node)]
	_, known := s.kv[record.Key(record.Nodes, t.Node)]
	return ok && alive && known && st.State == record.Ready && t.Stop == nil
}

// check looks at a plan that is about to be carried out.
func (p *promises) check(plan control.Plan) {
	s := p.s
	keys := map[string]bool{}
	retired := map[string]int{} // by service: tasks that served and are stopped for another to take their place
	preempted := map[string]int{}
	resized := map[string]int{} // tasks that are changed in place
	moved := map[string]int{}   // of those that are retired, because they are to go elsewhere
	failed := map[string]bool{}
	next := map[string]record.Rollout{}
	starts, told := map[string][]record.Task{}, map[string]bool{}
	for name := range s.specs {
		next[name] = s.rollout(name)
	}
	for _, w := range plan.Writes {
		if keys[w.Key] {
			p.breaks("%s is written twice in one plan", w.Key)
		}
		keys[w.Key] = true
		if name, ok := strings.CutPrefix(w.Key, record.Rollouts+"default/"); ok && !w.Delete {
			var r record.Rollout
			unmarshal(s.t, w.Value, &r)
			p.result(name, r)
			next[name] = r
		}
		if !strings.HasPrefix(w.Key, record.Tasks) || w.Delete {
			continue
		}
		var t, old record.Task
		unmarshal(s.t, w.Value, &t)
		item, had := s.kv[w.Key]
		if !had {
			p.started(t)
			starts[t.Service] = append(starts[t.Service], t)
			continue
		}
		unmarshal(s.t, item.Value, &old)
		told[t.ID] = true
		if old.Stop != nil {
			p.breaks("%s was told to stop (%s) and is written again", s.alias(t.ID), old.Stop.Reason)
		}
		if t.Stop == nil && t.Hash != old.Hash {
			p.resized(t, old)
			resized[t.Service]++
			delete(told, t.ID)
			continue
		}
		if s.serves(old) { // a plan that moves the traffic stops nothing
			if t.Stop.Reason == record.ReasonUpdated || t.Stop.Reason == record.ReasonRolled || t.Stop.Reason == record.ReasonDrained {
				retired[t.Service]++
			}
			if t.Stop.Reason == record.ReasonDrained {
				moved[t.Service]++
			}
			if t.Stop.Reason == record.ReasonPreempted && s.specs[t.Service].Budget != nil {
				preempted[t.Service]++
			}
		}
	}
	for name, r := range next {
		failed[name] = r.Current().State == record.RolloutFailed
		if _, applied := s.specs[name]; applied {
			p.traffic(name, r, told)
		}
	}
	for name := range starts {
		if !failed[name] {
			p.crowd(name, next[name], starts[name], told)
		}
	}
	for name, n := range preempted {
		serving := 0
		for _, t := range s.tasks(name) {
			if s.ready(t) && !told[t.ID] {
				serving++
			}
		}
		if least := s.specs[name].budget(); serving < least {
			p.breaks("%d tasks of %s are stopped for more important ones, which leaves %d serving, want at least %d", n, name, serving, least)
		}
	}
	for name, n := range resized {
		p.paced(name, n)
	}
	for name, n := range retired {
		sp := s.specs[name]
		if n == 0 || failed[name] && !sp.Update.StopFirst {
			// After a failure, replicas can be missing for good; what is
			// replaced start-first still has its successor there.
			continue
		}
		floor, serving := sp.Replicas-sp.unavailable(), 0
		if sp.Budget != nil && moved[name] == n {
			floor = sp.budget()
		} else if sp.Budget != nil {
			floor = min(floor, sp.budget())
		}
		for _, t := range s.tasks(name) {
			if s.ready(t) && !told[t.ID] && !slices.Contains(next[name].Held, t.Hash) {
				serving++
			}
		}
		if serving < floor {
			p.breaks("%d tasks of %s are stopped to be replaced, which leaves %d serving, want at least %d", n, name, serving, floor)
		}
	}
}

// resized checks a task that is changed in place.
func (p *promises) resized(t, old record.Task) {
	s := p.s
	st, _ := s.status(old)
	switch {
	case t.Shape == "" || t.Shape != old.Shape || t.Resized.IsZero():
		p.breaks("%s is changed in place from %s to %s, which are not alike", s.alias(t.ID), old.Hash, t.Hash)
	case st.State.Final() || st.Refused == t.Hash:
		p.breaks("%s is changed in place to %s, and has ended (%s) or refused that (%s)", s.alias(t.ID), t.Hash, st.State, st.Refused)
	case t.Slot != old.Slot || t.Node != old.Node || !t.Created.Equal(old.Created):
		p.breaks("%s is changed in place, and is another task", s.alias(t.ID))
	}
	var n record.Node
	unmarshal(s.t, s.kv[record.Key(record.Nodes, t.Node)].Value, &n)
	used := t.Request.Resources.Memory
	for _, o := range s.tasks("") {
		if st, _ := s.status(o); o.Node == t.Node && o.ID != t.ID && !st.State.Final() {
			used += o.Request.Resources.Memory
		}
	}
	if grows := t.Request.Resources.Memory > old.Request.Resources.Memory; grows && used > n.Capacity.Memory || !n.Resizes {
		p.breaks("%s is changed in place to %s on %s, which has %d and would have given %d", s.alias(t.ID), t.Hash, t.Node, n.Capacity.Memory, used)
	}
}

// paced checks that no more tasks are changed in place at a time than the update
// says: those that have been and are not in force yet count.
func (p *promises) paced(name string, n int) {
	s, sp, r := p.s, p.s.specs[name], p.s.rollout(name)
	most := max(1, share(cmp.Or(sp.Update.Parallelism, -25), sp.Replicas, up))
	for _, t := range s.tasks(name) {
		if st, _ := s.status(t); !t.Resized.IsZero() && t.Stop == nil && !st.State.Final() && st.InForce != t.Hash && st.Refused != t.Hash && t.Hash == r.Current().Hash {
			n++
		}
	}
	if n > most {
		p.breaks("%d tasks of %s are changed in place at a time, want at most %d", n, name, most)
	}
}

// share is what an amount is of n, rounded up or down.
func share(a control.Amount, n int, round float64) int {
	if a < 0 {
		return int(float64(n)*-float64(a)/100 + round)
	}
	return int(a)
}

const (
	up   = 0.999
	down = 0.0001
)

// unavailable is how many replicas of sp need not serve during a rollout.
func (sp spec) unavailable() int {
	n := share(sp.Update.MaxUnavailable, sp.Replicas, down)
	if sp.Update.StopFirst && sp.Update.MaxUnavailable == 0 {
		n = share(cmp.Or(sp.Update.Parallelism, -25), sp.Replicas, up)
	}
	if sp.Update.StopFirst {
		return max(1, n)
	}
	return n
}

// budget is how many replicas of sp serve at least while tasks are moved.
func (sp spec) budget() int {
	if sp.Budget.Unavailable {
		return sp.Replicas - share(sp.Budget.Amount, sp.Replicas, down)
	}
	return min(sp.Replicas, share(sp.Budget.Amount, sp.Replicas, up))
}

// surge is how many tasks there may be beside others in their slots.
func (sp spec) surge() int {
	if sp.Update.StopFirst {
		return 0
	}
	return max(1, share(cmp.Or(sp.Update.MaxSurge, sp.Update.Parallelism, -25), sp.Replicas, up))
}

// crowd checks that tasks that are started beside others of their set are not
// too many. There are two sets in a trial, and else one.
func (p *promises) crowd(name string, r record.Rollout, starts []record.Task, told map[string]bool) {
	for _, tried := range []bool{true, false} {
		slots, live, beside := map[int]bool{}, 0, false
		in := func(t record.Task) bool { return !trying(r) || (t.Hash == r.Hash) == tried }
		for _, t := range p.s.tasks(name) {
			st, _ := p.s.status(t)
			if _, alive := p.s.kv[record.Key(record.Alive, t.Node)]; alive && in(t) && t.Stop == nil && !told[t.ID] && !st.State.Final() {
				slots[t.Slot] = true
				live++
			}
		}
		for _, t := range starts {
			beside = beside || in(t) && slots[t.Slot]
		}
		for _, t := range starts {
			if in(t) {
				slots[t.Slot] = true
				live++
			}
		}
		if most := p.s.specs[name].surge(); beside && live-len(slots) > most {
			p.breaks("%d tasks of %s are beside others in their slots, want at most %d", live-len(slots), name, most)
		}
		if most := p.s.specs[name].tried(); trying(r) && tried && len(slots) > most {
			p.breaks("%d slots of %s have tasks of what is tried, want at most %d", len(slots), name, most)
		}
	}
}

// trying reports whether a rollout has two sets of tasks.
func trying(r record.Rollout) bool {
	return r.Rollback == nil && (r.Phase == record.PhaseCanary || r.Phase == record.PhaseGreen || r.Phase == record.PhaseWaiting || r.Phase == record.PhaseBake)
}

// tried is how many replicas a new template is tried with.
func (sp spec) tried() int {
	if sp.Update.Strategy == record.Canary {
		return min(sp.Replicas, max(1, share(sp.Update.Canaries, sp.Replicas, up)))
	}
	return sp.Replicas
}

// traffic checks the way from one phase to the next, and that nobody is the worse
// for who gets the traffic.
func (p *promises) traffic(name string, r record.Rollout, told map[string]bool) {
	s, old, sp := p.s, p.s.rollout(name), p.s.specs[name]
	before, after, settled := 0, 0, 0
	for _, t := range s.tasks(name) {
		st, _ := s.status(t)
		if s.serves(t) {
			before++
		}
		if s.ready(t) && !told[t.ID] && !slices.Contains(r.Held, t.Hash) {
			after++
		}
		if s.ready(t) && t.Hash == r.Hash && s.now.Sub(st.Ready) >= sp.Update.Monitor {
			settled++
		}
	}
	if floor := sp.Replicas - sp.unavailable(); !slices.Equal(old.Held, r.Held) && after < min(before, floor) {
		p.breaks("%d of %s serve after the traffic has moved from all but %v to all but %v, want as the %d before, or %d", after, name, old.Held, r.Held, before, floor)
	}
	if old.Spec != r.Spec || r.State != record.Progressing {
		return
	}
	if slices.Contains(old.Held, r.Hash) && !slices.Contains(r.Held, r.Hash) && settled < sp.Replicas {
		p.breaks("%s of %s gets the traffic with %d replicas that have settled, want %d", r.Hash, name, settled, sp.Replicas)
	}
	item, said := s.kv[record.Key(record.Directives, "default", name)]
	var d record.Directive
	if said {
		unmarshal(s.t, item.Value, &d)
	}
	called := said && d.Action == record.Promote && d.From == old.Phase && d.Spec >= r.Began && d.Spec <= r.Spec
	switch {
	case old.Phase == record.PhaseWaiting && trying(old) && !called && r.Phase != record.PhaseCanary && r.Phase != record.PhaseGreen && r.Phase != old.Phase,
		old.Phase == record.PhaseBake && !called && (old.Until.IsZero() || s.now.Before(old.Until)) && r.Phase != record.PhaseCanary && r.Phase != old.Phase:
		p.breaks("%s goes from %s to %s without a call or before its time", name, old.Phase, r.Phase)
	}
}

// started checks a new task.
func (p *promises) started(t record.Task) {
	s := p.s
	r, sp := s.rollout(t.Service), s.specs[t.Service]
	a := r.Current()
	last := record.Mark{}
	if len(r.Completed) > 0 {
		last = r.Completed[len(r.Completed)-1]
	}
	kept := trying(r) && t.Hash == last.Hash // the old set is kept up until the end
	bad := !kept && a.State == record.RolloutFailed && (a.Reason == record.WhyFailures || a.Reason == record.WhyDeadline) ||
		r.Rollback != nil && t.Hash != r.Rollback.Hash
	for _, o := range s.tasks(t.Service) {
		if o.ID == t.ID {
			p.breaks("task ID %s is used twice", t.ID)
		}
		st, _ := s.status(o)
		_, alive := s.kv[record.Key(record.Alive, o.Node)]
		if o.Slot == t.Slot && sp.Update.StopFirst && !st.State.Final() && alive {
			p.breaks("%s is started while %s has not stopped, but order is stop-first", s.alias(t.ID), s.alias(o.ID))
		}
		// Copies are made from tasks that are there.
		if o.Slot == t.Slot && o.Hash == t.Hash && !st.Ready.IsZero() {
			bad = false
		}
	}
	if bad && r.Spec == s.kv[record.Key(record.Services, "default", t.Service)].Revision {
		p.breaks("%s of %s is started although that has failed (%s)", s.alias(t.ID), t.Hash, a.Reason)
	}
	if _, alive := s.kv[record.Key(record.Alive, t.Node)]; !alive {
		p.breaks("%s is started on %s, which is not alive", s.alias(t.ID), t.Node)
	}
}

// result checks, at the moment at which a rollout is said to be completed, that
// it is. Later tasks may come and go.
func (p *promises) result(name string, r record.Rollout) {
	s := p.s
	old := s.rollout(name)
	if old.Spec == r.Spec {
		p.verdict(name, old, r)
	}
	a := r.Current()
	if a.State != record.RolloutCompleted || old.Current().State == a.State && old.Spec == r.Spec {
		return
	}
	n := 0
	for _, t := range s.tasks(name) {
		st, _ := s.status(t)
		_, alive := s.kv[record.Key(record.Alive, t.Node)]
		switch {
		case !alive: // may be lost: nobody can ask
		case t.Hash != a.Hash || t.Stop != nil:
			p.breaks("the rollout of %s is said to have completed with %s of %s left", name, s.alias(t.ID), t.Hash)
		case s.serves(t) && s.now.Sub(st.Ready) >= s.specs[name].Update.Monitor:
			n++
		}
	}
	if want := s.specs[name].Replicas; n < want {
		p.breaks("the rollout of %s is said to have completed with %d settled, want %d", name, n, want)
	}
}

// verdict checks that what was said of a spec is not taken back: an end stays
// one, a rollback follows a failure for the template alone, goes to what
// completed last, and never begins anew.
func (p *promises) verdict(name string, old, r record.Rollout) {
	if old.State != record.Progressing && (r.State != old.State || r.Reason != old.Reason || r.Hash != old.Hash) {
		p.breaks("the rollout of %s has ended as %s (%s) and is now %s (%s)", name, old.State, old.Reason, r.State, r.Reason)
	}
	b, was := r.Rollback, old.Rollback
	switch {
	case b == nil && was != nil:
		p.breaks("the rollback of %s is forgotten", name)
	case b == nil:
	case r.State != record.RolloutFailed, r.Reason == record.WhySpec, r.Reason == record.WhyNetwork, r.Reason == record.WhyAddress,
		r.Reason == record.WhyCapacity && r.Strategy == record.Rolling:
		p.breaks("%s is rolled back from a rollout that is %s (%s)", name, r.State, r.Reason)
	case len(r.Completed) == 0 || r.Completed[len(r.Completed)-1] != record.Mark{Revision: b.Revision, Hash: b.Hash} || b.Hash == r.Hash:
		p.breaks("%s is rolled back from %s to %s, of %v that completed", name, r.Hash, b.Hash, r.Completed)
	case was == nil && old.State != record.Progressing:
		p.breaks("%s is rolled back after its result has been told", name)
	case was != nil && (was.Hash != b.Hash || !was.Started.Equal(b.Started) || was.State != record.Progressing && was.State != b.State):
		p.breaks("the rollback of %s to %s was %s, and is %s to %s", name, was.Hash, was.State, b.State, b.Hash)
	}
}
