package autoscale

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// History is what decisions remember of those before: plain data, that can be
// stored as JSON. The zero value is no decision yet.
type History struct {
	// Recommendations are what was wanted of late, as far as a window may still
	// ask for them: its highest and its lowest, and what came after those.
	Recommendations []Recommendation `json:"recommendations,omitempty"`
	// Changes are those that count in a limit's period.
	Changes []Change `json:"changes,omitempty"`
	// Active is when the service was last not idle.
	Active time.Time `json:"active,omitzero"`
}

// Recommendation is a number that was wanted at a time.
type Recommendation struct {
	At       time.Time `json:"at"`
	Replicas int       `json:"replicas"`
}

// Change is a change of the number of tasks: above 0 when it grew.
type Change struct {
	At time.Time `json:"at"`
	By int       `json:"by"`
}

// Resume returns the history as whoever takes over decides by it: what was
// recommended in between is unknown, so that current counts as recommended and
// the service as active now. Nothing shrinks for a window, and nothing goes to
// sleep before Policy.Idle has passed again.
func (h History) Resume(now time.Time, current int) History {
	h = h.clone()
	h.Recommendations = append(h.Recommendations, Recommendation{now, current})
	h.Active = now
	return h
}

func (h History) clone() History {
	h.Recommendations, h.Changes = slices.Clone(h.Recommendations), slices.Clone(h.Changes)
	return h
}

// stabilize holds a proposal within what was recommended in the windows: the
// number grows no further than the lowest of Up's, and falls no further than
// the highest of Down's.
func (h *History) stabilize(p *Policy, now time.Time, current, wanted int) (int, Reason, string) {
	up, down := wanted, wanted
	for _, r := range h.Recommendations {
		if r.At.After(now.Add(-p.Up.Window)) {
			up = min(up, r.Replicas)
		}
		if r.At.After(now.Add(-p.Down.Window)) {
			down = max(down, r.Replicas)
		}
	}
	h.recommend(p, now, wanted)
	n := min(max(current, up), down)
	switch {
	case wanted < n:
		return n, ByWindow, fmt.Sprintf("the most of the last %v is %d", p.Down.Window, down)
	case wanted > n:
		return n, ByWindow, fmt.Sprintf("the least of the last %v is %d", p.Up.Window, up)
	}
	return n, ByMetrics, ""
}

// recommend notes what is wanted, and forgets what no window asks for: what is
// too old, and what neither is higher nor lower than everything after it.
func (h *History) recommend(p *Policy, now time.Time, wanted int) {
	h.Recommendations = append(h.Recommendations, Recommendation{now, wanted})
	oldest := now.Add(-max(p.Up.Window, p.Down.Window, 0))
	low, high := math.MaxInt, math.MinInt
	kept := h.Recommendations[:0]
	slices.Reverse(h.Recommendations)
	for _, r := range h.Recommendations {
		if r.At.After(oldest) && (r.Replicas < low || r.Replicas > high) || r.At.Equal(now) && r.Replicas == wanted && len(kept) == 0 {
			kept = append(kept, r)
			low, high = min(low, r.Replicas), max(high, r.Replicas)
		}
	}
	slices.Reverse(kept)
	h.Recommendations = kept
}

// limit holds a change within what the rules allow in their periods.
func (h *History) limit(p *Policy, now time.Time, current, wanted int) (int, Reason, string) {
	switch {
	case wanted > current:
		if p.Up.Select == SelectDisabled {
			return current, ByDisabled, fmt.Sprintf("growing to %d is disabled", wanted)
		}
		if most := max(h.upLimit(&p.Up, now, current), current); wanted > most {
			return most, ByLimit, fmt.Sprintf("of %d only %d for now", wanted, most)
		}
	case wanted < current:
		if p.Down.Select == SelectDisabled {
			return current, ByDisabled, fmt.Sprintf("shrinking to %d is disabled", wanted)
		}
		if least := min(h.downLimit(&p.Down, now, current), current); wanted < least {
			return least, ByLimit, fmt.Sprintf("not yet %d but %d", wanted, least)
		}
	}
	return wanted, "", ""
}

// upLimit is how many tasks there may be at most.
func (h *History) upLimit(r *Rules, now time.Time, current int) int {
	return r.choose(r.Select == SelectMin, func(l Limit) int {
		start := h.start(l.Period, now, current)
		if l.Percent > 0 {
			// Rounded up, as in Kubernetes: else a few tasks never grow.
			return (start*(100+l.Percent) + 99) / 100
		}
		return start + l.Tasks
	})
}

// downLimit is how many tasks there must be at least.
func (h *History) downLimit(r *Rules, now time.Time, current int) int {
	return r.choose(r.Select != SelectMin, func(l Limit) int {
		start := h.start(l.Period, now, current)
		if l.Percent > 0 {
			return start * max(0, 100-l.Percent) / 100
		}
		return max(start-l.Tasks, 0)
	})
}

// choose returns the least or the greatest that the limits say.
func (r *Rules) choose(least bool, of func(Limit) int) int {
	best := of(r.Limits[0])
	for _, l := range r.Limits[1:] {
		if n := of(l); (n < best) == least {
			best = n
		}
	}
	return best
}

// start is how many tasks there were when the period began.
func (h *History) start(period time.Duration, now time.Time, current int) int {
	for _, c := range h.Changes {
		if c.At.After(now.Add(-period)) {
			current -= c.By
		}
	}
	return current
}

// note adds a change, and forgets those that count no more.
func (h *History) note(p *Policy, now time.Time, from, to int) {
	longest := time.Duration(0)
	for _, r := range []*Rules{&p.Up, &p.Down} {
		for _, l := range r.Limits {
			longest = max(longest, l.Period)
		}
	}
	h.Changes = slices.DeleteFunc(h.Changes, func(c Change) bool { return !c.At.After(now.Add(-longest)) })
	if to != from {
		h.Changes = append(h.Changes, Change{now, to - from})
	}
}
