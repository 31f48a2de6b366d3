package control

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// A job is a fixed set of indexes, each of which is to complete once. What is
// known of them is in its Run: which completed, which are given up, which failed
// and are to be tried again. All else is derived, as with services: an index
// that is in none of the sets and has no task is demand.
//
// An end is counted once. That an index completed is a set, in which it can be
// only once; a task that failed is remembered by its ID until it is gone. The Run
// is written before a task is deleted, so a leader that dies in between leaves
// nothing that the next would count again, nor anything that it would miss.

// JobWork is what the planner needs to know of a job.
type JobWork struct {
	// Workload has the template, its hash, the request and the networks.
	// Revision is the number of the run.
	Workload
	Indexes     int // from 0
	Parallelism int // tasks at a time at most
	Enough      int // completed indexes make the job complete
	Retries     int // of an index, after its first failure
	// Backoff is the delay of an index's first retry. It doubles with each
	// further one, up to MaxBackoff.
	Backoff, MaxBackoff time.Duration
	Deadline            time.Duration // of the time it is active; 0 is none
	Rules               []ExitRule    // the first that fits decides
	Suspended           bool
	Gang                bool // tasks are placed all at once or not at all
	Keep                int  // ended tasks that are kept, for their logs
}

// ExitRule says what a failed task means.
type ExitRule struct {
	Codes  []int // exit codes; none is any failure
	Action ExitAction
}

// ExitAction is what follows from a failed task.
type ExitAction string

// The actions.
const (
	RetryIndex ExitAction = ""           // counts against the index's retries
	IgnoreExit ExitAction = "ignore"     // tried again without being counted
	FailIndex  ExitAction = "fail-index" // the index is given up at once
	FailJob    ExitAction = "fail-job"   // and so is all
)

// job is what there is of a job besides its tasks.
type job struct {
	spec    int64 // store revision of the record; 0 when there is none
	created time.Time
	actor   string
	work    JobWork
	invalid error
	run     *record.Run
	runRaw  []byte
	asked   bool // in a rehearsal, that it is to be played to its end
}

func (s *State) jobOf(key string) (*service, *job, error) {
	svc, err := s.service(key)
	if err != nil {
		return nil, nil, err
	}
	if svc.job == nil {
		svc.job = new(job)
	}
	s.mark(svc)
	s.moved(key)
	return svc, svc.job, nil
}

// dropJob forgets a job of which nothing is left.
func (s *State) dropJob(svc *service) {
	if svc.job.spec == 0 && svc.job.run == nil && svc.job.runRaw == nil {
		svc.job = nil
		if svc.spec == 0 {
			svc.work = new(Workload)
		}
		s.forget(svc)
	}
}

func (s *State) changeJob(key string, c store.Change) error {
	svc, j, err := s.jobOf(key)
	if err != nil {
		return err
	}
	j.spec, j.work, j.invalid, j.actor = 0, JobWork{}, nil, ""
	if c.Deleted {
		s.dropJob(svc)
		return nil
	}
	j.spec = c.Item.Revision
	var rec record.Job
	if j.invalid = json.Unmarshal(c.Item.Value, &rec); j.invalid != nil {
		return nil
	}
	j.created, j.actor = rec.Created, rec.Actor
	if s.config.DecodeJob == nil {
		j.invalid = errors.New("this planner runs no jobs")
	} else {
		j.work, j.invalid = s.config.DecodeJob(svc.namespace, svc.name, rec)
	}
	j.work.Namespace, j.work.Name, j.work.Revision, j.work.Hash = svc.namespace, svc.name, rec.Run, rec.Hash
	work := j.work.Workload
	svc.work = &work // for the order of planning, and to be found by networks
	s.rearmAll(svc)
	return nil
}

func (s *State) changeRun(key string, c store.Change) error {
	svc, j, err := s.jobOf(key)
	if err != nil {
		return err
	}
	j.run, j.runRaw = nil, nil
	if c.Deleted {
		s.dropJob(svc)
		return nil
	}
	j.runRaw = c.Item.Value
	var rec record.Run
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return err
	}
	j.run = &rec
	return nil
}

// jobView is all that deciding about a job looks at, and what comes out of it.
type jobView struct {
	work    *JobWork
	tasks   []*task
	blocked *blocked
	now     time.Time
	// unending says that its tasks are played to go on, so that its deadline
	// means nothing.
	unending bool

	run record.Run // as it was, then as it is to be
	// live and ending count the tasks of an index that are meant to run, and that
	// are on their way out; lost those of which nobody knows.
	live, ending, lost map[int]int
	steps
}

// begin is the run of a job as it was before anything happened.
func (j *job) begin(now time.Time) record.Run {
	return record.Run{Number: j.work.Revision, Spec: j.spec, Created: j.created, State: record.RunActive,
		Started: now, Resumed: now, Indexes: j.work.Indexes}
}

func (s *State) planJob(svc *service, p *Plan) {
	j := svc.job
	w := &writer{plan: p, service: svc, now: s.now, cause: record.Cause{Actor: cmp.Or(j.actor, record.ActorApplication),
		Revision: j.work.Revision, Parent: j.spec}}
	if j.spec == 0 {
		s.removeJob(svc, w)
		return
	}
	v := &jobView{work: &j.work, tasks: svc.tasks, now: s.now, unending: s.rehearsed && !j.asked}
	if j.run == nil || j.run.Number != j.work.Revision || !j.run.Created.Equal(j.created) {
		v.run = j.begin(s.now)
	} else {
		v.run = *j.run
		v.run.Done, v.run.Failed = v.run.Done.Clone(), v.run.Failed.Clone()
		v.run.Tries, v.run.Counted = maps.Clone(v.run.Tries), slices.Clone(v.run.Counted)
		v.run.Spec, v.run.Indexes = j.spec, cmp.Or(j.work.Indexes, v.run.Indexes)
	}
	_, v.blocked = s.front(svc, &j.work.Workload, j.invalid)
	s.dependJob(svc, v)
	v.unending = v.unending || s.rehearsed && len(v.run.Waiting) > 0
	v.decide()

	work := j.work.Workload
	if j.work.Gang && len(v.starts) > 1 {
		work.Request.Gang = &scheduler.Gang{}
	}
	placed := s.place(&view{work: &work, now: s.now, steps: steps{starts: v.starts}})
	v.run.Unplaced = placed.unplaced
	if v.blocked != nil && v.run.State == record.RunActive && len(v.run.Waiting) == 0 {
		v.run.Unplaced = v.blocked.message
	}
	switch {
	case placed.invalid:
		v.end(record.RunFailed, record.WhySpec, placed.unplaced)
	case placed.unplaced != "":
		s.hungry[svc] = struct{}{}
	}
	v.run.Active = len(placed.tasks)
	for _, n := range v.live {
		v.run.Active += n
	}
	s.timers.set(&svc.timer, v.wake)

	w.unplaced = placed.decision
	w.run(&v.run, j)
	for _, t := range v.failed {
		w.failed(t)
	}
	for i := range placed.tasks {
		t := &placed.tasks[i]
		t.Job = &record.JobTask{Attempt: v.run.Tries[t.Slot].Failures}
		cause := w.cause
		cause.Reason = record.ReasonWanted
		if t.Job.Attempt > 0 {
			cause.Actor, cause.Reason = record.ActorPlanner, record.ReasonFailed
		}
		if old := s.lostOf(svc.key, t.Slot); old != nil {
			cause.Actor, cause.Reason, cause.Trigger = record.ActorPlanner, record.ReasonNodeLost, "node/"+old.rec.Node
		}
		w.place(t, cause, placed.decisions[t.ID])
	}
	for _, st := range v.stops {
		w.stop(st)
	}
	w.preempt(&placed)
	for _, t := range v.removes {
		w.remove(t)
	}
}

// removeJob ends what is left of a job whose record is gone.
func (s *State) removeJob(svc *service, w *writer) {
	by := s.kept.removals[svc.key]
	w.cause = record.Cause{Actor: cmp.Or(by.actor, record.ActorApplication), Reason: record.ReasonRemoved, Parent: by.revision}
	for _, t := range svc.tasks {
		switch {
		case t.over(), t.lost() && t.node.rec == nil:
			w.remove(t)
		case t.rec.Stop == nil:
			w.stop(stop{t, record.ReasonRemoved})
		}
	}
	if len(svc.tasks) == 0 {
		w.delete(record.Runs + svc.key)
		w.event(Event{Kind: ServiceGone, Reason: record.ReasonRemoved})
	}
}

// run writes the run down, if there is anything to say.
func (w *writer) run(r *record.Run, j *job) {
	old := j.run
	if old != nil && old.Number == r.Number && len(r.Counted) < len(old.Counted) {
		// What was counted and has gone is no news by itself.
		quiet := *r
		quiet.Counted = old.Counted
		if bytes.Equal(encode(&quiet), j.runRaw) {
			return
		}
	}
	data := encode(r)
	if bytes.Equal(data, j.runRaw) {
		return
	}
	w.plan.Writes = append(w.plan.Writes, store.Put(record.Runs+w.service.key, data))
	began := old == nil || old.Number != r.Number || !old.Created.Equal(r.Created)
	was := record.RunActive
	if began {
		w.event(Event{Kind: JobStarted, Revision: r.Number})
	} else {
		was = old.State
	}
	var waited []record.Unmet
	if !began {
		waited = old.Waiting
	}
	w.waiting(r.Number, waited, r.Waiting)
	if r.Unplaced != "" && (began || old.Unplaced != r.Unplaced) {
		w.event(Event{Kind: TaskUnplaced, Revision: r.Number, Message: r.Unplaced, Decision: w.unplaced})
	}
	if was == r.State {
		return
	}
	e := Event{Revision: r.Number, Reason: r.Reason, Message: r.Message, Failure: r.Failure}
	switch r.State {
	case record.RunCompleted:
		e.Kind, e.Failure = JobSucceeded, nil
	case record.RunFailed:
		e.Kind = JobStopped
	case record.RunSuspended:
		e.Kind, e.Failure = JobSuspended, nil
	default:
		e.Kind, e.Failure = JobResumed, nil
	}
	w.event(e)
}

// decide counts what has ended, judges the run, and takes the next steps.
func (v *jobView) decide() {
	v.count()
	v.judge()
	v.settle()
	if v.run.State == record.RunActive && v.blocked == nil {
		v.fill()
	}
}

// mine reports whether t is a task of this run.
func (v *jobView) mine(t *task) bool { return t.rec.Job != nil && t.rec.Revision == v.run.Number }

// count takes note of each task that has ended and has not been counted.
func (v *jobView) count() {
	counted := map[string]bool{}
	for _, id := range v.run.Counted {
		counted[id] = true
	}
	v.run.Counted = nil
	for _, t := range v.tasks {
		if !t.over() || !v.mine(t) {
			continue
		}
		if counted[t.rec.ID] {
			v.run.Counted = append(v.run.Counted, t.rec.ID)
			continue
		}
		if v.run.State.Final() {
			continue
		}
		index := t.rec.Slot
		switch {
		case v.run.Done.Has(index) || v.run.Failed.Has(index):
		case t.status.State == record.Completed:
			v.run.Done.Add(index)
			delete(v.run.Tries, index)
		case t.status.State == record.Failed && t.rec.Stop == nil:
			v.fault(t)
			v.run.Counted = append(v.run.Counted, t.rec.ID)
		}
	}
}

// fault judges a task that failed.
func (v *jobView) fault(t *task) {
	f := failure(t)
	action := RetryIndex
	for _, r := range v.work.Rules {
		if len(r.Codes) == 0 || f.Kind == record.FailedExit && slices.Contains(r.Codes, f.ExitCode) {
			action = r.Action
			break
		}
	}
	if f.Kind == record.FailedNode && action == RetryIndex {
		action = IgnoreExit // it is no fault of the task
	}
	v.failed = append(v.failed, t)
	index := t.rec.Slot
	try := v.run.Tries[index]
	try.Last, try.Node = v.now, t.rec.Node
	if action == IgnoreExit {
		v.run.Ignored++
		try.Failures = max(try.Failures, 0)
		v.remember(index, try)
		return
	}
	try.Failures++
	v.run.Failures++
	v.run.Failure = f
	switch {
	case action == FailJob:
		v.giveUp(index)
		v.end(record.RunFailed, record.WhyExitCode, fmt.Sprintf("index %d: %s", index, f.Message))
	case action == FailIndex || try.Failures > v.work.Retries || f.Permanent:
		v.giveUp(index)
	default:
		v.remember(index, try)
	}
}

func (v *jobView) remember(index int, try record.Try) {
	if v.run.Tries == nil {
		v.run.Tries = map[int]record.Try{}
	}
	v.run.Tries[index] = try
}

func (v *jobView) giveUp(index int) {
	v.run.Failed.Add(index)
	delete(v.run.Tries, index)
}

// end ends the run, unless it has ended.
func (v *jobView) end(state record.RunState, why, message string) {
	r := &v.run
	if r.State.Final() {
		return
	}
	v.pause()
	r.State, r.Reason, r.Message, r.Ended = state, why, message, v.now
	r.Tries = nil
}

// pause stops the clock of the deadline.
func (v *jobView) pause() {
	if r := &v.run; !r.Resumed.IsZero() {
		r.Spent += v.now.Sub(r.Resumed)
		r.Resumed = time.Time{}
	}
}

// judge decides whether the run has ended, is suspended, or goes on.
func (v *jobView) judge() {
	r := &v.run
	if r.State.Final() {
		return
	}
	if v.blocked != nil && v.blocked.final {
		v.end(record.RunFailed, v.blocked.why, v.blocked.message)
		return
	}
	if r.Done.Len() >= v.work.Enough {
		v.end(record.RunCompleted, "", "")
		r.Failure = nil
		return
	}
	if lost := r.Failed.Len(); lost > v.work.Indexes-v.work.Enough {
		message := fmt.Sprintf("%d of %d indexes are given up (%s), and %d are to complete", lost, v.work.Indexes, shortly(&r.Failed), v.work.Enough)
		if r.Failure != nil {
			message += ": " + r.Failure.Message
		}
		v.end(record.RunFailed, record.WhyIndexes, message)
		return
	}
	if v.work.Suspended {
		v.pause()
		r.State = record.RunSuspended
	} else if r.State == record.RunSuspended {
		r.State, r.Resumed = record.RunActive, v.now
	}
	if v.work.Deadline > 0 && !v.unending {
		spent := r.Spent
		if !r.Resumed.IsZero() {
			spent += v.now.Sub(r.Resumed)
		}
		if spent >= v.work.Deadline && len(r.Waiting) > 0 {
			v.end(record.RunFailed, record.WhyDependency, fmt.Sprintf("after %v: %s", v.work.Deadline, v.blocked.message))
			return
		}
		if spent >= v.work.Deadline {
			message := fmt.Sprintf("after %v, %d of %d indexes have completed", v.work.Deadline, r.Done.Len(), v.work.Indexes)
			if v.blocked != nil {
				message += ": " + v.blocked.message
			}
			v.end(record.RunFailed, record.WhyJobDeadline, message)
			return
		}
		if r.State == record.RunActive {
			v.wakeAt(v.now.Add(v.work.Deadline - spent))
		}
	}
}

// shortly is a set of indexes for a message.
func shortly(s *record.IndexSet) string { return record.Clip(s.String(), 60) }

// settle decides about each task that there is.
func (v *jobView) settle() {
	v.live, v.ending, v.lost = map[int]int{}, map[int]int{}, map[int]int{}
	told := func(t *task, reason string) {
		if t.rec.Stop == nil && t.node.rec != nil {
			v.stops = append(v.stops, stop{t, reason})
		}
	}
	kept := v.kept()
	var ended []*task
	for _, t := range v.tasks {
		index := t.rec.Slot
		switch {
		case t.over() && v.mine(t) && t.rec.Stop == nil && !t.node.leaving():
			ended = append(ended, t) // on a node that is left, logs are not kept either
		case t.over(), t.lost() && t.node.rec == nil:
			v.removes = append(v.removes, t)
		case !v.mine(t):
			told(t, record.ReasonUpdated)
			v.ending[index]++
		case v.run.State == record.RunSuspended:
			told(t, record.ReasonSuspended)
			v.ending[index]++
		case v.run.State.Final(), v.run.Done.Has(index), v.run.Failed.Has(index), index >= v.work.Indexes:
			told(t, record.ReasonFinished)
			v.ending[index]++
		case t.rec.Stop != nil && t.lost(): // told before it was lost: nobody waits for it
		case t.rec.Stop != nil:
			v.ending[index]++
		case t.lost():
			v.lost[index]++
		case t.rec.Hash != v.work.Hash: // what its images mean was changed beneath it
			told(t, record.ReasonUpdated)
			v.ending[index]++
		case t.leaving():
			told(t, record.ReasonDrained)
			v.ending[index]++
		case kept[index] != t: // one of the two came back with its node
			told(t, v.second(t, kept[index]))
			v.ending[index]++
		default:
			v.live[index]++
		}
	}
	// Fewer at a time than there were: the highest indexes wait again.
	if surplus := len(v.live) - v.work.Parallelism; surplus > 0 && !v.run.State.Final() {
		for _, t := range slices.Backward(v.tasks) {
			if surplus > 0 && t.live() && v.live[t.rec.Slot] > 0 && !t.leaving() {
				told(t, record.ReasonScaled)
				delete(v.live, t.rec.Slot)
				v.ending[t.rec.Slot]++
				surplus--
			}
		}
	}
	if len(ended) > v.work.Keep {
		slices.SortFunc(ended, func(a, b *task) int {
			return cmp.Or(b.status.Since.Compare(a.status.Since), strings.Compare(a.rec.ID, b.rec.ID))
		})
		v.removes = append(v.removes, ended[v.work.Keep:]...)
	}
}

// maxTries bounds the indexes that wait for a retry while others are begun.
const maxTries = 1000

// fill starts the indexes that are next: those that lost their node, then those
// whose back-off is over, then the lowest that have not been tried.
func (v *jobView) fill() {
	room := v.work.Parallelism - len(v.live) - len(v.ending)
	begin := func(index int, avoid string) {
		if room > 0 && v.live[index]+v.ending[index] == 0 {
			v.starts = append(v.starts, start{slot: index, avoid: avoid})
			room--
		}
	}
	var taken record.IndexSet
	taken.Union(&v.run.Done)
	taken.Union(&v.run.Failed)
	for index := range v.live {
		taken.Add(index)
	}
	for index := range v.ending {
		taken.Add(index)
	}
	for _, index := range slices.Sorted(maps.Keys(v.lost)) {
		begin(index, "")
		taken.Add(index)
	}
	for _, index := range slices.Sorted(maps.Keys(v.run.Tries)) {
		try := v.run.Tries[index]
		if taken.Has(index) {
			continue
		}
		taken.Add(index)
		if due := try.Last.Add(v.backoff(try.Failures)); due.After(v.now) {
			v.wakeAt(due)
			continue
		}
		begin(index, try.Node)
	}
	if len(v.run.Tries) >= maxTries {
		return
	}
	for index := taken.NextFree(0); room > 0 && index < v.work.Indexes; index = taken.NextFree(index + 1) {
		begin(index, "")
	}
}

// backoff is how long an index waits after its n-th failure. One that is not
// counted waits as after the first: what is ignored could go on for ever.
func (v *jobView) backoff(n int) time.Duration {
	d := v.work.Backoff
	for range n - 1 {
		if d >= v.work.MaxBackoff/2 {
			return v.work.MaxBackoff
		}
		d *= 2
	}
	return min(d, v.work.MaxBackoff)
}
