package orchestrate_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// heavyJob is a job whose tasks take a gibibyte each.
func heavyJob(name string, completions, parallelism int) orchestrate.Job {
	j := aJob(name, completions, parallelism)
	j.Containers[0].Resources.Memory = 1 << 30
	return j
}

// plannedOf is what a plan says of a service or a job.
func plannedOf(t *testing.T, p *orchestrate.Plan, name string) orchestrate.PlannedService {
	t.Helper()
	for _, s := range p.Services {
		if s.Service == "default/"+name {
			return s
		}
	}
	t.Fatalf("the plan says nothing of %s:\n%s", name, p)
	return orchestrate.PlannedService{}
}

// The plan of a job plays it to its end, changes nothing, and comes true.
func TestPlanOfAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := open(t)
		synctest.Wait()
		l := work(rt, time.Second, ok)
		j := heavyJob("sums", 30, 3)
		p := mustPlan(t, f, j)
		if n := records(t, s, "/jobs/") + records(t, s, "/runs/"); n != 0 {
			t.Errorf("planning made %d records", n)
		}
		sums := plannedOf(t, p, "sums")
		if got := actions(p, "sums"); got[orchestrate.TaskStarts] != 30 || len(got) != 1 {
			t.Fatalf("planned is %v, want a start of each of 30 indexes\n%s", got, p)
		}
		if sums.Kind != orchestrate.KindJob || !sums.Asked || sums.Outcome != orchestrate.RolloutCompleted || sums.Revision != 1 || sums.Unplaced != nil || p.Open {
			t.Errorf("planned is %+v, open %v; want run 1 of a job, completed", sums, p.Open)
		}
		for i, task := range sums.Tasks {
			if task.Slot != i || task.To == "" || task.Decision == nil || task.Decision.Winner == nil || task.Cause.Reason != "wanted" {
				t.Errorf("index %d is %+v, want where it starts and why", i, task)
			}
		}
		if p.Total.TasksAfter != 0 || p.Total.After.Memory != p.Total.Before.Memory {
			t.Errorf("at the end %+v is left, want what there was", p.Total)
		}
		data, err := json.Marshal(p)
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
		if r := mustEndJob(t, f, "sums", orchestrate.JobCompleted); r.Completed != 30 || l.most > 3 {
			t.Errorf("%v with %d at a time; want 30 completed, at most 3 at a time", r, l.most)
		}
		if again := mustPlan(t, f, j); len(again.Changes) != 0 {
			t.Errorf("planning the same again is\n%s", again)
		}
		undo, err := f.PlanUndo(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.ApplyPlan(t.Context(), undo); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Job(t.Context(), "sums"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("after undoing it the job is there still: %v", err)
		}
	})
}

// What runs already is played to its end too, and a change of the template ends
// it; undoing a plan restores the spec.
func TestPlanOfAJobThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		synctest.Wait()
		work(rt, time.Hour, ok)
		j := heavyJob("sums", 6, 2)
		mustApply(t, f, j)
		synctest.Wait()

		wider := j
		wider.Parallelism = 4
		p := mustPlan(t, f, wider)
		sums := plannedOf(t, p, "sums")
		if sums.Kept != 2 || len(sums.Tasks) != 4 || sums.Outcome != orchestrate.RolloutCompleted {
			t.Errorf("with more at a time it is %+v, want 2 tasks kept and 4 started", sums)
		}
		if c := p.Changes[0]; c.Kind != orchestrate.KindJob || c.From != 1 || c.To != 1 || len(c.Diff) != 1 || c.Diff[0].Path != "parallelism" {
			t.Errorf("the change is %+v, want parallelism alone, and the same run", c)
		}
		if !strings.Contains(p.String(), "in place, its run goes on") {
			t.Errorf("the plan does not say that the run goes on:\n%s", p)
		}

		other := heavyJob("sums", 6, 2)
		other.Containers[0].Env = map[string]string{"A": "1"}
		p = mustPlan(t, f, other)
		if got := actions(p, "sums"); got[orchestrate.TaskReplaced] != 2 || got[orchestrate.TaskStarts] != 4 || p.Changes[0].To != 2 {
			t.Errorf("with another template it is %v, run %d; want 2 replaced, 4 started, run 2\n%s", got, p.Changes[0].To, p)
		}
		if err := f.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // until the leader has done with it
		undo, err := f.PlanUndo(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.ApplyPlan(t.Context(), undo); err != nil {
			t.Fatal(err)
		}
		st, err := f.Job(t.Context(), "sums")
		if err != nil || st.Containers[0].Env != nil || st.Result.Run != 3 {
			t.Errorf("undone it is %+v, error %v; want the template from before as run 3", st, err)
		}
		synctest.Wait()
		if got := actions(mustPlan(t, f, orchestrate.Removal{Name: "sums"}), "sums"); got[orchestrate.TaskStops] == 0 || len(got) != 1 {
			t.Errorf("removing it is %v, want stops alone", got)
		}

		// Of a job that is not asked for nobody knows when its tasks end: they hold
		// what they have, and its deadline is none of the plan's.
		late := heavyJob("late", 2, 2)
		late.Deadline = 10 * time.Minute
		mustApply(t, f, late)
		synctest.Wait()
		p = mustPlan(t, f, sized("web", 2, 1<<30))
		for _, s := range p.Services {
			if s.Service == "default/late" {
				t.Errorf("the plan of web tells of %+v", s)
			}
		}
	})
}

// Indexes that have no place are said with the scheduler's reasons, and the plan
// ends: in the open without a deadline, and else at it.
func TestPlanOfAJobWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		synctest.Wait()
		j := aJob("large", 3, 2)
		j.Containers[0].Resources.Memory = 1 << 50
		p := mustPlan(t, f, j)
		large := plannedOf(t, p, "large")
		if !errors.Is(large.Err(), scheduler.ErrUnplaced) || large.Unplaced.Unplaced != 2 || large.Blocked == "" || len(large.Tasks) != 0 || !p.Open || large.Outcome != "" {
			t.Errorf("planned is\n%swant 2 indexes without a place, and that it goes on\n%+v", p, large)
		}
		j.Deadline = 3 * time.Hour
		p = mustPlan(t, f, j)
		if large := plannedOf(t, p, "large"); large.Outcome != orchestrate.RolloutFailed || large.Reason != orchestrate.Reason(orchestrate.JobDeadline) || p.Took != 3*time.Hour || p.Open {
			t.Errorf("with a deadline planned is\n%swant that it fails at it, after 3 h", p)
		}
		// More at a time than there is room for is no failure: they wait for each
		// other.
		j = heavyJob("many", 40, 40)
		p = mustPlan(t, f, j)
		if many := plannedOf(t, p, "many"); len(many.Tasks) != 40 || many.Outcome != orchestrate.RolloutCompleted || !p.Approximate {
			t.Errorf("planned is\n%swant 40 starts, some of which wait for room", p)
		}
		suspended := heavyJob("later", 4, 4)
		suspended.Suspend = true
		if p := mustPlan(t, f, suspended); len(plannedOf(t, p, "later").Tasks) != 0 || p.Open {
			t.Errorf("planned is\n%swant that a suspended job starts nothing", p)
		}
		forecast, err := f.WhatIf(t.Context(), orchestrate.Applied(heavyJob("sums", 5, 5)))
		if err != nil || len(forecast.Services) != 1 || len(forecast.Services[0].Tasks) != 5 || forecast.Services[0].Outcome != orchestrate.RolloutCompleted {
			t.Errorf("what if a job is applied: %v, %+v; want 5 starts to their end", err, forecast)
		}
	})
}
