package scheduler

import (
	"cmp"
	"fmt"
	"slices"
)

// Place finds nodes for all requests in one pass and binds what it placed into
// c, so that the next Place sees it; use a Clone to only ask. The decisions are
// in the order of the requests. What could not be placed is no error: see
// Decision.Err.
//
// Requests are decided by priority, higher first, and among equals larger ones
// first and alike ones together; those that another requires affinity to come
// before it. The outcome depends on the cluster, the requests and the
// Scheduler's options alone.
//
// An error (*RequestError around what was wrong, *CycleError) means that
// nothing was placed and nothing has changed.
func (s *Scheduler) Place(c *Cluster, reqs []Request) ([]Decision, error) {
	c.placing = true
	defer func() {
		c.placing = false
		c.sweepShapes()
	}()
	p := &placing{s: s, c: c, reqs: reqs, groups: make([]Group, len(reqs))}
	if err := p.check(); err != nil {
		return nil, err
	}
	order, err := p.order()
	if err != nil {
		return nil, err
	}
	decisions := make([]Decision, len(reqs))
	for i := range p.groups {
		p.groups[i].decision = &decisions[i]
	}
	for _, unit := range order {
		if err := p.unit(unit); err != nil {
			for i := range p.groups {
				p.groups[i].undo()
			}
			return nil, err
		}
	}
	return decisions, nil
}

// placing is one call of Place.
type placing struct {
	s      *Scheduler
	c      *Cluster
	reqs   []Request
	groups []Group
	ids    idSet
}

// check refuses bad requests before anything is done.
func (p *placing) check() error {
	given, asked := 0, 0
	for i := range p.reqs {
		given += len(p.reqs[i].Tasks)
		asked += max(0, min(p.reqs[i].Count, MaxCount))
	}
	p.ids.init(&p.c.tasks, given)
	for i := range p.reqs {
		if err := p.checkOne(i); err != nil {
			return &RequestError{Index: i, Request: p.reqs[i].name(), Err: err}
		}
	}
	// Grow once for all, as far as is likely to be placed.
	p.c.tasks.reserve(min(asked, 128*len(p.c.slots)))
	return nil
}

func (p *placing) checkOne(i int) error {
	r := &p.reqs[i]
	if err := r.validateGroup(); err != nil {
		return err
	}
	st, err := p.s.strategy(r.Strategy)
	if err != nil {
		return err
	}
	sh, err := p.c.intern(r)
	if err != nil {
		return err
	}
	for k, id := range r.Tasks {
		switch {
		case id == "":
			return invalid(fmt.Sprintf("tasks[%d]", k), id, "an id")
		case p.c.tasks.find(id) != none || !p.ids.add(id):
			return fmt.Errorf("tasks[%d]: %q: %w", k, id, ErrTaskExists)
		}
	}
	p.groups[i] = Group{p: p, c: p.c, r: r, sh: sh, st: st}
	return nil
}

// order says in which order the groups are decided; those of one gang are one
// unit.
func (p *placing) order() ([][]int, error) {
	n := len(p.reqs)
	if n == 1 {
		return [][]int{{0}}, nil
	}
	sorted := make([]int, n)
	sizes := make([]float64, n)
	related := false
	gangs := map[string][]int{}
	for i := range n {
		sorted[i] = i
		sizes[i] = p.size(&p.groups[i])
		related = related || len(p.reqs[i].Affinity) > 0
	}
	slices.SortFunc(sorted, func(a, b int) int {
		ga, gb := &p.groups[a], &p.groups[b]
		return cmp.Or(
			cmp.Compare(gb.r.Priority, ga.r.Priority),
			cmp.Compare(sizes[b], sizes[a]),
			cmp.Compare(ga.sh.base, gb.sh.base),
			cmp.Compare(a, b))
	})
	for _, i := range sorted {
		if g := p.reqs[i].Gang; g != nil && g.Name != "" {
			gangs[g.Name] = append(gangs[g.Name], i)
		}
	}
	w := walk{p: p, gangs: gangs, state: make([]uint8, n), units: make([][]int, 0, n)}
	for _, i := range sorted {
		if !related {
			w.emit(i)
		} else if err := w.visit(i); err != nil {
			return nil, err
		}
	}
	return w.units, nil
}

// size is the share of the whole cluster that one replica takes of what it
// takes most of.
func (p *placing) size(g *Group) float64 {
	most := 0.0
	for d, v := range g.sh.need {
		if v > 0 {
			most = max(most, float64(v)/max(p.c.total[d].float(), 1))
		}
	}
	return most
}

// walk puts requests after those that they require affinity to.
type walk struct {
	p     *placing
	gangs map[string][]int
	state []uint8 // 0 new, 1 on the path, 2 emitted
	path  []int
	units [][]int
}

func (w *walk) emit(i int) {
	if w.state[i] == 2 {
		return
	}
	unit := []int{i}
	if g := w.p.reqs[i].Gang; g != nil && g.Name != "" {
		unit = w.gangs[g.Name]
	}
	for _, k := range unit {
		w.state[k] = 2
	}
	w.units = append(w.units, unit)
}

func (w *walk) visit(i int) error {
	switch w.state[i] {
	case 2:
		return nil
	case 1:
		var names []string
		for _, k := range w.path[slices.Index(w.path, i):] {
			names = append(names, w.p.reqs[k].name())
		}
		return &CycleError{Services: names}
	}
	w.state[i] = 1
	w.path = append(w.path, i)
	r := &w.p.reqs[i]
	for k := range r.Affinity {
		a := &r.Affinity[k]
		if a.Preferred || a.selects(r.Namespace, r) || w.p.c.hasMatch(r.Namespace, a) {
			continue
		}
		for j := range w.p.reqs {
			if j != i && a.selects(r.Namespace, &w.p.reqs[j]) {
				if err := w.visit(j); err != nil {
					return err
				}
			}
		}
	}
	w.path = w.path[:len(w.path)-1]
	w.emit(i)
	return nil
}

// unit decides one group, or the groups of one gang.
func (p *placing) unit(groups []int) error {
	short := -1
	for _, i := range groups {
		g := &p.groups[i]
		if err := g.run(); err != nil {
			return &RequestError{Index: i, Request: g.r.name(), Err: err}
		}
		if g.r.Gang != nil && g.decision.Placed() < g.quorum() && short < 0 {
			short = i
			break
		}
	}
	if short < 0 {
		return nil
	}
	for _, i := range groups {
		p.groups[i].disband(&p.groups[short])
	}
	return nil
}

// idSet finds ids that are given twice in one Place.
type idSet struct {
	tasks *taskTable
	ids   []string
	index []int32
}

func (s *idSet) init(t *taskTable, n int) {
	s.tasks = t
	if n == 0 {
		return
	}
	size := 16
	for size < 2*n {
		size *= 2
	}
	s.ids = make([]string, 0, n)
	s.index = make([]int32, size)
}

func (s *idSet) has(id string) bool {
	_, found := s.find(id)
	return found
}

func (s *idSet) find(id string) (at uint32, found bool) {
	if len(s.index) == 0 {
		return 0, false
	}
	mask := uint32(len(s.index) - 1)
	for at = s.tasks.hash(id) & mask; s.index[at] != 0; at = (at + 1) & mask {
		if s.ids[s.index[at]-1] == id {
			return at, true
		}
	}
	return at, false
}

// add reports whether id was not in the set.
func (s *idSet) add(id string) bool {
	at, found := s.find(id)
	if !found {
		s.ids = append(s.ids, id)
		s.index[at] = int32(len(s.ids))
	}
	return !found
}
