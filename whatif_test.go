package orchestrate_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

func TestWhatIf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		mustApply(t, f, sized("web", 10, 1<<30)) // of 16 GiB
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		ask := func(what ...orchestrate.What) orchestrate.PlannedService {
			t.Helper()
			forecast, err := f.WhatIf(t.Context(), what...)
			if err != nil {
				t.Fatal(err)
			}
			if len(forecast.Services) != 1 {
				t.Fatalf("the forecast is about %d services, want web\n%s", len(forecast.Services), forecast)
			}
			return forecast.Services[0]
		}
		count := func(s orchestrate.PlannedService, a orchestrate.TaskAction) (n int) {
			for _, task := range s.Tasks {
				if task.Action == a {
					n++
				}
			}
			return n
		}
		if s := ask(orchestrate.NodesDie("n2")); count(s, orchestrate.TaskMoves) != 3 || s.Unplaced == nil || s.Unplaced.Unplaced != 2 || s.Asked {
			t.Errorf("when n2 dies: %+v, want 3 of its 5 tasks moved, and 2 without a place", s)
		}
		if s := ask(orchestrate.NodesDie("n2"), orchestrate.NodeJoins(scheduler.Node{ID: "n3", Capacity: scheduler.Resources{CPU: 8000, Memory: 8 << 30}})); count(s, orchestrate.TaskMoves) != 5 || s.Unplaced != nil {
			t.Errorf("when n2 dies and n3 joins: %+v, want 5 tasks moved", s)
		}
		if s := ask(orchestrate.LoadGrows(2)); count(s, orchestrate.TaskStarts) != 6 || s.Unplaced.Unplaced != 4 {
			t.Errorf("when the load doubles: %+v, want 6 more tasks, and 4 without a place", s)
		}
		if s := ask(orchestrate.LoadGrows(0.5, "web"), orchestrate.NodesDrain("n1")); s.Kept+count(s, orchestrate.TaskMoves) != 5 || s.Unplaced != nil {
			t.Errorf("with half the load and n1 drained: %+v, want 5 tasks on n2", s)
		}
		next := sized("web", 10, 1<<30)
		next.Containers[0].Image = "img:2"
		if s := ask(orchestrate.Applied(next)); count(s, orchestrate.TaskReplaced)+count(s, orchestrate.TaskMoves) != 10 || s.Outcome != orchestrate.RolloutCompleted || s.Revision != 2 {
			t.Errorf("with another image: %+v, want 10 tasks replaced", s)
		}
		for _, what := range []orchestrate.What{
			orchestrate.NodesDie("n9"), orchestrate.ZoneDies("zone", "eu"), orchestrate.NodesDrain("n9"), orchestrate.LoadGrows(2, "nobody"),
		} {
			if _, err := f.WhatIf(t.Context(), what); !errors.Is(err, orchestrate.ErrNotFound) {
				t.Errorf("supposing something of what does not exist: %v, want not found", err)
			}
		}
		if _, err := f.WhatIf(t.Context(), orchestrate.LoadGrows(-1)); !errors.Is(err, orchestrate.ErrInvalid) {
			t.Errorf("a negative load: %v, want invalid", err)
		}
		if n := placements(t, f, "web"); len(n) != 10 {
			t.Errorf("after all that was supposed there are %d tasks, want 10", len(n))
		}
	})
}
