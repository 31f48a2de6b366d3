package orchestrate_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

func limits(cpu, memory int64) func(*orchestrate.Service) {
	return func(s *orchestrate.Service) {
		s.Containers[0].Resources = orchestrate.Resources{CPULimit: cpu, MemoryLimit: memory * orchestrate.MiB}
	}
}

// limitsOf is the memory limit of each running container, in MiB.
func (w *world) limitsOf() (all []int64) {
	for i, rt := range w.nodes {
		for _, id := range w.containersOf(i) {
			all = append(all, rt.Resources(id).Memory/orchestrate.MiB)
		}
	}
	return all
}

func (w *world) containersOf(node int) (ids []string) {
	w.t.Helper()
	list, err := w.nodes[node].List(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range list {
		if c.State == runtime.Running {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// Other resources restart nothing.
func TestResourcesChangeInPlace(t *testing.T) {
	for _, order := range []orchestrate.UpdateOrder{orchestrate.StartFirst, orchestrate.StopFirst} {
		t.Run(string(order), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				w.push(appTag, "one", runtimememory.Program{Uses: 40 << 20})
				ordered := func(s *orchestrate.Service) { s.Update.Order = order }
				mustApply(t, w.Fleet, app(ordered, limits(100, 64)))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				before := w.containers()
				changed := func(what string, revision int64, memory int64) {
					t.Helper()
					if after := w.containers(); !slices.Equal(after, before) {
						t.Errorf("%s: the containers were %q and are %q: want none restarted", what, before, after)
					}
					if got, want := w.limitsOf(), slices.Repeat([]int64{memory}, 3); !slices.Equal(got, want) {
						t.Errorf("%s: the limits are %v, want %v", what, got, want)
					}
					tasks, err := w.Tasks(t.Context(), "web")
					if err != nil || len(tasks) != 3 || tasks[0].Revision != revision {
						t.Errorf("%s: the tasks are %+v, %v; want three of revision %d", what, tasks, err, revision)
					}
				}
				mustApply(t, w.Fleet, app(ordered, limits(200, 96)))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				changed("raised", 2, 96)
				mustApply(t, w.Fleet, app(ordered, limits(100, 48)))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				changed("lowered", 3, 48)
				if err := w.Rollback(t.Context(), "web", 2); err != nil {
					t.Fatal(err)
				}
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				changed("rolled back", 4, 96)

				// A restart has the new ones.
				w.nodes[0].Crash(w.containersOf(0)[0], 1)
				time.Sleep(10 * time.Second)
				if got, want := w.limitsOf(), slices.Repeat([]int64{96}, 3); !slices.Equal(got, want) {
					t.Errorf("after a restart the limits are %v, want %v", got, want)
				}
				// Anything else replaces them.
				mustApply(t, w.Fleet, app(ordered, limits(100, 64), env("x")))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				if after := w.containers(); len(after) != 3 || slices.ContainsFunc(after, func(id string) bool { return slices.Contains(before, id) }) {
					t.Errorf("another environment left containers of %q: %q", before, after)
				}
			})
		})
	}
}

// A limit in which a process cannot live fails the rollout at the first, and the
// old one is brought back in place.
func TestResourcesThatKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.push(appTag, "one", runtimememory.Program{Uses: 40 << 20})
		mustApply(t, w.Fleet, app(limits(100, 64)))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		before := w.containers()
		mustApply(t, w.Fleet, app(limits(100, 32)))
		r := mustEnd(t, w.Fleet, "web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonFailures || r.Failure == nil || r.Failure.Kind != orchestrate.FailedOOM || !strings.Contains(r.Message, "revision 2") {
			t.Errorf("got %+v; want it failed for want of memory, with the revision", r)
		}
		if r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted {
			t.Errorf("the rollback is %+v, want it completed", r.Rollback)
		}
		if got, want := w.limitsOf(), slices.Repeat([]int64{64}, 3); !slices.Equal(got, want) {
			t.Errorf("after the rollback the limits are %v, want %v", got, want)
		}
		same := 0
		for _, id := range w.containers() {
			if slices.Contains(before, id) {
				same++
			}
		}
		if same < 1 {
			t.Errorf("of %q none runs on: %q; want only those killed that had their turn", before, w.containers())
		}
	})
}

// What a node refuses to change, or has no room for, is replaced.
func TestResourcesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		fault  error
		memory int64
	}{
		"by the kernel":     {&runtime.ResourceError{ID: "x", Reason: "more is in use"}, 48},
		"for want of room":  {nil, 5000},
		"once, by accident": {errors.New("the shim is busy"), 48},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				w.push(appTag, "one", runtimememory.Program{})
				one := func(s *orchestrate.Service) { s.Replicas = 1 }
				filler := app(one)
				filler.Name = "filler"
				filler.Containers[0].Resources = orchestrate.Resources{Memory: 4500 * orchestrate.MiB}
				mustApply(t, w.Fleet, filler)
				mustEnd(t, w.Fleet, "filler", orchestrate.RolloutCompleted)
				near := func(s *orchestrate.Service) { s.Placement.Strategy = "binpack" }
				mustApply(t, w.Fleet, app(one, near, limits(100, 64)))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				before := w.images("web")
				ids := w.containers()
				failed := 0
				for _, rt := range w.nodes {
					rt.SetFault(func(op runtimememory.Op) error {
						if op.Method != "Update" || op.Done || tc.fault == nil {
							return nil
						}
						failed++
						if _, refused := tc.fault.(*runtime.ResourceError); !refused && failed > 2 {
							return nil
						}
						return tc.fault
					})
				}
				mustApply(t, w.Fleet, app(one, near, limits(100, tc.memory)))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				kept := slices.Equal(ids, w.containers())
				if want := strings.HasPrefix(name, "once"); kept != want {
					t.Errorf("the containers were %q and are %q; want them kept: %v", ids, w.containers(), want)
				}
				if !slices.Equal(before, w.images("web")) || !strings.Contains(fmt.Sprint(w.limitsOf()), fmt.Sprint(tc.memory)) {
					t.Errorf("the limits are %v, want %d among them", w.limitsOf(), tc.memory)
				}
			})
		})
	}
}
