package scheduler

import "slices"

// fixes finds the smallest changes that would place one more replica.
func (g *Group) fixes() []Fix {
	var list []Fix
	if f, ok := g.fixFree(); ok {
		list = append(list, f)
	}
	list = append(list, g.fixDrop()...)
	list = append(list, g.fixLoosen()...)
	if f, ok := g.fixPreempt(); ok {
		list = append(list, f)
	}
	return list
}

// fixFree finds the node where the least has to be freed, measured by the
// share of the request, for want of one resource alone.
func (g *Group) fixFree() (Fix, bool) {
	ix, c := g.ix, g.c
	best, bestShare, dim := none, 0.0, 0
	var inverse [dims]float64
	for d, v := range ix.sh.need {
		inverse[d] = 1 / float64(max(v, 1))
	}
	for i, w := range ix.why {
		if w < whyCPU || w > whyDisk {
			continue
		}
		slot, d := int32(i), int(w-whyCPU) // the first that it lacks
		free := &c.nodes[i].free
		share := float64(ix.sh.need[d]-free[d]) * inverse[d]
		if best != none && (share > bestShare || share == bestShare && c.byRank(best, slot) < 0) {
			continue
		}
		// It must lack nothing else, and more than it has altogether can not
		// be freed.
		enough := true
		for e := d + 1; e < dims; e++ {
			enough = enough && (ix.sh.need[e] <= free[e] || ix.sh.need[e] == 0)
		}
		if enough && ix.sh.need[d] <= c.specs[i].allocatable()[d] {
			best, bestShare, dim = slot, share, d
		}
	}
	var enough vector
	enough[dim] = ix.sh.need[dim]
	if best == none || !g.fitsBut(best, enough) {
		return Fix{}, false
	}
	return Fix{Kind: FixFree, Node: c.specs[best].ID, Resource: dimNames[dim],
		Amount: ix.sh.need[dim] - c.nodes[best].free[dim]}, true
}

// fitsBut reports whether the node would fit if it had that much more.
func (g *Group) fitsBut(slot int32, more vector) bool {
	n := &g.c.nodes[slot]
	saved := n.free
	for d := range dims {
		n.free[d] = max(n.free[d], more[d])
	}
	_, w := g.ix.key(slot)
	n.free = saved
	return w == whyFits && !g.ix.skewForbids(slot)
}

// fixDrop finds constraints each of which is all that stands in the way on some
// nodes.
func (g *Group) fixDrop() []Fix {
	r, ix := g.r, g.ix
	if len(r.Constraints) == 0 {
		return nil
	}
	counts := make([]int, len(r.Constraints))
	tests := make([][]bool, len(r.Constraints))
	cols := make([]*column, len(r.Constraints))
	for i := range r.Constraints {
		holds := r.Constraints[i].compile()
		cols[i] = g.c.column(r.Constraints[i].Key)
		for id, v := range cols[i].values {
			tests[i] = append(tests[i], holds(v, id != 0))
		}
	}
	bare := g.sh.req
	bare.Constraints = nil
	rules := g.c.rules(&bare)
	static := ix.static
	free := &staticSet{why: make([]why, len(static.why))}
	ix.static = free
	defer func() { ix.static = static }()
nodes:
	for slot, w := range static.why {
		if w < whyConstraint || w >= whyCustom {
			continue
		}
		only := -1
		for i := range tests {
			if !tests[i][cols[i].slots[slot]] {
				if only >= 0 {
					continue nodes
				}
				only = i
			}
		}
		for _, t := range rules {
			if !t.pass[t.slots[slot]] {
				continue nodes
			}
		}
		if _, w := ix.key(int32(slot)); w == whyFits && only >= 0 {
			counts[only]++
		}
	}
	var list []Fix
	for i, n := range counts {
		if n > 0 {
			list = append(list, Fix{Kind: FixDrop, Rule: r.Constraints[i].String(), Nodes: n})
		}
	}
	slices.SortStableFunc(list, func(a, b Fix) int { return b.Nodes - a.Nodes })
	return list
}

// fixLoosen finds rules other than constraints that are all that stands in the
// way on some nodes.
func (g *Group) fixLoosen() []Fix {
	r, ix := g.r, g.ix
	var list []Fix
	// try counts the nodes refused by w that would fit a request without the
	// rule.
	try := func(rule string, w why, loosen func(*index, *shape)) {
		if ix.refused[w] == 0 {
			return
		}
		sh := *ix.sh
		loose := *ix
		loose.sh = &sh
		loosen(&loose, &sh)
		n := 0
		for slot, x := range ix.why {
			if x != w {
				continue
			}
			if _, still := loose.key(int32(slot)); still == whyFits && !ix.skewForbids(int32(slot)) {
				n++
			}
		}
		if n > 0 {
			list = append(list, Fix{Kind: FixDrop, Rule: rule, Nodes: n})
		}
	}
	try("maxPerNode", whyMaxPerNode, func(_ *index, sh *shape) { sh.req.MaxPerNode = 0 })
	// A node is marked with the first relation that forbids it, so with more
	// than one kind of them it can not be told what is left without one.
	required := func(a Affinity) bool { return !a.Preferred }
	near, away := slices.ContainsFunc(r.Affinity, required), slices.ContainsFunc(r.AntiAffinity, required)
	if near != away && ix.refused[whyOthersAnti] == 0 && !g.c.othersRefuse(r) {
		try("required affinity", whyAffinity, func(ix *index, _ *shape) { ix.blocked = nil })
		try("required anti-affinity", whyAntiAffinity, func(ix *index, _ *shape) { ix.blocked = nil })
	}
	if n := ix.refused[whyFits]; g.shut && n > 0 {
		for _, s := range r.Spread {
			if s.MaxSkew > 0 {
				list = append(list, Fix{Kind: FixDrop, Rule: "maxSkew of " + s.Key, Nodes: n})
				break
			}
		}
	}
	return list
}
