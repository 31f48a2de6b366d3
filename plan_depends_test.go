package orchestrate_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// A plan says what waits for what: what comes to hold is played through, and of
// what nobody knows when it holds, the plan says so, and what would start then.
func TestPlanOfWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		synctest.Wait()
		work(rt, 3*time.Hour, ok)
		db, web, migrate := service("db", 0), service("web", 0), aJob("migrate", 1, 1)
		web.Replicas = 2
		web.DependsOn = []orchestrate.Dependency{onJob("migrate")}
		migrate.DependsOn = []orchestrate.Dependency{on("db")}

		// All of it is in the plan, so all of it can be foreseen.
		p := mustPlan(t, f, web, migrate, db)
		s := plannedOf(t, p, "web")
		if s.Waiting != nil || s.Outcome != orchestrate.RolloutCompleted || len(s.Tasks) != 2 || p.Open || p.Approximate {
			t.Fatalf("planned is\n%swant 2 starts of web after the migration", p)
		}
		want := []orchestrate.Unmet{{Dependency: "job default/migrate", Why: "has not begun"}}
		if !slices.Equal(s.WaitsFor, want) {
			t.Errorf("web waits for %v, want %v", s.WaitsFor, want)
		}
		migrates, dbs := plannedOf(t, p, "migrate"), plannedOf(t, p, "db")
		if at := s.Tasks[0].After; at < migrates.Tasks[0].After || migrates.Tasks[0].After < time.Second || dbs.Tasks[0].After != 0 {
			t.Errorf("planned is\n%swant db, then migrate once it has served for its monitor window, then web", p)
		}
		if !strings.Contains(p.String(), "  waits: job default/migrate has not begun; which comes to hold") {
			t.Errorf("the plan does not say that web waits:\n%s", p)
		}

		// A job that goes on, that is not there, and a service that nobody has.
		mustApply(t, f, migrate, db)
		mustEnd(t, f, "db", orchestrate.RolloutCompleted)
		time.Sleep(time.Minute)
		for name, deps := range map[string][]orchestrate.Dependency{
			"job default/migrate is active: 0 of 1 indexes completed": {onJob("migrate")},
			"service default/cache does not exist":                    {on("cache"), on("db")},
			"job default/absent does not exist":                       {onJob("absent")},
		} {
			web.DependsOn = deps
			p := mustPlan(t, f, web)
			s := plannedOf(t, p, "web")
			if len(s.Waiting) != 1 || s.Waiting[0].String() != name || s.Outcome != orchestrate.RolloutWaiting || !p.Open {
				t.Errorf("planned is %s, waiting for %v\n%swant that it waits: %s", s.Outcome, s.Waiting, p, name)
			}
			if len(s.Tasks) != 2 || !s.Tasks[0].Then || s.Tasks[0].Action != orchestrate.TaskStarts || s.Tasks[0].To != "n1" || !strings.Contains(s.Message, name) {
				t.Errorf("planned is %+v\n%swant 2 starts, once it holds", s, p)
			}
			for _, says := range []string{"waits: " + name + "; for how long is not known", "then start on n1", "goes on then"} {
				if !strings.Contains(p.String(), says) {
					t.Errorf("the plan does not say %q:\n%s", says, p)
				}
			}
		}

		// What waits for one that waits does so once that would have started.
		web.DependsOn = []orchestrate.Dependency{onJob("absent")}
		front := service("front", 0)
		front.DependsOn = []orchestrate.Dependency{on("web")}
		p = mustPlan(t, f, front, web)
		if s := plannedOf(t, p, "front"); len(s.Waiting) != 1 || s.Waiting[0].Dependency != "service default/web" || len(s.Tasks) != 1 || !s.Tasks[0].Then || s.Tasks[0].After < time.Second {
			t.Errorf("planned is\n%swant that front starts after web, once the job holds", p)
		}

		// It comes true, also through a file: it waits, and then starts there.
		data, err := json.Marshal(mustPlan(t, f, front, web))
		if err != nil {
			t.Fatal(err)
		}
		var kept orchestrate.Plan
		if err := json.Unmarshal(data, &kept); err != nil {
			t.Fatal(err)
		}
		if err := f.ApplyPlan(t.Context(), &kept); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := placements(t, f, "web"); len(n) != 0 {
			t.Errorf("web has %d tasks before its job is there", len(n))
		}

		// The end of the wait is foreseen for those who wait already.
		p = mustPlan(t, f, aJob("absent", 1, 1))
		for _, name := range []string{"web", "front"} {
			if s := plannedOf(t, p, name); s.Asked || len(s.WaitsFor) != 1 || s.Waiting != nil || len(s.Tasks) == 0 || s.Tasks[0].Then {
				t.Errorf("the plan of the job says of %s %+v\n%swant that it starts", name, s, p)
			}
		}

		// A job that has failed is nothing to wait for.
		failed := aJob("failed", 1, 1)
		failed.Deadline = time.Second
		mustApply(t, f, failed)
		mustEndJob(t, f, "failed", orchestrate.JobFailed)
		late := service("late", 0)
		late.DependsOn = []orchestrate.Dependency{onJob("failed")}
		p = mustPlan(t, f, late)
		if s := plannedOf(t, p, "late"); s.Outcome != orchestrate.RolloutFailed || s.Reason != orchestrate.ReasonDependency || s.Waiting != nil || len(s.Tasks) != 0 {
			t.Errorf("planned is %+v\n%swant that it fails for its dependency", s, p)
		}
	})
}

// A revision that waits leaves the one before as it is, and a job's wait is
// foreseen as a service's is.
func TestPlanOfAnUpdateThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		synctest.Wait()
		web := service("web", 0)
		web.Replicas = 2
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		next := web
		next.Containers = []orchestrate.Container{{Image: "img:2"}}
		next.DependsOn = []orchestrate.Dependency{on("new")}
		p := mustPlan(t, f, next)
		s := plannedOf(t, p, "web")
		if got := actions(p, "web"); len(s.Waiting) != 1 || got[orchestrate.TaskReplaced] != 2 || !s.Tasks[0].Then || !s.Tasks[1].Then {
			t.Errorf("planned is\n%swant 2 replaced once it holds", p)
		}
		p = mustPlan(t, f, next, service("new", 0))
		if s := plannedOf(t, p, "web"); s.Waiting != nil || s.Outcome != orchestrate.RolloutCompleted || len(s.Tasks) != 2 || s.Tasks[0].After < time.Second {
			t.Errorf("planned is\n%swant 2 replaced after new is healthy", p)
		}
		j := aJob("sums", 3, 3)
		j.Deadline = time.Minute
		j.DependsOn = []orchestrate.Dependency{on("new")}
		p = mustPlan(t, f, j)
		if s := plannedOf(t, p, "sums"); len(s.Waiting) != 1 || len(s.Tasks) != 3 || !s.Tasks[0].Then || s.Outcome != orchestrate.RolloutWaiting {
			t.Errorf("planned is\n%swant that the job waits, and not that it fails by its deadline", p)
		}
	})
}
