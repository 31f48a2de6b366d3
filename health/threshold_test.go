package health

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The threshold against its definition over the whole history: the status is
// that of the last row of enough equal outcomes.
func TestThresholdAgainstDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		failures := rapid.IntRange(1, 4).Draw(t, "failures")
		successes := rapid.IntRange(1, 4).Draw(t, "successes")
		outcomes := rapid.SliceOfN(rapid.Bool(), 0, 40).Draw(t, "outcomes")
		var state threshold
		last := Unknown
		for i, healthy := range outcomes {
			changed := state.observe(healthy, failures, successes)
			want := Unknown
			for end := 1; end <= i+1; end++ { // every prefix that ends in a whole row
				row := 0
				for j := end - 1; j >= 0 && outcomes[j] == outcomes[end-1]; j-- {
					row++
				}
				switch {
				case outcomes[end-1] && row >= successes:
					want = Healthy
				case !outcomes[end-1] && row >= failures:
					want = Unhealthy
				}
			}
			if got := state.current(); got != want {
				t.Fatalf("after %v the status is %s, want %s (failures %d, successes %d)", outcomes[:i+1], got, want, failures, successes)
			}
			if changed != (want != last) {
				t.Fatalf("after %v a change is %v, but the status went from %s to %s", outcomes[:i+1], changed, last, want)
			}
			last = want
		}
	})
}

// The heap and the queue against plain lists.
func TestHeapAgainstList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h dueHeap
		var q queue
		in := map[*target]bool{}
		var queued []*target
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1:
				e := &target{index: -1}
				e.due = time.Duration(rapid.IntRange(0, 20).Draw(t, "due"))
				h.push(e)
				in[e] = true
				q.push(e)
				queued = append(queued, e)
				if len(q.items) > 2*len(queued)+2 {
					t.Fatalf("the queue of %d targets keeps %d", len(queued), len(q.items))
				}
			case 2:
				if len(h) == 0 {
					break
				}
				e := h[rapid.IntRange(0, len(h)-1).Draw(t, "index")]
				h.remove(e)
				h.remove(e) // twice does nothing
				delete(in, e)
			case 3:
				var want *target
				if len(queued) > 0 {
					want, queued = queued[0], queued[1:]
				}
				if got := q.pop(); got != want {
					t.Fatalf("pop = %p, want the oldest, %p", got, want)
				}
			}
			if len(h) != len(in) {
				t.Fatalf("the heap has %d targets, want %d", len(h), len(in))
			}
			for i, e := range h {
				if e.index != i || !in[e] || h[0].due > e.due {
					t.Fatalf("index %d: the target has index %d and is due at %v, the first at %v", i, e.index, e.due, h[0].due)
				}
			}
		}
	})
}
