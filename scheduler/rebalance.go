package scheduler

import (
	"cmp"
	"math"
	"slices"
)

// RebalanceOptions bound what a plan may disturb.
type RebalanceOptions struct {
	// Threshold is the least gain for which a task is moved; 0 is 0.1. See
	// Move.Gain.
	Threshold float64
	// MaxMoves bounds the plan; 0 is 10.
	MaxMoves int
	// MaxPerService bounds the moves of one service; 0 is 1.
	MaxPerService int
}

// Move is one task that would be better off elsewhere.
type Move struct {
	Task, From, To string
	// Gain is by how much: whole tasks where the spread gets more even (the
	// old domain or node has that many more tasks of the service than the
	// new, not counting this one), and otherwise the difference of scores,
	// which is below 1.
	Gain float64
}

// Rebalance plans moves, best first as far as that can be told beforehand, and
// applies none: c is left as it is. Each move is good after those before it.
// A task moves at most once; tasks that others require affinity to, and tasks
// on nodes that would refuse them now, stay.
func (s *Scheduler) Rebalance(c *Cluster, o RebalanceOptions) ([]Move, error) {
	o.Threshold = cmp.Or(o.Threshold, 0.1)
	o.MaxMoves = cmp.Or(o.MaxMoves, 10)
	o.MaxPerService = cmp.Or(o.MaxPerService, 1)
	switch {
	case math.IsNaN(o.Threshold) || o.Threshold < 0:
		return nil, invalid("threshold", o.Threshold, "a number above 0, or 0 for 0.1")
	case o.MaxMoves < 0:
		return nil, invalid("maxMoves", o.MaxMoves, "a number above 0, or 0 for 10")
	case o.MaxPerService < 0:
		return nil, invalid("maxPerService", o.MaxPerService, "a number above 0, or 0 for 1")
	}
	b := rebalancing{s: s, c: c.Clone(), o: o, moved: map[string]bool{}, perService: map[int32]int{}}
	b.c.placing = true
	for len(b.moves) < o.MaxMoves {
		options, err := b.survey()
		if err != nil {
			return nil, err
		}
		before := len(b.moves)
		for _, m := range options {
			if err := b.try(m.Task); err != nil {
				return nil, err
			}
			if len(b.moves) == o.MaxMoves {
				break
			}
		}
		if len(b.moves) == before {
			break
		}
	}
	return b.moves, nil
}

type rebalancing struct {
	s          *Scheduler
	c          *Cluster // a copy
	o          RebalanceOptions
	moves      []Move
	moved      map[string]bool
	perService map[int32]int
}

// survey finds the tasks worth moving as things stand, best first.
func (b *rebalancing) survey() ([]Move, error) {
	var list []Move
	for t := range b.c.Tasks() {
		m, ok, err := b.best(t.ID)
		if err != nil {
			return nil, err
		}
		if ok {
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(x, y Move) int { return cmp.Compare(y.Gain, x.Gain) })
	return list, nil
}

// best finds the best place of a task, which is left where it is.
func (b *rebalancing) best(id string) (Move, bool, error) {
	c := b.c
	i := c.tasks.find(id)
	e := c.tasks.entries[i]
	sh := c.shapes[e.shape]
	if b.moved[id] || b.perService[sh.svc] >= b.o.MaxPerService || c.wantedNear(&sh.req) {
		return Move{}, false, nil
	}
	st, err := b.s.strategy(sh.req.Strategy)
	if err != nil {
		return Move{}, false, err
	}
	if st.Placer != nil {
		return Move{}, false, nil // it has no scores to compare
	}
	c.release(i)
	g := Group{p: &placing{s: b.s, c: c}, c: c, r: &sh.req, sh: sh, st: st}
	g.ix = c.indexFor(&g)
	m := Move{Task: id, From: c.specs[e.node].ID}
	to, _ := g.ix.top()
	ok := to != none && to != e.node && g.ix.why[e.node] == whyFits
	if ok {
		m.To = c.specs[to].ID
		m.Gain = g.ix.gain(e.node, to)
	}
	g.ix.reopen()
	c.take(e.node, sh)
	c.addTask(id, e.node, sh)
	c.countTask(sh.svc, e.node, 1)
	c.changes.add(e.node, len(c.nodes))
	return m, ok && m.Gain >= b.o.Threshold, nil
}

// try moves a task if that is still worth it.
func (b *rebalancing) try(id string) error {
	m, ok, err := b.best(id)
	if err != nil || !ok {
		return err
	}
	c := b.c
	i := c.tasks.find(id)
	sh := c.shapes[c.tasks.entries[i].shape]
	c.release(i)
	to := c.slots[m.To]
	c.take(to, sh)
	c.addTask(id, to, sh)
	c.countTask(sh.svc, to, 1)
	c.changes.add(to, len(c.nodes))
	b.moved[id] = true
	b.perService[sh.svc]++
	b.moves = append(b.moves, m)
	return nil
}

// gain compares two nodes for a task that is on neither, in the order in which
// Place does.
func (ix *index) gain(from, to int32) float64 {
	if len(ix.spread) > 0 {
		a, b := ix.leaf[from], ix.leaf[to]
		best := 0.0
		for ; a != b; a, b = ix.domains[a].parent, ix.domains[b].parent {
			x, y := &ix.domains[a], &ix.domains[b]
			best = float64(x.count+1)/x.weight - float64(y.count+1)/y.weight
		}
		if best != 0 {
			return best
		}
	}
	if ix.st.LevelNodes && ix.count[from] != ix.count[to] {
		return float64(ix.count[from] - ix.count[to])
	}
	return ix.score(to) - ix.score(from)
}

// wantedNear reports whether a task in the cluster requires affinity to r's.
func (c *Cluster) wantedNear(r *Request) bool {
	for i, sh := range c.shapes {
		if sh == nil || c.shapeRefs[i] == 0 {
			continue
		}
		for k := range sh.req.Affinity {
			a := &sh.req.Affinity[k]
			if !a.Preferred && a.selects(sh.req.Namespace, r) {
				return true
			}
		}
	}
	return false
}
