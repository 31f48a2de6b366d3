package orchestrate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/scheduler"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

func mustPlan(t *testing.T, f *orchestrate.Fleet, objects ...orchestrate.Object) *orchestrate.Plan {
	t.Helper()
	p, err := f.Plan(t.Context(), objects...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sized is a service whose tasks take as much memory as it says.
func sized(name string, replicas int, memory int64) orchestrate.Service {
	s := service(name, 0)
	s.Replicas = replicas
	s.Containers[0].Resources.Memory = memory
	return s
}

// placements are the nodes of a service's tasks by slot.
func placements(t *testing.T, f *orchestrate.Fleet, name string) map[int]string {
	t.Helper()
	tasks, err := f.Tasks(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[int]string{}
	for _, task := range tasks {
		nodes[task.Slot] = task.Node
	}
	return nodes
}

// actions counts what would happen to the tasks of a service.
func actions(p *orchestrate.Plan, name string) map[orchestrate.TaskAction]int {
	counts := map[orchestrate.TaskAction]int{}
	for _, s := range p.Services {
		if s.Service == "default/"+name {
			for _, task := range s.Tasks {
				counts[task.Action]++
			}
		}
	}
	return counts
}

func TestPlanSaysWhatApplyDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		addNode(t, s, "n3")
		synctest.Wait()
		before := records(t, s, "/services/") + records(t, s, "/networks/") + records(t, s, "/guards/") + records(t, s, "/events/application/")
		web := sized("web", 4, 1<<30)
		p := mustPlan(t, f, web)
		if n := records(t, s, "/services/") + records(t, s, "/networks/") + records(t, s, "/guards/") + records(t, s, "/events/application/"); n != before {
			t.Errorf("planning made %d records", n-before)
		}
		if got := actions(p, "web"); got[orchestrate.TaskStarts] != 4 || len(got) != 1 {
			t.Fatalf("planned is %v, want 4 starts\n%s", got, p)
		}
		if err := f.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		nodes := placements(t, f, "web")
		for _, task := range p.Services[0].Tasks {
			if nodes[task.Slot] != task.To {
				t.Errorf("replica %d is on %s, planned was %s", task.Slot, nodes[task.Slot], task.To)
			}
			if task.Decision == nil || task.Decision.Winner == nil || task.Decision.Evaluated != 3 {
				t.Errorf("replica %d was decided by %+v, want a winner of 3 nodes", task.Slot, task.Decision)
			}
		}
		if free := p.Total.Before.Memory - p.Total.After.Memory; free != 4<<30 {
			t.Errorf("%d bytes less are left, want 4 GiB", free)
		}
		if p.Services[0].Outcome != orchestrate.RolloutCompleted || p.Took != time.Second {
			t.Errorf("the outcome is %q after %v, want that it completes after the monitor window of 1 s", p.Services[0].Outcome, p.Took)
		}

		// The same again is nothing.
		if again := mustPlan(t, f, web); len(again.Changes) != 0 || len(again.Services) != 0 {
			t.Errorf("planning the same again is\n%s", again)
		}
		if err := f.ApplyPlan(t.Context(), mustPlan(t, f, web)); err != nil {
			t.Error(err)
		}
	})
}

// What is not of the template is changed in place, and the plan says so.
func TestPlanOfChangesInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		web := sized("web", 3, 1<<20)
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		web.Labels = map[string]string{"team": "a"}
		p := mustPlan(t, f, web)
		if s := p.Services[0]; s.Kept != 3 || len(s.Tasks) != 0 || !s.Asked {
			t.Errorf("with a label the plan is %+v, want 3 tasks kept and none touched", s)
		}
		if c := p.Changes[0]; c.From != 1 || c.To != 1 || len(c.Diff) != 1 || c.Diff[0].Path != `labels["team"]` {
			t.Errorf("the change is %+v, want one label and the same revision", c)
		}
		if !strings.Contains(p.String(), "in place, the template stays") {
			t.Errorf("the plan does not say that nothing restarts:\n%s", p)
		}
		web.Replicas = 1
		p = mustPlan(t, f, web)
		if got := actions(p, "web"); got[orchestrate.TaskStops] != 2 || len(got) != 1 || p.Services[0].Kept != 1 {
			t.Errorf("scaling down is %v with %d kept, want 2 stops and 1", got, p.Services[0].Kept)
		}
		web.Containers[0].Image = "img:2"
		web.Replicas = 3
		p = mustPlan(t, f, web)
		if got := actions(p, "web"); got[orchestrate.TaskReplaced] != 3 || len(got) != 1 {
			t.Errorf("another image is %v, want 3 tasks replaced on the one node", got)
		}
		p = mustPlan(t, f, orchestrate.Removal{Name: "web"})
		if got := actions(p, "web"); got[orchestrate.TaskStops] != 3 || p.Services[0].Outcome != orchestrate.RolloutRemoved {
			t.Errorf("removing it is %v, %q; want 3 stops, and that it is gone", got, p.Services[0].Outcome)
		}
	})
}

// What has no place is said with the scheduler's reasons and fixes, and what a
// more important service pushes out is said too.
func TestPlanOfTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sched, err := scheduler.New(scheduler.Options{Preempt: true})
		if err != nil {
			t.Fatal(err)
		}
		f := openOver(t, storememory.New(storememory.Options{}), orchestrate.WithScheduler(sched))
		mustApply(t, f, sized("small", 6, 1<<30))
		mustEnd(t, f, "small", orchestrate.RolloutCompleted)
		p := mustPlan(t, f, sized("large", 4, 1<<30))
		s := p.Services[0]
		if got := actions(p, "large"); got[orchestrate.TaskStarts] != 2 || s.Unplaced == nil || s.Unplaced.Unplaced != 2 {
			t.Fatalf("planned is\n%s\nwant 2 starts and 2 without a place", p)
		}
		if !errors.Is(s.Err(), scheduler.ErrUnplaced) || s.Outcome != orchestrate.RolloutFailed || s.Reason != orchestrate.ReasonCapacity {
			t.Errorf("error %v, outcome %s (%s); want unplaced, and that the rollout fails for want of capacity", s.Err(), s.Outcome, s.Reason)
		}
		if len(s.Unplaced.Refused) == 0 || s.Unplaced.Refused[0].Filter != scheduler.FilterMemory || len(s.Unplaced.Fixes) == 0 || s.Blocked == "" {
			t.Errorf("the decision is %+v, want that memory refused, and what would help", s.Unplaced)
		}
		important := sized("large", 4, 1<<30)
		important.Placement.Priority = 100
		p = mustPlan(t, f, important)
		if got := actions(p, "small"); got[orchestrate.TaskStops] == 0 {
			t.Errorf("planned is\n%s\nwant that tasks of small make room", p)
		}
		for _, s := range p.Services {
			for _, task := range s.Tasks {
				if s.Service == "default/small" && (s.Asked || task.Cause.Reason != "preempted" || !strings.HasPrefix(task.Cause.Trigger, "task/large.")) {
					t.Errorf("%+v of %s, want that a task of large preempts it", task, s.Service)
				}
			}
		}
	})
}

// A plan is applied as it was approved, or not at all: also when it has been
// through a file.
func TestStalePlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		web := sized("web", 2, 1<<30)
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		next := web
		next.Replicas = 4

		for _, c := range []struct {
			what, says string
			do         func()
			undo       func()
		}{
			{"the spec was changed", "service default/web has been changed", func() {
				other := web
				other.Labels = map[string]string{"by": "another"}
				mustApply(t, f, other)
			}, func() { mustApply(t, f, web) }},
			{"a node is not to get tasks", "planned was start on n2, now it would be start on n1", func() {
				if err := f.Cordon(t.Context(), "n2"); err != nil {
					t.Fatal(err)
				}
			}, func() {
				if err := f.Uncordon(t.Context(), "n2"); err != nil {
					t.Fatal(err)
				}
			}},
			{"the room was taken", "replica", func() {
				mustApply(t, f, sized("other", 13, 1<<30))
				mustEnd(t, f, "other", orchestrate.RolloutCompleted)
			}, func() {
				if err := f.Remove(t.Context(), "other"); err != nil {
					t.Fatal(err)
				}
				mustEnd(t, f, "other", orchestrate.RolloutRemoved)
			}},
		} {
			data, err := json.Marshal(mustPlan(t, f, next))
			if err != nil {
				t.Fatal(err)
			}
			var p orchestrate.Plan
			if err := json.Unmarshal(data, &p); err != nil {
				t.Fatal(err)
			}
			c.do()
			synctest.Wait()
			was := records(t, s, "/events/application/")
			err = f.ApplyPlan(t.Context(), &p)
			var stale *orchestrate.StalePlanError
			if !errors.As(err, &stale) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: error %v, want a StalePlanError that says %q", c.what, err, c.says)
			}
			if n := records(t, s, "/events/application/"); n != was {
				t.Errorf("%s: the stale plan changed something", c.what)
			}
			c.undo()
			mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		}

		// What does not matter to it does not make it stale.
		data, err := json.Marshal(mustPlan(t, f, next))
		if err != nil {
			t.Fatal(err)
		}
		small := service("small", 0)
		mustApply(t, f, small)
		mustEnd(t, f, "small", orchestrate.RolloutCompleted)
		if err := f.Remove(t.Context(), "small"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "small", orchestrate.RolloutRemoved)
		var p orchestrate.Plan
		if err := json.Unmarshal(data, &p); err != nil {
			t.Fatal(err)
		}
		if err := f.ApplyPlan(t.Context(), &p); err != nil {
			t.Errorf("a plan that still holds, read from JSON: %v", err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
	})
}

// A plan carries its inverse, which restores every spec, and undoes nothing that
// came later.
func TestPlanUndo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		web, old := sized("web", 2, 1<<20), service("old", 8000)
		mustApply(t, f, web, old)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		mustEnd(t, f, "old", orchestrate.RolloutCompleted)
		spec := func(name string) string {
			st, err := f.Get(t.Context(), name)
			if err != nil {
				return "none"
			}
			data, err := json.Marshal(st.Service)
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
		was := fmt.Sprint(spec("web"), spec("old"), spec("new"))

		changed := web
		changed.Replicas, changed.Containers = 3, []orchestrate.Container{{Image: "img:2"}}
		taker := service("new", 8000) // the port that old has
		taker.Networks = []string{"own"}
		p := mustPlan(t, f, changed, taker, orchestrate.Removal{Name: "old"}, orchestrate.Network{Name: "own"})
		if len(p.Changes) != 4 {
			t.Fatalf("the plan has %d changes, want 4\n%s", len(p.Changes), p)
		}
		if err := f.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		mustEnd(t, f, "new", orchestrate.RolloutCompleted)
		mustEnd(t, f, "old", orchestrate.RolloutRemoved)

		undo, err := f.PlanUndo(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.ApplyPlan(t.Context(), undo); err != nil {
			t.Fatal(err)
		}
		if is := fmt.Sprint(spec("web"), spec("old"), spec("new")); is != was {
			t.Errorf("after undoing it the specs are\n%s\nwant\n%s", is, was)
		}
		networks, err := f.Networks(t.Context())
		if err != nil || slices.ContainsFunc(networks, func(n orchestrate.Network) bool { return n.Name == "own" }) {
			t.Errorf("networks %v, %v; want that own is gone", networks, err)
		}

		// And what was undone can be undone, unless somebody came between.
		redo, err := f.PlanUndo(t.Context(), undo)
		if err != nil || len(redo.Changes) != 4 {
			t.Errorf("undoing that again: %v, %v", redo, err)
		}
		if err := f.Scale(t.Context(), "web", 5); err != nil {
			t.Fatal(err)
		}
		var stale *orchestrate.StalePlanError
		if _, err := f.PlanUndo(t.Context(), undo); !errors.As(err, &stale) || !strings.Contains(err.Error(), "service default/web") {
			t.Errorf("undoing what was scaled since: %v, want a StalePlanError about web", err)
		}
	})
}

func TestPlanRefusesWhatApplyRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		mustApply(t, f, service("taken", 80))
		for name, objects := range map[string][]orchestrate.Object{
			"a bad spec":      {service("Bad", 0)},
			"a port in use":   {service("late", 80)},
			"no such service": {orchestrate.Removal{Name: "nobody"}},
			"no such kind":    {orchestrate.Removal{Kind: "moon", Name: "x"}},
			"twice":           {service("a", 0), orchestrate.Removal{Name: "a"}},
		} {
			_, planned := f.Plan(t.Context(), objects...)
			applied := f.Apply(t.Context(), objects...)
			if planned == nil || applied == nil || planned.Error() != applied.Error() {
				t.Errorf("%s: Plan says %v, Apply %v; want one error", name, planned, applied)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.Plan(ctx, service("a", 0)); !errors.Is(err, context.Canceled) {
			t.Errorf("planning with a context that has ended: %v", err)
		}
	})
}
