package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/moment"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// Options are what a Loop needs. Store, ID, Scheduler and Decode must be given.
type Options struct {
	Store store.Store
	// ID names this candidate for the leadership; no other may have it.
	ID        string
	Scheduler Placer
	// Decode makes a Workload of a service's record; see Config.
	Decode func(namespace, name string, rec record.Service, at *record.Revision) (Workload, error)
	// DecodeJob makes a JobWork of a job's record; see Config.
	DecodeJob func(namespace, name string, rec record.Job) (JobWork, error)
	// Logger gets what the planner decides; nil logs nothing.
	Logger *slog.Logger
	// LeaseTTL is for how long a dead leader is missed at most; 0 is 10 s.
	LeaseTTL time.Duration
	// LostAfter is how long a node may be silent before its tasks are
	// replaced, and how long a new leader waits before it believes any node
	// to be lost; 0 is DefaultLostAfter.
	LostAfter time.Duration
	// LossLimit is how many nodes, or what share of them, are given up within a
	// minute; 0 is no limit.
	LossLimit Amount
	// Renewals is how many renewals a second of nodes' leases the store is to
	// bear; see Config.
	Renewals int
	// KeepEventsEach and KeepEvents bound the history of events, of one service
	// or node and of the fleet; 0 is the constant of that name.
	KeepEventsEach, KeepEvents int
	// Beside, when not nil, runs while the loop leads, with the condition under
	// which a leader may write. It returns when ctx ends.
	Beside func(ctx context.Context, fence store.Condition)
	// Record, when not nil, gets what is decided by, from the goroutine of Run: it
	// must not block.
	Record Recorder
	// Observe, when not nil, is called with each Event once it is committed,
	// in order, from the goroutine of Run: it must not block.
	Observe func(Event)
}

// Recorder gets all that a leader's State is given, in order, and when it is
// asked to plan: played again, it comes to the same plans.
type Recorder interface {
	Load(snapshot store.Snapshot, now time.Time)
	Apply(batch store.Batch, now time.Time)
	Plan(now time.Time)
}

// OptionError is an option that is missing or wrong.
type OptionError struct{ Option, Reason string }

func (e *OptionError) Error() string { return fmt.Sprintf("control: option %s %s", e.Option, e.Reason) }

// Loop makes the store's specs true, while it leads.
type Loop struct {
	opts   Options
	log    *slog.Logger
	config Config
	forks  atomic.Pointer[forks] // nil unless it leads
}

// New returns a loop that Run starts. The error is an *OptionError.
func New(opts Options) (*Loop, error) {
	switch {
	case opts.Store == nil:
		return nil, &OptionError{"Store", "is missing"}
	case opts.ID == "":
		return nil, &OptionError{"ID", "is empty; want a name that no other candidate has"}
	case opts.Scheduler == nil:
		return nil, &OptionError{"Scheduler", "is missing"}
	case opts.Decode == nil:
		return nil, &OptionError{"Decode", "is missing"}
	case opts.LeaseTTL < 0:
		return nil, &OptionError{"LeaseTTL", fmt.Sprintf("is %v; want more than 0", opts.LeaseTTL)}
	case opts.LostAfter < 0:
		return nil, &OptionError{"LostAfter", fmt.Sprintf("is %v; want more than 0", opts.LostAfter)}
	}
	opts.LeaseTTL = cmp.Or(opts.LeaseTTL, 10*time.Second)
	opts.LostAfter = cmp.Or(opts.LostAfter, DefaultLostAfter)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Loop{
		opts: opts,
		log:  opts.Logger.With("candidate", opts.ID),
		config: Config{Decode: opts.Decode, DecodeJob: opts.DecodeJob, Place: opts.Scheduler, LostAfter: opts.LostAfter, LossLimit: opts.LossLimit, Renewals: opts.Renewals,
			KeepEventsEach: opts.KeepEventsEach, KeepEvents: opts.KeepEvents},
	}, nil
}

// The pauses after errors of the store that may pass.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
)

// Run campaigns, leads while it can, and campaigns again when it was deposed.
// It blocks until ctx ends, and then resigns and returns nil; or until the
// store is closed, which it returns. Other errors of the store may pass: it
// tries again.
func (l *Loop) Run(ctx context.Context) error {
	election := store.Election{Store: l.opts.Store, Key: record.Leader, ID: l.opts.ID, TTL: l.opts.LeaseTTL}
	pause := firstPause
	for {
		led, err := l.term(ctx, election)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrClosed):
			return fmt.Errorf("control: %w", err)
		case errors.Is(err, store.ErrDeposed) || errors.Is(err, store.ErrConflict):
			l.log.Warn("deposed", "reason", err)
		default:
			l.log.Error("store", "error", err, "pause", pause)
		}
		if led {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// term is one leadership, from the campaign for it to its end. Led reports
// whether anything was planned in it.
func (l *Loop) term(ctx context.Context, election store.Election) (led bool, err error) {
	leadership, err := election.Campaign(ctx)
	if err != nil {
		return false, err
	}
	// gofail: var elected struct{}
	// die()
	l.log.Info("leading", "term", leadership.Fence().Revision)
	defer func() {
		resign, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.opts.LeaseTTL)
		defer cancel()
		if e := leadership.Resign(resign); e != nil {
			err = errors.Join(err, e) // the lease runs out by itself
		}
	}()
	ctx, cancel := leadership.Context(ctx)
	defer cancel()
	if l.opts.Beside != nil {
		var beside sync.WaitGroup
		defer beside.Wait()
		defer cancel()
		beside.Go(func() { l.opts.Beside(ctx, leadership.Fence()) })
	}
	led, err = l.lead(ctx, leadership.Fence())
	if ended := leadership.Err(); ended != nil {
		err = ended
	}
	return led, err
}

// lead plans and commits until something fails or ctx ends.
func (l *Loop) lead(ctx context.Context, fence store.Condition) (led bool, err error) {
	now := newClock()
	ctx, cancel := context.WithCancel(ctx)
	snapshot, err := l.opts.Store.List(ctx, "")
	if err != nil {
		cancel()
		return false, fmt.Errorf("load: %w", err)
	}
	batches, err := l.opts.Store.Watch(ctx, "", snapshot.Revision)
	if err != nil {
		cancel()
		return false, fmt.Errorf("watch: %w", err)
	}
	queue := newQueue(batches)
	defer queue.wait()
	defer cancel()

	state, began := NewState(l.config), now()
	if l.opts.Record != nil {
		l.opts.Record.Load(snapshot, began)
	}
	state.Load(snapshot, began)
	// gofail: var stateLoaded struct{}
	// die()
	committed, told := state.Revision(), 0
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	copies, waiting := &forks{asked: make(chan fork), ended: make(chan struct{})}, []fork(nil)
	l.forks.Store(copies)
	defer close(copies.ended)
	defer l.forks.Store(nil)
	for {
		// What was committed must have come back before it can be planned on.
		if state.Revision() >= committed {
			waiting = forked(state, waiting)
			at := now()
			if l.opts.Record != nil {
				l.opts.Record.Plan(at)
			}
			plan := state.Plan(at)
			revision, err := l.commit(ctx, fence, plan, &told)
			if err != nil {
				return led, err
			}
			committed, led = max(committed, revision), true
			wake.Stop()
			if !plan.Wake.IsZero() {
				wake.Reset(plan.Wake.Sub(now()))
			}
		}
		select {
		case <-ctx.Done():
			return led, context.Cause(ctx)
		case f := <-copies.asked:
			waiting = append(waiting, f)
		case <-wake.C:
		case <-queue.ready:
		}
		if err := moment.Settle(ctx, moment.Planner, queue.ready); err != nil {
			return led, context.Cause(ctx)
		}
		arrived, open := queue.take()
		for _, b := range arrived {
			if b.Err != nil {
				return led, fmt.Errorf("watch: %w", b.Err)
			}
			at := now()
			if l.opts.Record != nil {
				l.opts.Record.Apply(b.Batch, at)
			}
			state.apply(b, at)
		}
		if !open {
			return led, fmt.Errorf("watch: %w", cmp.Or(context.Cause(ctx), store.ErrClosed))
		}
	}
}

// newClock returns a clock that does not go backwards, and does not jump when
// the machine's is set. It tells the wall time in UTC, for records.
func newClock() func() time.Time {
	start := time.Now()
	return func() time.Time { return start.Add(time.Since(start)).Round(0).UTC() }
}

// tell logs events and hands them to the observer.
func (l *Loop) tell(events []Event) {
	for _, e := range events {
		level := slog.LevelInfo
		switch e.Kind {
		case TaskFailed, TaskUnplaced, RolloutStopped, RollbackStopped, JobStopped, NodeLost, NodeHeld, RecordIgnored:
			level = slog.LevelWarn
		case TaskDeleted, FrontendChanged:
			level = slog.LevelDebug
		}
		l.log.LogAttrs(context.Background(), level, string(e.Kind), attributes(&e))
		if l.opts.Observe != nil {
			l.opts.Observe(e)
		}
	}
}
