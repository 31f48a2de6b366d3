package control

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// A rehearsal plays a change through before it is made, with the code that
// would make it: it plans, takes the plan's writes for committed, answers for
// the agents, and goes on to the next moment at which something is due, until
// nothing is. Every task that is new gets ready at once, every task that is told
// to stop stops at once, and none fails. Tasks that are not ready for a reason
// stay so. What it says is therefore the best that can come of a change: where
// tasks go, and what there is no room for.
//
// What waits for another that does not come to hold is supposed, in the end, to
// wait no more: what would happen then is told apart.
//
// Jobs that were asked for are played to their end: each of their tasks completes
// at once, so at most Parallelism of them take room at a time. When the tasks of
// other jobs end nobody knows, so they are taken to go on, but for those whose
// node is drained, which waits for them.

// Rehearsal is how a rehearsal ends.
type Rehearsal struct {
	// Services are those that something would happen to, by namespace and name,
	// and those that were asked for.
	Services []Rehearsed
	// Nodes are the nodes that there are before or after, by ID.
	Nodes []Room
	// Events are all that would be told, in order. Their times are of the
	// rehearsal.
	Events []Event
	// Took is the time that would pass at least: of the monitor windows, and of
	// deadlines that pass.
	Took time.Duration
	// Approximate says that who gets which room depends on the order in which
	// agents come to what they are told, which is not known; see sure.go.
	Approximate bool
	// Open says that something was still going on at the end, which was set to it.
	Open bool
}

// Rehearsed is what would become of a service.
type Rehearsed struct {
	Namespace, Name string
	Job             bool // it is one
	Asked           bool // it was asked for; else something would happen to it
	// Rollout is how its rollout would stand; nil when it would be gone.
	Rollout *record.Rollout
	Run     *record.Run // of a job in its place
	// Awaited is what its tasks wait for at first, and Waiting what of that does
	// not come to hold, so that nobody knows when they start; see Step.Then.
	Awaited, Waiting []record.Unmet
	// Erased are the volumes of slots that would be deleted, as NODE/NAME.
	Erased []string
	Kept   int // tasks that nothing happens to
	Steps  []Step
	// Unplaced is the scheduler's decision about replicas that would have no
	// place, and Blocked what else they would lack, in its words.
	Unplaced *scheduler.Decision
	Blocked  string
}

// StepKind is what happens to a replica.
type StepKind string

// What happens to a replica.
const (
	StepStart   StepKind = "start"   // it is new
	StepStop    StepKind = "stop"    // it goes
	StepReplace StepKind = "replace" // another task takes its place on the same node
	StepMove    StepKind = "move"    // another task takes its place on another node
	StepResize  StepKind = "resize"  // it gets other resources while it runs
)

// Step is what would happen to a replica.
type Step struct {
	Kind     StepKind
	Slot     int
	Task     string // that goes; empty in a start
	From, To string // nodes
	Cause    record.Cause
	// Decision is the scheduler's about the new task.
	Decision *scheduler.Decision
	At       time.Time
	// Likely says that it may go to another node.
	Likely bool
	// Then says that it happens once what is waited for holds.
	Then bool
}

// Room is what a node has, before and after.
type Room struct {
	Node                     string
	Have, FreeBefore, FreeAt scheduler.Resources
	TasksBefore, TasksAt     int
	Usable                   bool // it may get tasks, at the end
}

// RehearseOptions bound a rehearsal.
type RehearseOptions struct {
	// Services, or jobs, are to be in the result whatever happens to them, as
	// NS/NAME.
	Services []string
	// Horizon is for how long it may play; 0 is an hour, and what the deadlines
	// of Services add. For silent nodes it is longer by what their tasks' workloads
	// wait for them.
	Horizon time.Duration
}

// maxRounds bounds a rehearsal that does not come to rest.
const maxRounds = 100_000

// rehearse plays change through, in an order.
func (s *State) rehearse(change []store.Write, now time.Time, opts RehearseOptions, order order) (Rehearsal, *rehearsal) {
	r := &rehearsal{state: s, now: now, cast: map[string]*cast{}, unready: map[*task]bool{}, ended: map[string]bool{}, then: map[string]bool{},
		sureness: sureness{order: order, placers: map[string]bool{}, movers: map[string]bool{}, later: map[string]bool{}}}
	s.rehearsed = true
	for _, key := range opts.Services {
		r.of(key).asked = true
	}
	r.begin()
	before := s.room()
	r.write(change)
	r.workOff()
	horizon := opts.Horizon
	if horizon <= 0 {
		horizon = time.Hour
		for key := range r.cast {
			if svc := s.services[key]; svc != nil { // a rollout, the way back from it, and as much again
				horizon = max(horizon, 3*(svc.work.Update.ProgressDeadline+svc.work.Update.Monitor)+svc.work.Update.Bake)
				if svc.job != nil {
					horizon = max(horizon, 2*svc.job.work.Deadline)
				}
			}
		}
	}
	open := r.play(horizon + s.longest())
	out := Rehearsal{Events: r.events, Took: r.moved.Sub(now), Open: open}
	for _, key := range slices.Sorted(maps.Keys(r.cast)) {
		if c := r.cast[key]; c.asked || c.steps() {
			out.Services = append(out.Services, r.ending(key, c))
		}
	}
	after := s.room()
	for _, id := range slices.Sorted(maps.Keys(before)) {
		if _, left := after[id]; !left {
			after[id] = Room{Node: id, Have: before[id].Have}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(after)) {
		room := after[id]
		room.FreeBefore, room.TasksBefore = before[id].FreeAt, before[id].TasksAt
		out.Nodes = append(out.Nodes, room)
	}
	return out, r
}

// rehearsal is one on its way.
type rehearsal struct {
	state  *State
	now    time.Time
	moved  time.Time        // when something last happened
	cast   map[string]*cast // by service
	events []Event
	// unready are the tasks that may need an answer.
	unready map[*task]bool
	going   map[string]bool // tasks that had been told to stop before, by ID
	ended   map[string]bool // tasks of jobs that have ended by themselves, by ID
	// supposing says that something was supposed to hold, and then which tasks
	// were placed, or told to stop, since, by ID.
	supposing bool
	then      map[string]bool
	sureness
}

// cast is who takes part of a service.
type cast struct {
	asked bool
	job   bool
	// awaited is what it waits for at first, and waiting what was then supposed to
	// hold.
	awaited, waiting []record.Unmet
	kept             int              // tasks of a job that were there before and completed
	placed           map[string]Event // new tasks, by ID
	gone             []Event          // why tasks that were there before go
	left             map[string]bool  // whose events are in gone
	sized            map[string]Event // tasks that are changed in place, by ID
	erased           []string         // volumes, as NODE/NAME
	no               *scheduler.Decision
}

func (c *cast) steps() bool {
	return len(c.placed)+len(c.gone)+len(c.sized)+len(c.erased) > 0 || c.no != nil
}

func (r *rehearsal) of(service string) *cast {
	c := r.cast[service]
	if c == nil {
		c = &cast{placed: map[string]Event{}, left: map[string]bool{}, sized: map[string]Event{}}
		r.cast[service] = c
	}
	return c
}

// begin looks at what is going on already.
func (r *rehearsal) begin() {
	r.moved, r.going = r.now, map[string]bool{}
	for key, svc := range r.state.services {
		if w := svc.waits(); w != nil {
			r.of(key).awaited = w
		}
		for _, t := range svc.tasks {
			switch {
			case t.rec.Stop != nil:
				r.going[t.rec.ID] = true
			case t.available():
				continue
			}
			switch {
			case !t.over():
				r.unready[t] = true
			case t.rec.Job != nil:
				r.ended[t.rec.ID] = true
			}
		}
	}
}

// workOff has the tasks of jobs that are to complete answer, those that run
// already included.
func (r *rehearsal) workOff() {
	work := func(tasks []*task) {
		for _, t := range tasks {
			if r.completes(t) && !t.over() {
				r.unready[t] = true
			}
		}
	}
	for key, c := range r.cast {
		if svc := r.state.services[key]; svc != nil && svc.job != nil {
			c.job, svc.job.asked = true, c.asked
			work(svc.tasks)
		}
	}
	for _, n := range r.state.nodes {
		if n.spec.Drain {
			work(n.tasks)
		}
	}
}

// completes reports whether t is taken to do its work to the end: what is of an
// earlier run is about to be told to stop instead.
func (r *rehearsal) completes(t *task) bool {
	j := t.service.job
	return t.rec.Job != nil && j != nil && (t.node.spec.Drain || j.asked) && j.spec != 0 && t.rec.Revision == j.work.Revision
}

// write takes writes for committed.
func (r *rehearsal) write(writes []store.Write) {
	if len(writes) == 0 {
		return
	}
	revision := r.state.revision + 1
	batch := store.Batch{Revision: revision}
	for _, w := range writes {
		c := store.Change{Item: store.Item{Key: w.Key, Value: w.Value, Revision: revision, Created: revision}, Deleted: w.Delete}
		batch.Changes = append(batch.Changes, c)
	}
	r.state.Apply(batch, r.now)
}

// play goes on until nothing is due before the end, and reports whether
// something would still be.
func (r *rehearsal) play(horizon time.Duration) (open bool) {
	end := r.now.Add(horizon)
	r.restless = r.unsteady()
	for range maxRounds {
		p := r.state.Plan(r.now)
		for i := range p.Events {
			r.hear(&p.Events[i])
		}
		if len(p.Writes) > 0 {
			r.moved = r.now
		}
		r.write(p.Writes)
		for key, c := range r.cast {
			if svc := r.state.services[key]; c.asked && c.awaited == nil && svc != nil {
				c.awaited = svc.waits()
			}
		}
		for _, w := range p.Writes {
			if key, ok := strings.CutPrefix(w.Key, record.Tasks); ok && !w.Delete {
				r.unready[r.state.tasks[key]] = true
			}
		}
		if answers := r.answer(); len(answers) > 0 || len(p.Writes) > 0 {
			r.write(answers)
			continue
		}
		switch {
		case p.Wake.IsZero(), p.Wake.After(end):
			if !r.suppose() {
				return r.supposing || r.unsettled()
			}
			end = r.now.Add(horizon)
		case p.Wake.After(r.now):
			r.now = p.Wake
		}
	}
	return true
}

// unsettled reports whether a rollout of those that take part goes on, or a job
// that was asked for.
func (r *rehearsal) unsettled() bool {
	for key, c := range r.cast {
		svc := r.state.services[key]
		switch {
		case svc == nil:
		case svc.rollout != nil && svc.rollout.Current().State == record.Progressing:
			return true
		case c.asked && svc.job != nil && svc.job.run != nil && svc.job.run.State == record.RunActive:
			return true
		}
	}
	return false
}

// answer is what the agents say to what they were told.
func (r *rehearsal) answer() []store.Write {
	var answers []answer
	for _, t := range slices.SortedFunc(maps.Keys(r.unready), func(a, b *task) int { return cmp.Compare(a.rec.ID, b.rec.ID) }) {
		key := t.rec.Node + "/" + t.rec.ID
		if r.state.tasks[key] != t || t.over() {
			delete(r.unready, t)
			continue
		}
		if !t.node.alive || t.node.rec == nil {
			continue // nobody answers
		}
		st := record.Status{Task: t.rec.ID, Namespace: t.rec.Namespace, Service: t.rec.Service, Node: t.rec.Node}
		if t.status != nil {
			st = *t.status
		}
		st.Since = r.now
		switch {
		case t.rec.Stop != nil:
			st.State = record.Stopped
		case t.status != nil && t.status.Failure != nil && st.State != record.Ready:
			continue // it has its reasons
		case r.completes(t):
			st.State = record.Completed
		case st.State == record.Ready && !t.inForce():
			st.InForce, st.InForceSince = t.rec.Hash, r.now
		case st.State == record.Ready:
			delete(r.unready, t)
			continue
		default:
			st.State, st.Ready = record.Ready, r.now
		}
		answers = append(answers, answer{t, key, st})
	}
	var writes []store.Write
	r.restless = r.restless || len(answers) > 0
	for _, a := range r.order.next(answers) {
		if delete(r.unready, a.task); a.status.State.Final() {
			r.movers[a.task.service.key] = true
		}
		if a.status.State == record.Completed {
			r.complete(a.task)
		}
		writes = append(writes, store.Put(record.Statuses+a.key, encode(a.status)))
		if a.task.rec.Erase {
			writes = append(writes, r.erase(a.task)...)
		}
	}
	return writes
}

// erase has an agent delete the volumes of a slot.
func (r *rehearsal) erase(t *task) (writes []store.Write) {
	c := r.of(t.service.key)
	for _, v := range t.service.volumes {
		if v.Slot == t.rec.Slot && v.node == t.node {
			key := v.node.id + "/" + v.Name
			c.erased = append(c.erased, key)
			writes = append(writes, store.Delete(record.Volumes+key))
		}
	}
	return writes
}

// complete notes that a task has ended by itself: nothing that is done with its
// record later happens to an index.
func (r *rehearsal) complete(t *task) {
	r.ended[t.rec.ID] = true
	c := r.of(t.rec.Namespace + "/" + t.rec.Service)
	if _, new := c.placed[t.rec.ID]; !new {
		c.kept++
	}
}

// hear takes in what a plan tells.
func (r *rehearsal) hear(e *Event) {
	r.events = append(r.events, *e)
	if e.Service == "" {
		return
	}
	c := r.of(e.Namespace + "/" + e.Service)
	if svc := r.state.services[e.Namespace+"/"+e.Service]; svc != nil && svc.job != nil {
		c.job = true
	}
	switch e.Kind {
	case TaskPlaced:
		c.placed[e.Task] = *e
		c.no = nil
		r.moves(e)
	case TaskStopping, TaskDeleted:
		if r.ended[e.Task] {
			break
		}
		if _, new := c.placed[e.Task]; new {
			delete(c.placed, e.Task)
		} else if !r.going[e.Task] && !c.left[e.Task] {
			c.left[e.Task] = true
			c.gone = append(c.gone, *e)
		}
	case TaskResized:
		if _, new := c.placed[e.Task]; !new {
			c.sized[e.Task] = *e
		}
		r.moves(e)
	case TaskUnplaced:
		c.no = e.Decision
		r.placers[e.Namespace+"/"+e.Service] = true
	case DependencyMet:
		r.met(e.Namespace + "/" + e.Service)
	}
	if r.supposing && e.Task != "" {
		r.then[e.Task] = true
	}
}

// ending is what has become of a service.
func (r *rehearsal) ending(key string, c *cast) Rehearsed {
	out := Rehearsed{Asked: c.asked, Job: c.job, Kept: c.kept, Awaited: c.awaited, Waiting: c.waiting, Erased: slices.Sorted(slices.Values(c.erased))}
	out.Namespace, out.Name, _ = strings.Cut(key, "/")
	if svc := r.state.services[key]; svc != nil {
		out.Rollout = svc.rollout
		for _, t := range svc.tasks {
			_, new := c.placed[t.rec.ID]
			e, sized := c.sized[t.rec.ID]
			switch {
			case !t.live() || new:
			case sized:
				out.Steps = append(out.Steps, r.step(Step{Kind: StepResize, Slot: e.Slot, Task: e.Task, From: e.Node, To: e.Node, Cause: e.Cause, At: e.At}, &e))
			default:
				out.Kept++
			}
		}
		if _, hungry := r.state.hungry[svc]; hungry && (svc.rollout != nil || svc.job != nil && svc.job.run != nil) {
			if svc.rollout != nil {
				out.Blocked = svc.rollout.Unplaced
			} else {
				out.Blocked = svc.job.run.Unplaced
			}
			if c.no != nil && c.no.Unplaced > 0 {
				out.Unplaced = c.no
			}
		}
		if svc.job != nil && svc.job.spec != 0 {
			out.Run = svc.job.run
		}
	}
	bySlot := map[int]Event{}
	for _, e := range c.placed {
		bySlot[e.Slot] = e
	}
	for _, e := range c.gone {
		step := r.step(Step{Kind: StepStop, Slot: e.Slot, Task: e.Task, From: e.Node, Cause: e.Cause, At: e.At}, nil)
		if next, ok := bySlot[e.Slot]; ok {
			delete(bySlot, e.Slot)
			step.Kind, step.To, step.Decision = StepReplace, next.Node, next.Decision
			step = r.step(step, &next)
			if step.From != step.To {
				step.Kind = StepMove
			}
			if next.Cause.Reason != record.ReasonWanted {
				step.Cause = next.Cause
			}
		}
		out.Steps = append(out.Steps, step)
	}
	for _, e := range bySlot {
		step := r.step(Step{Kind: StepStart, Slot: e.Slot, To: e.Node, Cause: e.Cause, Decision: e.Decision, At: e.At}, &e)
		if old := r.state.lostOf(key, e.Slot); old != nil { // which was told nothing: it may come back
			step.Kind, step.Task, step.From = StepMove, old.rec.ID, old.rec.Node
		}
		out.Steps = append(out.Steps, step)
	}
	slices.SortFunc(out.Steps, func(a, b Step) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Task, b.Task))
	})
	return out
}

// step completes a step with what is known of its tasks; to is that the new one
// was placed, or the same one changed, nil if there is none.
func (r *rehearsal) step(s Step, to *Event) Step {
	s.Then = s.Then || r.then[s.Task]
	if to != nil {
		s.Then, s.Likely = s.Then || r.then[to.Task], r.later[to.Task]
	}
	return s
}

// room is what the nodes have.
func (s *State) room() map[string]Room {
	rooms := map[string]Room{}
	for n := range s.cluster.Nodes() {
		spec := n.Spec()
		rooms[n.ID()] = Room{
			Node: n.ID(), Have: n.Allocatable(), FreeAt: n.Free(), TasksAt: n.Tasks(),
			Usable: spec.Ready && !spec.Paused && !spec.Drained,
		}
	}
	return rooms
}
