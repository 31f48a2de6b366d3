package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
)

// FairShare decides how much of what namespaces ask for is let through to
// Place when there is not enough for all, by weighted dominant resource
// fairness (Ghodsi et al., NSDI 2011), and holds namespaces to their quotas.
// The zero value gives every namespace the same weight and no quota.
type FairShare struct {
	// Shares are by namespace. One that is not named weighs 1.
	Shares map[string]Share
}

// Share is what a namespace is entitled to.
type Share struct {
	// Weight is how much of the cluster the namespace gets beside others;
	// 0 is 1.
	Weight float64 `json:"weight,omitempty"`
	// Quota bounds what all tasks of the namespace take together; nil is no
	// bound. A resource that is 0 in it is not bounded; devices are bounded
	// by kind and model when they are listed.
	Quota *Quota `json:"quota,omitempty"`
}

// Quota is an upper bound.
type Quota struct {
	Resources Resources `json:"resources,omitzero"`
	// Tasks bounds their number; 0 is no bound.
	Tasks int `json:"tasks,omitempty"`
}

// HeldReason is why replicas were not let through.
type HeldReason string

// The reasons.
const (
	// HeldQuota: the namespace would exceed its quota.
	HeldQuota HeldReason = "quota"
	// HeldShare: the cluster has no more, and others have not more of it for
	// their weight than this namespace.
	HeldShare HeldReason = "share"
	// HeldGang: less than the quorum of its gang would have been let through.
	HeldGang HeldReason = "gang"
)

// Held says how many replicas of a request were not let through.
type Held struct {
	Index    int // of the request
	Count    int
	Reason   HeldReason
	Resource string // which one ran out, where one did
}

// Admit returns the requests with their counts cut to what is fair, one for
// one, and what was cut. It changes nothing. It looks at what the nodes that
// take tasks have free in sum, not at whether each replica finds room on one
// node: that is Place's to say. Higher priorities go first within a namespace,
// not between namespaces. An error is a *RequestError or *InvalidError.
func (f *FairShare) Admit(c *Cluster, reqs []Request) ([]Request, []Held, error) {
	if err := f.validate(); err != nil {
		return nil, nil, err
	}
	a := admission{f: f, spaces: map[string]*space{}, out: slices.Clone(reqs)}
	for i := range reqs {
		if err := reqs[i].Validate(); err != nil {
			return nil, nil, &RequestError{Index: i, Request: reqs[i].name(), Err: err}
		}
	}
	a.measure(c, reqs)
	for i := range reqs {
		a.out[i].Count = 0
		s := a.space(reqs[i].Namespace)
		s.queue = append(s.queue, i)
	}
	for _, s := range a.spaces {
		slices.SortStableFunc(s.queue, func(x, y int) int { return cmp.Compare(reqs[y].Priority, reqs[x].Priority) })
	}
	a.fill(reqs)
	a.breakGangs(reqs)
	for i := range a.out {
		if reqs[i].Tasks != nil {
			a.out[i].Tasks = reqs[i].Tasks[:a.out[i].Count]
		}
	}
	slices.SortFunc(a.held, func(x, y Held) int { return x.Index - y.Index })
	return a.out, a.held, nil
}

func (f *FairShare) validate() error {
	for _, name := range slices.Sorted(maps.Keys(f.Shares)) {
		s := f.Shares[name]
		field := "share of " + name
		if math.IsNaN(s.Weight) || s.Weight < 0 || s.Weight > maxWeight || s.Weight > 0 && s.Weight < minWeight {
			return invalid(field+": weight", s.Weight, fmt.Sprintf("a weight from %g to %g, or 0 for 1", minWeight, maxWeight))
		}
		if s.Quota != nil {
			if err := s.Quota.Resources.Validate(); err != nil {
				return fmt.Errorf("%s: quota: %w", field, err)
			}
			if s.Quota.Tasks < 0 {
				return invalid(field+": quota.tasks", s.Quota.Tasks, "a number from 0, which is no bound")
			}
		}
	}
	return nil
}

// admission is one call of Admit. Amounts are float64: they are only compared.
type admission struct {
	f      *FairShare
	names  []string  // of the resources: the dimensions, then device kinds and models
	total  []float64 // that the cluster has
	free   []float64 // on the nodes that take tasks
	spaces map[string]*space
	out    []Request
	held   []Held
}

// space is a namespace.
type space struct {
	name   string
	weight float64
	used   []float64
	limit  []float64 // +Inf where there is none
	tasks  float64
	most   float64 // tasks
	queue  []int
}

func (a *admission) space(name string) *space {
	if s := a.spaces[name]; s != nil {
		return s
	}
	share := a.f.Shares[name]
	s := &space{name: name, weight: share.Weight, used: make([]float64, len(a.names)), most: math.Inf(1)}
	if s.weight == 0 {
		s.weight = 1
	}
	s.limit = make([]float64, len(a.names))
	for k := range s.limit {
		s.limit[k] = math.Inf(1)
	}
	if q := share.Quota; q != nil {
		for k, v := range a.amounts(&q.Resources) {
			if v > 0 {
				s.limit[k] = v
			}
		}
		for _, d := range q.Resources.Devices {
			s.limit[a.number(d.name())] = float64(d.Count) // 0 of a device means none
		}
		if q.Tasks > 0 {
			s.most = float64(q.Tasks)
		}
	}
	a.spaces[name] = s
	return s
}

func (a *admission) number(name string) int {
	return slices.Index(a.names, name)
}

func (a *admission) amounts(r *Resources) []float64 {
	out := make([]float64, len(a.names))
	for d, v := range r.vector() {
		out[d] = float64(v)
	}
	for _, d := range r.Devices {
		if k := a.number(d.name()); k >= 0 {
			out[k] += float64(d.Count)
		}
		if k := a.number(d.Kind); d.Model != "" && k >= 0 {
			out[k] += float64(d.Count) // a model is of its kind, too
		}
	}
	return out
}

// measure learns what there is and who has it.
func (a *admission) measure(c *Cluster, reqs []Request) {
	names := map[string]struct{}{}
	note := func(list []Device) {
		for _, d := range list {
			names[d.Kind], names[d.name()] = struct{}{}, struct{}{}
		}
	}
	for i := range reqs {
		note(reqs[i].Resources.Devices)
	}
	for _, s := range a.f.Shares {
		if s.Quota != nil {
			note(s.Quota.Resources.Devices)
		}
	}
	a.names = append(slices.Clone(dimNames[:]), slices.Sorted(maps.Keys(names))...)
	a.total, a.free = make([]float64, len(a.names)), make([]float64, len(a.names))
	for slot, n := range c.specs {
		if n == nil {
			continue
		}
		v := NodeView{c: c, slot: int32(slot)}
		have, free := v.Allocatable(), v.Free()
		open := readiness(n) == whyFits
		left := a.amounts(&free)
		for k, x := range a.amounts(&have) {
			a.total[k] += x
			if open {
				a.free[k] += max(left[k], 0)
			}
		}
	}
	for id, sh := range c.shapes {
		if n := float64(c.shapeRefs[id]); n > 0 {
			s := a.space(sh.req.Namespace)
			for k, x := range a.amounts(&sh.req.Resources) {
				s.used[k] += n * x
			}
			s.tasks += n
		}
	}
}

// share is the part that the namespace has of what it has most of, for its
// weight.
func (a *admission) share(s *space) float64 {
	most := 0.0
	for k, x := range s.used {
		if a.total[k] > 0 {
			most = max(most, x/a.total[k])
		}
	}
	return most / s.weight
}

// fill lets replicas through, always of the namespace with the least share,
// until it has more than the next.
func (a *admission) fill(reqs []Request) {
	var open []*space
	for _, name := range slices.Sorted(maps.Keys(a.spaces)) {
		if s := a.spaces[name]; len(s.queue) > 0 {
			open = append(open, s)
		}
	}
	for len(open) > 0 {
		least, next := 0, math.Inf(1)
		for k := range open {
			if a.share(open[k]) < a.share(open[least]) {
				least = k
			}
		}
		for k := range open {
			if k != least {
				next = min(next, a.share(open[k]))
			}
		}
		s := open[least]
		i := s.queue[0]
		r := &reqs[i]
		left := r.Count - a.out[i].Count
		need := a.amounts(&r.Resources)
		want := a.until(s, need, next, left)
		quorum := 0
		if r.Gang != nil && a.out[i].Count == 0 { // it comes at once or not at all
			quorum = cmp.Or(r.Gang.Min, r.Count)
			want = max(want, quorum)
		}
		n, reason, resource := a.most(s, need, want)
		if n < quorum {
			n, reason = 0, HeldGang
		}
		for k, x := range need {
			s.used[k] += float64(n) * x
			a.free[k] -= float64(n) * x
		}
		s.tasks += float64(n)
		a.out[i].Count += n
		if n < want {
			a.held = append(a.held, Held{Index: i, Count: r.Count - a.out[i].Count, Reason: reason, Resource: resource})
		}
		if n < want || a.out[i].Count == r.Count {
			if s.queue = s.queue[1:]; len(s.queue) == 0 {
				open = slices.Delete(open, least, least+1)
			}
		}
	}
}

// until is how many replicas bring the share of s to next: at least 1, at most
// left.
func (a *admission) until(s *space, need []float64, next float64, left int) int {
	n := float64(left)
	for k, x := range need {
		if x > 0 && a.total[k] > 0 {
			n = min(n, (next*s.weight*a.total[k]-s.used[k])/x)
		}
	}
	return min(max(int(n), 1), left)
}

// most is how many of want replicas the quota and the cluster allow, and what
// stops more.
func (a *admission) most(s *space, need []float64, want int) (int, HeldReason, string) {
	n, reason, resource := float64(want), HeldReason(""), ""
	bound := func(to float64, why HeldReason, what string) {
		if to = max(math.Floor(to), 0); to < n {
			n, reason, resource = to, why, what
		}
	}
	bound(s.most-s.tasks, HeldQuota, "tasks")
	for k, x := range need {
		if x > 0 {
			bound((s.limit[k]-s.used[k])/x, HeldQuota, a.names[k])
			bound(a.free[k]/x, HeldShare, a.names[k])
		}
	}
	return int(n), reason, resource
}

// breakGangs holds all of a gang when less than the quorum of one of its
// members was let through. What they had is not dealt out again: it is there
// for the next Admit.
func (a *admission) breakGangs(reqs []Request) {
	short := func(i int) bool {
		g := reqs[i].Gang
		return g != nil && a.out[i].Count < cmp.Or(g.Min, reqs[i].Count)
	}
	broken := map[string]bool{}
	for i := range reqs {
		if short(i) && reqs[i].Gang.Name != "" {
			broken[reqs[i].Gang.Name] = true
		}
	}
	for i := range reqs {
		if g := reqs[i].Gang; g != nil && (short(i) || broken[g.Name]) && reqs[i].Count > 0 {
			a.out[i].Count, a.out[i].Gang = 0, nil
			if slices.ContainsFunc(a.held, func(h Held) bool { return h.Index == i && h.Reason == HeldGang }) {
				continue // and what ran out is known
			}
			a.held = slices.DeleteFunc(a.held, func(h Held) bool { return h.Index == i })
			a.held = append(a.held, Held{Index: i, Count: reqs[i].Count, Reason: HeldGang})
		}
	}
}
