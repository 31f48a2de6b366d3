package orchestrate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// keepSchedules makes and deletes the runs of cron jobs, while the fleet leads.
func (f *Fleet) keepSchedules(ctx context.Context, fence store.Condition, rec *recorder) {
	defer rec.endLooks()
	for ctx.Err() == nil {
		wake, any, after, err := f.scheduleOnce(ctx, fence, rec)
		if err != nil && ctx.Err() == nil {
			if !errors.Is(err, store.ErrConflict) {
				f.opts.logger.Warn("cannot keep the schedules of cron jobs; trying again", "error", err)
			}
			if again := time.Now().Add(time.Second); wake.IsZero() || again.Before(wake) {
				wake = again
			}
		}
		prefixes := []string{record.Crons, record.Triggers}
		if any { // else the ends of other jobs are no news
			prefixes = append(prefixes, record.Runs)
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if !wake.IsZero() {
			wait, cancel = context.WithDeadline(ctx, wake)
		}
		_ = f.next(wait, prefixes, after) // whatever ended it, it is time to look again
		cancel()
	}
}

// cronView is all there is of one cron job, or of one that was removed.
type cronView struct {
	ns, name string
	item     store.Item // the spec's; no revision when it was removed
	state    store.Item
	runs     []store.Item
	triggers []store.Item
}

// scheduleOnce takes the next step with each cron job, and returns when to look
// again.
func (f *Fleet) scheduleOnce(ctx context.Context, fence store.Condition, recording *recorder) (wake time.Time, any bool, after int64, err error) {
	views := map[string]*cronView{}
	view := func(ns, name string) *cronView {
		v := views[ns+"/"+name]
		if v == nil {
			v = &cronView{ns: ns, name: name}
			views[ns+"/"+name] = v
		}
		return v
	}
	for _, prefix := range []string{record.Crons, record.CronStates, record.Triggers} {
		snapshot, err := f.store.List(ctx, prefix)
		if err != nil {
			return wake, true, 0, err
		}
		if prefix == record.Crons {
			after = snapshot.Revision
		}
		for _, item := range snapshot.Items {
			parts := strings.Split(strings.TrimPrefix(item.Key, prefix), "/")
			if len(parts) < 2 {
				continue
			}
			switch v := view(parts[0], parts[1]); prefix {
			case record.Crons:
				v.item = item
			case record.CronStates:
				v.state = item
			default:
				v.triggers = append(v.triggers, item)
			}
		}
	}
	if len(views) == 0 {
		return wake, false, after, nil
	}
	jobs, err := f.store.List(ctx, record.Jobs)
	if err != nil {
		return wake, true, after, err
	}
	for _, item := range jobs.Items {
		var rec record.Job
		parts := record.Split(item.Key, record.Jobs, 2)
		if parts != nil && json.Unmarshal(item.Value, &rec) == nil && rec.Cron != nil {
			v := view(parts[0], rec.Cron.Name)
			v.runs = append(v.runs, item)
		}
	}
	names := keysOf(views)
	var errs []error
	for _, name := range names {
		at, err := f.stepCron(ctx, fence, views[name], recording)
		if err != nil {
			errs = append(errs, fmt.Errorf("cron job %s: %w", name, err))
		}
		if !at.IsZero() && (wake.IsZero() || at.Before(wake)) {
			wake = at
		}
	}
	return wake, true, after, errors.Join(errs...)
}

// stepCron decides about one cron job and commits what follows, all in one. The
// next look is soon where there is more to do.
func (f *Fleet) stepCron(ctx context.Context, fence store.Condition, v *cronView, recording *recorder) (wake time.Time, err error) {
	ctx = WithActor(ctx, record.ActorPlanner)
	b := &batch{guarded: map[string]bool{}, reason: reasonScheduled}
	b.If = append(b.If, fence)
	b.guard(v.item, record.Key(record.Crons, v.ns, v.name))
	if v.item.Revision == 0 {
		return time.Time{}, f.forgetCron(ctx, b, v)
	}
	c, rec, err := readCron(v.item)
	if err != nil {
		return wake, err
	}
	stateKey := record.Key(record.CronStates, v.ns, v.name)
	b.guard(v.state, stateKey)
	now := time.Now().UTC()
	decided, err := f.decideCron(ctx, v, &c, &rec, now)
	if err != nil {
		return wake, err
	}
	recording.look(newLook(&c, &rec, &decided), now)
	step := decided.step
	for _, item := range decided.strangers {
		f.deleteRun(ctx, b, item)
	}
	for _, name := range slices.Concat(step.Expired, step.Replaced) {
		f.deleteRun(ctx, b, decided.items[name])
	}
	taken := map[string]bool{}
	if !step.Start.IsZero() {
		name, err := f.makeRun(ctx, b, &c, &rec, record.CronRun{Name: v.name, Created: rec.Created, At: step.Start.UTC()}, taken)
		if err != nil {
			return wake, err
		}
		step.State.Active, step.State.LastRun = append(step.State.Active, name), name
	}
	for i, item := range v.triggers {
		if i == maxTriggers { // the rest in another commit
			step.Wake = now
			break
		}
		var t record.Trigger
		_ = json.Unmarshal(item.Value, &t) // what cannot be read was written to start a run all the same
		b.guard(item, item.Key)
		b.Writes = append(b.Writes, store.Delete(item.Key))
		run := record.CronRun{Name: v.name, Created: rec.Created, At: now, Trigger: item.Key[strings.LastIndexByte(item.Key, '/')+1:]}
		name, err := f.makeRun(WithActor(ctx, cmp.Or(t.Actor, record.ActorApplication)), b, &c, &rec, run, taken)
		if err != nil {
			return wake, err
		}
		step.State.Active = append(step.State.Active, name)
	}
	if step.Missed > 0 {
		b.tell(ctx, record.Event{Kind: record.CronMissed, Namespace: v.ns, Service: v.name, Reason: reasonMissed,
			Message: fmt.Sprintf("%d times of %q passed without a run", step.Missed, c.Schedule)})
	}
	data, err := json.Marshal(step.State)
	if err != nil {
		return wake, err
	}
	if !bytes.Equal(data, v.state.Value) {
		b.Writes = append(b.Writes, store.Put(stateKey, data))
	}
	if len(b.Writes) == 0 {
		return step.Wake, nil
	}
	return step.Wake, f.commit(ctx, b)
}

// cronDecision is what was decided about a cron job, and by what.
type cronDecision struct {
	state     record.CronState
	runs      []control.CronJobRun
	step      control.CronStep
	items     map[string]store.Item // the runs by name
	strangers []store.Item          // runs of one that had the name before
}

// decideCron decides what to do about a cron job.
func (f *Fleet) decideCron(ctx context.Context, v *cronView, c *CronJob, rec *record.Cron, now time.Time) (cronDecision, error) {
	d := cronDecision{items: map[string]store.Item{}}
	if v.state.Revision != 0 {
		if err := json.Unmarshal(v.state.Value, &d.state); err != nil {
			return d, fmt.Errorf("read %s: %w", v.state.Key, err)
		}
	}
	if !d.state.Created.Equal(rec.Created) {
		d.state = record.CronState{Created: rec.Created}
	}
	for _, item := range v.runs {
		j, job, err := readJob(item)
		if err != nil {
			return d, err
		}
		if !job.Cron.Created.Equal(rec.Created) {
			d.strangers = append(d.strangers, item)
			continue
		}
		r := control.CronJobRun{Name: j.Name, At: job.Cron.At}
		run, err := f.run(ctx, v.ns, j.Name)
		if err != nil {
			return d, err
		}
		if run != nil && run.Number == job.Run && run.Created.Equal(job.Created) {
			r.State, r.Ended = run.State, run.Ended
		}
		d.items[j.Name] = item
		d.runs = append(d.runs, r)
	}
	d.step = control.DecideCron(f.controlCron(c, rec), d.state, d.runs, now)
	return d, nil
}

// maxTriggers bounds how many runs are made in one commit.
const maxTriggers = 16

const (
	reasonScheduled = "scheduled"
	reasonMissed    = "missed"
)

// forgetCron deletes what is left of a cron job that was removed.
func (f *Fleet) forgetCron(ctx context.Context, b *batch, v *cronView) error {
	for _, item := range v.runs {
		f.deleteRun(ctx, b, item)
	}
	for _, item := range append(slices.Clone(v.triggers), v.state) {
		if item.Revision != 0 {
			b.guard(item, item.Key)
			b.Writes = append(b.Writes, store.Delete(item.Key))
		}
	}
	if len(b.Writes) == 0 {
		return nil
	}
	return f.commit(ctx, b)
}

func (f *Fleet) deleteRun(ctx context.Context, b *batch, item store.Item) {
	if b.guarded[item.Key] {
		return
	}
	b.guard(item, item.Key)
	b.Writes = append(b.Writes, store.Delete(item.Key))
	if parts := record.Split(item.Key, record.Jobs, 2); parts != nil {
		b.tell(ctx, record.Event{Kind: record.JobGone, Namespace: parts[0], Service: parts[1]})
	}
}

// makeRun adds a run to a batch, under a name that nothing has.
func (f *Fleet) makeRun(ctx context.Context, b *batch, c *CronJob, rec *record.Cron, of record.CronRun, taken map[string]bool) (name string, err error) {
	name = control.RunName(c.Name, of.At, func(name string) bool {
		if err != nil || taken[name] {
			return err == nil
		}
		for _, prefix := range []string{record.Jobs, record.Runs, record.Services, record.Rollouts} {
			var found bool
			if _, found, err = store.Get(ctx, f.store, record.Key(prefix, c.Namespace, name)); found {
				return true
			}
		}
		return false
	})
	if err != nil {
		return "", err
	}
	taken[name] = true
	for _, prefix := range []string{record.Jobs, record.Runs, record.Services, record.Rollouts} {
		b.guard(store.Item{}, record.Key(prefix, c.Namespace, name))
	}
	j := c.Job
	j.Namespace, j.Name = c.Namespace, name
	j = j.WithDefaults()
	spec, err := json.Marshal(j)
	if err != nil {
		return "", err
	}
	now, pins := time.Now().UTC(), f.cronRunPins(c, rec)
	data, err := json.Marshal(record.Job{Spec: spec, Run: 1, Hash: j.Template.pinned(pins.digests).Hash(), Created: now, Updated: now, Actor: actorOf(ctx), Cron: &of,
		Digests: pins.digests, Unresolved: pins.unresolved})
	if err != nil {
		return "", err
	}
	b.Writes = append(b.Writes, store.Put(record.Key(record.Jobs, c.Namespace, name), data))
	b.tell(ctx, record.Event{Kind: record.JobApplied, Namespace: c.Namespace, Service: name, Revision: 1})
	return name, nil
}
