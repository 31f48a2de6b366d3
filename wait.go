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

// Outcome is how a rollout ended.
type Outcome string

// The outcomes.
const (
	// RolloutCompleted: the service is what its spec says, and every task
	// stayed ready for the monitor time.
	RolloutCompleted Outcome = "completed"
	// RolloutFailed: it could not be made so; Reason says why.
	RolloutFailed Outcome = "failed"
	// RolloutSuperseded: a later Apply or Scale changed the spec before.
	RolloutSuperseded Outcome = "superseded"
	// RolloutWaiting: it has not ended. What is tried is ready, and waits for
	// [Fleet.Promote] or [Fleet.Abort], for however long that takes.
	RolloutWaiting Outcome = "waiting"
	// RolloutRemoved: the service was removed and nothing of it is left.
	RolloutRemoved Outcome = "removed"
)

// Reason is why a rollout failed.
type Reason string

// The reasons.
const (
	ReasonAborted  Reason = "aborted"           // a call asked for it; see [Fleet.Abort]
	ReasonBake     Reason = "bake-failed"       // tasks that had been given the traffic stopped being ready; see [BlueGreen]
	ReasonDeadline Reason = "progress-deadline" // no further task became ready in time
	ReasonFailures Reason = "task-failures"     // too many new tasks failed
	ReasonCapacity Reason = "no-capacity"       // tasks could not be placed in time
	ReasonNetwork  Reason = "no-network"        // a network that it wants does not exist
	ReasonAddress  Reason = "no-address"        // a network has no virtual address left
	ReasonSpec     Reason = "bad-spec"          // its record cannot be read, or placed by any rule
	// ReasonDependency: what it depends on has failed, or did not hold in time; see
	// [Dependency].
	ReasonDependency Reason = record.WhyDependency
	ReasonImage      Reason = "no-image" // what a tag means could not be found out in time; see [WithResolver]
)

// Result is how a service's rollout ended.
type Result struct {
	Service  string // NAMESPACE/NAME
	Revision int64
	Outcome  Outcome
	Phase    Phase    // that it waits in, or failed in
	Reason   Reason   // of RolloutFailed
	Message  string   // for a person
	Failure  *Failure // the last failure of a new task, with the lines it logged
	Desired  int      // tasks wanted
	Updated  int      // tasks of the newest revision
	Ready    int      // tasks that take traffic
	Started  time.Time
	Ended    time.Time
	// Waiting is what must hold before any task of the revision is started.
	Waiting []Unmet
	// Rollback is how going back from RolloutFailed ended; nil when that was
	// not to be, or there was nothing to go back to; see [UpdatePolicy].
	Rollback *Rollback
}

// Rollback is the way back from a revision that failed to the last that
// completed. It is never rolled back itself.
type Rollback struct {
	Revision int64 // that is gone back to
	// Outcome is [RolloutCompleted] once every task is of that revision and
	// stayed ready for the monitor time, and [RolloutFailed] when that could
	// not be, as [RolloutSuperseded] when a later change of the spec came
	// first; empty while it goes on.
	Outcome Outcome
	Reason  Reason // of RolloutFailed
	Message string
	Failure *Failure // the last failure of a task of that revision
	Started time.Time
	Ended   time.Time
}

func (r *Rollback) String() string {
	s := fmt.Sprintf("rollback to revision %d: %s", r.Revision, cmp.Or(r.Outcome, "goes on"))
	if r.Reason != "" {
		s += fmt.Sprintf(" (%s)", r.Reason)
	}
	if r.Message != "" {
		s += ": " + r.Message
	}
	return s
}

// Err returns nil for a rollout that completed, or waits for a call as it was
// told to, and for a service that was removed; else a [*RolloutError], also when
// the rollback of it completed.
func (r Result) Err() error {
	switch r.Outcome {
	case RolloutCompleted, RolloutWaiting, RolloutRemoved:
		return nil
	}
	return &RolloutError{r}
}

// String is the result in a line.
func (r Result) String() string {
	s := fmt.Sprintf("service %s revision %d: %s", r.Service, r.Revision, r.Outcome)
	if r.Outcome != RolloutRemoved {
		s += fmt.Sprintf(" with %d of %d tasks ready", r.Ready, r.Desired)
	}
	if r.Reason != "" {
		s += fmt.Sprintf(" (%s)", r.Reason)
	}
	if r.Message != "" {
		s += ": " + r.Message
	} else if r.Waiting != nil {
		s += ": " + waitsFor(r.Waiting)
	}
	if r.Rollback != nil {
		s += "; " + r.Rollback.String()
	}
	return s
}

// RolloutError is a rollout that did not complete.
type RolloutError struct{ Result Result }

func (e *RolloutError) Error() string { return e.Result.String() }

// Wait returns how the rollout of a service's spec ends, at once when it has.
// When ctx ends before, the result says what the rollout waits for, if it waits
// for what it depends on. One
// that is rolled back has ended with the end of that. One that comes to wait for
// a call, or does already, is [RolloutWaiting]: it goes on with that call, and
// Wait can be called again after it.
// The spec is the one at the time of the call: when a later one takes its
// place, the result is [RolloutSuperseded]. Of a removed service, job or cron job
// it returns when nothing is left, with [RolloutRemoved]. A name of which there is
// nothing, and that this fleet has not removed, is a [*NameError].
func (f *Fleet) Wait(ctx context.Context, name string) (Result, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return Result{}, err
	}
	defer done()
	ns, base := splitName(name)
	r := Result{Service: ns + "/" + base}
	item, found, err := getKey(ctx, f.store, record.Key(record.Services, ns, base))
	if err != nil {
		return r, err
	}
	if !found {
		return r, f.waitRemoved(ctx, &r, name)
	}
	var rec record.Service
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return r, fmt.Errorf("read %s: %w", item.Key, err)
	}
	r.Revision = rec.Revision
	w := &waiter{result: r, service: item}
	if err := f.watchService(ctx, w); err != nil {
		if w.result.Outcome == "" {
			w.result.Message = waitsFor(w.result.Waiting)
		}
		return w.result, err
	}
	return w.result, nil
}

// waiter decides the end of a Wait from the records of one service.
type waiter struct {
	result    Result
	service   store.Item
	directive *record.Directive // that was given last
}

// called reports whether a rollout that waits for a call has had it.
func (w *waiter) called(r *record.Rollout) bool {
	d := w.directive
	return d != nil && d.Spec >= r.Began && d.Spec <= r.Spec && (d.Action == record.Abort || d.From == r.Phase)
}

// step takes a change of either record and reports whether that is the end.
func (w *waiter) step(c store.Change) (bool, error) {
	if strings.HasPrefix(c.Item.Key, record.Services) {
		if !c.Deleted && (c.Item.Revision == w.service.Revision || pinnedLate(w.service.Value, c.Item.Value)) {
			w.service = c.Item
			return false, nil
		}
		message := "a later change took its place"
		if c.Deleted {
			message = "the service was removed"
		}
		if b := w.result.Rollback; b != nil { // the rollout itself has ended
			b.Outcome, b.Message, b.Ended = RolloutSuperseded, message, time.Now().UTC()
			return true, nil
		}
		w.result.Outcome, w.result.Message, w.result.Ended = RolloutSuperseded, message, time.Now().UTC()
		return true, nil
	}
	if strings.HasPrefix(c.Item.Key, record.Directives) {
		w.directive = nil
		if c.Deleted {
			return false, nil
		}
		if err := json.Unmarshal(c.Item.Value, &w.directive); err != nil {
			return true, fmt.Errorf("read %s: %w", c.Item.Key, err)
		}
		return false, nil
	}
	if c.Deleted {
		return false, nil
	}
	var rec record.Rollout
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return true, fmt.Errorf("read %s: %w", c.Item.Key, err)
	}
	r := &w.result
	r.Desired, r.Updated, r.Ready, r.Started = rec.Desired, rec.Updated, rec.Ready, rec.Started
	r.Phase = readPhase(&rec)
	if rec.Spec != w.service.Revision {
		return false, nil
	}
	r.Waiting = readUnmet(rec.Waiting)
	if rec.State == record.Progressing {
		if rec.Phase == record.PhaseWaiting && !w.called(&rec) {
			r.Outcome, r.Message = RolloutWaiting, "it waits to be promoted or aborted"
			return true, nil
		}
		return false, nil
	}
	r.Rollback = readRollback(rec.Rollback)
	r.Ended, r.Reason, r.Message = rec.Ended, Reason(rec.Reason), rec.Message
	r.Outcome = RolloutCompleted
	if rec.State == record.RolloutFailed {
		r.Outcome = RolloutFailed
		r.Failure = readFailure(rec.Failure)
	}
	return rec.Current().State != record.Progressing, nil
}

// watchService feeds w with the service's spec, what the leader was told of it,
// and its rollout, until it is satisfied.
func (f *Fleet) watchService(ctx context.Context, w *waiter) error {
	name := strings.TrimPrefix(w.service.Key, record.Services)
	for {
		ctx, cancel := context.WithCancel(ctx)
		err := f.watchOnce(ctx, w, [...]string{w.service.Key, record.Directives + name, record.Rollouts + name})
		cancel()
		if !isCompacted(err) {
			return err
		}
	}
}

func (f *Fleet) watchOnce(ctx context.Context, w *waiter, keys [3]string) error {
	var channels [len(keys)]<-chan store.Batch
	for i, key := range keys {
		// Keys behind this one may begin with it: they are passed over.
		snapshot, err := f.store.List(ctx, key)
		if err != nil {
			return err
		}
		present := false
		for _, item := range snapshot.Items {
			if item.Key == key {
				present = true
				if end, err := w.step(store.Change{Item: item}); end || err != nil {
					return err
				}
			}
		}
		if key == w.service.Key && !present {
			_, err := w.step(store.Change{Item: store.Item{Key: key}, Deleted: true})
			return err
		}
		if channels[i], err = f.store.Watch(ctx, key, snapshot.Revision); err != nil {
			return err
		}
	}
	for {
		var batch store.Batch
		var ok bool
		select {
		case batch, ok = <-channels[0]:
		case batch, ok = <-channels[1]:
		case batch, ok = <-channels[2]:
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !ok {
			return store.ErrClosed
		}
		if batch.Err != nil {
			return batch.Err
		}
		for _, c := range batch.Changes {
			if !slices.Contains(keys[:], c.Item.Key) {
				continue
			}
			if end, err := w.step(c); end || err != nil {
				return err
			}
		}
	}
}

// waitRemoved waits until nothing is left of a service, job or cron job without a
// spec.
func (f *Fleet) waitRemoved(ctx context.Context, r *Result, name string) error {
	ns, base := splitName(name)
	f.mu.Lock()
	kind := f.removed[ns+"/"+base]
	f.mu.Unlock()
	known := kind != ""
	// What may be left: of a service, the leader deletes the rollout last.
	key := record.Key(record.Rollouts, ns, base)
	if _, _, err := getKey(ctx, f.store, key); err != nil || store.ValidateKey(key) != nil {
		return &NameError{"service", name}
	}
	prefixes := []string{key, record.Tasks, record.Statuses}
	spec := ""
	switch kind {
	case KindJob:
		spec = record.Key(record.Jobs, ns, base)
	case KindCronJob:
		spec = record.Key(record.Crons, ns, base)
		prefixes = append(prefixes, record.Jobs)
	}
	for first := true; ; first = false {
		snapshot, err := f.store.List(ctx, key)
		if err != nil {
			return err
		}
		if spec != "" {
			if _, again, err := store.Get(ctx, f.store, spec); err != nil {
				return err
			} else if again && first {
				return &NameError{"service", name}
			} else if again {
				r.Outcome, r.Message, r.Ended = RolloutSuperseded, "it was applied again", time.Now().UTC()
				return nil
			}
		}
		left := false
		for _, item := range snapshot.Items {
			left = left || item.Key == key
		}
		if !left && kind == KindCronJob {
			left, err = f.anyRun(ctx, ns, base)
		} else if !left {
			left, err = f.anyTask(ctx, ns, func(of string) bool { return of == base })
		}
		if err != nil {
			return err
		}
		if !left {
			if !known {
				return &NameError{"service", name}
			}
			r.Outcome, r.Ended = RolloutRemoved, time.Now().UTC()
			return nil
		}
		known = true
		if err := f.next(ctx, prefixes, snapshot.Revision); err != nil {
			return err
		}
	}
}

// anyRun reports whether there is a run of a cron job that was removed, or a task
// of one. Runs are known by their names once the leader has deleted them.
func (f *Fleet) anyRun(ctx context.Context, namespace, name string) (bool, error) {
	snapshot, err := f.store.List(ctx, record.Key(record.Jobs, namespace, name))
	if err != nil {
		return false, err
	}
	others := map[string]bool{} // jobs that only have such a name
	for _, item := range snapshot.Items {
		j, rec, err := readJob(item)
		if err != nil {
			return false, err
		}
		if rec.Cron != nil && rec.Cron.Name == name {
			return true, nil
		}
		others[j.Name] = true
	}
	return f.anyTask(ctx, namespace, func(of string) bool {
		seconds, ok := strings.CutPrefix(of, name+"-")
		return ok && only(seconds, isDigit) && !others[of]
	})
}

// anyTask reports whether one of some services has a task, or the status of one on
// a node that is alive: its last word is that it has forgotten the task.
func (f *Fleet) anyTask(ctx context.Context, namespace string, of func(service string) bool) (bool, error) {
	for _, prefix := range []string{record.Tasks, record.Statuses} {
		snapshot, err := f.store.List(ctx, prefix)
		if err != nil {
			return false, err
		}
		for _, item := range snapshot.Items {
			// Tasks and statuses name their service alike.
			var task struct{ Namespace, Service string }
			if err := json.Unmarshal(item.Value, &task); err != nil {
				return false, fmt.Errorf("read %s: %w", item.Key, err)
			}
			if task.Namespace != namespace || !of(task.Service) {
				continue
			}
			if prefix == record.Tasks {
				return true, nil
			}
			_, alive, err := store.Get(ctx, f.store, record.Key(record.Alive, record.Split(item.Key, prefix, 2)[0]))
			if err != nil || alive {
				return alive, err
			}
		}
	}
	return false, nil
}

// next returns after the next change of one of the prefixes.
func (f *Fleet) next(ctx context.Context, prefixes []string, after int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	woken := make(chan error, len(prefixes))
	for _, p := range prefixes {
		ch, err := f.store.Watch(ctx, p, after)
		if err != nil {
			if isCompacted(err) {
				return nil
			}
			return err
		}
		f.running.Go(func() {
			batch, ok := <-ch
			if !ok && ctx.Err() == nil {
				batch.Err = store.ErrClosed
			}
			woken <- batch.Err
		})
	}
	select {
	case err := <-woken:
		if isCompacted(err) {
			return nil
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
