package scheduler

import "fmt"

// describeBest records the first node to be taken, those after it, and what
// the filters refuse before anything is placed.
func (g *Group) describeBest() {
	d, ix := g.decision, g.ix
	d.Refused = g.refusals()
	if g.r.Count == 0 || g.st.Placer != nil {
		return
	}
	slot, _ := ix.top()
	if len(g.plan) > 0 && ix.why[g.plan[0]] == whyFits {
		slot = g.plan[0]
	}
	if slot == none {
		return
	}
	winner := g.candidate(slot)
	d.Winner = &winner
	if most := g.p.s.opts.RunnersUp; most > 0 {
		d.RunnersUp = g.runnersUp(slot, most)
	}
}

// refusals lists the filters that refuse nodes, in the order in which they ask.
func (g *Group) refusals() []Refusal {
	ix := g.ix
	if ix.refused[whyFits]+ix.refused[whyGone] == len(ix.why) {
		return nil
	}
	var list []Refusal
	for w := range ix.refused {
		n := ix.refused[w]
		if n == 0 || why(w) == whyFits || why(w) == whyGone {
			continue
		}
		name, rule := ix.filterName(why(w))
		if k := len(list) - 1; k >= 0 && list[k].Filter == name && list[k].Rule == rule {
			list[k].Nodes += n
			continue
		}
		list = append(list, Refusal{Filter: name, Rule: rule, Nodes: n})
	}
	return list
}

// runnersUp walks down from the top of the heaps: the next best is a child of
// one already taken.
func (g *Group) runnersUp(winner int32, most int) []Candidate {
	ix := g.ix
	h := ix.domains[ix.leafOf(winner)].nodes
	if len(h) < 2 {
		return nil
	}
	list := make([]Candidate, 0, min(most, len(h)-1))
	var front [16]int32
	open := front[:0]
	expand := func(i int32) {
		for k := 4*i + 1; k < min(4*i+5, int32(len(h))); k++ {
			open = append(open, k)
		}
	}
	expand(0)
	for len(list) < most && len(open) > 0 {
		best := 0
		for k := range open {
			if h[open[k]].less(&h[open[best]]) {
				best = k
			}
		}
		at := open[best]
		open[best] = open[len(open)-1]
		open = open[:len(open)-1]
		list = append(list, g.candidate(h[at].id))
		expand(at)
	}
	return list
}

func (g *Group) candidate(slot int32) Candidate {
	ix, st := g.ix, g.st
	c := Candidate{Node: g.c.specs[slot].ID, Score: ix.score(slot), Parts: make([]Part, 0, len(st.Scorers))}
	sum := 0.0
	for _, w := range st.Scorers {
		sum += w.Weight
	}
	for _, w := range st.Scorers {
		if w.Weight > 0 {
			c.Parts = append(c.Parts, Part{w.Scorer.Name(), clamp(w.Scorer.Score(&g.sh.req, ix.view(slot))), w.Weight / sum})
		}
	}
	return c
}

// filterName says which filter, and which rule of it, a why is.
func (ix *index) filterName(w why) (filter, rule string) {
	switch {
	case w >= whyCustom:
		return ix.st.Filters[w-whyCustom].Name(), ""
	case w >= whyConstraint:
		return FilterConstraint, ix.sh.req.Constraints[w-whyConstraint].String()
	}
	switch w {
	case whyNotReady, whyPaused, whyDrained:
		return FilterReady, ""
	case whyPlatform:
		return FilterPlatform, ""
	case whyDrivers:
		return FilterDrivers, ""
	case whyTaint:
		return FilterTaint, ""
	case whyVolume:
		return FilterVolume, ""
	case whySpreadKey:
		return FilterSpreadKey, ""
	case whyCPU, whyMemory, whyDisk:
		return dimNames[w-whyCPU], ""
	case whyDevice:
		return FilterDevice, ""
	case whyPort:
		return FilterPort, ""
	case whyMaxPerNode:
		return FilterMaxPerNode, ""
	case whyAffinity:
		return FilterAffinity, ""
	}
	return FilterAntiAffinity, ""
}

// explain says which filter refuses a node, and why in words.
func (ix *index) explain(slot int32) (filter, reason string) {
	filter, _ = ix.filterName(ix.why[slot])
	return filter, ix.example(slot).Reason
}

// example is a node that is refused, with the numbers.
func (ix *index) example(slot int32) Example {
	c, r, n, w := ix.c, &ix.sh.req, ix.c.specs[slot], ix.why[slot]
	e := Example{Node: n.ID}
	switch {
	case w >= whyCustom:
		e.Reason = ix.st.Filters[w-whyCustom].Refuse(r, ix.view(slot))
		return e
	case w >= whyConstraint:
		key := r.Constraints[w-whyConstraint].Key
		if v, ok := n.attribute(key); ok {
			e.Reason = "has " + quoteWord(v)
		} else {
			e.Reason = "has no " + key
		}
		return e
	}
	switch w {
	case whyNotReady:
		e.Reason = "is not ready"
	case whyPaused:
		e.Reason = "is paused"
	case whyDrained:
		e.Reason = "is drained"
	case whyPlatform:
		e.Reason = "is " + n.Platform.String()
	case whyDrivers:
		e.Reason = "has no " + r.driverMissing(n)
	case whyTaint:
		e.Reason = "has taint " + r.untolerated(n).String()
	case whyVolume:
		e.Reason = "can not reach " + r.volumeOutOfReach(n).Name
	case whySpreadKey:
		for _, s := range r.Spread {
			if _, ok := n.attribute(s.Key); !ok && s.MaxSkew > 0 {
				e.Reason = "has no " + s.Key
				break
			}
		}
	case whyCPU, whyMemory, whyDisk:
		d := int(w - whyCPU)
		e.Need, e.Have = ix.sh.need[d], c.nodes[slot].free[d]
		e.Reason = fmt.Sprintf("has %s free, needs %s", amount(d, e.Have), amount(d, e.Need))
	case whyDevice:
		d, free, _ := c.deviceShort(slot, r.Resources.Devices)
		e.Need, e.Have = d.Count, free
		e.Reason = fmt.Sprintf("has %d %s free, needs %d", free, d.name(), d.Count)
	case whyPort:
		p, _ := c.portTaken(slot, r.Ports)
		e.Reason = "has port " + p.String() + " taken"
	case whyMaxPerNode:
		e.Need, e.Have = int64(r.MaxPerNode), int64(ix.count[slot])
		e.Reason = fmt.Sprintf("has %d already, allowed %d", e.Have, e.Need)
	case whyAffinity:
		e.Reason = "is not near the tasks wanted near"
	case whyAntiAffinity:
		e.Reason = "is near tasks to keep away from"
	case whyOthersAnti:
		e.Reason = "is near tasks that keep this service away"
	}
	return e
}

// maxExamples is how many nodes a Refusal names.
const maxExamples = 3

// explainUnplaced records, for the first replica that found no node, why each
// filter refused and what would help.
func (g *Group) explainUnplaced() {
	d, ix := g.decision, g.ix
	d.Refused = g.refusals()
	if g.shut {
		if n := ix.refused[whyFits]; n > 0 {
			d.Refused = append(d.Refused, Refusal{Filter: FilterSkew, Nodes: n})
		}
	}
	for i := range d.Refused {
		d.Refused[i].Examples = g.examples(&d.Refused[i])
	}
	d.Fixes = g.fixes()
}

// examples picks the nodes nearest to fitting, where that can be told, and else
// those whose ids' hashes are least: the same for equal clusters.
func (g *Group) examples(r *Refusal) []Example {
	ix := g.ix
	var mine [256]bool
	for w := range mine {
		if ix.refused[w] > 0 && why(w) != whyFits && why(w) != whyGone {
			name, rule := ix.filterName(why(w))
			mine[w] = name == r.Filter && rule == r.Rule
		}
	}
	mine[whyFits] = r.Filter == FilterSkew
	type near struct {
		lack int64
		slot int32
	}
	var best [maxExamples]near
	n := 0
	for i, w := range ix.why {
		if !mine[w] {
			continue
		}
		x := near{0, int32(i)}
		if w >= whyCPU && w <= whyDisk {
			x.lack = ix.sh.need[w-whyCPU] - g.c.nodes[i].free[w-whyCPU]
		}
		before := func(y near) bool {
			return x.lack < y.lack || x.lack == y.lack && g.c.byRank(x.slot, y.slot) < 0
		}
		if n == maxExamples && !before(best[n-1]) {
			continue
		}
		if n < maxExamples {
			n++
		}
		k := n - 1
		for ; k > 0 && before(best[k-1]); k-- {
			best[k] = best[k-1]
		}
		best[k] = x
	}
	out := make([]Example, n)
	for k := range n {
		if r.Filter == FilterSkew {
			out[k] = Example{Node: g.c.specs[best[k].slot].ID, Reason: "is in a domain with enough of them"}
		} else {
			out[k] = ix.example(best[k].slot)
		}
	}
	return out
}
