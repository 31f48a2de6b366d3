package orchestratetest

import (
	"cmp"
	"container/heap"
	"time"
)

// due is something that happens at a moment of virtual time.
type due struct {
	at    time.Time
	order int    // of the actor; less than 0 is the world's own
	key   string // and then what it is
	seq   int    // and then when it was put there
	do    func() // with mu held
	off   bool
	index int
}

// agenda orders what is to happen.
type agenda []*due

func (h agenda) Len() int { return len(h) }
func (h agenda) Less(i, j int) bool {
	a, b := h[i], h[j]
	return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.order, b.order), cmp.Compare(a.key, b.key), cmp.Compare(a.seq, b.seq)) < 0
}
func (h agenda) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is part of heap.Interface.
func (h *agenda) Push(x any) {
	d := x.(*due)
	d.index = len(*h)
	*h = append(*h, d)
}

// Pop is part of heap.Interface.
func (h *agenda) Pop() any {
	last := len(*h) - 1
	d := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	d.index = -1
	return d
}

// after has do called, with mu held, when d has gone by. mu is held.
func (w *world) after(d time.Duration, order int, key string, do func()) *due {
	w.dues++
	e := &due{at: time.Now().Add(max(d, 0)), order: order, key: key, seq: w.dues, do: do}
	heap.Push(&w.agenda, e)
	return e
}

// cancel takes e off the agenda. mu is held.
func (w *world) cancel(e *due) {
	if e != nil && e.index >= 0 && !e.off {
		e.off = true
		heap.Remove(&w.agenda, e.index)
	}
}
