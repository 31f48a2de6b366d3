package scheduler

// entry is a node or a domain in a heap; the least is the best. hi and lo are
// compared in turn, and then the id.
type entry struct {
	hi, lo uint64
	id     int32
}

func (a *entry) less(b *entry) bool {
	if a.hi != b.hi {
		return a.hi < b.hi
	}
	if a.lo != b.lo {
		return a.lo < b.lo
	}
	return a.id < b.id
}

// heap is a 4-ary heap that knows where each id is, so that any entry can be
// changed or taken out. pos is indexed by id, and none for ids not in it; heaps
// over different ids share one pos.
type heap []entry

func (h heap) place(pos []int32, i int, e entry) {
	h[i] = e
	pos[e.id] = int32(i)
}

func (h heap) up(pos []int32, i int, e entry) {
	for i > 0 {
		parent := (i - 1) / 4
		if !e.less(&h[parent]) {
			break
		}
		h.place(pos, i, h[parent])
		i = parent
	}
	h.place(pos, i, e)
}

func (h heap) down(pos []int32, i int, e entry) {
	for {
		first := 4*i + 1
		if first >= len(h) {
			break
		}
		best := first
		for c := first + 1; c < min(first+4, len(h)); c++ {
			if h[c].less(&h[best]) {
				best = c
			}
		}
		if !h[best].less(&e) {
			break
		}
		h.place(pos, i, h[best])
		i = best
	}
	h.place(pos, i, e)
}

// init orders entries that were appended in any order.
func (h heap) init(pos []int32) {
	for i := range h {
		pos[h[i].id] = int32(i)
	}
	for i := (len(h) - 2) / 4; i >= 0 && len(h) > 1; i-- {
		h.down(pos, i, h[i])
	}
}

// set enters e, or moves the entry of its id.
func (h *heap) set(pos []int32, e entry) {
	i := pos[e.id]
	if i == none {
		*h = append(*h, e)
		h.up(pos, len(*h)-1, e)
		return
	}
	if e.less(&(*h)[i]) {
		h.up(pos, int(i), e)
	} else {
		h.down(pos, int(i), e)
	}
}

// remove takes id out, if it is in.
func (h *heap) remove(pos []int32, id int32) {
	i := int(pos[id])
	if i < 0 {
		return
	}
	pos[id] = none
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	if i == last {
		return
	}
	if i > 0 && e.less(&(*h)[(i-1)/4]) {
		h.up(pos, i, e)
	} else {
		h.down(pos, i, e)
	}
}
