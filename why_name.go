package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// whyName explains what a name stands for, or stood for.
func (f *Fleet) whyName(ctx context.Context, x *Explanation, all []Event) error {
	ns, name := splitName(x.Subject)
	x.Subject = ns + "/" + name
	for _, k := range []struct {
		kind, prefix string
		explain      func(context.Context, *Explanation, string, string) error
	}{
		{KindService, record.Services, f.whyService}, {KindJob, record.Jobs, f.whyJob}, {KindCronJob, record.Crons, f.whyCron},
	} {
		_, found, err := getKey(ctx, f.store, record.Key(k.prefix, ns, name))
		if err != nil {
			return err
		}
		if found {
			x.Kind = k.kind
			if err := k.explain(ctx, x, ns, name); err != nil {
				return err
			}
			break
		}
	}
	if !x.story(ns, name, all) && x.Kind == "" {
		return &NameError{"task or service", x.Subject}
	}
	return nil
}

// story adds what was told of a name since the last change of its spec, and
// reports whether there is anything.
func (x *Explanation) story(ns, name string, all []Event) (found bool) {
	defer func() { slices.Reverse(x.Events) }()
	for _, e := range slices.Backward(all) {
		if e.Namespace != ns || e.Service != name {
			continue
		}
		found = true
		switch e.Kind {
		case TaskUnplaced:
			if x.Blocked == "" || x.Unplaced != nil || e.Decision == nil {
				continue
			}
			x.Unplaced = e.Decision
		case RolloutSucceeded, RolloutStopped, RollbackStarted, RollbackSucceeded, RollbackStopped, RolloutStarted, ServiceGone, ServiceScaled,
			JobStarted, JobSucceeded, JobStopped, JobPaused, JobResumed, CronMissed, DependencyAwaited, DependencyMet:
		case ServiceApplied, ServiceRemoved, JobApplied, JobGone, CronApplied, CronRemoved:
			if kind := specKind(e.Kind); x.Kind == "" {
				x.Kind = kind
			} else if x.Kind != kind {
				return true // of what had the name before
			}
			x.Events = append(x.Events, e)
			return true
		default:
			continue
		}
		x.Events = append(x.Events, e)
	}
	return found
}

// specKind is the kind of object whose spec an event tells of.
func specKind(k EventKind) string {
	switch k {
	case JobApplied, JobGone:
		return KindJob
	case CronApplied, CronRemoved:
		return KindCronJob
	}
	return KindService
}

func (f *Fleet) whyService(ctx context.Context, x *Explanation, ns, name string) error {
	var r record.Rollout
	item, found, err := store.Get(ctx, f.store, record.Key(record.Rollouts, ns, name))
	if err == nil && found {
		err = json.Unmarshal(item.Value, &r)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", item.Key, err)
	}
	x.Blocked, x.WaitsFor = r.Unplaced, readUnmet(r.Waiting)
	state, _, err := f.fork(ctx)
	if err != nil {
		return err
	}
	for _, l := range state.Lacks(ns+"/"+name, time.Now().UTC()) {
		x.Lacks = append(x.Lacks, Lack(l))
	}
	return nil
}

func (f *Fleet) whyJob(ctx context.Context, x *Explanation, ns, name string) error {
	run, err := f.run(ctx, ns, name)
	if err != nil {
		return err
	}
	switch {
	case run == nil:
		x.Blocked = "it has not begun: no control plane has led since"
	case run.State == record.RunActive:
		x.Blocked, x.WaitsFor = run.Unplaced, readUnmet(run.Waiting)
	case run.State == record.RunSuspended:
		x.Blocked = "it is suspended"
	}
	return nil
}

func (f *Fleet) whyCron(ctx context.Context, x *Explanation, ns, name string) error {
	item, err := f.existing(ctx, KindCronJob, x.Subject, record.Key(record.Crons, ns, name))
	if err != nil {
		return err
	}
	st, err := f.cronStatus(ctx, item)
	if err != nil {
		return err
	}
	_, _, unread := f.schedule(&st.CronJob)
	switch {
	case st.Suspend:
		x.Blocked = "it is suspended"
	case st.Problem != "" || unread != nil:
		x.Blocked = "its schedule cannot be kept: " + cmp.Or(st.Problem, fmt.Sprint(unread))
	case len(st.Active) > 0 && st.Concurrency == ForbidConcurrent:
		x.Blocked = "its next run waits for the end of " + strings.Join(st.Active, ", ")
	case st.Next.IsZero():
		x.Blocked = "its schedule has no more times"
	}
	// A run without a place is why nothing comes of it.
	for _, run := range st.Active {
		of, err := f.Why(ctx, run)
		if err != nil {
			continue // it has just gone
		}
		if of.Unplaced != nil || of.Blocked != "" || of.WaitsFor != nil {
			x.Blocked = strings.TrimPrefix(x.Blocked+"; its run "+run+": "+cmp.Or(of.Blocked, waitsFor(of.WaitsFor)), "; ")
			x.Unplaced, x.WaitsFor = of.Unplaced, of.WaitsFor
			break
		}
	}
	return nil
}
