package orchestrate_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// plannedCron is what a forecast says of a cron job.
func plannedCron(t *testing.T, f *orchestrate.Forecast, name string) orchestrate.PlannedCron {
	t.Helper()
	for _, c := range f.Crons {
		if c.CronJob == "default/"+name {
			return c
		}
	}
	t.Fatalf("the forecast says nothing of the cron job %s:\n%s", name, f)
	return orchestrate.PlannedCron{}
}

func heavyCron(name, schedule string, memory int64) orchestrate.CronJob {
	c := aCron(name, schedule)
	c.Job.Containers[0].Resources.Memory = memory
	return c
}

// A plan of a cron job says when its runs come, and whether there is room for one,
// changes nothing, comes true, and can be undone.
func TestPlanOfACronJobAndItsRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := openCrons(t)
		synctest.Wait()
		l := work(rt, time.Second, ok)
		day := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when virtual time begins
		c := heavyCron("backup", "0 3 * * *", 2<<30)
		p := mustPlan(t, f, c)
		pc := plannedCron(t, &p.Forecast, "backup")
		want := []time.Time{day.Add(3 * time.Hour), day.Add(27 * time.Hour), day.Add(51 * time.Hour)}
		if !slices.EqualFunc(pc.Next, want, time.Time.Equal) || pc.Before != nil || !pc.Starts.IsZero() || pc.Run != "default/backup-946695600" {
			t.Fatalf("planned is %+v, want runs at %v", pc, want)
		}
		run := plannedOf(t, p, "backup-946695600")
		if run.CronJob != "default/backup" || run.Asked || run.Kind != orchestrate.KindJob || run.Outcome != orchestrate.RolloutCompleted || len(run.Tasks) != 1 || run.Tasks[0].To != "n1" {
			t.Errorf("its next run is %+v, want one task on n1, to its end", run)
		}
		if n := records(t, s, "/jobs/") + records(t, s, "/crons/"); n != 0 {
			t.Errorf("planning made %d records", n)
		}
		for _, says := range []string{"+ cronjob default/backup", "default/backup: next 2000-01-01 03:00:00, 2000-01-02 03:00:00, 2000-01-03 03:00:00 UTC", "the next run of default/backup, if it came now"} {
			if !strings.Contains(p.String(), says) {
				t.Errorf("the plan does not say %q:\n%s", says, p)
			}
		}
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var kept orchestrate.Plan
		if err := json.Unmarshal(data, &kept); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := f.ApplyPlan(t.Context(), &kept); err != nil {
			t.Fatal(err)
		}
		time.Sleep(26*time.Hour + 30*time.Minute)
		if n := l.total(); n != 2 {
			t.Errorf("%d runs in the first 27 hours, want 2", n)
		}

		// Another schedule, and another job for the runs that come.
		next := c
		next.Schedule = "30 4 * * *"
		next.Job.Containers = []orchestrate.Container{{Image: "img:2", Resources: orchestrate.Resources{Memory: 1 << 50}}}
		p = mustPlan(t, f, next)
		pc = plannedCron(t, &p.Forecast, "backup")
		if !pc.Next[0].Equal(day.Add(28*time.Hour+30*time.Minute)) || !pc.Before[0].Equal(day.Add(51*time.Hour)) || len(pc.Active)+len(pc.Removes) != 0 {
			t.Errorf("planned is %+v, want that the next run comes at 04:30 and not at 03:00", pc)
		}
		run = plannedOf(t, p, strings.TrimPrefix(pc.Run, "default/"))
		if !errors.Is(run.Err(), scheduler.ErrUnplaced) || run.Blocked == "" {
			t.Errorf("its next run is %+v, want that it has no place", run)
		}
		if c := p.Changes[0]; c.Kind != orchestrate.KindCronJob || len(c.Diff) < 2 {
			t.Errorf("the change is %+v, want the schedule and the image", c)
		}
		if err := f.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		undo, err := f.PlanUndo(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.ApplyPlan(t.Context(), undo); err != nil {
			t.Fatal(err)
		}
		if st := cronStatus(t, f, "backup"); st.Schedule != c.Schedule || st.Job.Containers[0].Image != c.Job.Containers[0].Image {
			t.Errorf("undone it is %+v", st.CronJob)
		}

		// Suspended it has no next, and what was planned before is stale.
		resting := c
		resting.Suspend = true
		stale := mustPlan(t, f, next)
		p = mustPlan(t, f, resting)
		if pc := plannedCron(t, &p.Forecast, "backup"); !pc.Suspended || pc.Next != nil || pc.Run != "" || len(p.Services) != 0 || pc.Before == nil {
			t.Errorf("suspended it is planned as %+v", pc)
		}
		if err := f.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		var old *orchestrate.StalePlanError
		if err := f.ApplyPlan(t.Context(), stale); !errors.As(err, &old) || !strings.Contains(err.Error(), "cron job default/backup has been changed") {
			t.Errorf("a plan from before: %v", err)
		}

		// Its removal takes the runs along, and undone it is there again.
		p = mustPlan(t, f, orchestrate.Removal{Name: "backup"})
		if pc := plannedCron(t, &p.Forecast, "backup"); pc.Outcome != orchestrate.RolloutRemoved || len(pc.Removes) != 2 {
			t.Errorf("its removal is planned as %+v, want that its 2 runs go", pc)
		}
		if err := f.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := records(t, s, "/jobs/"); n != 0 {
			t.Errorf("%d runs are left", n)
		}
		if undo, err = f.PlanUndo(t.Context(), p); err == nil {
			err = f.ApplyPlan(t.Context(), undo)
		}
		if err != nil || !cronStatus(t, f, "backup").Suspend {
			t.Errorf("its removal is undone: %v", err)
		}
	})
}

// What goes on while a plan is made is said by what the policy does about it.
func TestPlanOfACronJobThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := openCrons(t)
		synctest.Wait()
		work(rt, 100*time.Hour, ok)
		c := heavyCron("long", "0 * * * *", 2<<30)
		c.Concurrency = orchestrate.ForbidConcurrent
		mustApply(t, f, c)
		time.Sleep(90 * time.Minute)
		first := cronStatus(t, f, "long").Active
		if len(first) != 1 {
			t.Fatalf("%v go on, want one run", first)
		}
		labelled := c
		labelled.Labels = map[string]string{"a": "b"}
		p := mustPlan(t, f, labelled)
		if pc := plannedCron(t, &p.Forecast, "long"); !slices.Equal(pc.Active, first) || pc.Removes != nil || !pc.Starts.IsZero() || !strings.Contains(p.String(), first[0]+" goes on; the next waits for its end") {
			t.Errorf("planned is %+v\n%swant that the run goes on, and the next waits for it", pc, p)
		}
		for _, s := range p.Services {
			if s.CronJob == "" {
				t.Errorf("the plan touches %s\n%s", s.Service, p)
			}
		}

		time.Sleep(time.Hour) // now a time has passed that was not run
		replace := c
		replace.Concurrency = orchestrate.ReplaceConcurrent
		p = mustPlan(t, f, replace)
		pc := plannedCron(t, &p.Forecast, "long")
		if pc.Starts.IsZero() || !slices.Equal(pc.Removes, first) || pc.Active != nil {
			t.Fatalf("planned is %+v\n%swant that a run begins at once, and takes the place of the other", pc, p)
		}
		if s := plannedOf(t, p, strings.TrimPrefix(pc.Run, "default/")); !s.Asked || len(s.Tasks) != 1 {
			t.Errorf("the run that begins is %+v", s)
		}
		if got := actions(p, strings.TrimPrefix(first[0], "default/")); got[orchestrate.TaskStops] != 1 {
			t.Errorf("of the run that is replaced planned is %v, want that its task stops", got)
		}
		if err := f.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if st := cronStatus(t, f, "long"); len(st.Active) != 1 || st.Active[0] != pc.Run {
			t.Errorf("%v go on, planned was %s", st.Active, pc.Run)
		}

		// What if its time came now, and there were no node for it?
		ask := func(what ...orchestrate.What) *orchestrate.Forecast {
			t.Helper()
			forecast, err := f.WhatIf(t.Context(), what...)
			if err != nil {
				t.Fatal(err)
			}
			return forecast
		}
		forecast := ask(orchestrate.CronRuns("long"))
		if next := plannedCron(t, forecast, "long"); next.Starts.IsZero() || !slices.Equal(next.Removes, []string{pc.Run}) || next.Run == pc.Run {
			t.Errorf("if its time came now: %+v", next)
		}
		forecast = ask(orchestrate.CronRuns("long"), orchestrate.NodesDie("n1"))
		next := plannedCron(t, forecast, "long")
		for _, s := range forecast.Services {
			if s.Service == next.Run && (s.Unplaced == nil || s.Unplaced.Unplaced != 1) {
				t.Errorf("if its time came and n1 died: %+v, want that the run has no place", s)
			}
		}
		if forecast := ask(orchestrate.Applied(c)); plannedCron(t, forecast, "long").Concurrency != orchestrate.ForbidConcurrent {
			t.Errorf("if it were applied as before:\n%s", forecast)
		}
		if _, err := f.WhatIf(t.Context(), orchestrate.CronRuns("nobody")); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("if the time of what does not exist came: %v", err)
		}
	})
}
