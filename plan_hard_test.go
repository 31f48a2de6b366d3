package orchestrate_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/volume"
)

// throughAFile is what becomes of a plan that is approved elsewhere.
func throughAFile(t *testing.T, p *orchestrate.Plan) *orchestrate.Plan {
	t.Helper()
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var kept orchestrate.Plan
	if err := json.Unmarshal(data, &kept); err != nil {
		t.Fatal(err)
	}
	return &kept
}

func mustApplyPlan(t *testing.T, f *orchestrate.Fleet, p *orchestrate.Plan) {
	t.Helper()
	if err := f.ApplyPlan(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

func mustUndo(t *testing.T, f *orchestrate.Fleet, p *orchestrate.Plan) *orchestrate.Plan {
	t.Helper()
	undo, err := f.PlanUndo(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return undo
}

// everySpec is what was applied, of each kind.
func everySpec(t *testing.T, s store.Store) string {
	t.Helper()
	var b strings.Builder
	for _, prefix := range []string{record.Services, record.Jobs, record.Crons, record.Networks} {
		snapshot, err := s.List(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range snapshot.Items {
			var rec struct{ Spec, Name json.RawMessage }
			if err := json.Unmarshal(item.Value, &rec); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %s %s\n", item.Key, rec.Spec, rec.Name)
		}
	}
	return b.String()
}

// A plan of every kind of object at once, with the network and the volumes that
// they are attached to, is one change, and so is its inverse.
func TestPlanOfEveryKindAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := openCrons(t)
		synctest.Wait()
		work(rt, time.Second, ok)
		old, going := sized("old", 2, 1<<20), aJob("going", 2, 1)
		oldCron := aCron("nightly", "0 2 * * *")
		mustApply(t, f, old, going, oldCron)
		mustEnd(t, f, "old", orchestrate.RolloutCompleted)
		mustEndJob(t, f, "going", orchestrate.JobCompleted)
		was := everySpec(t, s)

		web := sized("web", 2, 1<<20)
		web.Networks = []string{"front"}
		web.Volumes = []volume.Volume{{Name: "content"}}
		web.Containers[0].Mounts = []orchestrate.Mount{{Target: "/content", Volume: "content"}}
		web.Containers[0].Env = map[string]string{"LEVEL": "debug"}
		logs := sized("logs", 0, 1<<20)
		logs.Mode = orchestrate.Global
		cron := aCron("nightly", "0 4 * * *")
		cron.Job.Networks = []string{"front"}
		p := throughAFile(t, mustPlan(t, f, orchestrate.Network{Name: "front"}, web, logs, aJob("once", 3, 1), cron,
			orchestrate.Removal{Name: "old"}, orchestrate.Removal{Name: "going"}))
		if len(p.Changes) != 7 || p.Open {
			t.Fatalf("planned are %d changes, want 7\n%s", len(p.Changes), p)
		}
		for name, want := range map[string]orchestrate.TaskAction{"web": orchestrate.TaskStarts, "logs": orchestrate.TaskStarts, "once": orchestrate.TaskStarts, "old": orchestrate.TaskStops} {
			if got := actions(p, name); got[want] == 0 || len(got) != 1 {
				t.Errorf("of %s planned is %v, want that it is to %s", name, got, want)
			}
		}
		mustApplyPlan(t, f, p)
		for _, name := range []string{"web", "logs"} {
			mustEnd(t, f, name, orchestrate.RolloutCompleted)
		}
		mustEndJob(t, f, "once", orchestrate.JobCompleted)
		mustEnd(t, f, "old", orchestrate.RolloutRemoved)

		// Once more it would not do what it says.
		var stale *orchestrate.StalePlanError
		if err := f.ApplyPlan(t.Context(), p); !errors.As(err, &stale) {
			t.Errorf("applied twice: %v, want that it is stale", err)
		}
		undo := throughAFile(t, mustUndo(t, f, p))
		mustApplyPlan(t, f, undo)
		mustEnd(t, f, "old", orchestrate.RolloutCompleted)
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		mustEndJob(t, f, "going", orchestrate.JobCompleted) // begun anew
		if is := everySpec(t, s); is != was {
			t.Errorf("undone the specs are\n%swant\n%s", is, was)
		}
		// And redone, for whoever undid the wrong one.
		mustApplyPlan(t, f, throughAFile(t, mustUndo(t, f, undo)))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		mustEnd(t, f, "old", orchestrate.RolloutRemoved)
	})
}

// A rollout can be undone in its middle, and after its end; a removal also while
// tasks of it stop.
func TestPlanUndoneInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		web := sized("web", 4, 1<<20)
		web.Update.Parallelism = "1"
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		was := everySpec(t, s)
		next := web
		next.Containers = []orchestrate.Container{{Image: "img:2", Resources: web.Containers[0].Resources}}
		p := mustPlan(t, f, next)
		mustApplyPlan(t, f, p)
		time.Sleep(1500 * time.Millisecond)
		count := func(new bool) (n int) {
			tasks, err := f.Tasks(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			for _, task := range tasks {
				if task.Stopping == "" && (task.Revision == 2) == new {
					n++
				}
			}
			return n
		}
		if old, new := count(false), count(true); old == 0 || new == 0 {
			t.Fatalf("%d old tasks and %d new ones, want some of each", old, new)
		}
		kept := count(false)
		undo := throughAFile(t, mustUndo(t, f, p))
		if s := plannedOf(t, undo, "web"); s.Kept < kept-1 || s.Outcome != orchestrate.RolloutCompleted || s.Revision != 3 {
			t.Errorf("undone in the middle is\n%swant that the %d old tasks stay", undo, kept)
		}
		mustApplyPlan(t, f, undo)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		if n := count(false); n != 4 || everySpec(t, s) != was {
			t.Errorf("undone there are %d old tasks, and the specs\n%swant 4 and\n%s", n, everySpec(t, s), was)
		}

		p = mustPlan(t, f, orchestrate.Removal{Name: "web"})
		mustApplyPlan(t, f, p)
		synctest.Wait() // until they are told to stop
		mustApplyPlan(t, f, mustUndo(t, f, p))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		if n := count(false); n != 4 || everySpec(t, s) != was {
			t.Errorf("its removal undone there are %d tasks, and the specs\n%swant 4 and\n%s", n, everySpec(t, s), was)
		}
	})
}

// What happens between a plan and its approval makes it stale where that matters
// to it, and the plan says what it is.
func TestPlansGoStaleWithTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		mustApply(t, f, sized("web", 2, 1<<30))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		wider := sized("web", 4, 1<<30)
		stale := func(p *orchestrate.Plan, says string) {
			t.Helper()
			var e *orchestrate.StalePlanError
			if err := f.ApplyPlan(t.Context(), p); !errors.As(err, &e) || !strings.Contains(err.Error(), says) {
				t.Errorf("error %v, want a StalePlanError that says %q", err, says)
			}
		}

		// A node that is to get a task is lost, at that very moment.
		p := mustPlan(t, f, wider)
		alive, _, err := store.Get(t.Context(), s, record.Alive+"n2")
		if err != nil {
			t.Fatal(err)
		}
		commit := func(w store.Write) {
			t.Helper()
			if _, err := s.Commit(t.Context(), store.Txn{Writes: []store.Write{w}}); err != nil {
				t.Fatal(err)
			}
		}
		commit(store.Delete(record.Alive + "n2"))
		stale(p, "planned was start on n2, now it would be")
		commit(store.Put(record.Alive+"n2", alive.Value))

		// Another applies what is planned, or removes it.
		p = mustPlan(t, f, wider)
		mustApply(t, f, wider)
		stale(p, "service default/web has been changed")
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		p = mustPlan(t, f, sized("web", 3, 1<<30))
		if err := f.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		stale(p, "service default/web is gone")
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)

		// Its network goes, or another takes the port.
		mustApply(t, f, orchestrate.Network{Name: "front"})
		attached := service("attached", 8080)
		attached.Networks = []string{"front"}
		p = mustPlan(t, f, attached)
		if err := f.RemoveNetwork(t.Context(), "front"); err != nil {
			t.Fatal(err)
		}
		stale(p, "the networks have been changed")
		mustApply(t, f, orchestrate.Network{Name: "front"})
		p = mustPlan(t, f, attached)
		mustApply(t, f, service("first", 8080))
		stale(p, "the published ports of other services have been changed")

		// What was removed meanwhile cannot be removed, nor its change undone.
		mustApply(t, f, sized("web", 1, 1<<20))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		p = mustPlan(t, f, sized("web", 2, 1<<20))
		mustApplyPlan(t, f, p)
		removal := mustPlan(t, f, orchestrate.Removal{Name: "web"})
		if err := f.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		stale(removal, "service default/web is gone")
		var e *orchestrate.StalePlanError
		if _, err := f.PlanUndo(t.Context(), p); !errors.As(err, &e) {
			t.Errorf("undoing the change of what is gone: %v, want that it is stale", err)
		}
	})
}

// A plan says which data it deletes, and one of what was promoted by a call is a
// plan like another.
func TestPlanOfWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		synctest.Wait()
		db := sized("db", 3, 1<<20)
		db.Stateful = &orchestrate.Stateful{WhenScaled: orchestrate.DeleteVolumes, WhenRemoved: orchestrate.DeleteVolumes}
		db.SlotVolumes = []volume.Volume{{Name: "data"}}
		db.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "data"}}
		mustApply(t, f, db)
		mustEnd(t, f, "db", orchestrate.RolloutCompleted)
		fewer := db
		fewer.Replicas = 1
		p := mustPlan(t, f, fewer)
		want := []string{"n1/default.db-1.data", "n1/default.db-2.data"}
		if s := plannedOf(t, p, "db"); !slices.Equal(s.Erases, want) || s.Outcome != orchestrate.RolloutCompleted || p.Open {
			t.Errorf("planned is\n%swant that the volumes %v are deleted", p, want)
		}
		if !strings.Contains(p.String(), "the volume n1/default.db-1.data is DELETED with its data") {
			t.Errorf("the plan does not say what it deletes:\n%s", p)
		}
		gone := mustPlan(t, f, orchestrate.Removal{Name: "db"})
		if s := plannedOf(t, gone, "db"); len(s.Erases) != 3 || s.Outcome != orchestrate.RolloutRemoved || gone.Open {
			t.Errorf("its removal is\n%swant that 3 volumes are deleted", gone)
		}
		mustApplyPlan(t, f, p)
		mustEnd(t, f, "db", orchestrate.RolloutCompleted)
		if n := records(t, s, "/volumes/"); n != 1 {
			t.Errorf("%d volumes are left, planned was 1", n)
		}
		kept := fewer
		kept.Stateful = &orchestrate.Stateful{}
		mustApply(t, f, kept)
		mustEnd(t, f, "db", orchestrate.RolloutCompleted)
		if s := plannedOf(t, mustPlan(t, f, orchestrate.Removal{Name: "db"}), "db"); s.Erases != nil {
			t.Errorf("planned is to delete %v, want that they are kept", s.Erases)
		}

		web := sized("web", 2, 1<<20)
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		web.Update.Strategy = orchestrate.CanaryUpdate
		web.Containers = []orchestrate.Container{{Image: "img:2"}}
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutWaiting)
		if err := f.Promote(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		p = mustPlan(t, f, orchestrate.Removal{Name: "web"})
		mustApplyPlan(t, f, p)
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		if n := records(t, s, "/directives/"); n != 0 {
			t.Errorf("%d directives are left", n)
		}
	})
}
