package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/internal/record"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

// openCrons is open with a parser of schedules.
func openCrons(t *testing.T) (*orchestrate.Fleet, *runtimememory.Runtime, store.Store) {
	t.Helper()
	s := storememory.New(storememory.Options{})
	f, rt := openFleet(t, s, orchestrate.WithSchedules(cron.Parse))
	return f, rt, s
}

func aCron(name, schedule string) orchestrate.CronJob {
	j := aJob("", 1, 1)
	return orchestrate.CronJob{Name: name, Schedule: schedule, Job: j}
}

func cronStatus(t *testing.T, f *orchestrate.Fleet, name string) orchestrate.CronJobStatus {
	t.Helper()
	synctest.Wait()
	st, err := f.CronJob(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (l *ledger) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, runs := range l.runs {
		n += runs
	}
	return n
}

// TestCronWeek keeps a schedule for a week in which clocks change. Virtual time
// begins on the first of January 2000: the change is waited for.
func TestCronWeek(t *testing.T) {
	for _, tt := range []struct {
		zone string
		from time.Time
		want int // runs of a week of days at 02:30
	}{
		{"Europe/Berlin", time.Date(2000, 3, 24, 12, 0, 0, 0, time.UTC), 6},    // 26 March has no 02:30
		{"Europe/Berlin", time.Date(2000, 10, 27, 12, 0, 0, 0, time.UTC), 8},   // 29 October has two
		{"America/New_York", time.Date(2000, 3, 31, 12, 0, 0, 0, time.UTC), 6}, // 2 April has none
	} {
		t.Run(fmt.Sprint(tt.zone, tt.from.Month()), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(tt.from))
				f, rt, s := openCrons(t)
				l := work(rt, time.Second, ok)
				c := aCron("nightly", "30 2 * * *")
				c.TimeZone = tt.zone
				mustApply(t, f, c)
				time.Sleep(7 * 24 * time.Hour)
				st := cronStatus(t, f, "nightly")
				if n := l.total(); n != tt.want || st.Missed != 0 || len(st.Active) != 0 {
					t.Errorf("%d runs, %d missed, %v go on; want %d runs and none missed", n, st.Missed, st.Active, tt.want)
				}
				if st.Outcome != orchestrate.JobCompleted || st.Ended != st.LastRun || !st.Next.After(time.Now()) {
					t.Errorf("%+v; want that the last run completed, and a next", st)
				}
				jobs, err := f.Jobs(t.Context(), "")
				if err != nil || len(jobs) != orchestrate.DefaultKeepCompleted || jobs[0].CronJob != "default/nightly" {
					t.Errorf("jobs %v, error %v; want the newest %d runs", jobs, err, orchestrate.DefaultKeepCompleted)
				}
				if err := f.Remove(t.Context(), "nightly"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				for _, prefix := range []string{record.Crons, record.CronStates, record.Triggers, record.Jobs, record.Runs, record.Tasks} {
					if n := records(t, s, prefix); n != 0 {
						t.Errorf("%d records are left under %s", n, prefix)
					}
				}
			})
		})
	}
}

func TestCronConcurrency(t *testing.T) {
	for _, tt := range []struct {
		policy      orchestrate.Concurrency
		deadline    time.Duration
		begun, most int
		missed      int64
	}{
		// A run each minute for ten minutes, each of which lasts for 150 s.
		{orchestrate.AllowConcurrent, 0, 10, 3, 0},
		{orchestrate.ForbidConcurrent, 0, 4, 1, 5},
		{orchestrate.ForbidConcurrent, 10 * time.Second, 4, 1, 6},
		{orchestrate.ReplaceConcurrent, 0, 10, 2, 0},
	} {
		t.Run(fmt.Sprint(tt.policy, tt.deadline), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, rt, _ := openCrons(t)
				l := work(rt, 150*time.Second, ok)
				c := aCron("c", "* * * * *")
				c.Concurrency, c.StartDeadline = tt.policy, tt.deadline
				mustApply(t, f, c)
				time.Sleep(10*time.Minute + 30*time.Second)
				st := cronStatus(t, f, "c")
				if n := l.total(); n != tt.begun || l.most > tt.most || st.Missed != tt.missed {
					t.Errorf("%d runs, %d at a time, %d missed; want %d, %d and %d", n, l.most, st.Missed, tt.begun, tt.most, tt.missed)
				}
			})
		})
	}
}

func TestCronSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := openCrons(t)
		l := work(rt, time.Second, ok)
		c := aCron("c", "@hourly")
		c.Suspend = true
		mustApply(t, f, c)
		time.Sleep(5*time.Hour + time.Minute)
		if st := cronStatus(t, f, "c"); l.total() != 0 || st.Missed != 0 || !st.Next.IsZero() {
			t.Errorf("%d runs of what is suspended: %+v", l.total(), st)
		}
		c.Suspend = false
		mustApply(t, f, c)
		time.Sleep(time.Hour)
		if st := cronStatus(t, f, "c"); l.total() != 1 || st.Missed != 0 {
			t.Errorf("%d runs, %d missed within an hour of the resumption, want one and none", l.total(), st.Missed)
		}
	})
}

func TestCronTrigger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := openCrons(t)
		l := work(rt, time.Minute, ok)
		c := aCron("c", "@yearly")
		c.Suspend, c.Concurrency = true, orchestrate.ForbidConcurrent
		mustApply(t, f, c)
		seen := map[string]bool{}
		for range 3 {
			run, err := f.Trigger(t.Context(), "c")
			if err != nil {
				t.Fatal(err)
			}
			seen[run] = true
		}
		if st := cronStatus(t, f, "c"); len(seen) != 3 || len(st.Active) != 3 || !st.Last.IsZero() {
			t.Errorf("runs %v, status %+v; want three that go on", seen, st)
		}
		for run := range seen {
			mustEndJob(t, f, run, orchestrate.JobCompleted)
		}
		if n := records(t, s, record.Triggers); n != 0 || l.total() != 3 {
			t.Errorf("%d runs, and %d triggers are left; want 3 and none", l.total(), n)
		}
		if _, err := f.Trigger(t.Context(), "other"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("error %v, want that there is none", err)
		}
		// A run is the cron job's.
		var owned *orchestrate.OwnedError
		for run := range seen {
			j := aJob(strings.TrimPrefix(run, "default/"), 2, 1)
			if err := f.Apply(t.Context(), j); !errors.As(err, &owned) || owned.CronJob != "default/c" || !errors.Is(err, orchestrate.ErrInUse) {
				t.Errorf("error %v, want an *OwnedError", err)
			}
			if err := f.SuspendJob(t.Context(), run); !errors.As(err, &owned) {
				t.Errorf("error %v, want an *OwnedError", err)
			}
		}
	})
}

// TestCronLeaders has control planes lead in turn, some with nobody in between:
// each time is run once, and what nobody was there for is missed but for the
// newest.
func TestCronLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storememory.New(storememory.Options{})
		defer s.Close()
		lead := func(d time.Duration) {
			f, err := orchestrate.New(s, orchestrate.WithSchedules(cron.Parse))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			if err := f.Run(ctx); err != nil {
				t.Error(err)
			}
			f.Close()
		}
		f, err := orchestrate.New(s, orchestrate.WithSchedules(cron.Parse))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c := aCron("c", "* * * * *")
		mustApply(t, f, c)
		for range 20 {
			lead(46 * time.Second) // 15 minutes and 20 s, in which each time has a leader
		}
		time.Sleep(5*time.Minute + time.Second)
		lead(time.Second)
		jobs, err := f.Jobs(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		times := map[string]bool{}
		for _, j := range jobs {
			times[j.Name] = true
		}
		st := cronStatus(t, f, "c")
		if len(jobs) != 16 || len(times) != 16 || st.Missed != 4 || len(st.Active) != 16 {
			t.Errorf("%d runs, %d missed; want 15 and the one that was caught up, and 4", len(jobs), st.Missed)
		}
	})
}

func TestCronNeedsParser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		if err := f.Apply(t.Context(), aCron("c", "@daily")); !errors.Is(err, orchestrate.ErrNoSchedules) {
			t.Errorf("error %v, want ErrNoSchedules", err)
		}
		g, _, _ := openCrons(t)
		var invalid *orchestrate.ValidationError
		if err := g.Apply(t.Context(), aCron("c", "61 * * * *")); !errors.As(err, &invalid) || invalid.Problems[0].Path != "schedule" {
			t.Errorf("error %v, want a *ValidationError of schedule", err)
		}
	})
}

func TestCronNetworkInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := openCrons(t)
		c := aCron("c", "@daily")
		c.Job.Networks = []string{"back"}
		if err := f.Apply(t.Context(), c); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("error %v, want that the network does not exist", err)
		}
		mustApply(t, f, orchestrate.Network{Name: "back"}, c)
		var used *orchestrate.InUseError
		if err := f.RemoveNetwork(t.Context(), "back"); !errors.As(err, &used) || !slices.Contains(used.Services, "default/c") {
			t.Errorf("error %v, want an *InUseError of default/c", err)
		}
	})
}

func TestMalformedCronJobs(t *testing.T) {
	for _, tt := range []struct {
		path  string
		spoil func(*orchestrate.CronJob)
	}{
		{"name", func(c *orchestrate.CronJob) { c.Name = strings.Repeat("a", orchestrate.MaxCronName+1) }},
		{"namespace", func(c *orchestrate.CronJob) { c.Namespace = "A" }},
		{"schedule", func(c *orchestrate.CronJob) { c.Schedule = "" }},
		{"timeZone", func(c *orchestrate.CronJob) { c.TimeZone = "Mars/Olympus" }},
		{"timeZone", func(c *orchestrate.CronJob) { c.TimeZone = "Local" }},
		{"concurrency", func(c *orchestrate.CronJob) { c.Concurrency = "queue" }},
		{"startDeadline", func(c *orchestrate.CronJob) { c.StartDeadline = -time.Second }},
		{"startDeadline", func(c *orchestrate.CronJob) { c.StartDeadline = time.Millisecond }},
		{"keepCompleted", func(c *orchestrate.CronJob) { c.KeepCompleted = -2 }},
		{"keepFailed", func(c *orchestrate.CronJob) { c.KeepFailed = orchestrate.MaxKeepRuns + 1 }},
		{"job.name", func(c *orchestrate.CronJob) { c.Job.Name = "x" }},
		{"job.namespace", func(c *orchestrate.CronJob) { c.Job.Namespace = "x" }},
		{"job.suspend", func(c *orchestrate.CronJob) { c.Job.Suspend = true }},
		{"job.enough", func(c *orchestrate.CronJob) { c.Job.Enough = 9 }},
		{"job.containers[0].image", func(c *orchestrate.CronJob) { c.Job.Containers[0].Image = "" }},
	} {
		c := aCron("c", "@daily")
		tt.spoil(&c)
		var invalid *orchestrate.ValidationError
		if err := c.Validate(); !errors.As(err, &invalid) || len(invalid.Problems) != 1 || invalid.Problems[0].Path != tt.path {
			t.Errorf("error %v, want a *ValidationError of %s alone", err, tt.path)
		}
	}
	if err := aCron("c", "@daily").Validate(); err != nil {
		t.Errorf("the one that nothing is wrong with: %v", err)
	}
}

func TestDecodeCronJob(t *testing.T) {
	c, err := orchestrate.DecodeCronJob([]byte(`{"name": "nightly", "schedule": "30 3 * * *", "timeZone": "Europe/Berlin", "startDeadline": "1h", "job": {"completions": 3, "containers": [{"image": "work"}]}}`))
	if err != nil || c.StartDeadline != time.Hour || c.Concurrency != orchestrate.AllowConcurrent || c.KeepCompleted != 3 || c.KeepFailed != 1 || c.Job.Enough != 3 {
		t.Errorf("%+v, error %v", c, err)
	}
	if again := c.WithDefaults(); fmt.Sprint(again) != fmt.Sprint(c) || c.Validate() != nil {
		t.Errorf("defaults filled in twice: %+v, want %+v; error %v", again, c, c.Validate())
	}
	var invalid *orchestrate.ValidationError
	_, err = orchestrate.DecodeCronJob([]byte(`{"name": "nightly", "shedule": "@daily", "schedule": "@daily", "job": {"enough": "x", "containers": []}}`))
	if !errors.As(err, &invalid) || len(invalid.Problems) != 3 {
		t.Errorf("error %v, want three mistakes", err)
	}
}

func ExampleCronJob() {
	c := orchestrate.CronJob{
		Name: "backup", Schedule: "30 3 * * *", TimeZone: "Europe/Berlin",
		Concurrency: orchestrate.ForbidConcurrent, StartDeadline: time.Hour,
		Job: orchestrate.Job{
			Deadline: 2 * time.Hour,
			Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "example.com/backup:1"}}},
		},
	}
	fmt.Println(c.Validate())
	c.TimeZone = "Europe/Atlantis"
	var invalid *orchestrate.ValidationError
	fmt.Println(errors.As(c.Validate(), &invalid), invalid.Problems[0].Path)
	// Output:
	// <nil>
	// true timeZone
}

// Wait of what was removed returns when nothing is left: of a job, whether its tasks
// still ran or not, and of a cron job with all its runs.
func TestWaitForRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := openCrons(t)
		work(rt, time.Hour, ok)
		done := aJob("done", 1, 1)
		mustApply(t, f, aCron("c", "@every 1m"), aJob("goes-on", 2, 2), done)
		// One that is no run, and only has such a name.
		mustApply(t, f, aJob("c-1", 1, 1))
		time.Sleep(3*time.Minute + time.Second)
		if st := cronStatus(t, f, "c"); len(st.Active) < 2 {
			t.Fatalf("%d runs go on, want some", len(st.Active))
		}
		for _, name := range []string{"c", "goes-on"} {
			if err := f.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			r, err := f.Wait(t.Context(), name)
			if err != nil || r.Outcome != orchestrate.RolloutRemoved {
				t.Errorf("Wait of %s, which was removed: got %v, %v; want removed", name, r, err)
			}
			tasks, err := rt.List(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range tasks {
				if strings.HasPrefix(c.ID, name+"-9") || strings.HasPrefix(c.ID, name+".") {
					t.Errorf("Wait of %s returned while %s was there", name, c.ID)
				}
			}
		}
		time.Sleep(2 * time.Hour)
		if r, err := f.WaitJob(t.Context(), "done"); err != nil || r.Outcome != orchestrate.JobCompleted {
			t.Fatalf("got %v, %v; want it completed", r, err)
		}
		if err := f.Remove(t.Context(), "done"); err != nil {
			t.Fatal(err)
		}
		if r, err := f.Wait(t.Context(), "done"); err != nil || r.Outcome != orchestrate.RolloutRemoved {
			t.Errorf("Wait of a job that had ended and was removed: got %v, %v; want removed", r, err)
		}
		mustApply(t, f, done)
		if _, err := f.Wait(t.Context(), "done"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("Wait, which is for services, of a job that was applied again: got %v, want ErrNotFound", err)
		}
	})
}
