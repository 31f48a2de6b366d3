// Package healthtest is the conformance suite of [health.Checker].
//
//	func TestConformance(t *testing.T) {
//		healthtest.Run(t, healthtest.Harness{Checker: myChecker, Healthy: ..., Unhealthy: ..., Hanging: ...})
//	}
//
// It looks for goroutines that a probe leaves behind, so its cases must not run
// beside other tests in parallel.
package healthtest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/health"
)

// Harness is how the suite uses a checker.
type Harness struct {
	Checker health.Checker

	// Healthy and Unhealthy are a target and a check that are so at every
	// probe. Hanging is one that never answers. They must be there for as
	// long as the suite runs.
	Healthy, Unhealthy, Hanging Case
}

// Case is what a probe is directed at.
type Case struct {
	Target health.Target
	Check  health.Check
}

// T is what the suite needs of [testing.T].
type T interface {
	Helper()
	Context() context.Context
	Errorf(format string, args ...any)
}

// patience is how late after its context's end a probe may return. It is much
// more than a checker needs, so that a busy machine does not fail the test.
const patience = 3 * time.Second

// Part is one part of the suite.
type Part struct {
	Name string
	Run  func(t T, h Harness)
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, p := range Parts() {
		t.Run(p.Name, func(t *testing.T) { p.Run(t, h) })
	}
}

// Parts returns the parts of the suite.
func Parts() []Part {
	return []Part{
		{"Healthy", healthy},
		{"Unhealthy", unhealthy},
		{"Deadline", deadline},
		{"Cancel", cancelled},
		{"NoStateBetweenProbes", noState},
		{"Concurrent", concurrent},
		{"WrongKind", wrongKind},
		{"NoGoroutinesLeft", noGoroutinesLeft},
	}
}

// check runs a probe, and fails the test when it does not return.
func check(ctx context.Context, t T, h Harness, c Case) (err error, returned bool) {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- h.Checker.Check(ctx, c.Target, c.Check) }()
	timer := time.NewTimer(2 * patience)
	defer timer.Stop()
	select {
	case err := <-result:
		return err, true
	case <-timer.C:
		t.Errorf("a probe did not return within %v; it must obey its context", 2*patience)
		return nil, false
	}
}

func healthy(t T, h Harness) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err, _ := check(ctx, t, h, h.Healthy); err != nil {
		t.Errorf("a probe of the healthy target = %v, want nil", err)
	}
}

func unhealthy(t T, h Harness) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err, returned := check(ctx, t, h, h.Unhealthy)
	if !returned {
		return
	}
	if err == nil {
		t.Errorf("a probe of the unhealthy target = nil, want the reason")
	} else if err.Error() == "" {
		t.Errorf("the reason is empty; it is what an operator reads")
	}
	if ctx.Err() != nil {
		t.Errorf("the unhealthy target answered only by its timeout; that is what the hanging one is for")
	}
}

// obeys checks that a probe of the hanging target fails soon after its context
// has ended by want.
func obeys(ctx context.Context, t T, h Harness, want error) {
	t.Helper()
	err, returned := check(ctx, t, h, h.Hanging)
	if !returned {
		return
	}
	if err == nil {
		t.Errorf("a probe of the hanging target = nil, want an error: nothing answered")
	}
	if got := ctx.Err(); !errors.Is(got, want) {
		t.Errorf("a probe of the hanging target returned %v before its context ended; is it hanging?", err)
	}
}

func deadline(t T, h Harness) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	obeys(ctx, t, h, context.DeadlineExceeded)
}

func cancelled(t T, h Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(50*time.Millisecond, cancel)
	defer timer.Stop()
	defer cancel()
	obeys(ctx, t, h, context.Canceled)
}

// noState: thresholds are the monitor's, so a probe says what is now.
func noState(t T, h Harness) {
	for i := range 3 {
		healthy(t, h)
		unhealthy(t, h)
		if i == 0 {
			deadline(t, h)
		}
	}
}

func concurrent(t T, h Harness) {
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { healthy(t, h) })
		wg.Go(func() { unhealthy(t, h) })
	}
	wg.Wait()
}

// wrongKind: a check that the checker is not for is an error and no panic.
func wrongKind(t T, h Harness) {
	if err, returned := check(t.Context(), t, h, Case{Target: h.Healthy.Target}); err == nil && returned {
		t.Errorf("a probe by an empty check = nil, want an error: it says nothing to probe")
	}
}

func noGoroutinesLeft(t T, h Harness) {
	before := goleak.IgnoreCurrent()
	healthy(t, h)
	unhealthy(t, h)
	deadline(t, h)
	// Those of a server of the harness end too, as its connections do.
	if err := goleak.Find(before); err != nil {
		t.Errorf("probes left goroutines or connections behind: %v", err)
	}
}
