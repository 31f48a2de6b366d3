package scheduler

import (
	"cmp"
	"slices"
)

// This file plans which replicas of several requests share a node, for
// strategies with FitTogether. It is the bin-centric dot product heuristic of
// Panigrahy, Talwar, Uyeda and Wieder (Heuristics for Vector Bin Packing,
// 2011): fill one node at a time, always with the replica whose needs point
// the same way as what the node has left. A request at a time, however clever,
// leaves nodes full of CPU and empty of memory.
//
// A plan is advice: each group is then placed by its own index, which holds
// every rule, takes the planned nodes first and finds others for the rest.

// maxPlanWork bounds replicas times requests; beyond it groups are placed one
// after the other.
const maxPlanWork = 1 << 28

// parcel is a group in a plan.
type parcel struct {
	g      *Group
	need   [dims]float64
	left   int
	static []why
}

// plan plans the group and all others that can be planned with it.
func (p *placing) plan(first *Group) {
	var parcels []parcel
	work := int64(0)
	for i := range p.groups {
		g := &p.groups[i]
		if g.ran || g.planned || g.r.Priority != first.r.Priority || !g.plannable() {
			continue
		}
		x := parcel{g: g, left: g.r.Count, static: p.c.static(g.sh).why}
		for d, v := range g.sh.need {
			x.need[d] = float64(v)
		}
		parcels = append(parcels, x)
		work += int64(g.r.Count)
	}
	for i := range parcels {
		parcels[i].g.planned = true
	}
	if len(parcels) < 2 || work*int64(len(parcels)) > maxPlanWork {
		return
	}
	// Parcels are looked at in this order, and the first of equal ones wins.
	slices.SortStableFunc(parcels, func(a, b parcel) int {
		return cmp.Compare(p.size(b.g), p.size(a.g))
	})
	b := packing{c: p.c, parcels: parcels}
	for d := range dims {
		b.total[d] = max(p.c.total[d].float(), 1)
	}
	b.run()
}

// plannable reports whether only CPU, memory, disk and static rules say where
// the group fits.
func (g *Group) plannable() bool {
	r := g.r
	return g.st.FitTogether && g.st.pure && !g.st.LevelNodes && r.Count > 0 && g.sh.need != vector{} &&
		len(r.Ports)+len(r.Resources.Devices)+len(r.Spread)+len(r.Affinity)+len(r.AntiAffinity) == 0 &&
		len(r.Prefer)+len(r.Avoid)+len(r.Failures) == 0 && r.MaxPerNode == 0
}

// follow places a group that is planned to its last replica, without the order
// of all nodes that an index is. It is false, and nothing has happened, when a
// planned node does not fit after all.
func (g *Group) follow() bool {
	c := g.c
	if c.othersRefuse(g.r) {
		return false // static rules are not all there is
	}
	g.ix = &index{c: c, st: g.st, sh: g.sh, svc: g.sh.svc, static: c.static(g.sh)}
	g.picks = c.picks[:0]
	winner := g.candidate(g.plan[0])
	for _, slot := range g.plan {
		if _, w := g.ix.key(slot); w != whyFits {
			for _, taken := range g.picks {
				c.give(taken, g.sh)
			}
			return false
		}
		c.take(slot, g.sh)
		g.picks = append(g.picks, slot)
	}
	g.decision.Winner, g.decision.Evaluated = &winner, len(c.slots)
	g.commit()
	c.picks, g.picks, g.ix = g.picks[:0], nil, nil
	return true
}

type packing struct {
	c       *Cluster
	parcels []parcel
	total   [dims]float64
	fits    []int32 // parcels that may still fit the present node
}

func (b *packing) run() {
	c := b.c
	c.rank()
	// The fullest nodes first: what is open is filled before more is opened.
	nodes := slices.Clone(c.order)
	load := make([]float64, len(c.nodes))
	for _, slot := range nodes {
		_, load[slot] = c.nodes[slot].load(&vector{})
	}
	slices.SortStableFunc(nodes, func(x, y int32) int { return cmp.Compare(load[y], load[x]) })
	for _, slot := range nodes {
		if readiness(c.specs[slot]) == whyFits && !b.fill(slot) {
			return
		}
	}
}

// fill packs one node, and reports whether anything is left to pack.
func (b *packing) fill(slot int32) bool {
	n := &b.c.nodes[slot]
	var free, weight [dims]float64
	for d := range dims {
		free[d] = float64(n.free[d])
	}
	b.fits = b.fits[:0]
	any := false
	for i := range b.parcels {
		x := &b.parcels[i]
		if x.left == 0 {
			continue
		}
		any = true
		for d := range dims {
			weight[d] += float64(x.left) * x.need[d] / b.total[d]
		}
		if x.static[slot] == whyFits && x.fits(&free) {
			b.fits = append(b.fits, int32(i))
		}
	}
	for len(b.fits) > 0 {
		var toward [dims]float64
		for d := range dims {
			toward[d] = weight[d] * n.inverse[d] * free[d] * n.inverse[d]
		}
		best, most, kept := int32(-1), -1.0, b.fits[:0]
		for _, i := range b.fits {
			x := &b.parcels[i]
			if x.left == 0 || !x.fits(&free) {
				continue
			}
			kept = append(kept, i)
			if dot := x.need[0]*toward[0] + x.need[1]*toward[1] + x.need[2]*toward[2]; dot > most {
				best, most = i, dot
			}
		}
		b.fits = kept
		if best < 0 {
			break
		}
		x := &b.parcels[best]
		x.left--
		x.g.plan = append(x.g.plan, slot)
		for d := range dims {
			free[d] -= x.need[d]
		}
	}
	return any
}

func (x *parcel) fits(free *[dims]float64) bool {
	for d := range dims {
		if x.need[d] > free[d] && x.need[d] > 0 {
			return false
		}
	}
	return true
}
