package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// A cron job is a schedule that makes jobs. Of each time of the schedule it is
// decided once whether it is run or missed: the state's Decided is written in the
// commit that makes the run, so no leader decides about it again.

// Concurrency is what is done when a time comes while a run goes on.
type Concurrency string

// The policies.
const (
	AllowRuns   Concurrency = ""        // it is run beside it
	ForbidRuns  Concurrency = "forbid"  // it waits for its end, until its deadline or the next time
	ReplaceRuns Concurrency = "replace" // the one that goes on is deleted
)

// Cron is what is to be known of a cron job.
type Cron struct {
	// Next returns the first time of the schedule after its argument, zero when
	// there is none; nil when it cannot be read, which Problem explains.
	Next                      func(time.Time) time.Time
	Problem                   string
	Since                     time.Time // times before are none of its
	Concurrency               Concurrency
	StartDeadline             time.Duration // 0 is none
	Suspended                 bool
	KeepCompleted, KeepFailed int
}

// CronJobRun is a run of a cron job that there is.
type CronJobRun struct {
	Name  string          `json:"name"`
	At    time.Time       `json:"at"`
	State record.RunState `json:"state,omitempty"` // not final: it goes on
	Ended time.Time       `json:"ended,omitzero"`
}

// CronStep is what is to be done about a cron job now.
type CronStep struct {
	// Start is the time of the schedule to make a run for; zero is none.
	Start time.Time
	// Replaced and Expired are names of runs to be deleted: one that goes on and
	// makes way for Start, and those that are over and more than are kept.
	Replaced, Expired []string
	// Missed counts the times that are given up.
	Missed int64
	// State is as before, but for what this step changes: LastRun and what is
	// started must be added to it.
	State record.CronState
	// Wake is when to decide again if nothing changes before; zero is never.
	Wake time.Time
}

// maxMissed bounds how many times are counted at once: after that, the count is a
// lower bound.
const maxMissed = 10_000

// DecideCron decides what to do about a cron job. State must be of this one, or
// zero; runs are all it has.
func DecideCron(c Cron, state record.CronState, runs []CronJobRun, now time.Time) CronStep {
	step := CronStep{State: state}
	step.State.Problem, step.State.Active = c.Problem, nil
	runs = slices.Clone(runs)
	slices.SortFunc(runs, func(a, b CronJobRun) int {
		if n := a.At.Compare(b.At); n != 0 {
			return n
		}
		return strings.Compare(a.Name, b.Name)
	})
	step.history(c, runs)
	if c.Next == nil || c.Suspended {
		return step
	}
	from := c.Since
	if state.Decided.After(from) {
		from = state.Decided
	}
	previous, due, count, next := times(c.Next, from, now)
	step.Wake = next
	if count == 0 {
		return step
	}
	if count > 1 {
		// Only the newest can still be run.
		step.Missed, step.State.Decided = count-1, previous
	}
	last := due.Add(c.StartDeadline)
	switch active := len(step.State.Active) > 0; {
	case c.StartDeadline > 0 && now.After(last):
		step.Missed++
		step.State.Decided = due
	case active && c.Concurrency == ForbidRuns:
		if c.StartDeadline > 0 {
			step.wakeAt(last.Add(1))
		}
	default:
		if c.Concurrency == ReplaceRuns {
			step.Replaced, step.State.Active = step.State.Active, nil
		}
		step.Start, step.State.Decided, step.State.Last = due, due, due
	}
	step.State.Missed += step.Missed
	return step
}

func (s *CronStep) wakeAt(t time.Time) {
	if s.Wake.IsZero() || t.Before(s.Wake) {
		s.Wake = t
	}
}

// history sorts runs, which are by time, into those that go on and those that
// are over, and lets go of the oldest of these.
func (s *CronStep) history(c Cron, runs []CronJobRun) {
	kept := map[record.RunState]int{}
	for _, r := range slices.Backward(runs) {
		if !r.State.Final() {
			s.State.Active = append(s.State.Active, r.Name)
			continue
		}
		if r.Ended.After(s.State.EndedAt) {
			s.State.Ended, s.State.Outcome, s.State.EndedAt = r.Name, r.State, r.Ended
		}
		most := c.KeepCompleted
		if r.State == record.RunFailed {
			most = c.KeepFailed
		}
		if kept[r.State]++; kept[r.State] > most {
			s.Expired = append(s.Expired, r.Name)
		}
	}
	slices.Reverse(s.State.Active)
}

// times returns how many times of a schedule there are after from and up to now,
// the last two of them, and the first one that is still to come.
func times(after func(time.Time) time.Time, from, now time.Time) (previous, due time.Time, count int64, next time.Time) {
	for next = after(from); !next.IsZero() && !next.After(now); next = after(next) {
		previous, due = due, next
		if count++; count < maxMissed {
			continue
		}
		// Too many to count: look for the last of them from now backwards.
		for back := time.Second; back < now.Sub(due); back *= 2 {
			if t := after(now.Add(-back)); !t.IsZero() && !t.After(now) {
				previous, due = due, t
				break
			}
		}
		for next = after(due); !next.IsZero() && !next.After(now); next = after(next) {
			previous, due = due, next
			count++
		}
		return previous, due, count, next
	}
	return previous, due, count, next
}

// RunName is the name of the run of a cron job for a time: with the seconds since
// 1970, or the first after that is free.
func RunName(cron string, at time.Time, taken func(name string) bool) string {
	for second := at.Unix(); ; second++ {
		if name := fmt.Sprintf("%s-%d", cron, second); !taken(name) {
			return name
		}
	}
}
