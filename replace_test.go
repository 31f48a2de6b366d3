package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

// images is what the running containers of a service run, each once.
func (w *world) images(name string) []string {
	w.t.Helper()
	var refs []string
	for _, rt := range w.nodes {
		list, err := rt.List(w.t.Context(), map[string]string{runtime.LabelService: name})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, c := range list {
			if c.State == runtime.Running && !slices.Contains(refs, c.Image) {
				refs = append(refs, c.Image)
			}
		}
	}
	slices.Sort(refs)
	return refs
}

func TestReplaceImage(t *testing.T) {
	const sidecar = "reg.example/proxy:1"
	one, proxy := contentDigest("one"), contentDigest("proxy")
	fixed := contentDigest("fixed")
	for name, tc := range map[string]struct {
		from, to string
		// what a, b and c run after it
		a, b, c string
		changes string // NAME FROM TO of the revisions
	}{
		"by a tag": {
			"reg.example/app:1", "reg.example/app:2",
			"reg.example/app:2@" + fixed, "reg.example/app:2@" + fixed, "reg.example/other:1@" + one, "default/a 1 2 default/b 1 2",
		},
		"by a digest, whatever it is called": {
			one, fixed,
			"reg.example/app:1@" + fixed, "reg.example/app:1@" + fixed, "reg.example/other:1@" + fixed, "default/a 1 2 default/b 1 2 default/c 1 2",
		},
		"by a digest of a name": {
			"reg.example/app@" + one, fixed,
			"reg.example/app:1@" + fixed, "reg.example/app:1@" + fixed, "reg.example/other:1@" + one, "default/a 1 2 default/b 1 2",
		},
		"by what nobody runs": {
			fixed, one, "reg.example/app:1@" + one, "reg.example/app:1@" + one, "reg.example/other:1@" + one, "",
		},
		"by what they run already": {
			one, one, "reg.example/app:1@" + one, "reg.example/app:1@" + one, "reg.example/other:1@" + one, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				w.push("reg.example/app:1", "one", runtimememory.Program{})
				w.push("reg.example/other:1", "one", runtimememory.Program{})
				w.push("reg.example/app:2", "fixed", runtimememory.Program{})
				w.push(sidecar, "proxy", runtimememory.Program{})
				of := func(name, image string) orchestrate.Service {
					s := app()
					s.Name, s.Replicas, s.Containers[0].Image = name, 1, image
					s.Sidecars = []orchestrate.Container{{Image: sidecar, Pull: runtime.PullAlways}}
					return s
				}
				mustApply(t, w.Fleet, of("a", "reg.example/app:1"), of("b", "reg.example/app:1@"+one), of("c", "reg.example/other:1"))
				for _, name := range []string{"a", "b", "c"} {
					mustEnd(t, w.Fleet, name, orchestrate.RolloutCompleted)
				}
				w.push(sidecar, "proxy2", runtimememory.Program{}) // which is none of its business

				plan, err := w.PlanReplaceImage(t.Context(), tc.from, tc.to)
				if err != nil {
					t.Fatal(err)
				}
				changes := func(cs []orchestrate.PlannedChange) (text string) {
					for i, c := range cs {
						if i > 0 {
							text += " "
						}
						text += fmt.Sprint(c.Name, " ", c.From, " ", c.To)
						if c.Origin != orchestrate.OriginReplaced || len(c.Diff) != 1 {
							t.Errorf("the plan for %s is made by %q and changes %v; want one change of an image", c.Name, c.Origin, c.Diff)
						}
					}
					return text
				}
				if got := changes(plan.Changes); got != tc.changes {
					t.Errorf("the plan changes %q, want %q", got, tc.changes)
				}
				if got := w.images("a"); !slices.Contains(got, "reg.example/app:1@"+one) {
					t.Errorf("the plan alone has changed what runs: %q", got)
				}
				done, err := w.ReplaceImage(t.Context(), tc.from, tc.to, orchestrate.ReplaceOptions{})
				if err != nil || changes(done.Changes) != tc.changes {
					t.Errorf("it changed %q, %v; want %q", changes(done.Changes), err, tc.changes)
				}
				for name, want := range map[string]string{"a": tc.a, "b": tc.b, "c": tc.c} {
					mustEnd(t, w.Fleet, name, orchestrate.RolloutCompleted)
					if got, want := w.images(name), []string{want, sidecar + "@" + proxy}; !slices.Equal(got, want) {
						t.Errorf("%s runs %q, want %q", name, got, want)
					}
				}
				// It can be undone, digests and all.
				if err := w.ApplyPlan(t.Context(), plan); tc.changes != "" && err == nil {
					t.Error("a plan that was carried out otherwise could be applied")
				}
				if tc.changes == "" {
					return
				}
				undo, err := w.PlanUndo(t.Context(), plan)
				if err != nil {
					t.Fatal(err)
				}
				if err := w.ApplyPlan(t.Context(), undo); err != nil {
					t.Fatal(err)
				}
				for name, want := range map[string]string{"a": "reg.example/app:1@" + one, "b": "reg.example/app:1@" + one, "c": "reg.example/other:1@" + one} {
					mustEnd(t, w.Fleet, name, orchestrate.RolloutCompleted)
					if got, want := w.images(name), []string{want, sidecar + "@" + proxy}; !slices.Equal(got, want) {
						t.Errorf("undone, %s runs %q, want %q", name, got, want)
					}
				}
			})
		})
	}
}

// A plan runs what its images meant when it was made.
func TestPlanKeepsDigests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		one := w.push(appTag, "one", runtimememory.Program{})
		synctest.Wait() // the node has joined
		plan, err := w.Plan(t.Context(), app(pull(runtime.PullAlways)))
		if err != nil {
			t.Fatal(err)
		}
		w.push(appTag, "two", runtimememory.Program{})
		if err := w.ApplyPlan(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("a plan from before the tag moved", 3, one)
	})
}

func TestReplaceImageRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.push(appTag, "one", runtimememory.Program{})
		mustApply(t, w.Fleet, app())
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		for _, names := range [][2]string{{"", appTag}, {appTag, ""}, {"https://x", appTag}, {appTag, "App:1"}, {appTag, "sha256:12"}} {
			if _, err := w.PlanReplaceImage(t.Context(), names[0], names[1]); !errors.Is(err, orchestrate.ErrInvalid) {
				t.Errorf("from %q to %q: %v, want ErrInvalid", names[0], names[1], err)
			}
		}
		if _, err := w.PlanReplaceImage(t.Context(), appTag, "reg.example/none:1"); !errors.Is(err, runtime.ErrImageNotFound) {
			t.Errorf("to an image that does not exist: %v, want ErrImageNotFound", err)
		}
		w.down(true)
		if _, err := w.PlanReplaceImage(t.Context(), appTag, "reg.example/app:2"); !errors.Is(err, errDown) {
			t.Errorf("while the registry is away: %v, want why", err)
		}
		if _, err := w.ReplaceImage(t.Context(), appTag, "reg.example/app:2", orchestrate.ReplaceOptions{AtOnce: -1}); !errors.Is(err, orchestrate.ErrInvalid) {
			t.Errorf("a negative number at once: %v, want ErrInvalid", err)
		}
	})
}

// A few at a time, and no further than the first that fails.
func TestReplaceImageAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.push(appTag, "one", runtimememory.Program{})
		two := w.push("reg.example/app:2", "two", runtimememory.Program{})
		var names []string
		for i := range 5 {
			s := app()
			s.Name, s.Replicas = fmt.Sprintf("s%d", i), 1
			if i == 2 { // the new image is not for it
				s.Containers[0].Env = map[string]string{"SICK": "1"}
			}
			names = append(names, s.Name)
			mustApply(t, w.Fleet, s)
		}
		for _, name := range names {
			mustEnd(t, w.Fleet, name, orchestrate.RolloutCompleted)
		}
		for _, rt := range w.nodes {
			rt.SetImage("reg.example/app:2", runtimememory.Image{Config: runtime.Image{Digest: two}, Program: runtimememory.Program{Run: func(ctx context.Context, p *runtimememory.Process) int {
				if slices.Contains(p.Env, "SICK=1") {
					return 1
				}
				select {
				case <-p.Signals:
				case <-ctx.Done():
				}
				return 0
			}}})
		}
		began := time.Now()
		changed, err := w.ReplaceImage(t.Context(), appTag, "reg.example/app:2", orchestrate.ReplaceOptions{AtOnce: 2})
		var halted *orchestrate.HaltedError
		if !errors.As(err, &halted) || len(halted.Results) != 1 || halted.Results[0].Service != "default/s2" || !slices.Equal(halted.Left, []string{"default/s4"}) {
			t.Fatalf("got %v; want it halted by s2, with s4 left", err)
		}
		if len(changed.Changes) != 4 || time.Since(began) < 2*time.Second {
			t.Errorf("it changed %d services in %v; want four, each pair after the other's monitor time", len(changed.Changes), time.Since(began))
		}
		for name, want := range map[string]string{"s0": "2", "s1": "2", "s2": "1", "s3": "2", "s4": "1"} {
			got := w.images(name)
			if len(got) != 1 || got[0][:len("reg.example/app:2")] != "reg.example/app:"+want {
				t.Errorf("%s runs %q, want tag %s", name, got, want)
			}
		}
		changed, err = w.ReplaceImage(t.Context(), appTag, "reg.example/app:2", orchestrate.ReplaceOptions{AtOnce: 2})
		if err != nil || len(changed.Changes) != 1 || changed.Changes[0].Name != "default/s4" {
			t.Errorf("called again it changed %v, %v; want s4", changed, err)
		}
	})
}
