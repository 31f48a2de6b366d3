package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

func on(service string) orchestrate.Dependency { return orchestrate.Dependency{Service: service} }

func onJob(job string) orchestrate.Dependency { return orchestrate.Dependency{Job: job} }

// waitShort waits for a rollout for a while, and returns how it stands.
func waitShort(t *testing.T, f *orchestrate.Fleet, name string, d time.Duration) orchestrate.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	r, err := f.Wait(ctx, name)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return r
}

func TestDependsOnChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		work(rt, 3*time.Minute, ok)
		events, err := f.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		db, web, migrate := service("db", 0), service("web", 0), aJob("migrate", 1, 1)
		db.Replicas, web.Replicas = 2, 2
		web.DependsOn = []orchestrate.Dependency{onJob("migrate")}
		migrate.DependsOn = []orchestrate.Dependency{on("default/db")}
		mustApply(t, f, web, migrate, db)

		r := waitShort(t, f, "web", time.Minute)
		want := orchestrate.Unmet{Dependency: "job default/migrate", Why: "is active: 0 of 1 indexes completed"}
		if r.Outcome != "" || !slices.Equal(r.Waiting, []orchestrate.Unmet{want}) || !strings.Contains(r.Message, want.String()) {
			t.Errorf("%+v; want it to wait, and to say for %v", r, want)
		}
		st, err := f.Get(t.Context(), "web")
		if err != nil || !slices.Equal(st.Rollout.Waiting, r.Waiting) {
			t.Errorf("Get says that it waits for %v, %v; want %v", st.Rollout.Waiting, err, r.Waiting)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		mustEndJob(t, f, "migrate", orchestrate.JobCompleted)

		var told []string
		for !slices.Contains(told, "rollout-completed web") {
			switch e := <-events; e.Kind {
			case orchestrate.DependencyAwaited, orchestrate.DependencyMet:
				told = append(told, fmt.Sprintf("%s %s", e.Kind, e.Service))
			case orchestrate.RolloutSucceeded, orchestrate.JobSucceeded, orchestrate.TaskPlaced:
				told = append(told, fmt.Sprintf("%s %s", e.Kind, e.Service))
			}
		}
		before := func(first, then string) {
			t.Helper()
			if a, b := slices.Index(told, first), slices.Index(told, then); a < 0 || b < a {
				t.Errorf("%q is not before %q in %q", first, then, told)
			}
		}
		before("dependency-awaited migrate", "rollout-completed db")
		before("rollout-completed db", "dependency-met migrate")
		before("dependency-met migrate", "task-placed migrate")
		before("job-completed migrate", "dependency-met web")
		before("dependency-met web", "task-placed web")
	})
}

func TestDependsOnFailsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		work(rt, time.Second, func(string, string) int { return 1 })
		web := service("web", 0)
		web.Update.ProgressDeadline = time.Minute
		web.DependsOn = []orchestrate.Dependency{on("db")}
		mustApply(t, f, web)
		r, err := f.Wait(t.Context(), "web")
		if err != nil || r.Outcome != orchestrate.RolloutFailed || r.Reason != orchestrate.ReasonDependency || !strings.Contains(r.Message, "service default/db does not exist") {
			t.Fatalf("%v, %v; want it failed for a db that does not exist", r, err)
		}
		// What is missing starts once it can, though the result has been told.
		mustApply(t, f, service("db", 0))
		mustEnd(t, f, "db", orchestrate.RolloutCompleted)
		time.Sleep(time.Minute)
		if st, err := f.Get(t.Context(), "web"); err != nil || st.Rollout.Ready != 1 || st.Rollout.Waiting != nil {
			t.Errorf("%+v, %v; want its task ready, and nothing waited for", st.Rollout, err)
		}
		// It may go: web needs it no more.
		if err := f.Remove(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		if err := f.Scale(t.Context(), "web", 2); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)

		// A job that has failed fails what waits for it at once.
		load, after, app := aJob("load", 1, 1), aJob("after", 1, 1), service("app", 0)
		load.Retries = orchestrate.None
		after.DependsOn = []orchestrate.Dependency{onJob("load")}
		app.DependsOn = after.DependsOn
		start := time.Now()
		mustApply(t, f, app, load, after)
		if r, err := f.Wait(t.Context(), "app"); err != nil || r.Reason != orchestrate.ReasonDependency {
			t.Errorf("%v, %v; want it failed for the job", r, err)
		}
		if r := mustEndJob(t, f, "after", orchestrate.JobFailed); r.Reason != orchestrate.JobDependency || len(r.WaitsFor) != 1 {
			t.Errorf("%v; want it failed for the job, and to say so", r)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("that took %v, want it long before the deadline", took)
		}
	})
}

func TestDependsOnRestartsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		web := service("web", 0)
		web.Replicas = 2
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		before, err := f.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		hash := web.Template.Hash()
		web.DependsOn = []orchestrate.Dependency{on("missing")}
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		after, err := f.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		for i := range after {
			if len(after) != len(before) || after[i].ID != before[i].ID || after[i].Revision != 1 {
				t.Fatalf("tasks %+v, before %+v; want the same", after, before)
			}
		}
		if web.Template.Hash() != hash {
			t.Error("the hash of the template depends on DependsOn")
		}
	})
}

func TestDependencyCycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		a, b, c := service("a", 0), aJob("b", 1, 1), service("c", 0)
		a.DependsOn, b.DependsOn, c.DependsOn = []orchestrate.Dependency{onJob("b")}, []orchestrate.Dependency{on("c")}, []orchestrate.Dependency{on("a")}
		cyclic := func(err error) {
			t.Helper()
			var cycle *orchestrate.CycleError
			if !errors.As(err, &cycle) || !errors.Is(err, orchestrate.ErrInvalid) || len(cycle.Cycle) != 4 || cycle.Cycle[0] != cycle.Cycle[3] {
				t.Fatalf("got %v, want a cycle of three", err)
			}
			for _, name := range []string{"default/a", "default/b", "default/c"} {
				if !slices.Contains(cycle.Cycle, name) {
					t.Errorf("%v does not name %s", err, name)
				}
			}
		}
		cyclic(f.Apply(t.Context(), a, b, c))
		if _, err := f.Plan(t.Context(), c, a, b); err == nil {
			t.Error("Plan takes a cycle")
		}
		if all, err := f.List(t.Context(), ""); err != nil || len(all) != 0 {
			t.Fatalf("%v, %v; want nothing applied", all, err)
		}
		mustApply(t, f, b)
		mustApply(t, f, c)
		cyclic(f.Apply(t.Context(), a))

		// Turned round in one Apply, whatever the order, it is none.
		c.DependsOn = nil
		mustApply(t, f, a, c)
		b.DependsOn, c.DependsOn = nil, []orchestrate.Dependency{onJob("b")}
		mustApply(t, f, c, b)

		// Two fleets that each apply half of a cycle: one is refused.
		other, err := orchestrate.New(s) // it decides nothing, and applies
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		for i := range 10 {
			x, y := service(fmt.Sprint("x", i), 0), service(fmt.Sprint("y", i), 0)
			x.DependsOn, y.DependsOn = []orchestrate.Dependency{on(y.Name)}, []orchestrate.Dependency{on(x.Name)}
			errs := make(chan error, 2)
			go func() { errs <- f.Apply(t.Context(), x) }()
			go func() { errs <- other.Apply(t.Context(), y) }()
			refused := 0
			for range 2 {
				var cycle *orchestrate.CycleError
				if err := <-errs; errors.As(err, &cycle) {
					refused++
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if refused != 1 {
				t.Fatalf("%d of the two halves were refused, want one", refused)
			}
		}
	})
}
