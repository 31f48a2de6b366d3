package orchestrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// WithSchedules has the fleet read the schedules of cron jobs: parse returns, for
// an expression and a zone, a pure function that gives the first time after
// another, or the zero time when there is none. Package cron has one. Every
// control plane of a fleet should have the same. A fleet without refuses a
// [CronJob] with [ErrNoSchedules].
func WithSchedules(parse func(expr string, zone *time.Location) (next func(time.Time) time.Time, err error)) Option {
	return func(o *options) { o.schedules = parse }
}

// ErrNoSchedules is a cron job in a fleet that cannot read its schedule.
var ErrNoSchedules = errors.New("this fleet cannot read schedules; open it with WithSchedules")

// OwnedError is a job that is a run of a cron job, which alone decides what is in
// it. It matches [ErrInUse].
type OwnedError struct {
	Job, CronJob string // NAMESPACE/NAME
}

func (e *OwnedError) Error() string {
	return fmt.Sprintf("job %s is a run of the cron job %s; change that, or choose another name", e.Job, e.CronJob)
}

// Is reports whether target is [ErrInUse].
func (e *OwnedError) Is(target error) bool { return target == ErrInUse }

// owned is an error if the job is a run of a cron job.
func owned(ns, name string, rec *record.Job) error {
	if rec.Cron == nil {
		return nil
	}
	return &OwnedError{ns + "/" + name, ns + "/" + rec.Cron.Name}
}

// schedule reads the schedule of a cron job, which has its defaults filled in.
func (f *Fleet) schedule(c *CronJob) (next func(time.Time) time.Time, path string, err error) {
	zone, err := zoneOf(c.TimeZone)
	if err != nil {
		return nil, "timeZone", err
	}
	if f.opts.schedules == nil {
		return nil, "schedule", ErrNoSchedules
	}
	next, err = f.opts.schedules(c.Schedule, zone)
	return next, "schedule", err
}

func (c CronJob) stage(ctx context.Context, f *Fleet, b *batch) error {
	c = c.WithDefaults()
	if f.opts.schedules == nil {
		return fmt.Errorf("%s: %w", c.object(), ErrNoSchedules)
	}
	if _, path, err := f.schedule(&c); err != nil {
		value := c.Schedule
		if path == "timeZone" {
			value = c.TimeZone
		}
		return &ValidationError{Object: c.object(), Problems: []Problem{{Path: path, Value: show(value),
			Reason: fmt.Sprintf("cannot be read: %v; give a cron expression such as \"30 3 * * *\"", err)}}}
	}
	if err := f.checkStrategy(c.service()); err != nil {
		return err
	}
	key := record.Key(record.Crons, c.Namespace, c.Name)
	item, found, err := store.Get(ctx, f.store, key)
	if err != nil {
		return err
	}
	b.guard(item, key)
	spec, err := json.Marshal(c)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	rec := record.Cron{Spec: spec, Since: now, Created: now, Updated: now, Actor: actorOf(ctx)}
	var old CronJob
	var last record.Cron
	if found {
		if old, last, err = readCron(item); err != nil {
			return err
		}
		rec.Created = last.Created
	}
	if rec.Digests, err = f.pinCron(ctx, b, &c, &last, &old); err != nil {
		return err
	}
	if found {
		if bytes.Equal(last.Spec, spec) && maps.Equal(last.Digests, rec.Digests) {
			return nil
		}
		if old.Schedule == c.Schedule && old.TimeZone == c.TimeZone && (c.Suspend || !old.Suspend) {
			rec.Since = last.Since
		}
	}
	if err := f.checkNetworks(ctx, b, c.service(), old.service()); err != nil {
		return err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	b.Writes = append(b.Writes, store.Put(key, data))
	b.tell(ctx, record.Event{Kind: record.CronApplied, Namespace: c.Namespace, Service: c.Name})
	return nil
}

// service is a service of the runs' template, for what they have in common.
func (c *CronJob) service() *Service {
	s := c.Job.service()
	s.Namespace, s.Name = c.Namespace, c.Name
	return s
}

func readCron(item store.Item) (c CronJob, rec record.Cron, err error) {
	if err = json.Unmarshal(item.Value, &rec); err == nil {
		err = json.Unmarshal(rec.Spec, &c)
	}
	if err != nil {
		err = fmt.Errorf("read %s: %w", item.Key, err)
	}
	return c, rec, err
}

// CronJobStatus is a cron job and how it is.
type CronJobStatus struct {
	CronJob
	Created time.Time // when it was first applied
	Updated time.Time
	// Digests are what its images meant when it was applied, by reference; see
	// [WithResolver].
	Digests map[string]string

	// Next is when the schedule fits next; zero when it never does, is suspended,
	// or this fleet cannot read it.
	Next time.Time
	// Last is the newest time of the schedule that was run, and LastRun the name
	// of that run, NAMESPACE/NAME, which may be gone. Zero before the first.
	Last    time.Time
	LastRun string
	Active  []string // runs that go on, NAMESPACE/NAME, the oldest first
	// Missed is how many times of the schedule passed without a run. After a long
	// time without a leader it is a lower bound.
	Missed int64
	// Ended is the run that ended last, NAMESPACE/NAME, and Outcome how; empty
	// before the first.
	Ended   string
	Outcome JobOutcome
	EndedAt time.Time
	// Problem says why the leader cannot keep the schedule; empty when it can.
	Problem string
}

// CronJob returns a cron job. One that does not exist is a [*NameError].
func (f *Fleet) CronJob(ctx context.Context, name string) (CronJobStatus, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return CronJobStatus{}, err
	}
	defer done()
	ns, base := splitName(name)
	item, err := f.existing(ctx, KindCronJob, name, record.Key(record.Crons, ns, base))
	if err != nil {
		return CronJobStatus{}, err
	}
	return f.cronStatus(ctx, item)
}

// CronJobs returns the cron jobs of a namespace, or of all with "", by namespace
// and name.
func (f *Fleet) CronJobs(ctx context.Context, namespace string) ([]CronJobStatus, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return listOf(ctx, f, record.Crons, namespace, func(item store.Item) (CronJobStatus, error) { return f.cronStatus(ctx, item) })
}

func (f *Fleet) cronStatus(ctx context.Context, item store.Item) (CronJobStatus, error) {
	c, rec, err := readCron(item)
	if err != nil {
		return CronJobStatus{}, err
	}
	st := CronJobStatus{CronJob: c, Created: rec.Created, Updated: rec.Updated, Digests: rec.Digests}
	if next, _, err := f.schedule(&c); err == nil && !c.Suspend {
		st.Next = next(time.Now()).UTC()
	}
	key := record.Key(record.CronStates, c.Namespace, c.Name)
	kept, found, err := store.Get(ctx, f.store, key)
	if err != nil || !found {
		return st, err
	}
	var state record.CronState
	if err := json.Unmarshal(kept.Value, &state); err != nil {
		return st, fmt.Errorf("read %s: %w", key, err)
	}
	if !state.Created.Equal(rec.Created) {
		return st, nil
	}
	full := func(run string) string {
		if run == "" {
			return ""
		}
		return c.Namespace + "/" + run
	}
	st.Last, st.LastRun, st.Missed, st.Problem = state.Last, full(state.LastRun), state.Missed, state.Problem
	st.Ended, st.EndedAt = full(state.Ended), state.EndedAt
	switch state.Outcome {
	case record.RunCompleted:
		st.Outcome = JobCompleted
	case record.RunFailed:
		st.Outcome = JobFailed
	}
	for _, run := range state.Active {
		st.Active = append(st.Active, full(run))
	}
	return st, nil
}

// Trigger starts a run of a cron job now, also of one that is suspended, beside
// its schedule and whatever its Concurrency. It returns the name of the run,
// NAMESPACE/NAME, once the leader has made it, and so waits for there to be a
// leader; when ctx ends before, the run is made all the same. A cron job that
// does not exist, or is removed before, is a [*NameError].
func (f *Fleet) Trigger(ctx context.Context, name string) (run string, err error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	ns, base := splitName(name)
	id := f.unique("trigger", strconv.FormatInt(f.triggers.Add(1), 10))
	key := record.Key(record.Triggers, ns, base, id)
	err = f.change(ctx, func(b *batch) error {
		cron := record.Key(record.Crons, ns, base)
		item, err := f.existing(ctx, KindCronJob, name, cron)
		if err != nil {
			return err
		}
		b.guard(item, cron)
		data, err := json.Marshal(record.Trigger{At: time.Now().UTC(), Actor: actorOf(ctx)})
		if err != nil {
			return err
		}
		b.Writes = append(b.Writes, store.Put(key, data))
		return nil
	})
	if err != nil {
		return "", err
	}
	for {
		jobs, err := f.store.List(ctx, record.Key(record.Jobs, ns, base+"-"))
		if err != nil {
			return "", err
		}
		for _, item := range jobs.Items {
			if j, rec, err := readJob(item); err == nil && rec.Cron != nil && rec.Cron.Trigger == id {
				return j.Namespace + "/" + j.Name, nil
			}
		}
		_, waits, err := store.Get(ctx, f.store, key)
		if err != nil {
			return "", err
		}
		if !waits {
			// It was made and deleted at once, or the cron job is gone. What was
			// made since jobs was read is there to be seen.
			again, err := f.store.List(ctx, record.Key(record.Jobs, ns, base+"-"))
			if err != nil {
				return "", err
			}
			if !slices.ContainsFunc(again.Items, func(i store.Item) bool {
				_, rec, err := readJob(i)
				return err == nil && rec.Cron != nil && rec.Cron.Trigger == id
			}) {
				return "", &NameError{KindCronJob, name}
			}
			continue
		}
		if err := f.next(ctx, []string{key}, jobs.Revision); err != nil {
			return "", err
		}
	}
}

// controlCron is what is decided by.
func (f *Fleet) controlCron(c *CronJob, rec *record.Cron) control.Cron {
	cron := control.Cron{Since: rec.Since, StartDeadline: c.StartDeadline, Suspended: c.Suspend,
		KeepCompleted: max(c.KeepCompleted, 0), KeepFailed: max(c.KeepFailed, 0)}
	if c.Concurrency != AllowConcurrent {
		cron.Concurrency = control.Concurrency(c.Concurrency)
	}
	next, _, err := f.schedule(c)
	if cron.Next = next; err != nil {
		cron.Next, cron.Problem = nil, record.Clip(err.Error(), 200)
	}
	return cron
}
