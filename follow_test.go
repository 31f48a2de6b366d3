package orchestrate_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

func track(every time.Duration, windows ...orchestrate.Window) func(*orchestrate.Service) {
	return func(s *orchestrate.Service) { s.Track = orchestrate.TrackPolicy{Every: every, Windows: windows} }
}

// revision returns the number of the newest one and what made it.
func (w *world) revision() (int64, orchestrate.Origin) {
	w.t.Helper()
	revisions, err := w.History(w.t.Context(), "web")
	if err != nil {
		w.t.Fatal(err)
	}
	last := revisions[len(revisions)-1]
	return last.Number, last.Origin
}

func (w *world) isAt(what string, number int64, origin orchestrate.Origin) {
	w.t.Helper()
	if n, o := w.revision(); n != number || o != origin {
		w.t.Errorf("%s: revision %d, made by %q; want %d by %q", what, n, o, number, origin)
	}
}

func TestTrackedTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		one := w.push(appTag, "one", runtimememory.Program{})
		mustApply(t, w.Fleet, app(track(time.Minute)))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		time.Sleep(time.Hour)
		w.isAt("with a tag that does not move", 1, orchestrate.OriginApplied)
		w.runs("with a tag that does not move", 3, one)

		two := w.push(appTag, "two", runtimememory.Program{})
		time.Sleep(3 * time.Minute)
		w.isAt("after the tag moved", 2, orchestrate.OriginMoved)
		w.runs("after the tag moved", 3, two)

		// One that fails is rolled back, and not tried again.
		w.push(appTag, "bad", runtimememory.Exits(time.Second, 1))
		time.Sleep(time.Hour)
		w.isAt("after a bad image", 3, orchestrate.OriginMoved)
		w.runs("after a bad image", 3, two)
		st, err := w.Get(t.Context(), "web")
		if err != nil || st.Rollout.Outcome != orchestrate.RolloutFailed || st.Rollout.Rollback == nil {
			t.Errorf("the rollout of the bad image is %+v, %v; want it failed and rolled back", st.Rollout, err)
		}
		// The next is; and the bad one is not when the tag goes back to it.
		four := w.push(appTag, "four", runtimememory.Program{})
		time.Sleep(5 * time.Minute)
		w.isAt("after a good image", 4, orchestrate.OriginMoved)
		w.runs("after a good image", 3, four)
		w.push(appTag, "bad", runtimememory.Exits(time.Second, 1))
		time.Sleep(time.Hour)
		w.isAt("after the bad image again", 4, orchestrate.OriginMoved)
		w.runs("after the bad image again", 3, four)

		// Whoever goes back by hand is not overruled, until the tag moves on.
		w.push(appTag, "four", runtimememory.Program{})
		if err := w.Rollback(t.Context(), "web", 2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		w.isAt("after a rollback by hand", 5, orchestrate.OriginRollback)
		w.runs("after a rollback by hand", 3, two)
		five := w.push(appTag, "five", runtimememory.Program{})
		time.Sleep(3 * time.Minute)
		w.isAt("when the tag moved on", 6, orchestrate.OriginMoved)
		w.runs("when the tag moved on", 3, five)

		// No answer is no move.
		w.down(true)
		time.Sleep(time.Hour)
		w.isAt("while the registry is away", 6, orchestrate.OriginMoved)
		w.down(false)
		mustApply(t, w.Fleet, app())
		w.push(appTag, "six", runtimememory.Program{})
		time.Sleep(time.Hour)
		w.isAt("no longer tracked", 6, orchestrate.OriginMoved)
	})
}

// A tag that moves while a rollout goes on waits for its end.
func TestTrackedTagWaitsForTheRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.push(appTag, "one", runtimememory.Program{})
		slow := func(s *orchestrate.Service) { s.Update.Monitor, s.Update.ProgressDeadline = 5*time.Minute, time.Hour }
		mustApply(t, w.Fleet, app(track(time.Minute), slow))
		time.Sleep(time.Minute) // the rollout takes five
		w.push(appTag, "two", runtimememory.Program{})
		r := mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		if r.Revision != 1 {
			t.Errorf("the first rollout ended as of revision %d", r.Revision)
		}
		w.isAt("when the first rollout ends", 1, orchestrate.OriginApplied)
		time.Sleep(time.Hour)
		w.isAt("after it", 2, orchestrate.OriginMoved)
	})
}

func TestTrackedTagInItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight UTC, 2000-01-01, a Saturday
		w := newWorld(t, 1)
		w.push(appTag, "one", runtimememory.Program{})
		mustApply(t, w.Fleet, app(track(time.Minute, orchestrate.Window{Days: []string{"sun"}, Start: "03:00", Length: time.Hour})))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		asked := w.asked()
		w.push(appTag, "two", runtimememory.Program{})
		time.Sleep(26*time.Hour + 50*time.Minute)
		w.isAt("before the window", 1, orchestrate.OriginApplied)
		if w.asked() != asked {
			t.Errorf("the registry was asked %d times outside of the window", w.asked()-asked)
		}
		time.Sleep(time.Hour)
		w.isAt("in the window", 2, orchestrate.OriginMoved)
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		one := w.push(appTag, "one", runtimememory.Program{})
		if _, err := w.Refresh(t.Context(), "web"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("of no service: %v, want not found", err)
		}
		mustApply(t, w.Fleet, app())
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		if moves, err := w.Refresh(t.Context(), "web"); err != nil || moves != nil {
			t.Errorf("of a tag that is as it was: %v, %v; want nothing", moves, err)
		}
		two := w.push(appTag, "two", runtimememory.Program{})
		moves, err := w.Refresh(t.Context(), "web")
		if err != nil || len(moves) != 1 || moves[0] != (orchestrate.ImageMove{Ref: appTag, From: one, To: two}) {
			t.Errorf("of one that moved: %v, %v", moves, err)
		}
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("refreshed", 3, two)
		w.isAt("refreshed", 2, orchestrate.OriginMoved)
		w.down(true)
		if _, err := w.Refresh(t.Context(), "web"); !errors.Is(err, errDown) {
			t.Errorf("while the registry is away: %v, want why", err)
		}
		plain, err := orchestrate.New(w.store)
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		if _, err := plain.Refresh(t.Context(), "web"); !errors.Is(err, orchestrate.ErrNoResolver) {
			t.Errorf("without a resolver: %v, want ErrNoResolver", err)
		}
	})
}

var _ runtime.Resolver = (*world)(nil)
