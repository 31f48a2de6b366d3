package scheduler

import (
	"cmp"
	"slices"
)

// victim is a task that was stopped for one of higher priority.
type victim struct {
	id    string
	slot  int32
	shape *shape
	pick  int // which replica it made room for
}

// eviction is the cheapest way to make room for one replica on a node.
type eviction struct {
	slot  int32
	worst int32 // highest priority among the tasks
	tasks []int32
}

func (a *eviction) compare(b *eviction, c *Cluster) int {
	return cmp.Or(
		cmp.Compare(a.worst, b.worst),
		cmp.Compare(len(a.tasks), len(b.tasks)),
		c.byRank(a.slot, b.slot))
}

// preempt places replicas that found no room where tasks of lower priority can
// stop, as far as their services spare them: on the node whose most important victim matters least, and then where
// the fewest have to stop.
func (g *Group) preempt() {
	var options []eviction
	for slot := range g.ix.why {
		if e, ok := g.evictionOn(int32(slot)); ok {
			options = append(options, e)
		}
	}
	for g.Left() > 0 && len(options) > 0 {
		best := -1
		for i := range options {
			if !g.ix.skewForbids(options[i].slot) && (best < 0 || options[i].compare(&options[best], g.c) < 0) {
				best = i
			}
		}
		if best < 0 {
			return
		}
		slot := options[best].slot
		// What was placed since may forbid the node; ask again.
		e, ok := g.evictionOn(slot)
		if ok && slices.Equal(e.tasks, options[best].tasks) {
			g.evict(&e)
			for g.Left() > 0 && g.ix.why[slot] == whyFits && !g.ix.skewForbids(slot) {
				g.assign(slot) // there may be room for more than one now
			}
			e, ok = g.evictionOn(slot)
		}
		if ok {
			options[best] = e
		} else {
			options = slices.Delete(options, best, best+1)
		}
	}
}

// evictionOn finds the fewest and least important tasks whose end would let
// the replica onto the node. The cluster is left as it was.
func (g *Group) evictionOn(slot int32) (eviction, bool) {
	c, ix := g.c, g.ix
	if ix.static.why[slot] != whyFits || ix.blocked != nil && ix.blocked[slot] != whyFits {
		return eviction{}, false
	}
	lower := g.lowerTasks(slot)
	fits := func() bool { _, w := ix.key(slot); return w == whyFits }
	move := func(i int32, give bool) {
		sh := c.shapes[c.tasks.entries[i].shape]
		by := int32(1)
		if give {
			c.give(slot, sh)
			by = -1
		} else {
			c.take(slot, sh)
		}
		if ix.counting && sh.svc == ix.svc {
			ix.count[slot] += by
		}
	}
	out := lower[:0:0]
	for _, i := range lower {
		if fits() {
			break
		}
		if !c.mayGo(i, out) {
			continue
		}
		move(i, true)
		out = append(out, i)
	}
	ok := fits() && len(out) > 0
	if ok {
		// Let back, the most important first, whoever need not go.
		for k := len(out) - 1; k >= 0; k-- {
			move(out[k], false)
			if fits() {
				out = slices.Delete(out, k, k+1)
			} else {
				move(out[k], true)
			}
		}
	}
	for _, i := range out {
		move(i, false)
	}
	if !ok || len(out) == 0 {
		return eviction{}, false
	}
	e := eviction{slot: slot, tasks: out}
	for k, i := range out {
		if p := c.shapes[c.tasks.entries[i].shape].req.Priority; k == 0 || p > e.worst {
			e.worst = p
		}
	}
	return e, true
}

// lowerTasks are the node's tasks that may be stopped, least important first,
// and among equals the largest first, so that few have to go.
func (g *Group) lowerTasks(slot int32) []int32 {
	c := g.c
	var list []int32
	for i := c.nodes[slot].head; i != none; i = c.tasks.entries[i].next {
		sh := c.shapes[c.tasks.entries[i].shape]
		if sh.req.Priority < g.r.Priority && !g.spares(sh) {
			list = append(list, i)
		}
	}
	size := func(i int32) float64 {
		most := 0.0
		for d, v := range c.shapes[c.tasks.entries[i].shape].need {
			most = max(most, float64(v)*c.nodes[slot].inverse[d])
		}
		return most
	}
	slices.SortFunc(list, func(a, b int32) int {
		x, y := c.shapes[c.tasks.entries[a].shape], c.shapes[c.tasks.entries[b].shape]
		return cmp.Or(
			cmp.Compare(x.req.Priority, y.req.Priority),
			cmp.Compare(size(b), size(a)),
			cmp.Compare(c.tasks.entries[a].id, c.tasks.entries[b].id))
	})
	return list
}

// spares reports whether tasks of sh stay because someone, or the group itself,
// requires to be near them.
func (g *Group) spares(sh *shape) bool {
	spared, known := g.spared[sh.id]
	if !known {
		spared = g.c.wantedNear(&sh.req)
		for k := range g.r.Affinity {
			a := &g.r.Affinity[k]
			spared = spared || !a.Preferred && a.selects(g.r.Namespace, &sh.req)
		}
		if g.spared == nil {
			g.spared = map[int32]bool{}
		}
		g.spared[sh.id] = spared
	}
	return spared
}

// evict releases the tasks; the next pick is who they go for.
func (g *Group) evict(e *eviction) {
	c := g.c
	for _, i := range e.tasks {
		t := c.tasks.entries[i]
		sh := c.shapes[t.shape]
		g.victims = append(g.victims, victim{t.id, t.node, sh, len(g.picks)})
		g.decision.Victims = append(g.decision.Victims, Victim{Task: t.id, Node: c.specs[t.node].ID, Priority: sh.req.Priority})
		c.spend(sh.svc, 1)
		c.release(i)
		if g.ix.counting && sh.svc == g.ix.svc {
			g.ix.setCount(e.slot, g.ix.count[e.slot]-1)
		}
	}
	g.ix.refresh(e.slot)
}

// fixPreempt names the tasks that preemption would stop, were it allowed.
func (g *Group) fixPreempt() (Fix, bool) {
	if g.p.s.opts.Preempt || g.c.lowest() >= g.r.Priority {
		return Fix{}, false
	}
	var best *eviction
	for slot := range g.ix.why {
		if g.ix.skewForbids(int32(slot)) {
			continue
		}
		if e, ok := g.evictionOn(int32(slot)); ok && (best == nil || e.compare(best, g.c) < 0) {
			best = &e
		}
	}
	if best == nil {
		return Fix{}, false
	}
	f := Fix{Kind: FixPreempt, Node: g.c.specs[best.slot].ID}
	for _, i := range best.tasks {
		f.Tasks = append(f.Tasks, g.c.tasks.entries[i].id)
	}
	return f, true
}

// lowest is the lowest priority of any task.
func (c *Cluster) lowest() int32 {
	low := int32(1<<31 - 1)
	for i, sh := range c.shapes {
		if sh != nil && c.shapeRefs[i] > 0 {
			low = min(low, sh.req.Priority)
		}
	}
	return low
}
