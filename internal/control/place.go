package control

import (
	"cmp"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Placer decides where tasks go. A *scheduler.Scheduler is one. It must be
// pure: the same cluster and requests, the same decisions.
type Placer interface {
	Place(*scheduler.Cluster, []scheduler.Request) ([]scheduler.Decision, error)
}

// placement is what became of the starts of one service.
type placement struct {
	tasks    []record.Task
	unplaced string // why the others have no place; empty when all have one
	invalid  bool   // the request itself is wrong: waiting does not help
	victims  []*task
	// makesRoom is which task each victim makes room for, decisions is the
	// scheduler's for each placed task, and decision the first that left
	// replicas without a place.
	makesRoom map[*task]string
	decisions map[string]*scheduler.Decision
	decision  *scheduler.Decision
}

// place finds nodes for the starts of v, whole groups of replicas at once.
func (s *State) place(v *view) placement {
	var p placement
	if len(v.starts) == 0 {
		return p
	}
	wanted := v.starts
	if v.blocked != nil {
		if v.blocked.why != record.WhyDependency { // room would not help, so nobody is hungry
			p.unplaced = v.blocked.message
		}
		// What a new image means, and what a new revision waits for, does not concern those that run an older one.
		older := func(st start) bool {
			return (v.blocked.why == record.WhyImage || v.blocked.why == record.WhyDependency) && (st.work != nil || st.from != nil)
		}
		wanted = slices.DeleteFunc(slices.Clone(wanted), func(st start) bool { return !older(st) })
		if len(wanted) == 0 {
			return p
		}
	}
	var reqs []scheduler.Request
	starts := groups(wanted)
	given := map[string]bool{}
	for _, group := range starts {
		reqs = append(reqs, s.request(v, group, given))
	}
	decisions, err := s.config.Place.Place(s.cluster, reqs)
	if err != nil {
		p.unplaced, p.invalid = err.Error(), true
		return p
	}
	for i, group := range starts {
		d := &decisions[i]
		said := digest(d)
		if err := d.Err(); err != nil && p.unplaced == "" {
			p.unplaced, p.decision = err.Error(), said
			if group[0].node != "" {
				p.unplaced = noRoom(d, group)
			}
		}
		for k, id := range d.Tasks { // those asked for first
			p.tasks = append(p.tasks, v.task(group[k], id, d.Nodes[k]))
			if p.decisions == nil {
				p.decisions = map[string]*scheduler.Decision{}
			}
			p.decisions[id] = said
		}
		for _, victim := range d.Victims {
			if t := s.tasks[victim.Node+"/"+victim.Task]; t != nil && t.rec.Stop == nil {
				p.victims = append(p.victims, t)
				if p.makesRoom == nil {
					p.makesRoom = map[*task]string{}
				}
				p.makesRoom[t] = victim.For
			}
		}
	}
	slices.SortFunc(p.tasks, func(a, b record.Task) int { return cmp.Compare(a.Slot, b.Slot) })
	return p
}

// digest is what an event keeps of a decision: the reasons, without a list of
// all that was placed.
func digest(d *scheduler.Decision) *scheduler.Decision {
	said := *d
	said.Tasks, said.Nodes = nil, nil
	said.RunnersUp = said.RunnersUp[:min(len(said.RunnersUp), 2)]
	return &said
}

// groups splits starts into those that ask for the same: all that follow the
// spec and avoid the same node. Copies come one by one, and so do those that
// have a node or volumes of their own.
func groups(starts []start) [][]start {
	starts = slices.Clone(starts)
	slices.SortStableFunc(starts, func(a, b start) int {
		if a.alone() != b.alone() {
			if b.alone() {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.avoid, b.avoid)
	})
	var out [][]start
	for first := 0; first < len(starts); {
		end := first + 1
		for end < len(starts) && !starts[first].alone() && !starts[end].alone() && starts[end].avoid == starts[first].avoid {
			end++
		}
		out = append(out, starts[first:end])
		first = end
	}
	return out
}

// alone reports whether no other start can ask for the same.
func (st *start) alone() bool {
	return st.from != nil || st.node != "" && !st.fresh || len(st.reach) > 0 || st.work != nil
}

// request is what a group of starts asks of the scheduler.
func (s *State) request(v *view, group []start, given map[string]bool) scheduler.Request {
	r := v.work.Request
	if w := group[0].work; w != nil {
		r = w.Request
	}
	if from := group[0].from; from != nil {
		r = from.rec.Request
	}
	r.Namespace, r.Service, r.Count = v.work.Namespace, v.work.Name, len(group)
	r.Tasks = make([]string, len(group))
	for i, st := range group {
		r.Tasks[i] = s.newID(v.work, st.slot, given)
	}
	if avoid := group[0].avoid; avoid != "" {
		r.Avoid = []string{avoid}
	}
	r.Volumes = append(r.Volumes[:len(r.Volumes):len(r.Volumes)], group[0].reach...)
	pin(&r, group)
	return r
}

// newID is an ID that no task has, nor is given in this plan: in a trial, two
// tasks can be started in one slot.
func (s *State) newID(w *Workload, slot int, given map[string]bool) string {
	for salt := 0; ; salt++ {
		if id := taskID(w.Namespace, w.Name, slot, s.revision, salt); s.ids[id] == 0 && !given[id] {
			if given != nil {
				given[id] = true
			}
			return id
		}
	}
}

// task is the record of a start that got a node.
func (v *view) task(st start, id, node string) record.Task {
	w := v.work
	if st.work != nil {
		w = st.work
	}
	t := record.Task{Revision: w.Revision, Hash: w.Hash, Shape: w.Shape, Template: w.Template, Request: w.Request}
	if st.from != nil {
		t = *st.from.rec
	}
	t.ID, t.Node, t.Slot = id, node, st.slot
	t.Namespace, t.Service = v.work.Namespace, v.work.Name
	t.Created, t.Stop, t.Next, t.Resized, t.Frontend = v.now, nil, nil, time.Time{}, v.work.fronted()
	t.Epoch = v.epoch
	t.Measure = v.work.Measure
	if st.from != nil && !t.Created.After(st.from.rec.Created) {
		t.Created = st.from.rec.Created.Add(1) // a copy is known by being later
	}
	t.Request.Namespace, t.Request.Service = t.Namespace, t.Service
	t.Request.Count, t.Request.Tasks, t.Request.Avoid, t.Request.Failures = 1, nil, nil, nil
	return t
}
