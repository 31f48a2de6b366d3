package health

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Errors that a caller can act on.
var (
	// ErrDuplicate is an Add of a target whose ID is already watched.
	ErrDuplicate = errors.New("the target is already watched")
	// ErrStopped is a call on a Monitor whose Run has ended.
	ErrStopped = errors.New("the monitor has stopped")
	// ErrNoChecker is a check whose kind has no checker registered.
	ErrNoChecker = errors.New("no checker is registered for the check")
	// ErrOverrun is the reason of a probe that did not return at its timeout
	// and was abandoned.
	ErrOverrun = errors.New("the probe did not return at its timeout")
)

// Options configure a [Monitor]. The zero value is ready.
type Options struct {
	// Checkers are added to the built-in ones for HTTP, TCP and exec, and
	// replace them where the name is the same: one of the Kind constants, or
	// the name that [Custom] checks use. The gRPC checker is in health/grpc,
	// since it brings a dependency, and is registered here under [KindGRPC].
	Checkers map[string]Checker

	// Report is called with each first status of a target and each change,
	// in order for one target and at the same time for different ones. It
	// must return soon, since it holds a probe's place, and must not call
	// [Monitor.Remove] of the same target, which waits for it;
	// [Monitor.Drop] does not.
	Report func(Result)

	// Concurrency is how many probes run at a time; default 64. Probes that
	// are due beyond it wait in the order in which they came due.
	Concurrency int

	// Stagger spreads the first probes: with n targets in the monitor, the
	// first probe of a new one comes up to n times Stagger, but at most its
	// interval, after its Delay. So a container alone is probed at once and a
	// node that adopts ten thousand has no burst. Default 1 ms; negative:
	// none.
	Stagger time.Duration

	// Seed of the staggering, for a run that can be repeated.
	Seed uint64
}

// Defaults of [Options].
const (
	DefaultConcurrency = 64
	DefaultStagger     = time.Millisecond
)

// grace is how long after its timeout a probe may take to return with its own
// reason before it is abandoned.
const grace = 100 * time.Millisecond

// Monitor runs the checks of a whole node. At rest it is one goroutine, one
// timer and a heap; a goroutine lives only while its probe runs.
//
// A probe that does not return within its timeout and a short grace is
// abandoned: it counts as failed, gives up its place among the concurrent
// ones, and whatever it returns later is dropped. Until it does return, its
// target gets no second probe: each that is due fails for the same reason, so
// a checker that hangs holds at most one goroutine for each target.
type Monitor struct {
	checkers    map[string]Checker
	report      func(Result)
	concurrency int
	stagger     time.Duration
	epoch       time.Time // times inside are durations since then, by the monotonic clock

	wake chan struct{} // holds one token when the heap's top changed
	idle chan struct{} // closed when stopped and active is 0

	// reported is signalled at the end of each report. A Cond and no lock held
	// over the report, so that testing/synctest sees who waits for it.
	reported *sync.Cond

	mu      sync.Mutex // guards what follows, and the targets' fields
	rand    *rand.Rand
	targets map[string]*target
	heap    dueHeap
	ready   queue               // due, but the places are taken
	places  int                 // taken by probes that are not abandoned
	hung    map[*probe]struct{} // abandoned and not returned
	active  int                 // goroutines of probes, hung ones too
	reports int                 // that are being made
	phase   phase
	ctx     context.Context // of Run; ends all probes
}

type phase int8

const (
	before phase = iota
	running
	stopped
)

// target is one target's one check.
type target struct {
	Target
	check   Check // complete; its Kind has a checker
	checker Checker
	report  func(Result) // of a Watch; nil otherwise

	due   time.Duration // of the next probe, or of abandoning the one that runs
	index int           // in the heap; -1 when not there
	probe *probe        // that runs, or hangs; nil at rest
	threshold
	probed  int
	last    Result
	removed bool

	reporting bool // a report of this target is being made

	asked time.Duration // when the last probe ended
	stop  func()        // ends the wait for a change of a Foreteller's answer; may be nil
}

// probe is one run of a checker.
type probe struct {
	id        string // of the target
	began     time.Duration
	cancel    context.CancelFunc
	abandoned bool
}

// NewMonitor returns a monitor that does nothing until [Monitor.Run].
func NewMonitor(opts Options) *Monitor {
	m := &Monitor{
		checkers: map[string]Checker{
			KindHTTP: new(HTTPChecker), KindTCP: new(TCPChecker), KindExec: ExecChecker{},
		},
		report:      opts.Report,
		concurrency: opts.Concurrency,
		stagger:     opts.Stagger,
		epoch:       time.Now(),
		wake:        make(chan struct{}, 1),
		idle:        make(chan struct{}),
		hung:        map[*probe]struct{}{},
		rand:        rand.New(rand.NewPCG(opts.Seed, 0x6865616c7468)),
		targets:     map[string]*target{},
	}
	m.reported = sync.NewCond(&m.mu)
	for name, c := range opts.Checkers {
		m.checkers[name] = c
	}
	if m.concurrency <= 0 {
		m.concurrency = DefaultConcurrency
	}
	if m.stagger == 0 {
		m.stagger = DefaultStagger
	}
	return m
}

// Add begins to watch t by check, whose defaults are filled in. The delay
// counts from now. Before [Monitor.Run] it is only noted.
//
// The errors are [ErrDuplicate], [ErrNoChecker], [ErrStopped] and, joined, the
// [*SpecError] of each mistake in check. On an error nothing changes.
func (m *Monitor) Add(t Target, check Check) error {
	return m.add(t, check, nil)
}

func (m *Monitor) add(t Target, check Check, report func(Result)) error {
	checker, err := m.checkerFor(check)
	if err != nil {
		return fmt.Errorf("watch %q: %w", t.ID, err)
	}
	check = check.WithDefaults()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == stopped {
		return fmt.Errorf("watch %q: %w", t.ID, ErrStopped)
	}
	if m.targets[t.ID] != nil {
		return fmt.Errorf("watch %q: %w", t.ID, ErrDuplicate)
	}
	e := &target{index: -1, Target: t, check: check, checker: checker, report: report}
	e.due = m.now() + check.Delay
	if spread := min(time.Duration(len(m.targets))*m.stagger, check.Interval); spread > 0 {
		e.due += time.Duration(m.rand.Int64N(int64(spread)))
	}
	m.targets[t.ID] = e
	m.schedule(e)
	return nil
}

func (m *Monitor) checkerFor(check Check) (Checker, error) {
	if mistakes := check.Validate(); len(mistakes) > 0 {
		errs := make([]error, len(mistakes))
		for i, e := range mistakes {
			errs[i] = e
		}
		return nil, errors.Join(errs...)
	}
	kind := check.Kind()
	checker := m.checkers[kind]
	if checker == nil {
		return nil, fmt.Errorf("%w: register one as %q in Options.Checkers", ErrNoChecker, kind)
	}
	return checker, nil
}

// Remove ends the watching of the target with this ID, cancels its probe if
// one runs, and waits for a report of it that is being made. When Remove has
// returned, no further result of the target is reported. An unknown ID is not
// an error. A report of the same target must call [Monitor.Drop] instead.
func (m *Monitor) Remove(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for e := m.drop(id); e != nil && e.reporting; {
		m.reported.Wait()
	}
}

// Drop is [Monitor.Remove] without the wait, for use by a report: one of the
// target that had begun may end after it.
func (m *Monitor) Drop(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(id)
}

// drop forgets a target. m.mu is held.
func (m *Monitor) drop(id string) *target {
	e := m.targets[id]
	if e == nil {
		return nil
	}
	delete(m.targets, id)
	e.removed = true
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
	m.heap.remove(e)
	if p := e.probe; p != nil {
		p.cancel()
		m.abandon(p) // its place is free now, whenever it returns
		m.startReady()
	}
	return e
}

// Status returns the last result that was concluded for the target, and
// whether it is watched. Before the first its status is [Unknown].
func (m *Monitor) Status(id string) (Result, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.targets[id]
	if e == nil {
		return Result{Target: id, Status: Unknown}, false
	}
	r := e.last
	r.Target, r.Status, r.Probes = id, e.current(), e.probed
	return r, true
}

// now is the time since the epoch, by the monotonic clock.
func (m *Monitor) now() time.Duration { return time.Since(m.epoch) }

// schedule puts e in the heap by its due time. m.mu is held.
func (m *Monitor) schedule(e *target) {
	if m.heap.push(e); e.index == 0 {
		select {
		case m.wake <- struct{}{}:
		default: // a token is there; Run will look
		}
	}
}
