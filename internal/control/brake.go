package control

import (
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// brakeWindow is what Config.LossLimit is counted over.
const brakeWindow = time.Minute

// brake bounds how fast nodes that fell silent are given up. When many do at
// once it is mostly not them: a switch, the store, or the leader's own network.
// Replacing all of their tasks would then load what is left with everything, for
// nodes that come back a little later. A node whose record was deleted is gone
// and no matter of the brake.
type brake struct {
	limit Amount      // of the nodes with a record, in a window; 0 is no brake
	given []time.Time // when nodes were given up in the last window, oldest first
}

// giveUp reports whether one of n nodes may be given up now, which it counts
// then; otherwise the moment at which to ask again.
func (b *brake) giveUp(n int, now time.Time) (again time.Time, ok bool) {
	if b.limit == 0 {
		return time.Time{}, true
	}
	for len(b.given) > 0 && !b.given[0].Add(brakeWindow).After(now) {
		b.given = b.given[1:]
	}
	most := max(1, b.limit.of(n, false))
	if len(b.given) >= most {
		return b.given[len(b.given)-most].Add(brakeWindow), false
	}
	b.given = append(b.given, now)
	return time.Time{}, true
}

// held has n keep its tasks for now although it was silent for too long, and
// says so once.
func (s *State) held(n *node, until time.Time) {
	s.timers.set(&n.timer, until)
	if n.held {
		return
	}
	n.held = true
	s.see(Event{
		Kind: NodeHeld, Node: n.id, Reason: record.ReasonNodeLost,
		Message: fmt.Sprintf("silent for %s, but %d of %d nodes were given up within a minute: its tasks are not replaced yet",
			s.now.Sub(n.quiet).Truncate(time.Second), len(s.brake.given), s.registered),
		Cause: record.Cause{Actor: record.ActorPlanner},
	})
}
