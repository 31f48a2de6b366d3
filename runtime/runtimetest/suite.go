package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Harness is what the suite must know of a driver.
type Harness struct {
	// Open returns a runtime without containers that has Image present, and
	// what closes it. It is called for each case.
	Open func(ctx context.Context) (rt runtime.Runtime, close func() error, err error)
	// Image is the reference of an image whose entrypoint is Program.
	Image string
	// Missing is a reference that no registry has. Empty skips its cases.
	Missing string
	// Restart, when set, ends what Open returned as a crash or upgrade of the
	// program would, and opens it again. The containers must run on.
	Restart func(ctx context.Context, rt runtime.Runtime) (again runtime.Runtime, close func() error, err error)
	// System says that containers run on a Linux kernel: what they see of it
	// is then tested too.
	System bool
	// Timeout bounds each case; a minute when zero.
	Timeout time.Duration
}

// Test runs every case that the driver has the abilities for as a subtest.
func Test(t *testing.T, h Harness) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			switch err := run(t.Context(), h, c); {
			case errors.Is(err, errSkip):
				t.Skip("the driver does not have this ability")
			case err != nil:
				t.Error(err)
			}
		})
	}
}

// Check runs every case and returns the errors of those that failed, by name.
func Check(ctx context.Context, h Harness) map[string]error {
	failed := map[string]error{}
	for _, c := range cases() {
		if err := run(ctx, h, c); err != nil && !errors.Is(err, errSkip) {
			failed[c.name] = err
		}
	}
	return failed
}

// errSkip is returned by cases for which the driver lacks the ability.
var errSkip = errors.New("skipped")

type testCase struct {
	name string
	run  func(e *env) error
}

// cases lists the suite in the order in which one meets the interface.
func cases() []testCase {
	return slices.Concat(lifeCases(), raceCases(), abilityCases(), imageCases(), updateCases(), holdCases(), systemCases())
}

// env is a case's view of its runtime. Errors are collected; a case returns
// early with what makes going on useless.
type env struct {
	ctx  context.Context
	h    Harness
	rt   runtime.Runtime
	errs []error
}

func (e *env) errorf(format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf(format, args...))
}

func run(ctx context.Context, h Harness, c testCase) (err error) {
	if h.Timeout == 0 {
		h.Timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	rt, closeRT, err := h.Open(ctx)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	e := &env{ctx: ctx, h: h, rt: rt}
	if h.Restart != nil {
		// A case may replace the runtime.
		defer func() { err = errors.Join(err, closeRT()) }()
		e.h.Restart = func(ctx context.Context, rt runtime.Runtime) (runtime.Runtime, func() error, error) {
			again, closeAgain, err := h.Restart(ctx, rt)
			if err == nil {
				closeRT = closeAgain
			}
			return again, closeAgain, err
		}
	} else {
		defer func() { err = errors.Join(err, closeRT()) }()
	}
	err = c.run(e)
	if errors.Is(err, errSkip) {
		return err
	}
	if ctx.Err() != nil {
		err = errors.Join(err, fmt.Errorf("the case did not end within %v", h.Timeout))
	}
	return errors.Join(errors.Join(e.errs...), err, e.cleanUp())
}

// cleanUp removes every container, and checks that none is left.
func (e *env) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), e.h.Timeout)
	defer cancel()
	list, err := e.rt.List(ctx, nil)
	if err != nil {
		return fmt.Errorf("List at the end: %w", err)
	}
	for _, c := range list {
		if err := e.rt.Remove(ctx, c.ID); err != nil {
			return fmt.Errorf("Remove at the end: %w", err)
		}
	}
	if list, err = e.rt.List(ctx, nil); err != nil || len(list) > 0 {
		return fmt.Errorf("after every container was removed List gives %v, %w", list, err)
	}
	return nil
}

// spec is a container of the program.
func (e *env) spec(id string, args ...string) runtime.Spec {
	return runtime.Spec{ID: id, Image: e.h.Image, Args: args}
}

func (e *env) start(id string, args ...string) error { return e.startSpec(e.spec(id, args...)) }

func (e *env) startSpec(spec runtime.Spec) error {
	if err := e.rt.Start(e.ctx, spec); err != nil {
		return fmt.Errorf("Start(%s): %w", spec.ID, err)
	}
	return nil
}

// exits waits for a container and compares its exit code.
func (e *env) exits(id string, code int) error {
	exit, err := e.rt.Wait(e.ctx, id)
	if err != nil {
		return fmt.Errorf("Wait(%s): %w", id, err)
	}
	if exit.Code != code {
		return fmt.Errorf("Wait(%s): got %v, want exit code %d", id, exit, code)
	}
	return nil
}

// get returns a container as List has it.
func (e *env) get(id string) (runtime.Container, bool, error) {
	list, err := e.rt.List(e.ctx, nil)
	if err != nil {
		return runtime.Container{}, false, fmt.Errorf("List: %w", err)
	}
	for _, c := range list {
		if c.ID == id {
			return c, true, nil
		}
	}
	return runtime.Container{}, false, nil
}

// gone checks that List does not have a container.
func (e *env) gone(id, why string) {
	switch c, ok, err := e.get(id); {
	case err != nil:
		e.errorf("%w", err)
	case ok:
		e.errorf("List has %s %v: want it gone, %s", id, c.State, why)
	}
}

// output waits for a container's end and returns its lines, in the form
// "line" for stdout and "! line" for stderr.
func (e *env) output(id string) ([]string, error) {
	logs, ok := e.rt.(runtime.LogReader)
	if !ok {
		return nil, errSkip
	}
	var lines []string
	err := logs.Logs(e.ctx, id, runtime.LogOptions{Follow: true}, func(l runtime.LogLine) error {
		text := string(l.Text)
		if l.Stream == "stderr" {
			text = "! " + text
		}
		lines = append(lines, text)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("Logs(%s): %w", id, err)
	}
	return lines, nil
}

// prints runs a container to its end and compares what it wrote.
func (e *env) prints(spec runtime.Spec, want ...string) error {
	if err := e.startSpec(spec); err != nil {
		return err
	}
	got, err := e.output(spec.ID)
	if err != nil {
		return err
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		e.errorf("%s printed %q, want %q", spec.ID, got, want)
	}
	return nil
}

// ready waits for the first line of a container: its process then runs the
// program, with its signals handled.
func (e *env) ready(id string) error {
	logs, ok := e.rt.(runtime.LogReader)
	if !ok {
		return errSkip
	}
	first := errors.New("first line")
	err := logs.Logs(e.ctx, id, runtime.LogOptions{Follow: true}, func(runtime.LogLine) error { return first })
	if !errors.Is(err, first) {
		return fmt.Errorf("%s ended without a line: Logs gave %v, want the error of its callback", id, err)
	}
	return nil
}
