package scheduler

import "slices"

// index holds the nodes in the order in which a strategy takes them for one
// kind of request: a tree of spreading domains whose leaves are heaps of
// nodes. The best node is at the top, and a node whose state has changed is
// moved in logarithmic time, so a replica costs the same whatever the number of
// nodes. It is kept between Places, catches up with what happened meanwhile,
// and serves other services with the same needs by exchanging the counts of
// one for the other's.
type index struct {
	c        *Cluster
	st       *strategy
	sh       *shape
	base     string
	svc      int32 // whose tasks count says
	counting bool  // whether count matters at all
	static   *staticSet
	seq      uint64 // of the change log
	specSeq  uint64
	used     uint64

	why     []why    // by slot
	refused [256]int // nodes by why
	leaf    []int32  // domain by slot
	pos     []int32  // in the heap of the leaf
	count   []int32  // tasks of svc, by slot
	domains []domain
	inHeap  []int32 // by domain: where in the heap of its parent
	spread  []SpreadKey

	// For one group only.
	class   map[int32]uint64 // preferred, avoided and failing nodes
	near    []float64        // by slot: what TaskAffinity scores
	blocked []why            // by slot: refused for affinity's sake
	closed  []int32          // domains that the skew allowed has shut
}

const (
	classPreferred = iota
	classNormal
	classAvoided
	classFailing
)

// A key is the class, the level and the score of a node in one number.
const (
	scoreBits = 44
	levelBits = 18
	maxLevel  = 1<<levelBits - 1
	scoreUnit = 1<<scoreBits - 1
)

// maxIndexes bounds the indexes kept: each is about 40 bytes a node.
const maxIndexes = 16

// indexFor returns the index for a group, as of now: one that is kept, unless
// the order of the nodes depends on more than their own state.
func (c *Cluster) indexFor(g *Group) *index {
	if !g.st.pure || len(g.r.Affinity)+len(g.r.AntiAffinity) > 0 || c.othersRefuse(g.r) {
		if c.spare == nil {
			c.spare = &index{c: c}
		}
		ix := c.spare
		ix.blocked, ix.near, ix.class = nil, nil, nil
		g.near.init(g, ix)
		ix.build(g.sh, g.st, true)
		return ix
	}
	return c.index(g.sh, g.st)
}

func (c *Cluster) index(sh *shape, st *strategy) *index {
	counting := st.LevelNodes || sh.req.MaxPerNode > 0 || len(sh.req.Spread) > 0
	c.clock++
	var best, stalest *index
	cost := len(c.nodes)/8 + 16 // of exchanging counts; beyond it another index is better
	for _, ix := range c.indexes {
		if stalest == nil || ix.used < stalest.used {
			stalest = ix
		}
		if ix.st != st || ix.base != sh.base {
			continue
		}
		if !ix.counting || ix.svc == sh.svc {
			best = ix
			break
		}
		if n := len(c.services[ix.svc].nodes) + len(c.services[sh.svc].nodes); n < cost {
			best, cost = ix, n
		}
	}
	if best != nil {
		best.used = c.clock
		best.sync(sh)
		return best
	}
	if len(c.indexes) < maxIndexes {
		stalest = &index{c: c}
		c.indexes = append(c.indexes, stalest)
	}
	stalest.used = c.clock
	stalest.build(sh, st, counting)
	return stalest
}

// build makes the index anew, in the memory it has.
func (ix *index) build(sh *shape, st *strategy, counting bool) {
	c, n := ix.c, len(ix.c.nodes)
	c.rank()
	ix.st, ix.sh, ix.base, ix.svc, ix.counting = st, sh, sh.base, sh.svc, counting
	ix.spread = sh.req.Spread
	ix.static = c.static(sh)
	ix.seq, ix.specSeq = c.changes.end(), c.specSeq
	ix.why = sized(ix.why, n)
	ix.pos = sized(ix.pos, n)
	ix.refused = [256]int{}
	for i := range ix.pos {
		ix.pos[i] = none
	}
	if counting {
		ix.count = sized(ix.count, n)
		clear(ix.count)
		for slot, k := range c.services[ix.svc].nodes {
			ix.count[slot] = k
		}
	}
	ix.buildDomains()
	for i := range n {
		slot := int32(i)
		hi, w := ix.key(slot)
		ix.why[slot] = w
		ix.refused[w]++
		if w == whyFits {
			h := &ix.domains[ix.leafOf(slot)].nodes
			*h = append(*h, entry{hi, c.nodes[slot].rank, slot})
		}
	}
	ix.initHeaps()
}

func sized[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }

// sync catches up with what changed since the index was used, and turns it to
// the service of sh.
func (ix *index) sync(sh *shape) {
	c := ix.c
	changed, ok := c.changes.since(ix.seq, len(c.nodes))
	if ix.specSeq != c.specSeq || !ok {
		ix.build(sh, ix.st, ix.counting)
		return
	}
	ix.seq = c.changes.end()
	for _, slot := range changed {
		if ix.counting {
			ix.setCount(slot, c.services[ix.svc].nodes[slot])
		}
		ix.refresh(slot)
	}
	ix.sh = sh
	if !ix.counting || ix.svc == sh.svc {
		ix.svc = sh.svc
		return
	}
	old := c.services[ix.svc].nodes
	ix.svc = sh.svc
	for slot := range old {
		ix.setCount(slot, 0)
	}
	for slot, k := range c.services[ix.svc].nodes {
		ix.setCount(slot, k)
		ix.refresh(slot)
	}
	for slot := range old {
		ix.refresh(slot)
	}
}

// key says whether a node fits and, if so, where it comes: the least first.
func (ix *index) key(slot int32) (uint64, why) {
	if w := ix.static.why[slot]; w != whyFits {
		return 0, w
	}
	n, need := &ix.c.nodes[slot], &ix.sh.need
	for d := range dims {
		if need[d] > n.free[d] && need[d] > 0 {
			return 0, whyCPU + why(d)
		}
	}
	r := &ix.sh.req
	if len(r.Resources.Devices) > 0 {
		if _, _, short := ix.c.deviceShort(slot, r.Resources.Devices); short {
			return 0, whyDevice
		}
	}
	if len(r.Ports) > 0 {
		if _, taken := ix.c.portTaken(slot, r.Ports); taken {
			return 0, whyPort
		}
	}
	level := uint64(0)
	if ix.counting {
		if r.MaxPerNode > 0 && int(ix.count[slot]) >= r.MaxPerNode {
			return 0, whyMaxPerNode
		}
		if ix.st.LevelNodes {
			level = uint64(min(ix.count[slot], maxLevel))
		}
	}
	if ix.blocked != nil && ix.blocked[slot] != whyFits {
		return 0, ix.blocked[slot]
	}
	if len(ix.st.Filters) > 0 {
		for i, f := range ix.st.Filters {
			if f.Refuse(r, ix.view(slot)) != "" {
				return 0, whyCustom + why(i)
			}
		}
	}
	class := uint64(classNormal)
	if ix.class != nil {
		if k, ok := ix.class[slot]; ok {
			class = k
		}
	}
	score := uint64((1 - ix.score(slot)) * scoreUnit)
	return class<<(levelBits+scoreBits) | level<<scoreBits | score, whyFits
}

// score is the weighted mean of the strategy's scores.
func (ix *index) score(slot int32) float64 {
	n, st := &ix.c.nodes[slot], ix.st
	sum := 0.0
	if st.least+st.most > 0 {
		most, mean := n.load(&ix.sh.need)
		sum += st.least*(1-clamp(most)) + st.most*clamp(mean)
	}
	if st.fewest > 0 {
		sum += st.fewest * fewest(n.tasks)
	}
	if st.affinity > 0 {
		sum += st.affinity * TaskAffinity{}.Score(nil, NodeView{slot: slot, ix: ix})
	}
	if st.image > 0 && len(ix.sh.req.Images) > 0 {
		sum += st.image * ImagePresent{}.Score(&ix.sh.req, ix.view(slot))
	}
	for _, w := range st.custom {
		sum += w.Weight * clamp(w.Scorer.Score(&ix.sh.req, ix.view(slot)))
	}
	return min(sum, 1)
}

func (ix *index) view(slot int32) NodeView {
	return NodeView{c: ix.c, slot: slot, svc: ix.svc, ix: ix}
}

// refresh moves a node to where its state now puts it.
func (ix *index) refresh(slot int32) {
	hi, w := ix.key(slot)
	if old := ix.why[slot]; old != w {
		ix.refused[old]--
		ix.refused[w]++
		ix.why[slot] = w
	}
	leaf := ix.leafOf(slot)
	h := &ix.domains[leaf].nodes
	if w == whyFits {
		h.set(ix.pos, entry{hi, ix.c.nodes[slot].rank, slot})
	} else {
		h.remove(ix.pos, slot)
	}
	if leaf != 0 {
		ix.lift(leaf)
	}
}
