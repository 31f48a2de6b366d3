package control

import (
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// A node that is not heard of may be dead, or cut off with all of its tasks at
// work. How long to believe the latter is for each workload to say, since what a
// second task costs, and what it costs to be without one, differs: LostAfter. A
// node is given up once, when the first has waited long enough, be it the fleet's
// own LostAfter; that is what the brake counts and what is told. From then on each
// task is lost when its own workload has waited long enough.
//
// What was told to stop is waited for no longer than the fleet's LostAfter: it is
// not to be replaced as it is, and what comes after it must come some day.
//
// Who just came to lead does not know since when a node is silent, and perhaps
// was itself cut off: it waits anew, but no longer than the fleet's LostAfter
// where an earlier leader told of the loss. Else a workload that waits for an hour
// would wait for ever where leaders change by the hour.

// silence is since when a node is not alive, and what follows.
type silence struct {
	grace time.Duration // Config.LostAfter
	quiet time.Time     // since when it is not alive, as this leader saw it
	since time.Time     // and as an earlier one told, if that is earlier
	back  time.Time     // when it was last seen to become alive
	// silent says that it was given up, and heard is up to when its silence has
	// been counted since.
	silent bool
	heard  time.Time
	// expired says that it was not alive for so long that by its own promise
	// nothing that is fenced runs on it any more.
	expired bool
	held    bool // it was silent for too long, and the brake keeps it from being given up
}

// due is when who has this patience has waited long enough; zero is never.
func (n *silence) due(patience time.Duration) time.Time {
	if patience < 0 {
		return time.Time{}
	}
	at, least := n.since.Add(patience), n.quiet.Add(min(patience, n.grace))
	if at.Before(least) {
		return least
	}
	return at
}

// patience is how long t's node may be silent before t is lost; negative is
// for ever.
func (t *task) patience() time.Duration {
	p, grace := t.service.work.LostAfter, t.node.grace
	if p == 0 || t.rec.Stop != nil && (p < 0 || p > grace) {
		return grace
	}
	return p
}

// lost reports whether nobody knows what the task does, and it is to be replaced.
func (t *task) lost() bool {
	n := t.node
	if n.rec == nil || n.vouched() {
		return true
	}
	if !n.silent {
		return false
	}
	at := n.due(t.patience())
	return !at.IsZero() && !at.After(n.heard)
}

// watchSilence begins to count the silence of n, or ends that.
func (s *State) watchSilence(n *node) {
	n.silence = silence{grace: n.grace, back: n.back}
	if n.alive {
		n.back = s.now
	}
	if n.alive || n.rec == nil {
		s.timers.set(&n.timer, time.Time{})
		return
	}
	n.quiet, n.since = s.now, s.now
	if at, told := s.kept.lost[n.id]; told && s.loading && at.Before(s.now) {
		n.since = at
	}
	s.rearm(n)
}

// rearm sets the timer to when the silence of n next means something. Whose tasks
// they are, and what they wait for, may have changed.
func (s *State) rearm(n *node) {
	if s.loading || n.alive || n.rec == nil {
		return
	}
	var next time.Time
	soonest := func(at time.Time) {
		if at.After(n.heard) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	soonest(n.due(n.grace))
	for _, t := range n.tasks {
		if !t.over() {
			soonest(n.due(t.patience()))
		}
	}
	if n.rec.Fence > 0 && !n.expired {
		soonest(n.quiet.Add(n.rec.Fence))
	}
	s.timers.set(&n.timer, next)
}

// rearmAll does so for the silent nodes of a service's tasks.
func (s *State) rearmAll(svc *service) {
	for _, t := range svc.tasks {
		s.rearm(t.node)
	}
}

// first is the least patience that anyone has with n.
func (n *node) first() time.Duration {
	least := n.grace
	for _, t := range n.tasks {
		if p := t.patience(); p >= 0 && !t.over() {
			least = min(least, p)
		}
	}
	return least
}

// listen takes in that n is still silent: it is given up when it is time for
// that, unless the brake holds it, and then tasks are lost as each one's is.
func (s *State) listen(n *node) {
	if n.rec.Fence > 0 && !n.quiet.Add(n.rec.Fence).After(s.now) {
		n.expired = true
	}
	if !n.silent {
		patience := n.first()
		if n.due(patience).After(s.now) {
			s.rearm(n) // the promise alone was due
			return
		}
		if _, told := s.kept.lost[n.id]; !told { // what an earlier leader gave up stays so
			if again, ok := s.brake.giveUp(s.registered, s.now); !ok {
				s.held(n, again)
				return
			}
			s.lose(n, "silent for "+max(patience, s.now.Sub(n.quiet).Truncate(time.Second)).String()+n.patient(s.now))
		}
		n.silent = true
	}
	n.heard = s.now
	s.markTasks(n)
	s.rearm(n)
}

// patient says how many tasks are not lost yet with their node.
func (n *node) patient(now time.Time) string {
	wait := 0
	for _, t := range n.tasks {
		if at := n.due(t.patience()); !t.over() && (at.IsZero() || at.After(now)) {
			wait++
		}
	}
	if wait == 0 {
		return ""
	}
	return fmt.Sprintf("; tasks that are waited for longer: %d", wait)
}

func (s *State) lose(n *node, why string) {
	s.kept.lost[n.id] = s.now
	s.see(Event{Kind: NodeLost, Node: n.id, Reason: record.ReasonNodeLost, Message: why, Cause: record.Cause{Actor: record.ActorPlanner}})
}

// longest is for how long the most patient waits for a node that is silent.
func (s *State) longest() (d time.Duration) {
	for _, n := range s.nodes {
		for _, t := range n.tasks {
			if !n.alive && n.rec != nil && !t.over() {
				d = max(d, t.patience())
			}
		}
	}
	return d
}

// lostOf is a lost task of a service's slot that was not told to stop.
func (s *State) lostOf(service string, slot int) *task {
	if svc := s.services[service]; svc != nil {
		for _, t := range svc.tasks {
			if t.rec.Slot == slot && t.rec.Stop == nil && t.lost() && !t.over() {
				return t
			}
		}
	}
	return nil
}
