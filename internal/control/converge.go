package control

import (
	"cmp"
	"maps"
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// converge takes the steps from what there is to what the spec says: surplus
// replicas go, missing ones come, outdated tasks are replaced, a few at a time.
//
// The promise: a task that serves is stopped only if as many others serve as
// the spec has replicas, less MaxUnavailable; see Update.pace. Only what has
// settled counts among the new ones. Scaling down is the only exception, and it
// takes those that do not serve first. And a task is started beside another of
// its slot only where there are fewer than MaxSurge such.
func (v *view) converge() {
	if v.evacuate() {
		return
	}
	if v.work.Stateful != nil {
		v.dropSlots()
		v.fillSlots()
		v.rollSlots()
		v.tidySlots()
		return
	}
	if v.global != nil {
		v.dropNodes()
		v.fillNodes()
		v.roll()
		v.tidy()
		return
	}
	v.drop()
	v.fill()
	v.roll()
	v.tidy()
}

// stop tells a task to stop, unless it has been told or there is nobody to obey.
func (v *view) stop(t *task, reason string) {
	if t.rec.Stop != nil || v.told[t] || t.over() || t.node.rec == nil {
		return
	}
	if v.told == nil {
		v.told = map[*task]bool{}
	}
	v.told[t] = true
	v.stops = append(v.stops, stop{t, reason})
}

// drop chooses which slots go when there are too many: those that do not serve
// first, then those that are of no wanted template, then the highest.
func (v *view) drop() {
	if v.liveSlots() <= v.work.Replicas {
		return
	}
	v.rouse()
	surplus := v.liveSlots() - v.work.Replicas
	var order []*slot
	for i := range v.slots {
		if v.slots[i].live > 0 {
			order = append(order, &v.slots[i])
		}
	}
	slices.SortFunc(order, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(min(a.available, 1), min(b.available, 1)), cmp.Compare(current(a), current(b)), b.number-a.number)
	})
	for _, s := range order[:surplus] {
		s.dropped = true
		for _, t := range s.tasks {
			v.stop(t, record.ReasonScaled)
		}
	}
}

func current(s *slot) int {
	if s.current == nil {
		return 0
	}
	return 1
}

// fill starts the replicas that no task is there for.
func (v *view) fill() {
	missing := v.work.Replicas - v.liveSlots()
	if missing <= 0 {
		return
	}
	// A replica that was lost or has failed comes back as itself: its back-off
	// would be void in another slot. Otherwise the lowest free number is next.
	var numbers []int
	for i := range v.slots {
		if s := &v.slots[i]; s.live == 0 && s.lost > 0 && !abandoned(s) {
			numbers = append(numbers, s.number)
		}
	}
	failed := *v.failures()
	for _, n := range slices.Sorted(maps.Keys(failed)) {
		if s := v.slot(n); (s == nil || s.live == 0) && failed[n].Failures > 0 && !slices.Contains(numbers, n) {
			numbers = append(numbers, n)
		}
	}
	taken := map[int]bool{}
	if len(numbers) < missing {
		taken = v.calmSlots()
	}
	if taken == nil {
		taken = map[int]bool{}
	}
	for _, n := range numbers {
		taken[n] = true
	}
	for n := 0; len(numbers) < missing; n++ {
		if s := v.slot(n); !taken[n] && (s == nil || s.live == 0) {
			numbers = append(numbers, n)
		}
	}
	for _, n := range numbers[:missing] {
		v.startIn(n, nil)
	}
}

// liveSlots counts the replicas that are there.
func (v *view) liveSlots() int {
	n := v.calm
	for i := range v.slots {
		if v.slots[i].live > 0 {
			n++
		}
	}
	return n
}

// abandoned reports whether all lost tasks of a slot were told to stop: then it
// is no replica any more.
func abandoned(s *slot) bool {
	for _, t := range s.tasks {
		if t.lost() && !t.over() && t.rec.Stop == nil {
			return false
		}
	}
	return true
}

// startIn starts a task in a slot when its back-off is over and, with stop
// first, its predecessor.
func (v *view) startIn(number int, from *task) {
	if v.work.Update.StopFirst {
		if s := v.slot(number); s != nil && s.live+s.ending > 0 {
			return
		}
	}
	if v.started[number] {
		return // one at a time
	}
	if v.work.Stateful != nil && !v.vacant(number) {
		v.waits(number)
		return
	}
	st := start{slot: number, from: from, reach: v.reach(number)}
	if s := v.slot(number); s != nil && v.global == nil {
		for _, t := range s.tasks {
			if t.evicted && t.live() {
				st.avoid = t.node.id
			}
		}
	}
	if v.base != nil && from == nil && v.spared(number) {
		st.work = v.base
	}
	if v.global != nil {
		if st.node = v.global.node[number]; st.node == "" {
			return
		}
		st.fresh = from == nil && v.slot(number) == nil && v.rollout.Slots[number].Failures == 0
	}
	if b := (*v.failures())[number]; b.Failures > 0 {
		if due := b.Last.Add(delay(b.Failures)); due.After(v.now) {
			v.wakeAt(due)
			return
		}
		if v.global == nil {
			st.avoid = b.Node
		}
	}
	if v.started == nil {
		v.started = map[int]bool{}
	}
	v.started[number] = true
	v.starts = append(v.starts, st)
}

// roll replaces outdated tasks, whether a new template or a leaving node made
// them so.
func (v *view) roll() {
	n, p := v.work.Replicas, v.pace()
	var candidates []*slot
	settled, serving, extra := v.calm, v.calm, 0
	for i := range v.slots {
		s := &v.slots[i]
		if s.dropped || s.live == 0 {
			continue
		}
		extra += s.live - 1
		if s.settled {
			settled++
			if v.serves(s.current) {
				serving++
			}
		}
		if s.current == nil {
			candidates = append(candidates, s)
		}
		for _, t := range s.tasks {
			if v.outdated(t) && v.serves(t) {
				serving++
			}
		}
	}

	// retire stops an outdated task if the promise allows it.
	retire := func(t *task) bool {
		if v.serves(t) {
			if serving-1 < v.floor(t, p) {
				return false
			}
			serving--
		}
		v.stop(t, v.outdatedBy(t))
		return true
	}

	for i := range v.slots {
		s := &v.slots[i]
		if s.dropped || s.outdated == 0 {
			continue
		}
		best := v.bestOutdated(s)
		for _, t := range s.tasks {
			// Of a rollout that was superseded two tasks can be left in a slot.
			if v.outdated(t) && (s.settled || t != best) && retire(t) {
				extra--
			}
		}
	}

	slices.SortStableFunc(candidates, func(a, b *slot) int {
		return cmp.Compare(min(a.available, 1), min(b.available, 1))
	})
	// Whatever else has not settled is being changed, or in trouble: either way
	// it counts.
	budget := p.parallel - (n - settled - len(candidates))
	for _, s := range candidates {
		if budget <= 0 {
			return
		}
		if v.resize(s) {
			budget--
			continue
		}
		if extra < p.surge {
			v.startIn(s.number, nil)
			extra++
			budget--
			continue
		}
		if !v.fetched(s) {
			budget--
			continue
		}
		stopped := true
		for _, t := range s.tasks {
			if v.outdated(t) {
				stopped = retire(t) && stopped
			}
		}
		if stopped {
			budget--
		}
	}
}

// outdatedBy is the reason for which an outdated task is stopped.
func (v *view) outdatedBy(t *task) string {
	switch {
	case t.refused() && !t.node.leaving() && v.rollout.Rollback == nil:
		return record.ReasonUpdated
	case t.rec.Hash == v.work.Hash || v.anyTemplate && !v.held(t) || v.spared(t.rec.Slot):
		return record.ReasonDrained
	case v.rollout.Rollback != nil:
		return record.ReasonRolled
	}
	return record.ReasonUpdated
}

// bestOutdated is the task of those to be replaced that is kept until then.
func (v *view) bestOutdated(s *slot) *task {
	var best *task
	for _, t := range s.tasks {
		if v.outdated(t) && (best == nil || v.better(t, best)) {
			best = t
		}
	}
	return best
}

// tidy removes what is over and stops what is in a slot twice.
func (v *view) tidy() {
	short := v.liveSlots() < v.work.Replicas
	for i := range v.slots {
		s := &v.slots[i]
		for _, t := range s.tasks {
			switch {
			case t.over(), t.lost() && t.node.rec == nil:
				v.removes = append(v.removes, t)
			case t.lost():
				// Once its successor has a place, it is to stop should its node
				// return. Until then it may come back as if nothing had been.
				switch {
				case s.live > 0 && !v.welcome(t):
					v.stop(t, record.ReasonNodeLost)
				case s.live > 0:
				case !short:
					v.stop(t, record.ReasonScaled)
				}
			case t.live() && v.wanted(t) && t != s.current && (s.settled || !t.available()) && v.spare(t, s.current):
				v.stop(t, v.second(t, s.current))
			}
		}
	}
}
