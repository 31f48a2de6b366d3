package control

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// A trial is a rollout that first has tasks of the new template beside those of
// the last that completed: a few in a canary, a second set of all in a
// blue/green. The two sets are views of their own, and each converges by the
// same rules as a service that is alone: what fails, is lost or is to leave its
// node comes back in its own set, so all replicas of the old template are kept
// up until the end, and to give the new one up costs nothing but its own tasks.
// Tasks of both sets share the numbers of slots, which makes a canary that is
// promoted the replica of its slot, and its old task surplus.
//
//	canary      canary → bake or waiting → rolling → completed
//	blue/green  green → (waiting →) bake → retiring → completed
//
// The old set has replicas tasks, the other so many more: MaxSurge bounds what
// each set does within itself. In a canary both take traffic. In a blue/green
// one does: whose tasks do not is written in one record, that every node heeds
// at once; see record.Frontend.
//
// The deadline stands still while all that is tried is ready and waits, for a
// call or for its time. What stops being ready ends that, and the deadline goes
// on where it was: so a trial ends, however often that happens, or waits in a
// phase that says so.

// trying reports whether there are two sets.
func (v *view) trying() bool {
	r := v.rollout
	return r.Rollback == nil && v.last != nil && trialPhase(r.Phase)
}

func trialPhase(p record.Phase) bool {
	switch p {
	case record.PhaseCanary, record.PhaseGreen, record.PhaseWaiting, record.PhaseBake:
		return true
	}
	return false
}

// strategy is how the spec is rolled out. What must stop first is not tried: it
// cannot be beside what it is to replace.
func (v *view) strategy() record.Strategy {
	if v.work.Update.StopFirst || v.work.Global || v.work.Stateful != nil {
		return record.Rolling
	}
	return v.work.Update.Strategy
}

// firstPhase is where a rollout begins. Where nothing of another template is
// there, there is nothing to try the new one beside.
func (v *view) firstPhase() record.Phase {
	others := func(t *task) bool { return t.live() && t.rec.Hash != v.work.Hash }
	if v.last != nil && v.work.Replicas > 0 && slices.ContainsFunc(v.tasks, others) {
		switch v.strategy() {
		case record.Canary:
			return record.PhaseCanary
		case record.BlueGreen:
			return record.PhaseGreen
		}
	}
	return record.PhaseRolling
}

// split returns the two sets.
func (v *view) split() (base, trial *view) {
	b, t := *v, *v
	b.steps, t.steps = steps{}, steps{}
	b.adopt, t.adopt = nil, nil // what is tried is tried beside the old
	b.whole, t.whole = v, v
	b.tasks, b.slots, b.work, b.anyTemplate = nil, nil, v.last, true
	size := *v.work
	if v.rollout.Strategy == record.Canary {
		size.Replicas = min(max(1, v.work.Update.Canaries.of(size.Replicas, true)), size.Replicas)
	}
	t.tasks, t.slots, t.work, t.trial = nil, nil, &size, true
	for _, task := range v.tasks {
		if task.rec.Hash == v.work.Hash {
			t.tasks = append(t.tasks, task)
		} else {
			b.tasks = append(b.tasks, task)
		}
	}
	b.survey()
	t.survey()
	return &b, &t
}

// try is the decision while there are two sets.
func (v *view) try() {
	base, trial := v.split()
	st := trial.standing()
	trial.progress(st)
	base.count()
	hopeless := trial.count()
	phase, held := v.rollout.Phase, v.rollout.Held
	if v.rollout.State == record.Progressing {
		trial.judge(st, hopeless)
		if v.turnBack() {
			v.failed = append(base.failed, trial.failed...)
			return
		}
	}
	v.balance()
	if v.rollout.Phase != phase || !slices.Equal(held, v.rollout.Held) {
		// Who serves is another matter now: the steps are the next plan's.
		v.failed = append(base.failed, trial.failed...)
		return
	}
	base.converge()
	if v.rollout.State == record.RolloutFailed {
		trial.hold()
	} else {
		trial.converge()
	}
	base.forgive()
	trial.forgive()
	for i := range base.starts {
		base.starts[i].work = base.work
	}
	base.merge()
	trial.merge()
}

// merge adds the steps of a set to those of the whole.
func (v *view) merge() {
	w := v.whole
	w.starts = append(w.starts, v.starts...)
	w.stops = append(w.stops, v.stops...)
	w.removes = append(w.removes, v.removes...)
	w.failed = append(w.failed, v.failed...)
	if !v.wake.IsZero() {
		w.wakeAt(v.wake)
	}
	if w.told == nil {
		w.told = map[*task]bool{}
	}
	maps.Copy(w.told, v.told)
}

// ordered reports whether the application asks for an action, of this rollout
// and at this phase.
func (v *view) ordered(action record.DirectiveAction) bool {
	d, r := v.directive, v.rollout
	return d != nil && d.Action == action && d.Spec >= r.Began && d.Spec <= r.Spec && r.Rollback == nil &&
		(action == record.Abort || d.From == r.Phase)
}

// advance leads on a trial all of whose tasks have settled.
func (v *view) advance() {
	r, u := v.rollout, &v.work.Update
	promoted := v.ordered(record.Promote)
	switch r.Phase {
	case record.PhaseCanary, record.PhaseGreen:
		switch {
		case u.Manual:
			v.enter(record.PhaseWaiting)
		case r.Strategy == record.Canary:
			v.bake()
		default:
			v.switchOver()
		}
	case record.PhaseWaiting:
		switch {
		case !promoted:
		case r.Strategy == record.Canary:
			v.promote(record.PhaseRolling)
		default:
			v.switchOver()
		}
	case record.PhaseBake:
		next := record.PhaseRolling
		if r.Strategy == record.BlueGreen {
			next = record.PhaseRetiring
		}
		switch {
		case promoted, !r.Until.IsZero() && !v.now.Before(r.Until):
			v.promote(next)
		case r.Until.IsZero():
			v.bake()
		default:
			v.wakeAt(r.Until)
		}
	}
}

func (v *view) enter(phase record.Phase) {
	r := v.rollout
	r.Phase, r.Since, r.Until = phase, v.now, time.Time{}
}

// bake begins the time for which all must stay as it is.
func (v *view) bake() {
	v.enter(record.PhaseBake)
	v.rollout.Until = v.now.Add(v.work.Update.Bake)
	v.wakeAt(v.rollout.Until)
}

// switchOver gives the second set the traffic; balance has the record say so.
func (v *view) switchOver() {
	v.attempt().Progressed = v.now
	if v.work.Update.Bake > 0 {
		v.bake()
	} else {
		v.promote(record.PhaseRetiring)
	}
}

// promote ends the trial: from now on there is one set, in which the old tasks
// are outdated.
func (v *view) promote(phase record.Phase) {
	v.enter(phase)
	r, a := v.rollout, v.attempt()
	st := v.whole.standing()
	a.Best, a.Settled, a.Progressed = st.score(), st.settled, v.now
	for number, s := range r.Trial {
		if _, ok := r.Slots[number]; !ok {
			v.whole.setSlot(number, s)
		}
	}
	r.Trial = nil
}

// resume ends a wait because something is not ready any more. The time that it
// took is none that the deadline has run.
func (v *view) resume() {
	r, a := v.rollout, v.attempt()
	if !standsStill(r) {
		return
	}
	if a.Progressed = a.Progressed.Add(v.now.Sub(r.Since)); a.Progressed.After(v.now) {
		a.Progressed = v.now
	}
	switch {
	case r.Strategy == record.Canary:
		v.enter(record.PhaseCanary)
	case r.Phase == record.PhaseWaiting:
		v.enter(record.PhaseGreen)
	default: // it has the traffic, and keeps it: see worse
		v.enter(record.PhaseBake)
	}
}

// standsStill reports whether the deadline of a rollout does not run: it waits
// for a call, or for its time.
func standsStill(r *record.Rollout) bool {
	return r.Phase == record.PhaseWaiting || r.Phase == record.PhaseBake && !r.Until.IsZero()
}

// worse reports whether the set that has just been given the traffic serves
// worse than promised, by its own doing, while the old one would serve better.
// Then that is not waited for.
func (v *view) worse() bool {
	r := v.rollout
	if r.Strategy != record.BlueGreen || r.Phase != record.PhaseBake {
		return false
	}
	regressed := len(v.failed) > 0
	new, old := 0, 0
	for _, t := range v.whole.tasks {
		switch {
		case t.available() && t.rec.Hash == v.work.Hash:
			new++
		case t.available() && t.rec.Hash == v.last.Hash:
			old++
		case t.live() && t.node.alive && t.rec.Hash == v.work.Hash && everReady(t):
			regressed = true
		}
	}
	return regressed && new < min(old, v.whole.promised())
}

// promised is how many replicas are promised to serve.
func (v *view) promised() int { return max(0, v.work.Replicas-v.pace().unavailable) }

// held reports whether t is of a template that takes no traffic.
func (v *view) held(t *task) bool { return slices.Contains(v.rollout.Held, t.rec.Hash) }

// serves reports whether t takes traffic: in a set of two, whether it would if
// its own set did.
func (v *view) serves(t *task) bool {
	return t.available() && (!v.held(t) || v.whole != nil && t.rec.Hash == v.work.Hash)
}

// balance decides which templates take no traffic. One more is held only where
// as many serve without it as before or as promised: the others may not be there
// yet, and are waited for.
func (v *view) balance() {
	r := v.rollout
	want := v.toHold()
	if len(want) == 0 && len(r.Held) == 0 {
		r.Held = nil
		return
	}
	before, after := 0, 0
	for _, t := range v.tasks {
		if t.available() && !v.held(t) {
			before++
		}
		if t.available() && !slices.Contains(want, t.rec.Hash) {
			after++
		}
	}
	if after < min(before, v.promised()) {
		want = slices.DeleteFunc(want, func(hash string) bool { return !slices.Contains(r.Held, hash) })
	}
	r.Held = want
}

// toHold are the templates that are to take no traffic, in order.
func (v *view) toHold() []string {
	r := v.rollout
	if r.State == record.RolloutCompleted {
		return nil
	}
	var others []string
	there, last := map[string]bool{}, ""
	for _, t := range v.tasks {
		if t.rec.Hash == last || t.over() { // most are as the one before
			continue
		}
		if last = t.rec.Hash; !there[last] {
			there[last] = true
			if last != r.Hash {
				others = append(others, last)
			}
		}
	}
	blueGreen := r.Strategy == record.BlueGreen
	on := r.State == record.Progressing
	var want []string
	switch {
	case r.Phase == record.PhaseRetiring && !on:
		return nil
	case blueGreen && on && (r.Phase == record.PhaseBake || r.Phase == record.PhaseRetiring):
		want = others
		if v.last != nil && !there[v.last.Hash] {
			want = append(want, v.last.Hash)
		}
	case blueGreen && !on && r.Phase == record.PhaseBake:
		if there[r.Hash] {
			want = []string{r.Hash}
		}
	default: // what an earlier rollout has left is held until it is gone
		for _, hash := range r.Held {
			if there[hash] && hash != r.Hash && hash != v.work.Hash && (v.last == nil || hash != v.last.Hash) {
				want = append(want, hash)
			}
		}
		if blueGreen && trialPhase(r.Phase) && (on || there[r.Hash]) {
			want = append(want, r.Hash)
		}
	}
	slices.Sort(want)
	return slices.Compact(want)
}

// abandoned are the templates that take no traffic when a spec supersedes the
// rollout before: those that did not, and the one that was being tried, whose
// traffic the old set takes again.
func (v *view) abandoned(old *record.Rollout) []string {
	if old.Strategy != record.BlueGreen || !trialPhase(old.Phase) || old.State == record.RolloutCompleted {
		return slices.DeleteFunc(slices.Clone(old.Held), func(hash string) bool { return hash == v.work.Hash || old.State == record.RolloutCompleted })
	}
	was := *v
	was.rollout = &record.Rollout{}
	*was.rollout = *old
	was.rollout.State = record.RolloutFailed
	was.balance()
	return slices.DeleteFunc(was.rollout.Held, func(hash string) bool { return hash == v.work.Hash })
}

// fronts is whose ports the frontend has: until the second set of a blue/green
// has the traffic, the old set's.
func (v *view) fronts() *Workload {
	if v.trying() && v.rollout.Strategy == record.BlueGreen && v.rollout.Phase != record.PhaseBake {
		return v.last
	}
	return v.work
}

// share completes the frontend of svc with who takes no traffic, and has its
// addresses taken.
func (s *State) share(svc *service, v *view, f *record.Frontend) *record.Frontend {
	if f == nil && len(v.rollout.Held) == 0 {
		return nil
	}
	own := record.Frontend{}
	if f != nil {
		own = *f
	}
	own.Held = v.rollout.Held
	s.take(svc, &own)
	return &own
}

func (s *State) changeDirective(key string, c store.Change) error {
	svc, err := s.service(key)
	if err != nil {
		return err
	}
	s.mark(svc)
	svc.directive = nil
	if c.Deleted {
		s.forget(svc)
		return nil
	}
	var rec record.Directive
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return err
	}
	svc.directive = &rec
	return nil
}
