package orchestrate_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

func oldFirst(s *orchestrate.Service) { s.Update.Order = orchestrate.StopFirst }

// With stop first, a service is away for as long as its stop and start take,
// however long the pull of its new image does.
func TestStopFirstPullsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		one := w.push(appTag, "one", runtimememory.Program{})
		alone := func(s *orchestrate.Service) { s.Replicas, s.Update.ProgressDeadline = 1, time.Hour }
		mustApply(t, w.Fleet, app(alone, oldFirst))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		const pull, start = 10 * time.Minute, 2 * time.Second
		two := w.push("reg.example/app:2", "two", runtimememory.Program{StartTime: start})
		for _, rt := range w.nodes {
			rt.SetImage("reg.example/app:2", runtimememory.Image{Config: runtime.Image{Digest: two}, PullTime: pull, Program: runtimememory.Program{StartTime: start}})
		}
		events, err := w.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		mustApply(t, w.Fleet, app(alone, oldFirst, func(s *orchestrate.Service) { s.Containers[0].Image = "reg.example/app:2" }))
		time.Sleep(pull - time.Second)
		w.runs("while the new image is pulled", 1, one)
		var stopped, ready time.Duration
		for e := range events {
			switch {
			case e.Kind == orchestrate.TaskStopping:
				stopped = time.Since(began)
			case e.Kind == orchestrate.TaskChanged && e.State == orchestrate.Ready && e.Revision == 2:
				ready = time.Since(began)
			}
			if ready != 0 {
				break
			}
		}
		if stopped < pull || ready-stopped > start+time.Second {
			t.Errorf("the old task stopped after %v and the new one was ready after %v; want no stop before %v and no more than %v between", stopped, ready, pull, start)
		}
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("after it", 1, two)
	})
}

// An image that a node cannot pull stops nothing.
func TestStopFirstWithoutTheImage(t *testing.T) {
	for name, tc := range map[string]struct {
		err    error
		reason orchestrate.Reason
	}{
		"that is not there":        {runtime.ErrImageNotFound, orchestrate.ReasonFailures},
		"that does not come":       {errDown, orchestrate.ReasonDeadline},
		"that it has no right to":  {runtime.ErrUnauthorized, orchestrate.ReasonFailures},
		"of which it is no reader": {runtime.ErrPlatform, orchestrate.ReasonFailures},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				one := w.push(appTag, "one", runtimememory.Program{})
				mustApply(t, w.Fleet, app(oldFirst))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				before := w.containers()
				two := w.push("reg.example/app:2", "two", runtimememory.Program{})
				for _, rt := range w.nodes {
					rt.SetImage("reg.example/app:2", runtimememory.Image{Config: runtime.Image{Digest: two}, PullErr: tc.err})
				}
				mustApply(t, w.Fleet, app(oldFirst, func(s *orchestrate.Service) { s.Containers[0].Image = "reg.example/app:2" }))
				r := mustEnd(t, w.Fleet, "web", orchestrate.RolloutFailed)
				if r.Reason != tc.reason || r.Failure == nil || r.Failure.Kind != orchestrate.FailedImage {
					t.Errorf("got %+v; want %s for a failure of kind image", r, tc.reason)
				}
				if r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted {
					t.Errorf("the rollback is %+v, want it completed", r.Rollback)
				}
				w.runs("after the failure", 3, one)
				if after := w.containers(); !slices.Equal(after, before) {
					t.Errorf("the containers were %q and are %q: want none stopped", before, after)
				}
			})
		})
	}
}

// containers are the IDs of all that run.
func (w *world) containers() (ids []string) {
	w.t.Helper()
	for _, rt := range w.nodes {
		list, err := rt.List(w.t.Context(), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, c := range list {
			if c.State == runtime.Running {
				ids = append(ids, c.ID)
			}
		}
	}
	return ids
}
