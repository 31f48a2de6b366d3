package control

import (
	"container/heap"
	"time"
)

// timer is a moment at which a service or a node is to be looked at again. The
// zero value is unset.
type timer struct {
	at    time.Time
	index int // in the heap, counted from 1; 0 is unset
	due   func()
}

// timers orders timers by time, so that finding what is due does not depend on
// how many there are.
type timers []*timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

// Push is part of heap.Interface.
func (h *timers) Push(x any) {
	t := x.(*timer)
	*h = append(*h, t)
	t.index = len(*h)
}

// Pop is part of heap.Interface.
func (h *timers) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	t.index = 0
	return t
}

// set moves t to at; the zero time unsets it.
func (h *timers) set(t *timer, at time.Time) {
	switch {
	case at.IsZero():
		if t.index > 0 {
			heap.Remove(h, t.index-1)
		}
	case t.index == 0:
		t.at = at
		heap.Push(h, t)
	case !t.at.Equal(at):
		t.at = at
		heap.Fix(h, t.index-1)
	}
}

// expire unsets all timers that are due and calls what they are for.
func (h *timers) expire(now time.Time) {
	for len(*h) > 0 && !(*h)[0].at.After(now) {
		t := heap.Pop(h).(*timer)
		t.due()
	}
}

// next is when the first timer is due; zero if there is none.
func (h timers) next() time.Time {
	if len(h) == 0 {
		return time.Time{}
	}
	return h[0].at
}
