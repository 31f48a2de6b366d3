package health

// dueHeap is a binary heap of targets by due time. Each target knows its
// index, so one can be removed without a search. container/heap would cost an
// interface call at each step of it.
type dueHeap []*target

func (h *dueHeap) push(e *target) {
	e.index = len(*h)
	*h = append(*h, e)
	h.up(e.index)
}

// remove takes e out of the heap, if it is in it.
func (h *dueHeap) remove(e *target) {
	i := e.index
	if i < 0 || i >= len(*h) || (*h)[i] != e {
		return
	}
	last := len(*h) - 1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	if i < last && !h.down(i) {
		h.up(i)
	}
	e.index = -1
}

func (h dueHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h dueHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].due <= h[i].due {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h dueHeap) down(i int) (moved bool) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h); child++ {
			if h[child].due < h[least].due {
				least = child
			}
		}
		if least == i {
			return moved
		}
		h.swap(i, least)
		i, moved = least, true
	}
}

// queue is a first-in-first-out list of targets. The zero value is empty.
type queue struct {
	items []*target
	head  int
}

func (q *queue) push(e *target) {
	if q.head > len(q.items)/2 { // a queue that never empties must not grow
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, e)
}

// pop returns nil when the queue is empty.
func (q *queue) pop() *target {
	if q.head == len(q.items) {
		return nil
	}
	e := q.items[q.head]
	q.items[q.head] = nil
	if q.head++; q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return e
}
