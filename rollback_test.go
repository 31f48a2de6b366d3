package orchestrate_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
)

// stopFirst is web with one task that must go before another comes, so that a
// failed update leaves none.
func stopFirst(image string) orchestrate.Service {
	s := service("web", 0)
	s.Containers[0].Image = "img:" + image
	s.Update.Order = orchestrate.StopFirst
	return s
}

func TestWaitTellsOfTheRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		rt.SetImage("img:missing", runtimememory.Image{Program: runtimememory.Program{StartErr: runtimememory.ErrCommandNotFound, StartErrPermanent: true}}) // pulled before anything stops, and then of no use

		// There is nothing to go back to.
		mustApply(t, f, stopFirst("missing"))
		if r := mustEnd(t, f, "web", orchestrate.RolloutFailed); r.Rollback != nil {
			t.Errorf("%v; want no rollback of the first revision", r)
		}
		mustApply(t, f, stopFirst("good"))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)

		// A rollback that completes does not make the rollout a success.
		mustApply(t, f, stopFirst("missing"))
		r := mustEnd(t, f, "web", orchestrate.RolloutFailed)
		if b := r.Rollback; b == nil || b.Outcome != orchestrate.RolloutCompleted || b.Revision != 2 || b.Ended.Before(r.Ended) {
			t.Fatalf("%v; want that revision 2 was rolled back to after that", r)
		}
		var failed *orchestrate.RolloutError
		if !errors.As(r.Err(), &failed) || r.Revision != 3 || r.Failure == nil || r.Failure.Kind != orchestrate.FailedStart {
			t.Errorf("%v with error %v and failure %+v; want that revision 3 failed for its command", r, r.Err(), r.Failure)
		}
		if !strings.HasSuffix(r.String(), "; rollback to revision 2: completed") {
			t.Errorf("the result reads %q, want that it ends with the rollback", r)
		}
		if r.Ready != 1 || r.Updated != 0 {
			t.Errorf("%d ready, %d updated, want 1 of the old revision", r.Ready, r.Updated)
		}
		tasks, err := f.Tasks(t.Context(), "web")
		if err != nil || len(tasks) != 1 || tasks[0].Revision != 2 || tasks[0].State != orchestrate.Ready {
			t.Errorf("tasks %+v, %v; want one of revision 2 that is ready", tasks, err)
		}
		st, err := f.Get(t.Context(), "web")
		if err != nil || st.Revision != 3 || st.Rollout.Rollback == nil || st.Rollout.Rollback.Outcome != orchestrate.RolloutCompleted {
			t.Errorf("status %+v, %v; want the spec's revision 3, and the rollback", st, err)
		}

		// One that fails is the end of it.
		rt.SetImage("img:good", runtimememory.Image{PullErr: runtime.ErrImageNotFound})
		mustApply(t, f, stopFirst("missing"))
		r = mustEnd(t, f, "web", orchestrate.RolloutFailed)
		if b := r.Rollback; b == nil || b.Outcome != orchestrate.RolloutFailed || b.Reason != orchestrate.ReasonFailures ||
			b.Failure == nil || b.Failure.Kind != orchestrate.FailedImage {
			t.Errorf("%v; want that the rollback failed for its image too", r)
		}
		time.Sleep(time.Hour)
		if tasks, err := f.Tasks(t.Context(), "web"); err != nil || len(tasks) != 0 {
			t.Errorf("tasks %+v, %v; want that nothing more is tried", tasks, err)
		}
		if again := mustEnd(t, f, "web", orchestrate.RolloutFailed); again.String() != r.String() {
			t.Errorf("an hour later the result is %v, want still %v", again, r)
		}
	})
}

func TestRollbackIsSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		mustApply(t, f, stopFirst("good"))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		rt.SetImage("img:missing", runtimememory.Image{Program: runtimememory.Program{StartErr: runtimememory.ErrCommandNotFound, StartErrPermanent: true}}) // pulled before anything stops, and then of no use
		rt.SetImage("img:good", runtimememory.Image{PullTime: time.Hour})                                                                                    // as after a clean-up of the node
		mustApply(t, f, stopFirst("missing"))
		results := make(chan orchestrate.Result, 1)
		go func() {
			r, err := f.Wait(t.Context(), "web")
			if err != nil {
				t.Error(err)
			}
			results <- r
		}()
		time.Sleep(time.Minute)
		select {
		case r := <-results:
			t.Fatalf("%v; want that Wait returns with the end of the rollback", r)
		default:
		}
		mustApply(t, f, stopFirst("better"))
		if r := <-results; r.Outcome != orchestrate.RolloutFailed || r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutSuperseded {
			t.Errorf("%v; want a failed rollout, whose rollback was superseded", r)
		}
		if r := mustEnd(t, f, "web", orchestrate.RolloutCompleted); r.Rollback != nil || r.Revision != 3 {
			t.Errorf("%v; want revision 3, and no word of a rollback", r)
		}
		if tasks, err := f.Tasks(t.Context(), "web"); err != nil || len(tasks) != 1 || tasks[0].Revision != 3 {
			t.Errorf("tasks %+v, %v; want one of revision 3: nothing of the others is left", tasks, err)
		}
	})
}

func TestPauseAndContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		rt.SetImage("img:missing", runtimememory.Image{Program: runtimememory.Program{StartErr: runtimememory.ErrCommandNotFound, StartErrPermanent: true}}) // pulled before anything stops, and then of no use
		for action, reason := range map[orchestrate.FailureAction]orchestrate.Reason{
			orchestrate.Pause: orchestrate.ReasonFailures, orchestrate.Continue: orchestrate.ReasonDeadline,
		} {
			good := stopFirst("good")
			good.Name = string(action)
			good.Update.OnFailure = action
			mustApply(t, f, good)
			mustEnd(t, f, good.Name, orchestrate.RolloutCompleted)
			bad := good
			bad.Containers = []orchestrate.Container{{Image: "img:missing"}}
			mustApply(t, f, bad)
			if r := mustEnd(t, f, good.Name, orchestrate.RolloutFailed); r.Reason != reason || r.Rollback != nil {
				t.Errorf("with %s: %v; want %s, and no rollback", action, r, reason)
			}
		}
	})
}

// slowReader lets somebody else be faster: once a key has been read, before the
// reader goes on.
type slowReader struct {
	store.Store
	key     string
	between func()
}

func (s *slowReader) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	snapshot, err := s.Store.List(ctx, prefix)
	if between := s.between; prefix == s.key && between != nil {
		s.between = nil
		between()
	}
	return snapshot, err
}

// What a Scale or a Rollback changes is the spec as it is when they are stored,
// not as it was when they read it.
func TestChangesOfOneSpecAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		for name, change := range map[string]func(*orchestrate.Fleet) error{
			"scale":    func(f *orchestrate.Fleet) error { return f.Scale(t.Context(), "web", 3) },
			"rollback": func(f *orchestrate.Fleet) error { return f.Rollback(t.Context(), "web", 1) },
		} {
			mustApply(t, f, image("a"))
			mustEnd(t, f, "web", orchestrate.RolloutCompleted)
			late, err := orchestrate.New(&slowReader{Store: s, key: "/services/default/web", between: func() {
				other := image("b")
				other.Labels = map[string]string{"by": "another"}
				mustApply(t, f, other)
			}})
			if err != nil {
				t.Fatal(err)
			}
			if err := change(late); err != nil {
				t.Fatal(err)
			}
			late.Close()
			st, err := f.Get(t.Context(), "web")
			if err != nil || st.Labels["by"] != "another" {
				t.Errorf("after a %s that was slower than an Apply the labels are %v, %v; want those of the Apply", name, st.Labels, err)
			}
			if name == "scale" && (st.Containers[0].Image != "img:b" || st.Replicas != 3) {
				t.Errorf("%d replicas of %s, want 3 of img:b", st.Replicas, st.Containers[0].Image)
			}
			if err := f.Remove(t.Context(), "web"); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		}
	})
}
