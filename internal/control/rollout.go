package control

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// decide is the whole decision about a service that has a spec: what its
// rollout is now, and the steps that bring it further. Where new tasks go is
// for the scheduler to say.
//
// A rollout ends. While it progresses, it has a deadline that moves only when
// the fleet gets closer to the spec than it ever was in this rollout, which can
// happen a bounded number of times. It ends as completed when all replicas are
// of the wanted template, have settled, and nothing else is left; or as failed
// by the deadline, by failures in a row, or by something that cannot be waited
// for. Applying again begins a new one.
//
// What is done differs: a rollout that progresses or has completed converges to
// the spec, and one that has failed only keeps up what there is; see hold and
// fillUp. One that waits for what it depends on does so too. Before that one can be rolled back, which is an attempt like it; see
// turnBack.
func (v *view) decide() {
	waited := len(v.rollout.Waiting) > 0
	if v.rollout.Spec != v.spec {
		v.survey()
		v.begin()
	} else {
		v.rollout.Slots, v.rollout.Trial = maps.Clone(v.rollout.Slots), maps.Clone(v.rollout.Trial)
		v.survey()
	}
	v.gate(waited)
	if v.work.Stateful != nil {
		v.fence()
	}
	if v.trying() {
		v.try()
		return
	}
	st := v.standing()
	v.progress(st)
	hopeless := v.count()
	hopeless = v.misfetched() || hopeless
	hopeless = v.choked() || hopeless
	if v.attempt().State == record.Progressing {
		v.judge(st, hopeless)
		if v.turnBack() {
			return
		}
	}
	v.balance()
	switch a := v.attempt(); {
	case v.unmet != nil:
		v.hold() // what runs already, of whatever revision
	case a.State != record.RolloutFailed:
		v.converge()
	case a.Reason == record.WhyCapacity, a.Reason == record.WhyNetwork, a.Reason == record.WhyDependency:
		v.fillUp()
	default:
		v.hold()
	}
	v.forgive()
}

// begin starts the rollout of a spec, which supersedes the one before. Of the
// same template it goes on with that one: to scale a canary does not end it.
func (v *view) begin() {
	old := *v.rollout
	if !old.Created.Equal(v.created) { // it was another service's, of the same name
		old = record.Rollout{}
	}
	*v.rollout = record.Rollout{Spec: v.spec, Began: v.spec, Created: v.created, Completed: old.Completed, Cleared: old.Cleared}
	r := v.rollout
	r.Strategy, r.Phase, r.Since = v.strategy(), v.firstPhase(), v.now
	r.Held = v.abandoned(&old)
	if old.State == record.Progressing && old.Hash == v.work.Hash && old.Strategy == r.Strategy && old.Phase != "" && v.last != nil {
		r.Began, r.Phase, r.Since, r.Until = cmp.Or(old.Began, old.Spec), old.Phase, old.Since, old.Until
		r.Held, r.Trial = old.Held, maps.Clone(old.Trial)
	}
	r.Attempt = *v.newAttempt()
	v.pardon()
}

// newAttempt begins to make v.work true.
func (v *view) newAttempt() *record.Attempt {
	st := v.standing()
	return &record.Attempt{
		Revision: v.work.Revision, Hash: v.work.Hash, State: record.Progressing,
		Started: v.now, Progressed: v.now, Best: st.score(), Settled: st.settled,
	}
}

// pardon forgets what failed before an attempt: it is not that one's fault.
func (v *view) pardon() {
	v.rollout.Slots, v.rollout.Trial = nil, nil
	base, trial := v, v
	if v.trying() {
		base, trial = v.split()
	}
	for _, t := range v.tasks {
		if t.over() && t.rec.Stop == nil {
			of := base
			if t.rec.Hash == v.work.Hash {
				of = trial
			}
			of.setSlot(t.rec.Slot, record.Slot{Last: v.now, Node: t.rec.Node, Task: t.rec.ID})
		}
	}
}

// failures are those that the view's slots are to wait for.
func (v *view) failures() *map[int]record.Slot {
	if v.trial {
		return &v.rollout.Trial
	}
	return &v.rollout.Slots
}

func (v *view) setSlot(number int, s record.Slot) {
	m := v.failures()
	if *m == nil {
		*m = map[int]record.Slot{}
	}
	(*m)[number] = s
}

// progress renews the deadline and forgives failures, if things got better than
// they ever were.
func (v *view) progress(st standing) {
	a := v.attempt()
	if a.State != record.Progressing {
		return
	}
	if score := st.score(); score > a.Best {
		a.Best, a.Progressed = score, v.now
	}
	if st.settled > a.Settled {
		a.Settled, a.Failures = st.settled, 0
	}
}

// count counts each task that ended by itself, once: its ID is remembered until
// the record is gone. It reports whether one failed in a way that another try
// would not mend, with none of this template that ever worked.
func (v *view) count() (hopeless bool) {
	a := v.attempt()
	for _, t := range v.tasks {
		s := (*v.failures())[t.rec.Slot]
		if !t.over() || t.rec.Stop != nil || s.Task == t.rec.ID {
			continue
		}
		if f := t.status.Failure; f != nil && f.Kind == record.FailedNode {
			continue // its node stopped it, to keep a promise: nobody's fault
		}
		counted := record.Slot{Failures: s.Failures + 1, Last: v.now, Node: t.rec.Node, Task: t.rec.ID}
		for _, o := range v.slot(t.rec.Slot).tasks {
			// Of two, the later one is remembered: its record may be kept, see hold.
			if o.rec.ID == s.Task && o.over() && o.rec.Created.After(t.rec.Created) {
				counted.Task = s.Task
			}
		}
		v.setSlot(t.rec.Slot, counted)
		v.failed = append(v.failed, t)
		if a.State == record.Progressing && t.rec.Hash == a.Hash && !v.surplus(t) {
			f := failure(t)
			a.Failures++
			a.Failure = f
			hopeless = hopeless || f.Permanent && a.Settled == 0
		}
	}
	return hopeless
}

// failure is why a task ended that was not told to. A service's tasks are meant
// to run for ever: one that ends well has failed too.
func failure(t *task) *record.Failure {
	if t.status.Failure != nil {
		return t.status.Failure
	}
	return &record.Failure{Kind: record.FailedExit, At: t.status.Since,
		Message: fmt.Sprintf("the task ended as %s, but it is to keep running", t.status.State)}
}

// judge ends the attempt if it is time.
func (v *view) judge(st standing, hopeless bool) {
	r, u := v.attempt(), &v.work.Update
	deadline := u.deadline(r)
	giveUp := u.OnFailure != Continue
	if v.trial && st.settled < v.work.Replicas {
		v.resume()
		deadline = u.deadline(r)
	}
	switch {
	case v.blocked != nil && v.blocked.final:
		v.fail(v.blocked.why, v.blocked.message)
	case v.ordered(record.Abort):
		v.fail(record.WhyAborted, "it was aborted by a call")
	case v.trial && v.worse():
		v.fail(record.WhyBake, fmt.Sprintf("%d of %d replicas of revision %d serve, and of the old set, which has the traffic again, more would%s",
			st.ready, v.work.Replicas, v.work.Revision, v.late()))
	case v.trial && st.settled == v.work.Replicas:
		v.advance()
	case !v.trial && st.settled == v.work.Replicas && st.rest == 0:
		r.State, r.Ended, r.Failures, r.Failure = record.RolloutCompleted, v.now, 0, nil
		v.mark()
	case hopeless && giveUp:
		v.fail(record.WhyFailures, "trying again cannot help: "+r.Failure.Message)
	case r.Failures >= u.MaxFailures && giveUp:
		v.fail(record.WhyFailures, fmt.Sprintf("%d tasks failed in a row: %s", r.Failures, r.Failure.Message))
	case v.rehearsed && v.unmet != nil: // nobody knows for how long; see suppose
	case v.now.Before(deadline):
		v.wakeAt(deadline)
	case v.blocked != nil:
		v.fail(v.blocked.why, v.blocked.message)
	case v.rollout.Unplaced != "":
		v.fail(record.WhyCapacity, v.rollout.Unplaced)
	default:
		v.fail(record.WhyDeadline, v.laggards(st))
	}
}

// mark writes down that the revision completed. Without replicas that says
// nothing of its template.
func (v *view) mark() {
	m := record.Mark{Revision: v.work.Revision, Hash: v.work.Hash}
	old := v.rollout.Completed
	if v.work.Replicas == 0 || len(old) > 0 && old[len(old)-1] == m {
		return
	}
	for i := range v.slots {
		if c := v.slots[i].current; c != nil && c.rec.Hash != v.work.Hash {
			return // slots below a partition are left behind
		}
	}
	old = old[max(0, len(old)-record.MaxHistory):]
	v.rollout.Completed = append(slices.Clone(old), m)
}

func (v *view) fail(why, message string) {
	r := v.attempt()
	r.State, r.Ended, r.Reason, r.Message = record.RolloutFailed, v.now, why, message
	if r.Failure != nil || why == record.WhyCapacity || v.blocked != nil {
		return
	}
	for _, t := range v.tasks { // the best clue there is
		if t.rec.Hash == v.work.Hash && t.status != nil && t.status.Failure != nil && !t.available() {
			r.Failure = t.status.Failure
		}
	}
}

// laggards says what a rollout waited for when its time was over.
func (v *view) laggards(st standing) string {
	return fmt.Sprintf("nothing got better for %v: %d of %d replicas of revision %d are ready%s",
		v.work.Update.ProgressDeadline, st.ready, v.work.Replicas, v.work.Revision, v.late())
}

// late lists tasks that are not as they should be, after a semicolon.
func (v *view) late() string {
	var late []string
	for _, t := range v.tasks {
		state := "not yet seen by its node"
		if t.status != nil {
			state = string(t.status.State)
		}
		switch {
		case t.lost() || t.live() && (t.available() || !v.wanted(t)) || len(late) == 5:
			continue
		case t.rec.Stop != nil:
			state += ", and told to stop for " + v.now.Sub(t.rec.Stop.At).Round(time.Second).String()
		}
		if t.status != nil && t.status.Failure != nil {
			state += " (" + t.status.Failure.Message + ")"
		}
		late = append(late, fmt.Sprintf("%s on %s is %s", t.rec.ID, t.rec.Node, state))
	}
	if len(late) == 0 {
		return ""
	}
	return "; " + strings.Join(late, ", ")
}

// The back-off of a slot: its first successor starts at once, the second after
// firstDelay, and so on, doubled up to maxDelay. It is forgotten once a task has
// served for forgiveAfter.
const (
	firstDelay   = time.Second
	maxDelay     = 5 * time.Minute
	forgiveAfter = 10 * time.Minute
)

func delay(failures int) time.Duration {
	switch {
	case failures <= 1:
		return 0
	case failures > 10: // 2^9 s is more than maxDelay already
		return maxDelay
	}
	return min(firstDelay<<(failures-2), maxDelay)
}

// forgive forgets the failures of slots that have long been well.
func (v *view) forgive() {
	failed := *v.failures()
	for number := range failed {
		s := v.slot(number)
		if s == nil || !s.settled {
			continue
		}
		if at := s.current.since.Add(forgiveAfter); at.After(v.now) {
			v.wakeAt(at)
		} else {
			delete(failed, number)
		}
	}
}

// tally writes down what there will be when the steps are taken. What they
// change needs no second record then.
func (v *view) tally(placed []record.Task) {
	r := v.rollout
	r.Desired, r.Updated, r.Ready = v.work.Replicas, v.calm, v.calm
	for _, t := range v.tasks {
		if !t.live() || v.told[t] {
			continue
		}
		if t.rec.Hash == r.Hash {
			r.Updated++
		}
		if v.serves(t) {
			r.Ready++
		}
	}
	for i := range placed {
		if placed[i].Hash == r.Hash {
			r.Updated++
		}
	}
}
