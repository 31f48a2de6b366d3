package orchestrate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// service is a service of the job's template, for what they have in common.
func (j *Job) service() *Service {
	return &Service{Namespace: j.Namespace, Name: j.Name, Labels: j.Labels, Replicas: j.Parallelism, Template: j.Template}
}

// NamesakeError is a service and a job that want the same name. It matches
// [ErrInUse].
type NamesakeError struct {
	Object string // the refused one
	Other  string // what has the name, or of what something is still left
}

func (e *NamesakeError) Error() string {
	return fmt.Sprintf("%s: the name belongs to the %s, of which not everything has gone; remove it and wait, or choose another", e.Object, e.Other)
}

// Is reports whether target is [ErrInUse].
func (e *NamesakeError) Is(target error) bool { return target == ErrInUse }

// onlyOne refuses a name under which there is another kind of workload, or what
// the leader derived from it. As long as the batch's conditions hold, there is
// none.
func (b *batch) onlyOne(ctx context.Context, f *Fleet, ns, name, object, other string, prefixes ...string) error {
	for _, prefix := range prefixes {
		key := record.Key(prefix, ns, name)
		item, found, err := store.Get(ctx, f.store, key)
		if err != nil {
			return err
		}
		if found && !b.guarded[key] { // else it is removed in this very batch
			return &NamesakeError{object, other}
		}
		if found {
			return &NamesakeError{object, other + " that is being removed"}
		}
		b.guard(item, key)
	}
	return nil
}

func (j Job) stage(ctx context.Context, f *Fleet, b *batch) error {
	j = j.WithDefaults()
	s := j.service()
	if err := f.checkStrategy(s); err != nil {
		return err
	}
	if err := b.onlyOne(ctx, f, j.Namespace, j.Name, j.object(), "service", record.Services, record.Rollouts); err != nil {
		return err
	}
	key := record.Key(record.Jobs, j.Namespace, j.Name)
	item, found, err := store.Get(ctx, f.store, key)
	if err != nil {
		return err
	}
	b.guard(item, key)
	spec, err := json.Marshal(j)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	rec := record.Job{Spec: spec, Run: 1, Created: now, Updated: now, Actor: actorOf(ctx)}
	wish := b.images[j.Namespace+"/"+j.Name]
	var old Job
	var last record.Job
	again := !found
	if found {
		if err := json.Unmarshal(item.Value, &last); err != nil {
			return fmt.Errorf("read %s: %w", j.object(), err)
		}
		if err := json.Unmarshal(last.Spec, &old); err != nil {
			return fmt.Errorf("read %s: %w", j.object(), err)
		}
		if err := owned(j.Namespace, j.Name, &last); err != nil {
			return err
		}
		rec.Created, rec.Run = last.Created, last.Run
		again = old.Template.Hash() != j.Template.Hash() || old.Completions != j.Completions
		if !again {
			run, err := f.run(ctx, j.Namespace, j.Name)
			if err != nil {
				return err
			}
			again = run != nil && run.Number == last.Run && run.State == record.RunFailed
		}
		again = again && !wish.going
	}
	pins, err := f.pinJob(ctx, b, j.object(), wish, &j.Template, &old.Template, pins{digests: last.Digests, unresolved: last.Unresolved}, again)
	if err != nil {
		return err
	}
	rec.Digests, rec.Unresolved = pins.digests, pins.unresolved
	rec.Hash = j.Template.pinned(rec.Digests).Hash()
	if found {
		if !wish.going && last.Hash != rec.Hash {
			again = true
		}
		if again {
			rec.Run++
		} else if bytes.Equal(last.Spec, spec) && last.Hash == rec.Hash {
			return nil
		}
	}
	if !found {
		// Tasks of a job of that name which was removed a moment ago are of another
		// run than those of this one.
		key := record.Key(record.Runs, j.Namespace, j.Name)
		left, there, err := store.Get(ctx, f.store, key)
		if err != nil {
			return err
		}
		b.guard(left, key)
		var run record.Run
		if there && json.Unmarshal(left.Value, &run) == nil {
			rec.Run = run.Number + 1
		}
	}
	if err := f.checkNetworks(ctx, b, s, old.service()); err != nil {
		return err
	}
	b.depend(j.Namespace, j.Name, old.DependsOn, j.DependsOn)
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	b.Writes = append(b.Writes, store.Put(key, data))
	b.tell(ctx, record.Event{Kind: record.JobApplied, Namespace: j.Namespace, Service: j.Name, Revision: rec.Run})
	return nil
}

// run reads how far a job is; nil when nothing is known yet.
func (f *Fleet) run(ctx context.Context, ns, name string) (*record.Run, error) {
	item, found, err := getKey(ctx, f.store, record.Key(record.Runs, ns, name))
	if err != nil || !found {
		return nil, err
	}
	var run record.Run
	if err := json.Unmarshal(item.Value, &run); err != nil {
		return nil, fmt.Errorf("read %s: %w", item.Key, err)
	}
	return &run, nil
}

// JobOutcome is how a job ended.
type JobOutcome string

// The outcomes.
const (
	JobCompleted  JobOutcome = "completed"  // enough of its indexes completed
	JobFailed     JobOutcome = "failed"     // Reason says why
	JobSuperseded JobOutcome = "superseded" // an Apply began it anew before
	JobRemoved    JobOutcome = "removed"    // it was removed before
)

// JobReason is why a job failed.
type JobReason string

// The reasons.
const (
	JobDeadline JobReason = record.WhyJobDeadline // it was not done in time
	JobIndexes  JobReason = record.WhyIndexes     // too many indexes were given up
	JobExitCode JobReason = record.WhyExitCode    // a rule of Exits fails the job
	// JobDependency: what it depends on has failed, or was waited for until its
	// Deadline.
	JobDependency JobReason = record.WhyDependency
	JobBadSpec    JobReason = record.WhySpec // its record cannot be read, or placed by any rule
)

// JobResult is how a job ended, or how far it is.
type JobResult struct {
	Job       string     // NAMESPACE/NAME
	Run       int64      // counts from 1 how often it was begun
	Outcome   JobOutcome // empty while it goes on
	Reason    JobReason  // of JobFailed
	Message   string     // for a person
	Failure   *Failure   // the last of a task that counted, with the lines it logged
	Suspended bool

	Indexes   int    // that there are
	Completed int    // indexes
	Failed    int    // indexes that were given up
	GivenUp   string // which, as ranges such as "3,8-10"
	Active    int    // tasks that run or are about to
	Waiting   int    // indexes that wait for a retry
	Failures  int    // of tasks, that counted
	Ignored   int    // of tasks, that did not, by Exits or because a node was lost
	Unplaced  string // why tasks have no place, in the scheduler's words

	// WaitsFor is what must hold before any task is started.
	WaitsFor []Unmet

	Started time.Time
	Ended   time.Time
}

// Err returns nil for a job that completed or goes on, and else a [*JobError].
func (r JobResult) Err() error {
	if r.Outcome == JobCompleted || r.Outcome == "" {
		return nil
	}
	return &JobError{r}
}

// String is the result in a line.
func (r JobResult) String() string {
	state := string(r.Outcome)
	if state == "" {
		state = fmt.Sprintf("%d active", r.Active)
		if r.Suspended {
			state = "suspended"
		}
	}
	s := fmt.Sprintf("job %s run %d: %s with %d of %d indexes completed", r.Job, r.Run, state, r.Completed, r.Indexes)
	if r.Failed > 0 {
		s += fmt.Sprintf(", %d given up", r.Failed)
	}
	if r.Reason != "" {
		s += fmt.Sprintf(" (%s)", r.Reason)
	}
	if r.Message != "" {
		s += ": " + r.Message
	} else if r.WaitsFor != nil {
		s += ": " + waitsFor(r.WaitsFor)
	} else if r.Unplaced != "" {
		s += ": " + r.Unplaced
	}
	return s
}

// JobError is a job that did not complete.
type JobError struct{ Result JobResult }

func (e *JobError) Error() string { return e.Result.String() }

// JobStatus is a job and how it is.
type JobStatus struct {
	Job
	Created time.Time // when it was first applied
	Updated time.Time
	CronJob string // the cron job, NAMESPACE/NAME, of which it is a run; empty when it is none
	// Digests are what its images mean in its run that have no digest of their
	// own, by reference; see [WithResolver].
	Digests map[string]string
	Result  JobResult // how far it is
}

// Job returns a job. One that does not exist is a [*NameError].
func (f *Fleet) Job(ctx context.Context, name string) (JobStatus, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return JobStatus{}, err
	}
	defer done()
	ns, base := splitName(name)
	item, err := f.existing(ctx, KindJob, name, record.Key(record.Jobs, ns, base))
	if err != nil {
		return JobStatus{}, err
	}
	return f.jobStatus(ctx, item)
}

// Jobs returns the jobs of a namespace, or of all with "", by namespace and name.
func (f *Fleet) Jobs(ctx context.Context, namespace string) ([]JobStatus, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return listOf(ctx, f, record.Jobs, namespace, func(item store.Item) (JobStatus, error) { return f.jobStatus(ctx, item) })
}

func readJob(item store.Item) (j Job, rec record.Job, err error) {
	if err = json.Unmarshal(item.Value, &rec); err == nil {
		err = json.Unmarshal(rec.Spec, &j)
	}
	if err != nil {
		err = fmt.Errorf("read %s: %w", item.Key, err)
	}
	return j, rec, err
}

func (f *Fleet) jobStatus(ctx context.Context, item store.Item) (JobStatus, error) {
	j, rec, err := readJob(item)
	if err != nil {
		return JobStatus{}, err
	}
	st := JobStatus{Job: j, Created: rec.Created, Updated: rec.Updated, Digests: rec.Digests}
	if rec.Cron != nil {
		st.CronJob = j.Namespace + "/" + rec.Cron.Name
	}
	st.Result = JobResult{Job: j.Namespace + "/" + j.Name, Run: rec.Run, Indexes: j.Completions}
	run, err := f.run(ctx, j.Namespace, j.Name)
	if err == nil && run != nil && run.Number == rec.Run && run.Created.Equal(rec.Created) {
		st.Result.read(run)
	}
	return st, err
}

func (r *JobResult) read(run *record.Run) {
	r.Reason, r.Message, r.Failure = JobReason(run.Reason), run.Message, readFailure(run.Failure)
	r.Suspended = run.State == record.RunSuspended
	r.Indexes, r.Completed, r.Failed, r.GivenUp = run.Indexes, run.Done.Len(), run.Failed.Len(), run.Failed.String()
	r.Active, r.Waiting, r.Failures, r.Ignored = run.Active, len(run.Tries), run.Failures, run.Ignored
	r.Unplaced, r.Started, r.Ended = run.Unplaced, run.Started, run.Ended
	r.WaitsFor = readUnmet(run.Waiting)
	switch run.State {
	case record.RunCompleted:
		r.Outcome = JobCompleted
	case record.RunFailed:
		r.Outcome = JobFailed
	}
}

// WaitJob returns how a job ends, at once when it has; its tasks may then still
// be stopping. It is about the run at the time of the call: when a later Apply
// begins the job anew, the result is [JobSuperseded], and when it is removed
// before its end, [JobRemoved]. A job that does not exist is a [*NameError].
func (f *Fleet) WaitJob(ctx context.Context, name string) (JobResult, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return JobResult{}, err
	}
	defer done()
	ns, base := splitName(name)
	key := record.Key(record.Jobs, ns, base)
	var first *record.Job
	var last JobResult
	for {
		if store.ValidateKey(key) != nil {
			return last, &NameError{KindJob, name}
		}
		// Keys behind this one may begin with it: the job's own comes first.
		snapshot, err := f.store.List(ctx, key)
		if err != nil {
			return last, err
		}
		there := len(snapshot.Items) > 0 && snapshot.Items[0].Key == key
		if !there && first == nil {
			return last, &NameError{KindJob, name}
		}
		if !there {
			last.Outcome, last.Ended = JobRemoved, time.Now().UTC()
			return last, nil
		}
		_, rec, err := readJob(snapshot.Items[0])
		if err != nil {
			return last, err
		}
		if first == nil {
			first = &rec
		}
		if rec.Run != first.Run || !rec.Created.Equal(first.Created) {
			last.Outcome, last.Ended, last.Message = JobSuperseded, time.Now().UTC(), "it was begun anew"
			return last, nil
		}
		st, err := f.jobStatus(ctx, snapshot.Items[0])
		if err != nil {
			return last, err
		}
		if last = st.Result; last.Outcome != "" {
			return last, nil
		}
		if err := f.next(ctx, []string{key, record.Key(record.Runs, ns, base)}, snapshot.Revision); err != nil {
			return last, err
		}
	}
}

// SuspendJob stops a job's tasks and starts none until [Fleet.ResumeJob]. What
// has completed stays so; indexes that were under way run again.
func (f *Fleet) SuspendJob(ctx context.Context, name string) error { return f.suspend(ctx, name, true) }

// ResumeJob lets a job go on.
func (f *Fleet) ResumeJob(ctx context.Context, name string) error { return f.suspend(ctx, name, false) }

func (f *Fleet) suspend(ctx context.Context, name string, suspend bool) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	ns, base := splitName(name)
	return f.change(ctx, func(b *batch) error {
		item, err := f.existing(ctx, KindJob, name, record.Key(record.Jobs, ns, base))
		if err != nil {
			return err
		}
		j, rec, err := readJob(item)
		if err != nil || j.Suspend == suspend {
			return err
		}
		if err := owned(ns, base, &rec); err != nil {
			return err
		}
		b.guard(item, item.Key)
		j.Suspend = suspend
		if rec.Spec, err = json.Marshal(j); err != nil {
			return err
		}
		rec.Updated, rec.Actor = time.Now().UTC(), actorOf(ctx)
		data, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		b.Writes = append(b.Writes, store.Put(item.Key, data))
		b.reason = reasonResumed
		if suspend {
			b.reason = record.ReasonSuspended
		}
		b.tell(ctx, record.Event{Kind: record.JobApplied, Namespace: ns, Service: base, Revision: rec.Run})
		return nil
	})
}

const (
	reasonResumed = "resumed"
	reasonExpired = "expired"
)

// decodeJobWork is what the planner needs of a job's record.
func decodeJobWork(namespace, name string, rec record.Job) (control.JobWork, error) {
	var j Job
	fail := func(err error) (control.JobWork, error) {
		return control.JobWork{}, fmt.Errorf("job %s/%s: %w", namespace, name, err)
	}
	if err := json.Unmarshal(rec.Spec, &j); err != nil {
		return fail(err)
	}
	j.Namespace, j.Name = namespace, name
	j = j.WithDefaults()
	j.Template = j.Template.pinned(rec.Digests)
	template, err := json.Marshal(j.Template)
	if err != nil {
		return fail(err)
	}
	request, err := j.service().request()
	if err != nil {
		return fail(err)
	}
	w := control.JobWork{
		Workload: control.Workload{Replicas: j.Parallelism, Template: template, Request: request, Networks: j.Networks, DependsOn: dependencies(j.DependsOn, namespace),
			Unpinned: unpinned(rec.Unresolved)},
		Indexes: j.Completions, Parallelism: j.Parallelism, Enough: j.Enough, Retries: max(j.Retries, 0),
		Backoff: j.RetryBackoff, MaxBackoff: j.MaxRetryBackoff, Deadline: j.Deadline,
		Suspended: j.Suspend, Gang: j.Gang, Keep: max(j.KeepTasks, 0),
	}
	j.LossPolicy.control(&w.Workload)
	for _, r := range j.Exits {
		rule := control.ExitRule{Codes: r.Codes, Action: control.ExitAction(r.Action)}
		if r.Action == ExitRetry {
			rule.Action = control.RetryIndex
		}
		w.Rules = append(w.Rules, rule)
	}
	return w, nil
}
