package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func abilityCases() []testCase {
	return []testCase{
		{"arguments and environment", func(e *env) error {
			spec := e.spec("a", "env=A", "env=B")
			spec.Env = []string{"A=1", "B=first", "B=last"}
			return e.prints(spec, "1", "last")
		}},
		{"logs of both streams", func(e *env) error {
			if err := e.prints(e.spec("a", "print=out")); errors.Is(err, errSkip) {
				return err
			}
			e.errs = nil
			if err := e.start("b", "print=one", "sleep=50ms", "error=two", "sleep=50ms", "print=three"); err != nil {
				return err
			}
			got, err := e.output("b")
			if err != nil {
				return err
			}
			if !slices.Equal(got, []string{"one", "! two", "three"}) {
				e.errorf("got %q, want one, two on stderr, three, in the order of their times", got)
			}
			return nil
		}},
		{"logs in parts", func(e *env) error {
			logs, ok := e.rt.(runtime.LogReader)
			if !ok {
				return errSkip
			}
			if err := e.start("a", "lines=100"); err != nil {
				return err
			}
			if err := e.exits("a", 0); err != nil {
				return err
			}
			if all, err := e.output("a"); err != nil || len(all) != 100 {
				return fmt.Errorf("got %d lines, %w: want 100", len(all), err)
			}
			read := func(opts runtime.LogOptions) (lines []runtime.LogLine, err error) {
				err = logs.Logs(e.ctx, "a", opts, func(l runtime.LogLine) error {
					lines = append(lines, l)
					return nil
				})
				return lines, err
			}
			got, err := read(runtime.LogOptions{Tail: 3})
			if err != nil || len(got) != 3 || string(got[0].Text) != "line 98" {
				e.errorf("Tail of 3: got %d lines, %v; want line 98 to 100", len(got), err)
			}
			if got, err = read(runtime.LogOptions{Since: time.Now().Add(time.Hour)}); err != nil || len(got) != 0 {
				e.errorf("Since a time to come: got %d lines, %v; want none", len(got), err)
			}
			if got, err = read(runtime.LogOptions{Since: time.Now().Add(-time.Hour)}); err != nil || len(got) != 100 {
				e.errorf("Since an hour ago: got %d lines, %v; want 100", len(got), err)
			}
			// Whoever reads on from the last line it had, by its time, misses none.
			last := got[len(got)-1]
			if got, err = read(runtime.LogOptions{Since: last.Time}); err != nil || len(got) == 0 || string(got[len(got)-1].Text) != string(last.Text) {
				e.errorf("Since the time of the last line: got %d lines, %v; want that line too", len(got), err)
			}
			boom := errors.New("boom")
			if err := logs.Logs(e.ctx, "a", runtime.LogOptions{}, func(runtime.LogLine) error { return boom }); !errors.Is(err, boom) {
				e.errorf("an error of the callback: got %v, want that", err)
			}
			return nil
		}},
		{"logs are kept until they are removed", func(e *env) error {
			logs, ok := e.rt.(runtime.LogReader)
			if !ok {
				return errSkip
			}
			if err := e.prints(e.spec("a", "print=first"), "first"); err != nil {
				return err
			}
			if err := e.exits("a", 0); err != nil {
				return err
			}
			if err := e.prints(e.spec("a", "print=second"), "first", "second"); err != nil {
				return err
			}
			if err := e.rt.Remove(e.ctx, "a"); err != nil {
				return err
			}
			if got, err := e.output("a"); err != nil || !slices.Equal(got, []string{"first", "second"}) {
				e.errorf("after Remove: got %q, %v; want first, second", got, err)
			}
			if e.h.Restart != nil {
				var err error
				if e.rt, _, err = e.h.Restart(e.ctx, e.rt); err != nil {
					return err
				}
				logs = e.rt.(runtime.LogReader)
				if got, err := e.output("a"); err != nil || !slices.Equal(got, []string{"first", "second"}) {
					e.errorf("after a restart of the program: got %q, %v; want first, second", got, err)
				}
			}
			for range 2 {
				if err := logs.RemoveLogs(e.ctx, "a"); err != nil {
					return fmt.Errorf("RemoveLogs: %w", err)
				}
			}
			if _, err := e.output("a"); !errors.Is(err, runtime.ErrNotFound) {
				e.errorf("after RemoveLogs: got %v, want ErrNotFound", err)
			}
			return nil
		}},
		{"logs of long lines", func(e *env) error {
			logs, ok := e.rt.(runtime.LogReader)
			if !ok {
				return errSkip
			}
			if err := e.start("a", "long=40000"); err != nil {
				return err
			}
			var sizes []int
			var partial []bool
			err := logs.Logs(e.ctx, "a", runtime.LogOptions{Follow: true}, func(l runtime.LogLine) error {
				sizes, partial = append(sizes, len(l.Text)), append(partial, l.Partial)
				return nil
			})
			if !slices.Equal(sizes, []int{16 << 10, 16 << 10, 40000 - 32<<10}) || !slices.Equal(partial, []bool{true, true, false}) {
				e.errorf("got pieces of %v, partial %v, %v; want 16384, 16384 and the rest, all but the last partial", sizes, partial, err)
			}
			return nil
		}},
		{"following ends with its context", func(e *env) error {
			logs, ok := e.rt.(runtime.LogReader)
			if !ok {
				return errSkip
			}
			if err := e.start("a", "print=x", "ignore"); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(e.ctx)
			defer cancel()
			err := logs.Logs(ctx, "a", runtime.LogOptions{Follow: true}, func(runtime.LogLine) error {
				cancel()
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				e.errorf("got %v, want context.Canceled", err)
			}
			return nil
		}},
		{"exec", func(e *env) error {
			execer, ok := e.rt.(runtime.Execer)
			if !ok {
				return errSkip
			}
			spec := e.spec("a", "ignore")
			spec.Env = []string{"OWN=kept"}
			if err := e.startSpec(spec); err != nil {
				return err
			}
			var stdout, stderr bytes.Buffer
			code, err := execer.Exec(e.ctx, "a", runtime.Exec{
				Args: []string{program, "env=OWN", "env=NEW", "error=err", "cat", "exit=9"}, Env: []string{"NEW=added"},
				Stdin: strings.NewReader("typed\n"), Stdout: &stdout, Stderr: &stderr,
			})
			if err != nil || code != 9 {
				e.errorf("got code %d, %v; want 9", code, err)
			}
			if got, want := stdout.String(), "kept\nadded\ntyped\n"; got != want {
				e.errorf("stdout: got %q, want %q", got, want)
			}
			if got := stderr.String(); got != "err\n" {
				e.errorf("stderr: got %q, want %q", got, "err\n")
			}
			if code, err = execer.Exec(e.ctx, "a", runtime.Exec{Args: []string{program, "print=x"}}); err != nil || code != 0 {
				e.errorf("without streams: got code %d, %v; want 0", code, err)
			}
			if c, _, _ := e.get("a"); c.State != runtime.Running {
				e.errorf("after an exec its container is %v, want it running", c.State)
			}
			return nil
		}},
		{"exec that cannot be", func(e *env) error {
			execer, ok := e.rt.(runtime.Execer)
			if !ok {
				return errSkip
			}
			one := runtime.Exec{Args: []string{program, "exit=0"}}
			if _, err := execer.Exec(e.ctx, "none", one); !errors.Is(err, runtime.ErrNotFound) {
				e.errorf("in an unknown container: got %v, want ErrNotFound", err)
			}
			if err := e.start("ended", "exit=0"); err != nil {
				return err
			}
			if err := e.exits("ended", 0); err != nil {
				return err
			}
			if _, err := execer.Exec(e.ctx, "ended", one); err == nil {
				e.errorf("in a container that has exited: got nil, want an error")
			}
			if err := e.start("a", "ignore"); err != nil {
				return err
			}
			var bad *runtime.SpecError
			if _, err := execer.Exec(e.ctx, "a", runtime.Exec{}); !errors.As(err, &bad) {
				e.errorf("without a command: got %v, want a *SpecError", err)
			}
			ctx, cancel := context.WithTimeout(e.ctx, 200*time.Millisecond)
			defer cancel()
			if _, err := execer.Exec(ctx, "a", runtime.Exec{Args: []string{program, "sleep=1h"}}); !errors.Is(err, context.DeadlineExceeded) {
				e.errorf("with a context that ends: got %v, want context.DeadlineExceeded", err)
			}
			return nil
		}},
		{"stats", func(e *env) error {
			stats, ok := e.rt.(runtime.StatsReader)
			if !ok {
				return errSkip
			}
			spec := e.spec("a", "ignore")
			spec.Resources.Memory = 64 << 20
			if err := e.startSpec(spec); err != nil {
				return err
			}
			s, err := stats.Stats(e.ctx, "a")
			if err != nil {
				return err
			}
			if s.At.IsZero() || s.MemoryLimit != 64<<20 {
				e.errorf("got %+v: want a time and the memory limit of 64 MiB", s)
			}
			if e.h.System && (s.CPU <= 0 || s.Memory <= 0 || s.Memory > 64<<20 || s.Pids < 1) {
				e.errorf("got %+v: want CPU time, memory below the limit, at least one process", s)
			}
			if _, err := stats.Stats(e.ctx, "none"); !errors.Is(err, runtime.ErrNotFound) {
				e.errorf("of an unknown container: got %v, want ErrNotFound", err)
			}
			return nil
		}},
	}
}

// program is where the image has the program.
const program = "/program"
