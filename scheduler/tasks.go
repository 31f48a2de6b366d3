package scheduler

import (
	"hash/maphash"
	"slices"
)

// none ends a list of tasks and marks the absence of a slot.
const none = int32(-1)

// taskEntry is one bound task: 40 bytes, so that a million of them are cheap
// to hold and to copy.
type taskEntry struct {
	id         string
	hash       uint32
	node       int32 // slot of its node; none when the entry is free
	shape      int32
	next, prev int32 // list of the node's tasks, or of free entries
}

// taskTable holds the tasks and finds them by id. The index is an open hash
// table of entry numbers plus one: 4 bytes a place against Go's map's 24, and
// copied with one memmove. The hash's seed is different in each process, which
// is harmless: nothing is ever listed in the order of the index.
type taskTable struct {
	entries []taskEntry
	free    int32
	count   int
	index   []int32
	seed    maphash.Seed
}

func newTaskTable() taskTable {
	return taskTable{free: none, seed: maphash.MakeSeed()}
}

func (t *taskTable) clone() taskTable {
	u := *t
	u.entries = slices.Clone(t.entries)
	u.index = slices.Clone(t.index)
	return u
}

// reserve makes room for n more tasks, so that they are added without growing
// step by step.
func (t *taskTable) reserve(n int) {
	if n > 64 {
		t.entries = slices.Grow(t.entries, n)
	}
	if want := (t.count + n) * 3 / 2; want > len(t.index) {
		size := max(16, len(t.index))
		for size < want {
			size *= 2
		}
		t.rehash(size)
	}
}

func (t *taskTable) rehash(size int) {
	t.index = make([]int32, size)
	mask := uint32(size - 1)
	for i := range t.entries {
		if t.entries[i].node == none {
			continue
		}
		at := t.entries[i].hash & mask
		for t.index[at] != 0 {
			at = (at + 1) & mask
		}
		t.index[at] = int32(i) + 1
	}
}

func (t *taskTable) hash(id string) uint32 { return uint32(maphash.String(t.seed, id)) }

// find returns the entry of id, or none.
func (t *taskTable) find(id string) int32 {
	if t.count == 0 {
		return none
	}
	h := t.hash(id)
	mask := uint32(len(t.index) - 1)
	for at := h & mask; t.index[at] != 0; at = (at + 1) & mask {
		if e := &t.entries[t.index[at]-1]; e.hash == h && e.id == id {
			return t.index[at] - 1
		}
	}
	return none
}

// add enters a task and links it first into the list that begins at *head. It
// is false, and nothing has happened, when the id is there.
func (t *taskTable) add(id string, node, shape int32, head *int32) bool {
	t.reserve(1)
	h := t.hash(id)
	mask := uint32(len(t.index) - 1)
	at := h & mask
	for ; t.index[at] != 0; at = (at + 1) & mask {
		if e := &t.entries[t.index[at]-1]; e.hash == h && e.id == id {
			return false
		}
	}
	i := t.free
	if i == none {
		i = int32(len(t.entries))
		t.entries = append(t.entries, taskEntry{})
	} else {
		t.free = t.entries[i].next
	}
	t.entries[i] = taskEntry{id: id, hash: h, node: node, shape: shape, next: *head, prev: none}
	if *head != none {
		t.entries[*head].prev = i
	}
	*head = i
	t.index[at] = i + 1
	t.count++
	return true
}

// remove takes entry i out of the table and out of the list at *head.
func (t *taskTable) remove(i int32, head *int32) {
	e := &t.entries[i]
	if e.prev == none {
		*head = e.next
	} else {
		t.entries[e.prev].next = e.next
	}
	if e.next != none {
		t.entries[e.next].prev = e.prev
	}
	mask := uint32(len(t.index) - 1)
	at := e.hash & mask
	for t.index[at] != i+1 {
		at = (at + 1) & mask
	}
	// Close the gap (Knuth 6.4, algorithm R): move back each later entry of
	// the run whose own place is not after the gap.
	for gap := at; ; {
		at = (at + 1) & mask
		if t.index[at] == 0 {
			t.index[gap] = 0
			break
		}
		home := t.entries[t.index[at]-1].hash & mask
		if (at-home)&mask >= (at-gap)&mask {
			t.index[gap] = t.index[at]
			gap = at
		}
	}
	*e = taskEntry{node: none, next: t.free}
	t.free = i
	t.count--
}
