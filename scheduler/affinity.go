package scheduler

import "slices"

// selects reports whether a, in a request of that namespace, means the tasks
// of r.
func (a *Affinity) selects(namespace string, r *Request) bool {
	if r.Namespace != namespace || a.Service != "" && a.Service != r.Service {
		return false
	}
	for k, want := range a.Labels {
		if got, ok := r.Labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// eachMatch calls f for every node with tasks that a selects, and their number.
// For a service alone that is its own list of nodes; for labels it looks at
// each task once.
func (c *Cluster) eachMatch(namespace string, a *Affinity, f func(slot, tasks int32)) {
	if a.Service != "" && len(a.Labels) == 0 {
		if id, ok := c.serviceIDs[serviceKey{namespace, a.Service}]; ok {
			for slot, n := range c.services[id].nodes {
				f(slot, n)
			}
		}
		return
	}
	selected := make([]bool, len(c.shapes))
	some := false
	for i, sh := range c.shapes {
		if sh != nil && c.shapeRefs[i] > 0 && a.selects(namespace, &sh.req) {
			selected[i], some = true, true
		}
	}
	if !some {
		return
	}
	for i := range c.tasks.entries {
		if e := &c.tasks.entries[i]; e.node != none && selected[e.shape] {
			f(e.node, 1)
		}
	}
}

func (c *Cluster) hasMatch(namespace string, a *Affinity) bool {
	found := false
	c.eachMatch(namespace, a, func(int32, int32) { found = true })
	return found
}

// area gives each node the number of its neighbourhood under a topology key;
// 0 is none. The node itself is its own neighbourhood when the key is empty.
type area struct {
	slots []int32 // nil for the node itself
	n     int
}

func (c *Cluster) area(key string) area {
	if key == "" {
		return area{n: len(c.nodes) + 1}
	}
	col := c.column(key)
	return area{slots: col.slots, n: len(col.values)}
}

func (a area) of(slot int32) int32 {
	if a.slots == nil {
		return slot + 1
	}
	return a.slots[slot]
}

// neighbours follows the affinities that change while a group is placed: those
// that select the group's own tasks.
type neighbours struct {
	moving bool
	away   []area // required anti-affinity to itself
	first  []area // required affinity to itself, and no such task yet
}

// init works out which nodes the tasks already there forbid, and which they
// make better, for an index that is about to be built.
func (v *neighbours) init(g *Group, ix *index) {
	c, r := g.c, g.r
	if len(r.Affinity)+len(r.AntiAffinity) == 0 && c.antiShapes == 0 {
		return
	}
	ix.blocked = make([]why, len(c.nodes))
	block := func(in area, w why, forbidden func(domain int32) bool) {
		for slot := range ix.blocked {
			if ix.blocked[slot] == whyFits && forbidden(in.of(int32(slot))) {
				ix.blocked[slot] = w
			}
		}
	}
	for i := range r.Affinity {
		a := &r.Affinity[i]
		if a.Preferred {
			continue
		}
		in := c.area(a.Topology)
		has, any := c.domainsOf(r.Namespace, a, in)
		if !any && a.selects(r.Namespace, r) {
			v.first = append(v.first, in)
			block(in, whyAffinity, func(d int32) bool { return d == 0 })
			continue
		}
		block(in, whyAffinity, func(d int32) bool { return d == 0 || has[d] == 0 })
	}
	for i := range r.AntiAffinity {
		a := &r.AntiAffinity[i]
		if a.Preferred {
			continue
		}
		in := c.area(a.Topology)
		has, _ := c.domainsOf(r.Namespace, a, in)
		block(in, whyAntiAffinity, func(d int32) bool { return d != 0 && has[d] > 0 })
		if a.selects(r.Namespace, r) {
			v.away = append(v.away, in)
		}
	}
	c.eachOther(r, func(a *Affinity, sh *shape) bool {
		in := c.area(a.Topology)
		has := make([]bool, in.n)
		for slot := range c.services[sh.svc].nodes {
			if c.runs(slot, sh) {
				has[in.of(slot)] = true
			}
		}
		block(in, whyOthersAnti, func(d int32) bool { return d != 0 && has[d] })
		return true
	})
	v.moving = len(v.away)+len(v.first) > 0
	v.prefer(g, ix)
}

// domainsOf counts, by neighbourhood, the tasks that a selects.
func (c *Cluster) domainsOf(namespace string, a *Affinity, in area) (has []int32, any bool) {
	has = make([]int32, in.n)
	c.eachMatch(namespace, a, func(slot, n int32) {
		has[in.of(slot)] += n
		any = true
	})
	return has, any
}

// prefer fills in what TaskAffinity scores: for each wish the neighbourhood's
// share of the most that any has, added for affinity, taken off for
// anti-affinity, and moved between 0 and 1.
func (v *neighbours) prefer(g *Group, ix *index) {
	c, r := g.c, g.r
	wishes := 0
	sum := make([]float64, len(c.nodes))
	wish := func(a *Affinity, sign float64) {
		if !a.Preferred {
			return
		}
		wishes++
		in := c.area(a.Topology)
		has, _ := c.domainsOf(r.Namespace, a, in)
		has[0] = 0
		most := slices.Max(has)
		if most == 0 {
			return
		}
		for slot := range sum {
			sum[slot] += sign * float64(has[in.of(int32(slot))]) / float64(most)
		}
	}
	for i := range r.Affinity {
		wish(&r.Affinity[i], 1)
	}
	for i := range r.AntiAffinity {
		wish(&r.AntiAffinity[i], -1)
	}
	if wishes == 0 {
		return
	}
	for slot := range sum {
		sum[slot] = 0.5 + sum[slot]/float64(2*wishes)
	}
	ix.near = sum
}

// assigned follows one replica of the group onto its node.
func (v *neighbours) assigned(g *Group, slot int32) {
	ix := g.ix
	block := func(w why, forbidden func(other int32) bool) {
		for i := range ix.blocked {
			if other := int32(i); ix.blocked[i] == whyFits && forbidden(other) {
				ix.blocked[i] = w
				ix.refresh(other)
			}
		}
	}
	for _, in := range v.first {
		here := in.of(slot)
		block(whyAffinity, func(other int32) bool { return in.of(other) != here })
	}
	v.first = nil
	for _, in := range v.away {
		here := in.of(slot)
		switch {
		case here == 0:
		case in.slots == nil:
			ix.blocked[slot] = whyAntiAffinity // assign refreshes it
		default:
			block(whyAntiAffinity, func(other int32) bool { return in.of(other) == here })
		}
	}
	v.moving = len(v.away) > 0
}

// eachOther calls f for each required anti-affinity of tasks in the cluster
// that means r's, until f returns false.
func (c *Cluster) eachOther(r *Request, f func(*Affinity, *shape) bool) {
	if c.antiShapes == 0 {
		return
	}
	for i, sh := range c.shapes {
		if sh == nil || !sh.anti || c.shapeRefs[i] == 0 {
			continue
		}
		for k := range sh.req.AntiAffinity {
			a := &sh.req.AntiAffinity[k]
			if !a.Preferred && a.selects(sh.req.Namespace, r) && !f(a, sh) {
				return
			}
		}
	}
}

// othersRefuse reports whether some task in the cluster keeps r's away from
// its neighbourhood.
func (c *Cluster) othersRefuse(r *Request) bool {
	refuse := false
	c.eachOther(r, func(*Affinity, *shape) bool {
		refuse = true
		return false
	})
	return refuse
}

// runs reports whether a task of exactly that shape is on the node.
func (c *Cluster) runs(slot int32, sh *shape) bool {
	for i := c.nodes[slot].head; i != none; i = c.tasks.entries[i].next {
		if c.tasks.entries[i].shape == sh.id {
			return true
		}
	}
	return false
}
