package health_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
)

var errSick = errors.New("sick")

// custom is a check that the checker registered as "test" runs.
func custom(c health.Check) health.Check {
	c.Custom = &health.Custom{Name: "test"}
	return c
}

// recorder collects results, with the time since its creation.
type recorder struct {
	began   time.Time
	mu      sync.Mutex
	results []health.Result
}

func (r *recorder) report(result health.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, result)
}

// story is the results as text, such as "a healthy 0s".
func (r *recorder) story() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, x := range r.results {
		lines = append(lines, fmt.Sprintf("%s %s %v", x.Target, x.Status, x.At.Sub(r.began)))
	}
	return lines
}

// start runs a monitor whose "test" checker is f, and returns it with what it
// reports and a function that ends it and says what Run returned. It must be
// called in a synctest bubble.
func start(t *testing.T, f health.CheckerFunc, opts health.Options) (*health.Monitor, *recorder, func() error) {
	t.Helper()
	r := &recorder{began: time.Now()}
	opts.Checkers = map[string]health.Checker{"test": f}
	if opts.Report == nil {
		opts.Report = r.report
	}
	m := health.NewMonitor(opts)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	return m, r, func() error { cancel(); return <-ended }
}

func mustAdd(t *testing.T, m *health.Monitor, id string, c health.Check) {
	t.Helper()
	if err := m.Add(health.Target{ID: id}, custom(c)); err != nil {
		t.Fatalf("Add(%q): %v", id, err)
	}
}

func mustEnd(t *testing.T, end func() error) {
	t.Helper()
	if err := end(); err != nil {
		t.Errorf("Run ended with %v, want nil after its context was cancelled", err)
	}
}

func TestThresholdsAndTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sick atomic.Bool
		m, r, end := start(t, func(ctx context.Context, _ health.Target, _ health.Check) error {
			if sick.Load() {
				return errSick
			}
			return nil
		}, health.Options{})
		mustAdd(t, m, "a", health.Check{Delay: 3 * time.Second, Interval: 2 * time.Second, Failures: 3, Successes: 2})
		if got, ok := m.Status("a"); !ok || got.Status != health.Unknown {
			t.Errorf("before the first probe Status = %v, %v; want unknown, true", got, ok)
		}
		time.Sleep(10 * time.Second) // probes at 3, 5, 7, 9
		sick.Store(true)
		time.Sleep(10 * time.Second) // 11, 13, 15, 17, 19
		sick.Store(false)
		time.Sleep(10 * time.Second) // 21, 23
		want := []string{"a healthy 5s", "a unhealthy 15s", "a healthy 23s"}
		if got := r.story(); !slices.Equal(got, want) {
			t.Errorf("results %q, want %q: 2 successes and 3 failures in a row change the status", got, want)
		}
		if got := r.results[1]; !errors.Is(got.Reason, errSick) || got.Probes != 7 {
			t.Errorf("the unhealthy result has reason %v after %d probes, want %v after 7", got.Reason, got.Probes, errSick)
		}
		if got := r.results[2].Reason; got != nil {
			t.Errorf("a healthy result has the reason %v, want none", got)
		}
		mustEnd(t, end)
	})
}

func TestConcurrencyIsBoundedAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		var mu sync.Mutex
		var order []string
		m, r, end := start(t, func(ctx context.Context, target health.Target, _ health.Check) error {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			mu.Lock()
			order = append(order, target.ID)
			mu.Unlock()
			time.Sleep(500 * time.Millisecond)
			return nil
		}, health.Options{Concurrency: 2, Stagger: -1})
		var want []string
		for i := range 8 {
			id := fmt.Sprint(i)
			want = append(want, id)
			mustAdd(t, m, id, health.Check{Interval: time.Hour, Delay: time.Duration(i) * time.Millisecond})
		}
		time.Sleep(3 * time.Second)
		if got := most.Load(); got != 2 {
			t.Errorf("%d probes ran at a time, want Concurrency, 2", got)
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(order, want) {
			t.Errorf("probes ran in the order %q, want that in which they came due, %q", order, want)
		}
		if got := len(r.story()); got != 8 {
			t.Errorf("%d results, want one for each of the 8 targets", got)
		}
		mustEnd(t, end)
	})
}

// A checker that ignores its context must not take a place for ever, nor may
// its late answer count.
func TestOverrunningProbeIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		m, r, end := start(t, func(ctx context.Context, target health.Target, _ health.Check) error {
			if target.ID == "hangs" && calls.Add(1) == 1 {
				<-release
			}
			return nil
		}, health.Options{Concurrency: 1, Stagger: -1})
		mustAdd(t, m, "hangs", health.Check{Interval: time.Second, Timeout: time.Second, Failures: 3})
		mustAdd(t, m, "waits", health.Check{Interval: time.Second, Delay: 10 * time.Millisecond})
		time.Sleep(10 * time.Second)
		// Failures at 1.1 s (timeout and grace), 2.1 s and 3.1 s.
		want := []string{"waits healthy 1.1s", "hangs unhealthy 3.1s"}
		if got := r.story(); !slices.Equal(got, want) {
			t.Errorf("results %q, want %q", got, want)
		}
		if got, _ := m.Status("hangs"); !errors.Is(got.Reason, health.ErrOverrun) {
			t.Errorf("the reason is %v, want ErrOverrun", got.Reason)
		}
		if got := calls.Load(); got != 1 {
			t.Errorf("%d probes of the hanging target were begun, want 1 until it returns", got)
		}
		close(release)
		time.Sleep(3 * time.Second)
		if got, _ := m.Status("hangs"); got.Status != health.Healthy {
			t.Errorf("after the hanging probe returned the status is %v, want healthy from a new probe", got.Status)
		}
		mustEnd(t, end)
	})
}

func TestTimeoutReachesTheChecker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r, end := start(t, func(ctx context.Context, _ health.Target, _ health.Check) error {
			<-ctx.Done()
			return ctx.Err()
		}, health.Options{})
		mustAdd(t, m, "a", health.Check{Timeout: 700 * time.Millisecond, Failures: 1})
		time.Sleep(time.Second)
		if got, want := r.story(), []string{"a unhealthy 700ms"}; !slices.Equal(got, want) {
			t.Errorf("results %q, want %q", got, want)
		}
		if got, _ := m.Status("a"); !errors.Is(got.Reason, context.DeadlineExceeded) {
			t.Errorf("the reason is %v, want the checker's own, deadline exceeded", got.Reason)
		}
		mustEnd(t, end)
	})
}

func TestNoResultAfterRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inReport, finish := make(chan struct{}), make(chan struct{})
		var reports atomic.Int32
		m, _, end := start(t, func(ctx context.Context, target health.Target, _ health.Check) error {
			if target.ID == "probing" {
				<-ctx.Done()
			}
			return nil
		}, health.Options{Stagger: -1, Report: func(r health.Result) {
			reports.Add(1)
			if r.Target == "reporting" {
				close(inReport)
				<-finish
			}
		}})
		mustAdd(t, m, "probing", health.Check{Timeout: time.Hour})
		mustAdd(t, m, "reporting", health.Check{})
		<-inReport
		removed := make(chan struct{})
		go func() { m.Remove("reporting"); close(removed) }()
		synctest.Wait()
		select {
		case <-removed:
			t.Error("Remove returned while a result of the target was being reported")
		default:
		}
		close(finish)
		<-removed
		m.Remove("probing") // cancels its probe, whose answer is dropped
		m.Remove("unknown")
		time.Sleep(time.Minute)
		if got := reports.Load(); got != 1 {
			t.Errorf("%d reports, want 1: none of a removed target", got)
		}
		mustAdd(t, m, "probing", health.Check{Timeout: time.Second, Failures: 1})
		time.Sleep(time.Minute)
		if got, ok := m.Status("probing"); !ok || got.Status != health.Healthy {
			t.Errorf("a target added again has the status %v, %v; want healthy", got.Status, ok)
		}
		mustEnd(t, end)
	})
}

func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		m, r, end := start(t, func(ctx context.Context, target health.Target, _ health.Check) error {
			<-release
			return nil
		}, health.Options{})
		mustAdd(t, m, "b", health.Check{Timeout: time.Minute})
		mustAdd(t, m, "a", health.Check{Timeout: time.Millisecond})
		time.Sleep(time.Second)
		var stuck *health.StuckError
		if err := end(); !errors.As(err, &stuck) || !slices.Equal(stuck.Targets, []string{"a", "b"}) {
			t.Errorf("Run ended with %v, want a *StuckError of a and b", err)
		}
		close(release)
		synctest.Wait()
		if got := r.story(); got != nil {
			t.Errorf("results %q after Run ended, want none", got)
		}
		if err := m.Add(health.Target{ID: "c"}, custom(health.Check{})); !errors.Is(err, health.ErrStopped) {
			t.Errorf("Add after Run = %v, want ErrStopped", err)
		}
		if err := m.Run(t.Context()); !errors.Is(err, health.ErrStopped) {
			t.Errorf("a second Run = %v, want ErrStopped", err)
		}
		m.Remove("a")
	})
}

func TestAddRefuses(t *testing.T) {
	m := health.NewMonitor(health.Options{})
	ok := health.Check{TCP: &health.TCP{Port: 80}}
	if err := m.Add(health.Target{ID: "a"}, ok); err != nil {
		t.Fatalf("Add: %v", err)
	}
	if err := m.Add(health.Target{ID: "a"}, ok); !errors.Is(err, health.ErrDuplicate) {
		t.Errorf("the same ID again: %v, want ErrDuplicate", err)
	}
	for _, c := range []health.Check{
		{GRPC: &health.GRPC{Port: 80}}, {Custom: &health.Custom{Name: "none"}},
	} {
		if err := m.Add(health.Target{ID: "b"}, c); !errors.Is(err, health.ErrNoChecker) {
			t.Errorf("check of kind %q: %v, want ErrNoChecker", c.Kind(), err)
		}
	}
	var spec *health.SpecError
	if err := m.Add(health.Target{ID: "b"}, health.Check{}); !errors.As(err, &spec) {
		t.Errorf("an empty check: %v, want a *SpecError", err)
	}
	if _, ok := m.Status("b"); ok {
		t.Error("a target that was refused is watched")
	}
}

// Ten thousand targets added at once must not all be probed at once.
func TestStaggerSpreadsABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10_000
		began := time.Now()
		var mu sync.Mutex
		perSecond := map[int]int{}
		m, _, end := start(t, func(ctx context.Context, _ health.Target, _ health.Check) error {
			mu.Lock()
			defer mu.Unlock()
			perSecond[int(time.Since(began)/time.Second)]++
			return nil
		}, health.Options{Seed: 1})
		for i := range n {
			mustAdd(t, m, fmt.Sprint(i), health.Check{})
		}
		time.Sleep(20*time.Second - time.Nanosecond)
		mu.Lock()
		total := 0
		for s, count := range perSecond {
			total += count
			if count > n/2 {
				t.Errorf("%d of %d probes fell into second %d; they should spread over the interval of 10 s", count, n, s)
			}
		}
		if total < 2*n-n/100 || total > 2*n {
			t.Errorf("%d probes in two intervals, want about two for each of %d targets", total, n)
		}
		mu.Unlock()
		mustEnd(t, end)
	})
}
