package healthtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/health/healthtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a T that remembers whether it failed.
type recorder struct {
	*testing.T
	mu     sync.Mutex
	failed []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, fmt.Sprintf(format, args...))
}

func on(id string) healthtest.Case {
	return healthtest.Case{Target: health.Target{ID: id}, Check: health.Check{Custom: &health.Custom{Name: "x"}}}
}

func harness(c health.CheckerFunc) healthtest.Harness {
	return healthtest.Harness{Checker: c, Healthy: on("good"), Unhealthy: on("bad"), Hanging: on("hang")}
}

// right is a checker without a mistake, on which the planted ones build.
func right(ctx context.Context, t health.Target, c health.Check) error {
	if c.Custom == nil {
		return errors.New("no custom check")
	}
	switch t.ID {
	case "good":
		return nil
	case "bad":
		return errors.New("bad")
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestRightPasses(t *testing.T) { healthtest.Run(t, harness(right)) }

// Each planted mistake must be caught by the part that is for it.
func TestWrongIsCaught(t *testing.T) {
	release := make(chan struct{})
	var leaks sync.WaitGroup
	var mu sync.Mutex // guards failures, and the first Add of leaks against its Wait
	defer func() {
		close(release)
		mu.Lock()
		defer mu.Unlock()
		leaks.Wait()
	}()
	failures := 0
	for part, wrong := range map[string]health.CheckerFunc{
		"Healthy": func(ctx context.Context, t health.Target, c health.Check) error {
			if err := right(ctx, t, c); err != nil {
				return err
			}
			return errors.New("always unhealthy")
		},
		"Unhealthy": func(ctx context.Context, t health.Target, c health.Check) error {
			if t.ID == "bad" {
				return nil
			}
			return right(ctx, t, c)
		},
		"Deadline": func(ctx context.Context, t health.Target, c health.Check) error {
			right(ctx, t, c)
			return nil // what did not answer is called healthy
		},
		"Cancel": func(ctx context.Context, t health.Target, c health.Check) error {
			if _, ok := ctx.Deadline(); !ok && t.ID == "hang" {
				mu.Lock()
				leaks.Add(1)
				mu.Unlock()
				defer leaks.Done()
				<-release // it looks at the deadline alone
				return ctx.Err()
			}
			return right(ctx, t, c)
		},
		"NoStateBetweenProbes": func(ctx context.Context, t health.Target, c health.Check) error {
			mu.Lock()
			defer mu.Unlock()
			if t.ID == "bad" {
				failures++
			}
			if t.ID == "good" && failures > 0 { // the first failure sticks
				return errors.New("was unhealthy")
			}
			return right(ctx, t, c)
		},
		"WrongKind": func(ctx context.Context, t health.Target, c health.Check) error {
			if c.Custom == nil {
				return nil
			}
			return right(ctx, t, c)
		},
		"NoGoroutinesLeft": func(ctx context.Context, t health.Target, c health.Check) error {
			mu.Lock()
			leaks.Go(func() { <-release })
			mu.Unlock()
			return right(ctx, t, c)
		},
	} {
		t.Run(part, func(t *testing.T) {
			for _, p := range healthtest.Parts() {
				if p.Name != part {
					continue
				}
				r := &recorder{T: t}
				if p.Run(r, harness(wrong)); len(r.failed) == 0 {
					t.Errorf("the part %s passes a checker with the mistake that it is for", part)
				}
				return
			}
			t.Fatalf("there is no part %s", part)
		})
	}
}
