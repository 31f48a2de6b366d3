package control

import (
	"fmt"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// minutely fits at each full minute.
func minutely(t time.Time) time.Time { return t.Truncate(time.Minute).Add(time.Minute) }

func at(clock string) time.Time {
	t, err := time.Parse("15:04:05", clock)
	if err != nil {
		panic(err)
	}
	return t.AddDate(2026, 0, 0)
}

func TestDecideCron(t *testing.T) {
	active := func(name, clock string) CronJobRun {
		return CronJobRun{Name: name, At: at(clock), State: record.RunActive}
	}
	ended := func(name, clock string, state record.RunState) CronJobRun {
		return CronJobRun{Name: name, At: at(clock), State: state, Ended: at(clock).Add(time.Second)}
	}
	for _, tt := range []struct {
		name    string
		change  func(*Cron)
		decided string
		runs    []CronJobRun
		now     string
		want    string // start, missed, decided, wake, replaced, expired, active
	}{
		{"before its first time", nil, "", nil, "10:00:59", "- 0 - 10:01:00 [] [] []"},
		{"at its time", nil, "", nil, "10:01:00", "10:01:00 0 10:01:00 10:02:00 [] [] []"},
		{"decided already", nil, "10:01:00", nil, "10:01:30", "- 0 10:01:00 10:02:00 [] [] []"},
		{"a leader that comes late runs the newest", nil, "10:01:00", nil, "10:05:30", "10:05:00 3 10:05:00 10:06:00 [] [] []"},
		{"too late", func(c *Cron) { c.StartDeadline = 10 * time.Second }, "10:01:00", nil, "10:05:30", "- 4 10:05:00 10:06:00 [] [] []"},
		{"just in time", func(c *Cron) { c.StartDeadline = 30 * time.Second }, "10:01:00", nil, "10:05:30", "10:05:00 3 10:05:00 10:06:00 [] [] []"},
		{"suspended", func(c *Cron) { c.Suspended = true }, "10:01:00", nil, "10:05:30", "- 0 10:01:00 - [] [] []"},
		{"resumed: what passed is none of its", func(c *Cron) { c.Since = at("10:04:30") }, "10:01:00", nil, "10:05:30", "10:05:00 0 10:05:00 10:06:00 [] [] []"},
		{"a clock that is behind", nil, "10:01:00", nil, "09:00:00", "- 0 10:01:00 10:02:00 [] [] []"},
		{"beside another", nil, "10:01:00", []CronJobRun{active("a", "10:01:00")}, "10:02:00", "10:02:00 0 10:02:00 10:03:00 [] [] [a]"},
		{"forbidden, it waits", func(c *Cron) { c.Concurrency = ForbidRuns }, "10:01:00", []CronJobRun{active("a", "10:01:00")}, "10:02:00", "- 0 10:01:00 10:03:00 [] [] [a]"},
		{"forbidden, the next comes", func(c *Cron) { c.Concurrency = ForbidRuns }, "10:01:00", []CronJobRun{active("a", "10:01:00")}, "10:03:00", "- 1 10:02:00 10:04:00 [] [] [a]"},
		{"forbidden until its deadline", func(c *Cron) { c.Concurrency, c.StartDeadline = ForbidRuns, 5*time.Second }, "10:01:00", []CronJobRun{active("a", "10:01:00")}, "10:02:00", "- 0 10:01:00 10:02:05 [] [] [a]"},
		{"forbidden past its deadline", func(c *Cron) { c.Concurrency, c.StartDeadline = ForbidRuns, 5*time.Second }, "10:01:00", []CronJobRun{active("a", "10:01:00")}, "10:02:06", "- 1 10:02:00 10:03:00 [] [] [a]"},
		{"forbidden, and the other has ended", func(c *Cron) { c.Concurrency = ForbidRuns }, "10:01:00", []CronJobRun{ended("a", "10:01:00", record.RunCompleted)}, "10:02:30", "10:02:00 0 10:02:00 10:03:00 [] [] []"},
		{"replaced", func(c *Cron) { c.Concurrency = ReplaceRuns }, "10:01:00", []CronJobRun{active("b", "10:01:00"), active("a", "10:00:00")}, "10:02:00", "10:02:00 0 10:02:00 10:03:00 [a b] [] []"},
		{"replaced only when a time has come", func(c *Cron) { c.Concurrency = ReplaceRuns }, "10:01:00", []CronJobRun{active("a", "10:01:00")}, "10:01:30", "- 0 10:01:00 10:02:00 [] [] [a]"},
		{"history", func(c *Cron) { c.KeepCompleted, c.KeepFailed = 1, 0 }, "10:05:00", []CronJobRun{
			ended("a", "10:01:00", record.RunCompleted), ended("b", "10:02:00", record.RunCompleted), ended("c", "10:03:00", record.RunFailed), active("d", "10:04:00")},
			"10:05:01", "- 0 10:05:00 10:06:00 [] [c a] [d]"},
		{"it never fits", func(c *Cron) { c.Next = func(time.Time) time.Time { return time.Time{} } }, "", nil, "10:05:00", "- 0 - - [] [] []"},
		{"it cannot be read", func(c *Cron) { c.Next, c.Problem = nil, "no parser" }, "10:01:00", nil, "10:05:00", "- 0 10:01:00 - [] [] []"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Cron{Next: minutely, Since: at("10:00:30"), KeepCompleted: 3, KeepFailed: 1}
			if tt.change != nil {
				tt.change(&c)
			}
			var state record.CronState
			if tt.decided != "" {
				state.Decided = at(tt.decided)
			}
			step := DecideCron(c, state, tt.runs, at(tt.now))
			show := func(t time.Time) string {
				if t.IsZero() {
					return "-"
				}
				return t.Format("15:04:05")
			}
			got := fmt.Sprintf("%s %d %s %s %v %v %v", show(step.Start), step.Missed, show(step.State.Decided), show(step.Wake), step.Replaced, step.Expired, step.State.Active)
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if step.State.Missed != step.Missed || step.State.Problem != c.Problem {
				t.Errorf("the state says %d missed and %q, want %d and %q", step.State.Missed, step.State.Problem, step.Missed, c.Problem)
			}
		})
	}
}

// TestDecideCronLongAfter has nobody lead for years: the newest time is found
// without all of them being counted.
func TestDecideCronLongAfter(t *testing.T) {
	asked := 0
	c := Cron{Since: at("00:00:00"), Next: func(t time.Time) time.Time { asked++; return minutely(t) }}
	now := at("12:00:30").AddDate(20, 0, 0)
	step := DecideCron(c, record.CronState{}, nil, now)
	if want := now.Truncate(time.Minute); !step.Start.Equal(want) || step.Missed < maxMissed-1 {
		t.Errorf("starts %v after %d missed, want %v after at least %d", step.Start, step.Missed, want, maxMissed-1)
	}
	if again := DecideCron(c, step.State, nil, now); !again.Start.IsZero() || again.Missed != 0 {
		t.Errorf("decided again: %+v, want nothing", again)
	}
	if asked > maxMissed+100 {
		t.Errorf("the schedule was asked %d times", asked)
	}
}

// TestDecideCronWeek walks a week in steps of uneven length, with leaders that
// forget all but the state: each time is run once or missed.
func TestDecideCronWeek(t *testing.T) {
	hourly := func(t time.Time) time.Time { return t.Truncate(time.Hour).Add(time.Hour) }
	c := Cron{Next: hourly, Since: at("00:00:00"), StartDeadline: 10 * time.Minute}
	var state record.CronState
	ran := map[time.Time]int{}
	var missed int64
	end := c.Since.AddDate(0, 0, 7)
	for now, i := c.Since, 0; !now.After(end); i++ {
		step := DecideCron(c, state, nil, now)
		if !step.Start.IsZero() {
			ran[step.Start]++
		}
		state, missed = step.State, missed+step.Missed
		now = now.Add(time.Duration(1+i%50) * 3 * time.Minute)
	}
	for when, n := range ran {
		if n != 1 {
			t.Errorf("%v was run %d times", when, n)
		}
	}
	if total := int64(len(ran)) + missed; total < 7*24-2 || total > 7*24 || missed == 0 || state.Missed != missed {
		t.Errorf("%d run and %d missed (the state says %d), want %d together", len(ran), missed, state.Missed, 7*24)
	}
}

func TestRunName(t *testing.T) {
	taken := map[string]bool{"c-60": true, "c-61": true}
	if got := RunName("c", time.Unix(60, 0), func(n string) bool { return taken[n] }); got != "c-62" {
		t.Errorf("got %s, want the first that is free, c-62", got)
	}
}

// TestPlannerLeavesCronsAlone has the planner see records of cron jobs.
func TestPlannerLeavesCronsAlone(t *testing.T) {
	s := NewState(Config{})
	s.Load(store.Snapshot{Revision: 1, Items: []store.Item{{Key: "/crons/a/b", Value: []byte("{"), Revision: 1}, {Key: "/cronstates/a/b", Value: []byte("{}"), Revision: 1}}}, at("00:00:00"))
	if p := s.Plan(at("00:00:01")); len(p.Writes)+len(p.Events) > 0 {
		t.Errorf("the planner wrote %v and told %v", p.Writes, p.Events)
	}
}
