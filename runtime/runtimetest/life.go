package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func lifeCases() []testCase {
	return []testCase{
		{"pull of what is present", func(e *env) error {
			for _, policy := range []runtime.PullPolicy{runtime.PullMissing, runtime.PullNever} {
				img, err := e.rt.Pull(e.ctx, e.h.Image, runtime.PullOptions{Policy: policy})
				if err != nil {
					return fmt.Errorf("Pull with policy %q: %w", policy, err)
				}
				if img.Ref != e.h.Image || img.Digest == "" || img.Platform == "" {
					e.errorf("Pull gave %+v: want the reference %s, a digest and a platform", img, e.h.Image)
				}
			}
			return nil
		}},
		{"missing image", func(e *env) error {
			if e.h.Missing == "" {
				return errSkip
			}
			for _, policy := range []runtime.PullPolicy{runtime.PullMissing, runtime.PullNever} {
				if _, err := e.rt.Pull(e.ctx, e.h.Missing, runtime.PullOptions{Policy: policy}); !errors.Is(err, runtime.ErrImageNotFound) {
					e.errorf("Pull with policy %q: got %v, want ErrImageNotFound", policy, err)
				}
			}
			if err := e.rt.Start(e.ctx, runtime.Spec{ID: "a", Image: e.h.Missing}); !errors.Is(err, runtime.ErrImageNotFound) {
				e.errorf("Start: got %v, want ErrImageNotFound", err)
			}
			e.gone("a", "its start failed")
			return nil
		}},
		{"bad spec", func(e *env) error {
			for _, spec := range []runtime.Spec{
				{ID: "-", Image: e.h.Image}, {ID: "a"}, {ID: "a/../b", Image: e.h.Image},
				{ID: "a", Image: e.h.Image, Env: []string{"NOVALUE"}},
				{ID: "a", Image: e.h.Image, HostNetwork: true, NetNS: "/x"},
				{ID: "a", Image: e.h.Image, Sysctls: map[string]string{"kernel.panic": "1"}},
				{ID: "a", Image: e.h.Image, Mounts: []runtime.Mount{{Target: "relative", Source: "/"}}},
			} {
				var bad *runtime.SpecError
				if err := e.rt.Start(e.ctx, spec); !errors.As(err, &bad) {
					e.errorf("Start(%+v): got %v, want a *SpecError", spec, err)
				}
			}
			e.gone("a", "its spec was refused")
			return nil
		}},
		{"exit code", func(e *env) error {
			before := time.Now().Add(-time.Second)
			if err := e.start("a", "exit=3"); err != nil {
				return err
			}
			if err := e.exits("a", 3); err != nil {
				return err
			}
			if err := e.exits("a", 3); err != nil {
				e.errorf("a second Wait of what has exited: %w", err)
			}
			c, ok, err := e.get("a")
			if err != nil {
				return err
			}
			if !ok || c.State != runtime.Exited || c.Exit.Code != 3 || c.PID != 0 {
				e.errorf("List has %+v: want it exited with code 3 and no PID", c)
			}
			if c.Exit.At.Before(before) || c.Exit.At.After(time.Now().Add(time.Second)) || c.Exit.OOMKilled {
				e.errorf("List has the exit %+v at %v: want the time of its end and no OOMKilled", c.Exit, c.Exit.At)
			}
			return nil
		}},
		{"unknown container", func(e *env) error {
			if _, err := e.rt.Wait(e.ctx, "none"); !errors.Is(err, runtime.ErrNotFound) {
				e.errorf("Wait: got %v, want ErrNotFound", err)
			}
			if err := e.rt.Kill(e.ctx, "none", runtime.SIGTERM); err != nil {
				e.errorf("Kill: got %v, want nil: what is gone needs no signal", err)
			}
			if err := e.rt.Remove(e.ctx, "none"); err != nil {
				e.errorf("Remove: got %v, want nil: it is removed", err)
			}
			return nil
		}},
		{"start of what runs", func(e *env) error {
			if err := e.start("a", "ignore"); err != nil {
				return err
			}
			before, _, err := e.get("a")
			if err != nil {
				return err
			}
			if before.State != runtime.Running || before.PID <= 0 || before.Started.IsZero() {
				e.errorf("List has %+v: want it running, with a PID and the time of its start", before)
			}
			if err := e.start("a", "exit=1"); err != nil {
				e.errorf("a second start: got %v, want nil", err)
			}
			after, _, err := e.get("a")
			if err != nil {
				return err
			}
			if after.PID != before.PID || !after.Started.Equal(before.Started) || after.State != runtime.Running {
				e.errorf("a second Start changed %+v to %+v: want it left alone", before, after)
			}
			return nil
		}},
		{"start of what has exited", func(e *env) error {
			for code := range 3 {
				if err := e.start("a", fmt.Sprint("exit=", code)); err != nil {
					return err
				}
				if err := e.exits("a", code); err != nil {
					e.errorf("run %d of the same ID: %w", code, err)
				}
			}
			return nil
		}},
		{"signal", func(e *env) error {
			if err := e.start("a", "print=ready", "wait", "exit=5"); err != nil {
				return err
			}
			if err := e.ready("a"); err != nil {
				return err
			}
			if err := e.rt.Kill(e.ctx, "a", runtime.SIGTERM); err != nil {
				return err
			}
			if err := e.exits("a", 5); err != nil {
				return fmt.Errorf("a program that ends itself on SIGTERM: %w", err)
			}
			got, err := e.output("a")
			if err != nil {
				return err
			}
			if !slices.Contains(got, "got 15") {
				e.errorf("it printed %q: want \"got 15\", the number of SIGTERM", got)
			}
			if err := e.rt.Kill(e.ctx, "a", runtime.SIGTERM); err != nil {
				e.errorf("Kill of what has exited: got %v, want nil", err)
			}
			return nil
		}},
		{"SIGKILL", func(e *env) error {
			if err := e.start("a", "ignore"); err != nil {
				return err
			}
			if err := e.rt.Kill(e.ctx, "a", runtime.SIGKILL); err != nil {
				return err
			}
			return e.exits("a", 137)
		}},
		{"remove", func(e *env) error {
			if err := e.start("a", "ignore"); err != nil {
				return err
			}
			type result struct {
				exit runtime.Exit
				err  error
			}
			waiter := make(chan result, 1)
			go func() {
				exit, err := e.rt.Wait(e.ctx, "a")
				waiter <- result{exit, err}
			}()
			if err := e.rt.Remove(e.ctx, "a"); err != nil {
				return err
			}
			// It had called Wait before the removal, or after.
			if w := <-waiter; w.err != nil && !errors.Is(w.err, runtime.ErrNotFound) || w.err == nil && w.exit.Code != 137 {
				e.errorf("Wait during Remove: got %v, %v; want exit code 137 or ErrNotFound", w.exit, w.err)
			}
			e.gone("a", "it was removed")
			if _, err := e.rt.Wait(e.ctx, "a"); !errors.Is(err, runtime.ErrNotFound) {
				e.errorf("Wait after Remove: got %v, want ErrNotFound", err)
			}
			if err := e.rt.Remove(e.ctx, "a"); err != nil {
				e.errorf("a second Remove: got %v, want nil", err)
			}
			if err := e.start("a", "exit=4"); err != nil {
				return err
			}
			return e.exits("a", 4)
		}},
		{"list", func(e *env) error {
			for id, labels := range map[string]map[string]string{
				"c": {"app": "x", "n": "1"}, "a": {"app": "x", "n": "2"}, "b": {"app": "y"},
			} {
				spec := e.spec(id, "ignore")
				spec.Labels = labels
				if err := e.startSpec(spec); err != nil {
					return err
				}
			}
			for _, test := range []struct {
				labels map[string]string
				want   []string
			}{
				{nil, []string{"a", "b", "c"}},
				{map[string]string{"app": "x"}, []string{"a", "c"}},
				{map[string]string{"app": "x", "n": "1"}, []string{"c"}},
				{map[string]string{"app": "z"}, nil},
				{map[string]string{"n": ""}, nil},
			} {
				list, err := e.rt.List(e.ctx, test.labels)
				if err != nil {
					return err
				}
				var got []string
				for _, c := range list {
					got = append(got, c.ID)
				}
				if !slices.Equal(got, test.want) {
					e.errorf("List(%v): got %v, want %v, in this order", test.labels, got, test.want)
				}
			}
			c, _, err := e.get("a")
			if err != nil {
				return err
			}
			if c.Labels["n"] != "2" || len(c.Labels) != 2 || c.Image != e.h.Image {
				return fmt.Errorf("List has %+v: want its own labels and image", c)
			}
			c.Labels["n"] = "changed"
			if again, _, _ := e.get("a"); again.Labels["n"] != "2" {
				e.errorf("a change of a listed container's labels changed the runtime's")
			}
			return nil
		}},
		{"restart of the program", func(e *env) error {
			if e.h.Restart == nil {
				return errSkip
			}
			spec := e.spec("runs", "ignore")
			spec.Labels = map[string]string{"k": "v"}
			if err := errors.Join(e.startSpec(spec), e.start("ended", "exit=6"), e.start("ends", "sleep=100ms", "exit=7")); err != nil {
				return err
			}
			if err := e.exits("ended", 6); err != nil {
				return err
			}
			before, _, err := e.get("runs")
			if err != nil {
				return err
			}
			if e.rt, _, err = e.h.Restart(e.ctx, e.rt); err != nil {
				return fmt.Errorf("open again: %w", err)
			}
			after, _, err := e.get("runs")
			if err != nil {
				return err
			}
			if after.PID != before.PID || after.State != runtime.Running || after.Labels["k"] != "v" || !after.Started.Equal(before.Started) {
				e.errorf("a restart changed %+v to %+v: want the same process, adopted", before, after)
			}
			for id, code := range map[string]int{"ended": 6, "ends": 7} {
				if err := e.exits(id, code); err != nil {
					e.errorf("after a restart: %w", err)
				}
			}
			if err := e.rt.Kill(e.ctx, "runs", runtime.SIGKILL); err != nil {
				return err
			}
			return e.exits("runs", 137)
		}},
	}
}

func raceCases() []testCase {
	return []testCase{
		{"ended context", func(e *env) error {
			ctx, cancel := context.WithCancel(e.ctx)
			cancel()
			if err := e.rt.Start(ctx, e.spec("a", "ignore")); !errors.Is(err, context.Canceled) {
				e.errorf("Start: got %v, want context.Canceled", err)
			}
			e.gone("a", "its start failed")
			if err := e.start("b", "ignore"); err != nil {
				return err
			}
			if _, err := e.rt.Wait(ctx, "b"); !errors.Is(err, context.Canceled) {
				e.errorf("Wait: got %v, want context.Canceled", err)
			}
			if c, _, _ := e.get("b"); c.State != runtime.Running {
				e.errorf("a Wait that was given up changed its container to %v", c.State)
			}
			return nil
		}},
		{"starts of one ID at once", func(e *env) error {
			errs := make([]error, 4)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() { errs[i] = e.start("a", "print=once", "wait") })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				return err
			}
			if err := e.rt.Kill(e.ctx, "a", runtime.SIGKILL); err != nil {
				return err
			}
			if err := e.exits("a", 137); err != nil {
				return err
			}
			got, err := e.output("a")
			if err != nil {
				return err
			}
			if len(got) > 1 {
				e.errorf("%d processes ran: want one", len(got))
			}
			return nil
		}},
		{"many at once", func(e *env) error {
			const n = 8
			errs := make([]error, n)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					id := fmt.Sprint("c", i)
					if errs[i] = e.start(id, fmt.Sprint("exit=", i)); errs[i] != nil {
						return
					}
					if errs[i] = e.exits(id, i); errs[i] == nil {
						errs[i] = e.rt.Remove(e.ctx, id)
					}
				})
			}
			wg.Wait()
			return errors.Join(errs...)
		}},
		{"removes of one ID at once", func(e *env) error {
			if err := e.start("a", "ignore"); err != nil {
				return err
			}
			errs := make([]error, 4)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() { errs[i] = e.rt.Remove(e.ctx, "a") })
			}
			wg.Wait()
			return errors.Join(errs...)
		}},
	}
}
