package scheduler

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Group is one request in the middle of being placed, as a [Placer] sees it.
type Group struct {
	p        *placing
	c        *Cluster
	r        *Request
	sh       *shape
	st       *strategy
	ix       *index
	picks    []int32
	shapes   []*shape // by pick; nil when all are sh
	victims  []victim
	spared   map[int32]bool // by shape: tasks that preemption leaves alone
	plan     []int32        // nodes to take first
	planned  bool           // there is no more to plan
	ran      bool
	shut     bool // the skew allowed ended it
	fit      int  // replicas that had a node, even if the gang gave them up
	near     neighbours
	decision *Decision
}

// Request is what is being placed. Read it only.
func (g *Group) Request() *Request { return g.r }

// Left is how many replicas have no node yet.
func (g *Group) Left() int { return g.r.Count - len(g.picks) }

// Seed is the Scheduler's seed, mixed with what is being placed and where it
// stands, so that it differs from one Place to the next.
func (g *Group) Seed() uint64 {
	return mix(g.p.s.opts.Seed ^ hashName(g.r.name()) + uint64(g.c.tasks.count))
}

// Best is the node that the strategy's spreading and scores put first.
func (g *Group) Best() (NodeView, bool) {
	slot, shut := g.ix.top()
	g.shut = g.shut || shut
	if slot == none {
		return NodeView{}, false
	}
	return g.ix.view(slot), true
}

// Candidates are the nodes that every filter lets pass now, in an order that
// is the same for equal clusters but otherwise without meaning.
func (g *Group) Candidates() iter.Seq[NodeView] {
	return func(yield func(NodeView) bool) {
		var slots []int32
		for slot, w := range g.ix.why {
			if w == whyFits {
				slots = append(slots, int32(slot))
			}
		}
		slices.SortFunc(slots, g.c.byRank)
		for _, slot := range slots {
			if g.ix.why[slot] == whyFits && !g.ix.skewForbids(slot) && !yield(g.ix.view(slot)) {
				return
			}
		}
	}
}

func (c *Cluster) byRank(a, b int32) int {
	x := entry{c.nodes[a].rank, 0, a}
	if y := (entry{c.nodes[b].rank, 0, b}); x.less(&y) {
		return -1
	}
	return 1
}

// RefusedError says which filter keeps a replica off a node that a Placer has
// chosen.
type RefusedError struct {
	Node, Filter, Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("node %s: %s: %s", e.Node, e.Filter, e.Reason)
}

// Assign puts the next replica on the node. When a filter refuses, it returns a
// *RefusedError and nothing has changed: a Placer can break no rule.
func (g *Group) Assign(node string) error {
	slot, ok := g.c.slots[node]
	if !ok {
		return fmt.Errorf("assign to %q: %w", node, ErrNodeUnknown)
	}
	switch {
	case g.Left() == 0:
		return &RefusedError{node, "count", "every replica has a node"}
	case g.ix.why[slot] != whyFits:
		filter, reason := g.ix.explain(slot)
		return &RefusedError{node, filter, reason}
	case g.ix.skewForbids(slot):
		return &RefusedError{node, FilterSkew, "the domain would have too many tasks more than the emptiest"}
	}
	g.assign(slot)
	return nil
}

// assign takes the node's resources and moves it to its new place.
func (g *Group) assign(slot int32) {
	sh := g.sh
	if sh.anyWays {
		sh = g.c.concrete(sh, slot)
		g.shapes = append(g.shapes, sh)
	}
	g.c.take(slot, sh)
	g.picks = append(g.picks, slot)
	if g.ix.counting {
		g.ix.setCount(slot, g.ix.count[slot]+1)
	}
	if g.near.moving {
		g.near.assigned(g, slot)
	}
	g.ix.refresh(slot)
}

// run places the group and binds what it placed.
func (g *Group) run() error {
	d := g.decision
	d.Namespace, d.Service, d.Count = g.r.Namespace, g.r.Service, g.r.Count
	c := g.c
	if !g.planned && len(g.p.groups) > 1 && g.plannable() {
		g.p.plan(g)
	}
	g.ran = true
	if len(g.plan) > 0 && len(g.plan) == g.r.Count && g.follow() {
		return nil
	}
	g.ix = c.indexFor(g)
	advised := g.advise()
	g.picks = slices.Grow(c.picks[:0], min(g.r.Count, 1<<16))
	d.Evaluated = len(c.slots)
	g.describeBest()
	err := g.choose()
	if err == nil && g.Left() > 0 && g.p.s.opts.Preempt {
		g.preempt()
	}
	if err == nil && g.Left() > 0 {
		g.explainUnplaced()
	}
	g.ix.reopen()
	g.commit()
	if advised {
		class := g.ix.class
		g.ix.class = nil
		for slot := range class {
			g.ix.refresh(slot)
		}
	}
	c.picks, g.picks = g.picks[:0], nil
	g.ix, g.near = nil, neighbours{}
	return err
}

func (g *Group) choose() error {
	if g.st.Placer != nil {
		return g.st.Placer.Place(g)
	}
	for _, slot := range g.plan {
		if g.ix.why[slot] == whyFits {
			g.assign(slot)
		}
	}
	for g.Left() > 0 {
		slot, shut := g.ix.top()
		if slot == none {
			g.shut = shut
			break
		}
		g.assign(slot)
	}
	return nil
}

// advise puts preferred nodes first and avoided and failing ones last.
func (g *Group) advise() bool {
	r := g.r
	if len(r.Prefer)+len(r.Avoid)+len(r.Failures) == 0 {
		return false
	}
	class := map[int32]uint64{}
	for _, node := range r.Prefer {
		if slot, ok := g.c.slots[node]; ok {
			class[slot] = classPreferred
		}
	}
	for _, node := range r.Avoid {
		if slot, ok := g.c.slots[node]; ok {
			class[slot] = classAvoided
		}
	}
	for node, n := range r.Failures {
		if slot, ok := g.c.slots[node]; ok && n >= g.p.s.opts.FailureLimit {
			class[slot] = classFailing
		}
	}
	g.ix.class = class
	for slot := range class {
		g.ix.refresh(slot)
	}
	return true
}

// commit enters the picks as tasks and writes the decision.
func (g *Group) commit() {
	c, d, n := g.c, g.decision, len(g.picks)
	d.Unplaced, g.fit = g.r.Count-n, n
	if n == 0 {
		return
	}
	d.Tasks = make([]string, n)
	d.Nodes = make([]string, n)
	c.tasks.reserve(n)
	names := g.namer(n)
	c.tally = sized(c.tally, len(c.nodes))
	touched := c.touched[:0]
	for i, slot := range g.picks {
		sh := g.sh
		if g.shapes != nil {
			sh = g.shapes[i]
		}
		d.Nodes[i] = c.specs[slot].ID
		for {
			d.Tasks[i] = names.next()
			if c.addTask(d.Tasks[i], slot, sh) {
				break
			}
		}
		if c.tally[slot]++; c.tally[slot] == 1 {
			touched = append(touched, slot)
		}
	}
	svc := c.ownService(g.sh.svc)
	svc.total += n
	if len(svc.nodes) == 0 && len(touched) > 8 {
		svc.nodes = make(map[int32]int32, len(touched))
	}
	for _, slot := range touched {
		svc.nodes[slot] += c.tally[slot]
		c.tally[slot] = 0
		c.changes.add(slot, len(c.nodes))
	}
	for i, v := range g.victims {
		d.Victims[i].For = d.Tasks[v.pick]
	}
	c.touched = touched
	g.ix.seq = c.changes.end() // it has seen them all
}

// namer gives out task ids: those given with the request, or new ones that are
// parts of one string.
type namer struct {
	given  []string
	ids    *idSet
	svc    *service
	prefix string
	all    strings.Builder
}

func (g *Group) namer(n int) *namer {
	m := &namer{given: g.r.Tasks}
	if m.given == nil {
		m.ids, m.svc = &g.p.ids, g.c.ownService(g.sh.svc)
		m.prefix = g.r.name() + "."
		m.all.Grow(n * (len(m.prefix) + 7))
	}
	return m
}

func (m *namer) next() string {
	if m.given != nil {
		id := m.given[0]
		m.given = m.given[1:]
		return id
	}
	var digits [20]byte
	for {
		m.svc.next++
		start := m.all.Len()
		m.all.WriteString(m.prefix)
		m.all.Write(strconv.AppendInt(digits[:0], int64(m.svc.next), 10))
		if id := m.all.String()[start:]; !m.ids.has(id) { // String copies nothing
			return id
		}
	}
}

func (g *Group) quorum() int {
	if g.r.Gang.Min > 0 {
		return g.r.Gang.Min
	}
	return g.r.Count
}

// undo releases what the group has bound and binds its victims again.
func (g *Group) undo() {
	d := g.decision
	if d == nil {
		return
	}
	for _, id := range d.Tasks {
		g.c.release(g.c.tasks.find(id))
	}
	d.Tasks, d.Nodes = nil, nil
	for _, v := range g.victims {
		g.c.take(v.slot, v.shape)
		g.c.addTask(v.id, v.slot, v.shape)
		g.c.countTask(v.shape.svc, v.slot, 1)
		g.c.spend(v.shape.svc, -1)
		g.c.changes.add(v.slot, len(g.c.nodes))
	}
	g.victims, d.Victims = nil, nil
}

// disband undoes a group whose gang is not complete, for want of short's.
func (g *Group) disband(short *Group) {
	d := g.decision
	g.undo()
	if d.Service == "" { // its turn had not come
		d.Namespace, d.Service, d.Count, d.Evaluated = g.r.Namespace, g.r.Service, g.r.Count, len(g.c.slots)
	}
	d.Unplaced = d.Count
	d.Winner, d.RunnersUp = nil, nil
	if d.Gang == nil {
		d.Gang = &GangShort{Name: g.r.Gang.Name, Service: short.r.name(), Need: short.quorum(), Fit: short.fit}
	}
}

// randomPlacer takes each node that fits with equal chance.
type randomPlacer struct{}

func (randomPlacer) Place(g *Group) error {
	var slots []int32
	for n := range g.Candidates() {
		slots = append(slots, n.slot)
	}
	rng := rand.New(rand.NewPCG(g.Seed(), 0))
	hard := slices.ContainsFunc(g.r.Spread, func(s SpreadKey) bool { return s.MaxSkew > 0 })
	for g.Left() > 0 && len(slots) > 0 {
		i := rng.IntN(len(slots))
		slot := slots[i]
		if g.ix.why[slot] == whyFits && !g.ix.skewForbids(slot) {
			g.assign(slot)
			if !hard {
				continue
			}
			// The skew may allow nodes again that it forbade before.
			slots = slots[:0]
			for n := range g.Candidates() {
				slots = append(slots, n.slot)
			}
			continue
		}
		slots[i] = slots[len(slots)-1]
		slots = slots[:len(slots)-1]
	}
	return nil
}
