package orchestrate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
)

// look is a decision about a cron job in a log, with all that it was made by: it is
// made beside the planner, by what was in the store then and not by what the planner
// had seen of it. So it may be anywhere among the entries, and before the first
// snapshot too.
type look struct {
	Namespace     string        `json:"namespace"`
	Name          string        `json:"name"`
	Schedule      string        `json:"schedule"`
	TimeZone      string        `json:"timeZone"`
	Since         time.Time     `json:"since"`
	Concurrency   Concurrency   `json:"concurrency,omitempty"`
	StartDeadline time.Duration `json:"startDeadline,omitempty"`
	Suspend       bool          `json:"suspend,omitempty"`
	KeepCompleted int           `json:"keepCompleted"`
	KeepFailed    int           `json:"keepFailed"`

	State record.CronState     `json:"state"`
	Runs  []control.CronJobRun `json:"runs,omitempty"`

	CronDecision
}

// CronDecision is what was decided about a cron job at a moment.
type CronDecision struct {
	// Start is the time of the schedule that a run is started for, zero when none
	// is.
	Start time.Time `json:"start,omitzero"`
	// Missed is how many times were given up.
	Missed int64 `json:"missed,omitempty"`
	// Removed are the names of the runs that were removed, because they make way
	// for Start or are more than are kept.
	Removed []string `json:"removed,omitempty"`
	// Unreadable says that the schedule could not be read.
	Unreadable bool `json:"unreadable,omitempty"`
}

func (d CronDecision) equal(o CronDecision) bool {
	return d.Start.Equal(o.Start) && d.Missed == o.Missed && d.Unreadable == o.Unreadable && slices.Equal(d.Removed, o.Removed)
}

func cronDecided(step *control.CronStep) CronDecision {
	d := CronDecision{Missed: step.Missed, Removed: slices.Concat(step.Expired, step.Replaced), Unreadable: step.State.Problem != ""}
	if !step.Start.IsZero() {
		d.Start = step.Start.UTC()
	}
	slices.Sort(d.Removed)
	return d
}

// newLook is what a log has of a decision. Its fields are named one by one, as those
// of all that is in a log.
func newLook(c *CronJob, rec *record.Cron, d *cronDecision) *look {
	return &look{
		Namespace: c.Namespace, Name: c.Name, Schedule: c.Schedule, TimeZone: c.TimeZone, Since: rec.Since,
		Concurrency: c.Concurrency, StartDeadline: c.StartDeadline, Suspend: c.Suspend, KeepCompleted: c.KeepCompleted, KeepFailed: c.KeepFailed,
		State: record.CronState{
			Created: d.state.Created, Decided: d.state.Decided, Last: d.state.Last, LastRun: d.state.LastRun, Active: d.state.Active,
			Missed: d.state.Missed, Ended: d.state.Ended, Outcome: d.state.Outcome, EndedAt: d.state.EndedAt,
		},
		Runs: d.runs, CronDecision: cronDecided(&d.step),
	}
}

// decide decides again.
func (l *look) decide(f *Fleet, at time.Time) CronDecision {
	c := CronJob{
		Namespace: l.Namespace, Name: l.Name, Schedule: l.Schedule, TimeZone: l.TimeZone,
		Concurrency: l.Concurrency, StartDeadline: l.StartDeadline, Suspend: l.Suspend, KeepCompleted: l.KeepCompleted, KeepFailed: l.KeepFailed,
	}
	step := control.DecideCron(f.controlCron(&c, &record.Cron{Since: l.Since}), l.State, l.Runs, at)
	return cronDecided(&step)
}

// look notes a decision about a cron job, unless nothing came of it and all was as
// it was the last time. Of a fleet that does not record, r is nil.
func (r *recorder) look(l *look, now time.Time) {
	if r == nil {
		return
	}
	text, err := json.Marshal(l)
	if err != nil {
		return // it was made of what is JSON
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := l.Namespace + "/" + l.Name
	if l.CronDecision.equal(CronDecision{}) && r.looked[name] == string(text) {
		return
	}
	if r.looked == nil {
		r.looked = map[string]string{}
	}
	r.looked[name] = string(text)
	r.queued(entry{At: now.UnixNano(), Look: l})
}

// endLooks ends a term of leadership, the log of which stands alone.
func (r *recorder) endLooks() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked = nil
}

// String is the decision in words.
func (d CronDecision) String() string {
	var parts []string
	if d.Unreadable {
		parts = append(parts, "cannot read the schedule")
	}
	if !d.Start.IsZero() {
		parts = append(parts, "start the run of "+d.Start.Format(time.RFC3339))
	}
	if d.Missed > 0 {
		parts = append(parts, fmt.Sprintf("give up %d times", d.Missed))
	}
	if len(d.Removed) > 0 {
		parts = append(parts, "remove "+strings.Join(d.Removed, ", "))
	}
	if parts == nil {
		return "do nothing"
	}
	return strings.Join(parts, ", ")
}
