package scheduler

import (
	"math"
	"slices"
)

// domain is a set of nodes that spreading evens out against its siblings: a
// zone, or a rack of a zone. Domain 0 is everything. Those of the last level
// hold nodes, the others domains.
type domain struct {
	parent   int32
	depth    int // 0 for everything
	weight   float64
	count    int // tasks of the service, on nodes that any filter lets pass or not
	allowed  int // nodes that no static filter refuses
	children []int32
	subs     heap // of children with a node to take
	nodes    heap // of nodes to take
	closed   bool
}

// buildDomains numbers the domains in the order of their values, level by
// level: the numbers break ties, and must not depend on the order in which
// nodes came.
func (ix *index) buildDomains() {
	c, n := ix.c, len(ix.c.nodes)
	ix.domains = ix.domains[:0]
	ix.addDomain(none, 0, 1)
	if len(ix.spread) > 0 {
		ix.leaf = sized(ix.leaf, n)
		clear(ix.leaf)
	}
	for depth, s := range ix.spread {
		ix.splitDomains(depth+1, s)
	}
	ix.inHeap = sized(ix.inHeap, len(ix.domains))
	for i := range ix.inHeap {
		ix.inHeap[i] = none
	}
	if len(ix.spread) == 0 {
		return
	}
	for i := range n {
		slot := int32(i)
		if ix.static.why[slot] == whyFits {
			for d := ix.leaf[slot]; d != none; d = ix.domains[d].parent {
				ix.domains[d].allowed++
			}
		}
	}
	for slot, k := range c.services[ix.svc].nodes {
		ix.addToDomains(slot, int(k))
	}
}

// addDomain appends a domain, in the memory of one that was there before.
func (ix *index) addDomain(parent int32, depth int, weight float64) int32 {
	id := len(ix.domains)
	if id == cap(ix.domains) {
		ix.domains = append(ix.domains, domain{})
	}
	ix.domains = ix.domains[:id+1]
	d := &ix.domains[id]
	*d = domain{parent: parent, depth: depth, weight: weight,
		children: d.children[:0], subs: d.subs[:0], nodes: d.nodes[:0]}
	if parent != none {
		ix.domains[parent].children = append(ix.domains[parent].children, int32(id))
	}
	return int32(id)
}

// splitDomains puts a level of domains under the present leaves.
func (ix *index) splitDomains(depth int, s SpreadKey) {
	c := ix.c
	col := c.column(s.Key)
	type place struct{ parent, value int32 }
	// The parents are the domains of the level before, numbered in a row.
	first, values := int32(len(ix.domains)), int32(len(col.values))
	for first > 0 && ix.domains[first-1].depth == depth-1 {
		first--
	}
	cell := func(p place) int32 { return (p.parent-first)*values + p.value }
	found := make([]int32, (int32(len(ix.domains))-first)*values)
	var order []place
	for slot, leaf := range ix.leaf {
		if c.specs[slot] == nil {
			continue
		}
		p := place{leaf, col.slots[slot]}
		if k := cell(p); found[k] == 0 {
			found[k] = 1
			order = append(order, p)
		}
	}
	slices.SortFunc(order, func(a, b place) int {
		if a.parent != b.parent {
			return int(a.parent) - int(b.parent)
		}
		switch {
		case a.value == b.value:
			return 0
		case a.value == 0: // nodes without the key come last
			return 1
		case b.value == 0 || col.values[a.value] < col.values[b.value]:
			return -1
		}
		return 1
	})
	for _, p := range order {
		w := 1.0
		if x, ok := s.Weights[col.values[p.value]]; ok && p.value != 0 {
			w = x
		}
		found[cell(p)] = ix.addDomain(p.parent, depth, w)
	}
	for slot, leaf := range ix.leaf {
		if c.specs[slot] != nil {
			ix.leaf[slot] = found[cell(place{leaf, col.slots[slot]})]
		}
	}
}

func (ix *index) leafOf(slot int32) int32 {
	if len(ix.spread) == 0 {
		return 0
	}
	return ix.leaf[slot]
}

func (ix *index) addToDomains(slot int32, by int) {
	for d := ix.leaf[slot]; d != none; d = ix.domains[d].parent {
		ix.domains[d].count += by
	}
}

// setCount says how many tasks of the service a node has. refresh must follow.
func (ix *index) setCount(slot, to int32) {
	by := to - ix.count[slot]
	if by == 0 {
		return
	}
	ix.count[slot] = to
	if len(ix.spread) > 0 {
		ix.addToDomains(slot, int(by))
	}
}

// initHeaps orders what build has filled in.
func (ix *index) initHeaps() {
	for d := len(ix.domains) - 1; d >= 0; d-- {
		dom := &ix.domains[d]
		dom.nodes.init(ix.pos)
		for _, child := range dom.children {
			if e, ok := ix.domainEntry(child); ok {
				dom.subs = append(dom.subs, e)
			}
		}
		dom.subs.init(ix.inHeap)
	}
}

// domainEntry says where a domain comes among its siblings: first the one that
// would have the fewest tasks for its weight (for unequal weights this is the
// D'Hondt rule), among those the one with the best node. It is false when
// there is nothing to take in it.
func (ix *index) domainEntry(d int32) (entry, bool) {
	dom := &ix.domains[d]
	if dom.closed || len(dom.nodes) == 0 && len(dom.subs) == 0 {
		return entry{}, false
	}
	e := entry{hi: math.Float64bits(float64(dom.count+1) / dom.weight), id: d}
	if len(dom.nodes) > 0 {
		e.lo = dom.nodes[0].hi
	} else {
		e.lo = dom.subs[0].lo
	}
	return e, true
}

// lift moves a domain, and those that it is in, to where they now belong.
func (ix *index) lift(d int32) {
	for ; d > 0; d = ix.domains[d].parent {
		parent := &ix.domains[ix.domains[d].parent]
		if e, ok := ix.domainEntry(d); ok {
			parent.subs.set(ix.inHeap, e)
		} else {
			parent.subs.remove(ix.inHeap, d)
		}
	}
}

// top returns the best node, or none. shut says that there are nodes, but that
// the skew allowed forbids them all.
func (ix *index) top() (slot int32, shut bool) {
	d := int32(0)
	for {
		dom := &ix.domains[d]
		if len(dom.nodes) > 0 {
			return dom.nodes[0].id, false
		}
		if len(dom.subs) == 0 {
			return none, len(ix.closed) > 0
		}
		child := dom.subs[0].id
		skew := ix.spread[dom.depth].MaxSkew
		if skew == 0 || ix.domains[child].count+1-ix.fewestIn(d) <= skew {
			d = child
			continue
		}
		// The child has the fewest tasks of those with room, so no sibling
		// will do either. Nothing in d can be taken until another replica
		// is gone, which does not happen in this group.
		ix.closed = append(ix.closed, d)
		dom.closed = true
		if d == 0 {
			return none, true
		}
		ix.lift(d)
		d = 0
	}
}

// fewestIn is the least number of tasks in any child of d that has nodes the
// static filters allow, full or not.
func (ix *index) fewestIn(d int32) int {
	least := math.MaxInt
	for _, child := range ix.domains[d].children {
		if dom := &ix.domains[child]; dom.allowed > 0 {
			least = min(least, dom.count)
		}
	}
	return least
}

// skewForbids reports whether a replica on the node would break a MaxSkew.
func (ix *index) skewForbids(slot int32) bool {
	if len(ix.spread) == 0 {
		return false
	}
	for d := ix.leaf[slot]; d != 0; d = ix.domains[d].parent {
		parent := ix.domains[d].parent
		skew := ix.spread[ix.domains[parent].depth].MaxSkew
		if skew > 0 && ix.domains[d].count+1-ix.fewestIn(parent) > skew {
			return true
		}
	}
	return false
}

// reopen undoes what top has shut.
func (ix *index) reopen() {
	for _, d := range ix.closed {
		ix.domains[d].closed = false
		ix.lift(d)
	}
	ix.closed = ix.closed[:0]
}
