package runtimetest

import (
	"errors"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// holdCases are about containers that end when nobody holds them.
func holdCases() []testCase {
	return []testCase{{"hold", func(e *env) error {
		holder, ok := e.rt.(runtime.Holder)
		if !ok {
			return errSkip
		}
		spec := func(id string) runtime.Spec {
			s := e.spec(id, "print=runs", "ignore") // also the stop signal
			s.Labels = map[string]string{runtime.LabelHeld: "1"}
			return s
		}
		refused := func(id, when string) {
			if err := e.rt.Start(e.ctx, spec(id)); !errors.Is(err, runtime.ErrNotHeld) {
				e.errorf("Start of a held container %s: got %v, want ErrNotHeld", when, err)
			}
		}
		refused("a", "that nobody holds")
		if err := e.start("free", "print=runs", "ignore"); err != nil {
			return err
		}
		const d = 500 * time.Millisecond
		if err := holder.Hold(e.ctx, time.Hour); err != nil {
			return fmt.Errorf("Hold: %w", err)
		}
		for _, id := range []string{"a", "b"} {
			if err := e.startSpec(spec(id)); err != nil {
				return err
			}
		}
		var began time.Time
		for range 3 { // each moves the end, also nearer
			began = time.Now()
			if err := holder.Hold(e.ctx, d); err != nil {
				return fmt.Errorf("Hold again: %w", err)
			}
		}
		for _, id := range []string{"a", "b"} {
			if err := e.exits(id, 128+int(runtime.SIGKILL)); err != nil {
				return err
			}
		}
		if ran := time.Since(began); ran < d {
			e.errorf("held containers ended %v after the last Hold, want no sooner than its %v", ran, d)
		}
		if c, ok, err := e.get("free"); err != nil || !ok || c.State != runtime.Running {
			e.errorf("a container that is not held is %+v (%v) after the time of those that are, want it to run", c, err)
		}
		refused("b", "whose time is over")
		if err := holder.Hold(e.ctx, time.Hour); err != nil {
			return fmt.Errorf("Hold after the end: %w", err)
		}
		return e.startSpec(spec("a"))
	}}}
}
