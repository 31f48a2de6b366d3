package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// Budget is how much of a service may be away while its tasks are moved. At most
// one of the two is set; without any it is as while it is updated, see
// [UpdatePolicy.MaxUnavailable]: none where tasks start first.
//
// It is kept by all drains and evictions together. A more important service that
// takes room from others, with a scheduler that preempts, stops no more of this one
// than a budget that is given spares. Where there is no place for a
// successor, a task of a service whose budget is given stops without one, as far
// as the budget allows.
type Budget struct {
	// MinAvailable is how many tasks serve at least. A share is rounded up.
	MinAvailable Amount `json:"minAvailable,omitempty"`
	// MaxUnavailable is how many replicas need not serve. A share is rounded
	// down.
	MaxUnavailable Amount `json:"maxUnavailable,omitempty"`
}

func (b Budget) control() *control.Budget {
	switch {
	case b.MinAvailable != "":
		return &control.Budget{Amount: b.MinAvailable.control()}
	case b.MaxUnavailable != "":
		return &control.Budget{Amount: b.MaxUnavailable.control(), Unavailable: true}
	}
	return nil
}

func (c *checks) budget(s *Service) {
	b := s.Budget
	c.amount("budget.minAvailable", b.MinAvailable)
	c.amount("budget.maxUnavailable", b.MaxUnavailable)
	if b.MinAvailable != "" && b.MaxUnavailable != "" {
		c.add("budget.maxUnavailable", b.MaxUnavailable, "says the same as minAvailable in another way; keep one of the two")
	}
	if s.Mode == Global && b != (Budget{}) {
		c.add("budget", nil, "has no meaning for a global service, whose tasks are not moved but go with their node; leave it out")
	}
}

// DrainOption changes how a node is drained.
type DrainOption func(*drain)

type drain struct {
	within   time.Duration
	force    bool
	progress func(DrainStatus)
}

// DrainWithin sets a deadline, after which the drain ends, whoever called for it:
// tasks that are left stay where they are, the node takes no new ones, and a
// Drain that waits returns a [*DrainError]. A Drain without it has none.
func DrainWithin(d time.Duration) DrainOption { return func(o *drain) { o.within = d } }

// DrainForce has tasks that are left at the deadline stopped, whatever the
// budgets say; their successors start where there is room.
func DrainForce() DrainOption { return func(o *drain) { o.force = true } }

// DrainProgress is told how the drain is going, at its beginning and whenever a
// task of the node has changed, from the goroutine of Drain.
func DrainProgress(f func(DrainStatus)) DrainOption { return func(o *drain) { o.progress = f } }

// DrainStatus is how the drain of a node is going.
type DrainStatus struct {
	Node     string
	Draining bool // it has begun, and not ended
	Since    time.Time
	Deadline time.Time // zero if there is none
	Force    bool
	Ended    bool      // its deadline has passed
	Moved    []string  // tasks that have left, by ID, the earliest first, as far as events are kept
	Left     []Blocked // tasks that have not, by service and slot
}

// String is the status in a line.
func (s DrainStatus) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s, %d tasks moved, %d left", s.Node, len(s.Moved), len(s.Left))
	for i, t := range s.Left {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		b.WriteString(sep + t.String())
	}
	return b.String()
}

// BlockedReason is why a task has not been moved.
type BlockedReason string

// The reasons.
const (
	BlockedStopping BlockedReason = control.BlockedStopping // it was told to stop, and has not ended
	BlockedMoving   BlockedReason = control.BlockedMoving   // its successor is about to serve
	BlockedBudget   BlockedReason = control.BlockedBudget   // too few others serve
	BlockedPlace    BlockedReason = control.BlockedPlace    // there is no node for its successor: see Message
	BlockedNode     BlockedReason = control.BlockedNode     // its node is lost; its service replaces it
	BlockedLast     BlockedReason = control.BlockedLast     // of a global service: it leaves after the others
	BlockedTurn     BlockedReason = control.BlockedTurn     // others of its service are first
	BlockedEnded    BlockedReason = control.BlockedEnded    // the drain has reached its deadline
)

// Blocked is a task that has not been moved, and why.
type Blocked struct {
	Task    string // ID
	Service string // NAMESPACE/NAME
	Slot    int
	Reason  BlockedReason
	Message string // for people
	// Of the service: how many tasks there are to be, how many serve, and how
	// many are to at least, by its budget.
	Replicas, Available, Least int
}

func (b Blocked) String() string {
	return fmt.Sprintf("%s of %s (%s): %s", b.Task, b.Service, b.Reason, b.Message)
}

func readBlocked(b control.Blocked) Blocked {
	return Blocked{
		Task: b.Task, Service: b.Namespace + "/" + b.Service, Slot: b.Slot, Reason: BlockedReason(b.Why), Message: b.Message,
		Replicas: b.Replicas, Available: b.Available, Least: b.Least,
	}
}

// DrainError is a drain that has not moved all tasks. Err is [ErrDrainEnded], at
// its deadline, [ErrUncordoned], or why the caller waits no longer; the drain then
// goes on.
type DrainError struct {
	Status DrainStatus
	Err    error
}

func (e *DrainError) Error() string { return fmt.Sprintf("drain of %v: %v", e.Status, e.Err) }

// Unwrap returns Err.
func (e *DrainError) Unwrap() error { return e.Err }

// Conditions of drains and evictions.
var (
	ErrDrainEnded = errors.New("the deadline has passed")
	ErrUncordoned = errors.New("the node was uncordoned")
	ErrBudget     = errors.New("the disruption budget does not allow it")
)

// BudgetError is a task that cannot be moved because too few others of its
// service serve. It matches [ErrBudget].
type BudgetError struct{ Blocked Blocked }

func (e *BudgetError) Error() string {
	return fmt.Sprintf("task %s of %s cannot be moved: %s", e.Blocked.Task, e.Blocked.Service, e.Blocked.Message)
}

// Is reports whether target is [ErrBudget].
func (e *BudgetError) Is(target error) bool { return target == ErrBudget }

// Drain keeps new tasks off a node and moves its own to others, by each
// service's way of updating and within its [Budget]: where tasks start first, no
// service has fewer ready tasks than replicas in the meantime. Tasks of global
// services stop when the others have left. Several nodes can be drained at once:
// they keep the budgets together. Tasks of jobs stop, and their indexes run again
// where there is room; those that have ended, and were kept for their logs, go. A node that is lost has nothing to be moved by;
// its tasks are replaced as those of any lost node, and Drain waits for that.
//
// It returns nil when no task is left on the node. The error is a [*NameError]
// for a node that does not exist, and a [*DrainError] when ctx has ended, which
// ends the waiting alone, when the drain has reached its deadline, or when
// [Fleet.Uncordon] has ended it; it says what blocks. Of several calls for one
// node the last says what deadline there is, if any, and all of them return then.
// The node takes no new tasks until [Fleet.Uncordon].
func (f *Fleet) Drain(ctx context.Context, node string, opts ...DrainOption) error {
	var o drain
	for _, opt := range opts {
		opt(&o)
	}
	if o.within < 0 || o.force && o.within == 0 {
		return &ValidationError{Object: "drain of node " + show(node), Problems: []Problem{{Path: "within", Value: o.within.String(),
			Reason: "is no time in which tasks could be moved; give DrainWithin more, with DrainForce too"}}}
	}
	err := f.setNode(ctx, node, func(s *record.NodeSpec) {
		d := &record.Draining{Since: time.Now().UTC(), Force: o.force}
		if s.Drain && s.Draining != nil {
			d.Since = s.Draining.Since
		}
		if o.within > 0 {
			d.Deadline = time.Now().UTC().Add(o.within)
		}
		s.Drain, s.Draining = true, d
	})
	if err != nil {
		return err
	}
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.drained(ctx, node, &o)
}

// drained waits until a node has no task, or its drain ends, by this caller's
// doing or another's.
func (f *Fleet) drained(ctx context.Context, node string, o *drain) error {
	own := time.Time{}
	if o.within > 0 && !o.force {
		own = time.Now().Add(o.within)
	}
	for {
		more, err := f.drainedOnce(ctx, node, o, own)
		if err != nil || !more {
			return err
		}
	}
}

// drainedOnce looks at a drain, and waits until there may be more to see. Own is
// when the caller waits no longer; zero is never.
func (f *Fleet) drainedOnce(ctx context.Context, node string, o *drain, own time.Time) (more bool, err error) {
	tasks, statuses := record.Key(record.Tasks, node, ""), record.Key(record.Statuses, node, "")
	snapshot, err := f.store.List(ctx, tasks)
	if err != nil {
		return false, err
	}
	if o.progress != nil {
		st, err := f.drainStatus(ctx, node)
		if err != nil {
			return false, err
		}
		o.progress(st)
	}
	if len(snapshot.Items) == 0 {
		return false, nil
	}
	blocked := func(why error) (bool, error) {
		st, err := f.drainStatus(context.WithoutCancel(ctx), node)
		if err != nil {
			return false, errors.Join(why, err)
		}
		return false, &DrainError{st, why}
	}
	spec, err := f.nodeSpec(ctx, node)
	if err != nil {
		return false, err
	}
	if !spec.Drain {
		_, found, err := getKey(ctx, f.store, record.Key(record.Nodes, node))
		if err != nil {
			return false, err
		}
		if found { // else it was removed, and its tasks are about to be
			return blocked(ErrUncordoned)
		}
	}
	end := ctx
	for _, at := range []time.Time{own, drainEnds(&spec)} {
		if !at.IsZero() {
			var cancel context.CancelFunc
			end, cancel = context.WithDeadlineCause(end, at, ErrDrainEnded)
			defer cancel()
		}
	}
	err = f.next(end, []string{tasks, statuses, record.Key(record.NodeSpecs, node), record.Key(record.Nodes, node)}, snapshot.Revision)
	if err != nil && end.Err() == nil {
		return false, err // of the store
	}
	if err != nil {
		return blocked(err)
	}
	return true, nil
}

// drainEnds is when a drain ends with tasks left; zero is never.
func drainEnds(spec *record.NodeSpec) time.Time {
	if d := spec.Draining; d != nil && !d.Force {
		return d.Deadline
	}
	return time.Time{}
}

// DrainStatus returns how the drain of a node is going, or has ended, and why
// each of its tasks is there still. A node that does not exist is a [*NameError].
func (f *Fleet) DrainStatus(ctx context.Context, node string) (DrainStatus, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return DrainStatus{}, err
	}
	defer done()
	if _, found, err := getKey(ctx, f.store, record.Key(record.Nodes, node)); err != nil || !found {
		return DrainStatus{}, cmp.Or(err, error(&NameError{"node", node}))
	}
	return f.drainStatus(ctx, node)
}

func (f *Fleet) drainStatus(ctx context.Context, node string) (DrainStatus, error) {
	st := DrainStatus{Node: node}
	spec, err := f.nodeSpec(ctx, node)
	if err != nil {
		return st, err
	}
	now := time.Now().UTC()
	if d := spec.Draining; d != nil {
		st.Since, st.Deadline, st.Force = d.Since, d.Deadline, d.Force
		st.Ended = !d.Deadline.IsZero() && !d.Deadline.After(now)
	}
	st.Draining = spec.Drain && !st.Ended
	state, _, err := f.fork(ctx)
	if err != nil {
		return st, err
	}
	for _, b := range state.Blocked(node, now) {
		st.Left = append(st.Left, readBlocked(b))
	}
	if st.Since.IsZero() {
		return st, nil
	}
	events, err := f.Events(ctx, EventFilter{Node: node, Kinds: []EventKind{TaskGone}, Since: st.Since})
	if err != nil {
		return st, err
	}
	for _, e := range events {
		st.Moved = append(st.Moved, e.Task)
	}
	return st, nil
}

func (f *Fleet) nodeSpec(ctx context.Context, node string) (spec record.NodeSpec, err error) {
	key := record.Key(record.NodeSpecs, node)
	item, found, err := store.Get(ctx, f.store, key)
	if err == nil && found {
		if err = json.Unmarshal(item.Value, &spec); err != nil {
			err = fmt.Errorf("read %s: %w", key, err)
		}
	}
	return spec, err
}

// Evict has one task moved, to another node if there is one: its successor
// starts first where it can, and it stops within the [Budget] of its service. It
// asks the budget, and returns once the task is accepted to be moved: Watch and
// Tasks tell when it has been. The move is the leader's, so any number of
// evictions at a time keep the budget.
//
// A task that has to stop before its successor starts, while too few others
// serve, is refused with a [*BudgetError]: ask again later. One that does not
// exist is a [*NameError]; one that stops already is no error.
func (f *Fleet) Evict(ctx context.Context, task string) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	now := time.Now().UTC()
	state, _, err := f.fork(ctx)
	if err != nil {
		return err
	}
	b, found := state.Evictable(task, now)
	switch {
	case !found:
		return &NameError{"task", task}
	case b.Why == control.BlockedBudget:
		return &BudgetError{readBlocked(b)}
	case b.Why == control.BlockedStopping, b.Why == control.BlockedNode:
		return nil
	}
	return f.change(ctx, func(tx *batch) error {
		at := record.Key(record.Tasks, b.Node, b.Task)
		item, found, err := store.Get(ctx, f.store, at)
		if err != nil || !found {
			return err // it has ended meanwhile
		}
		tx.guard(item, at)
		data, err := json.Marshal(record.Eviction{At: now, Actor: actorOf(ctx)})
		if err != nil {
			return err
		}
		tx.Writes = append(tx.Writes, store.Put(record.Key(record.Evictions, b.Node, b.Task), data))
		return nil
	})
}
