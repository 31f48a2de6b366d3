package record

import (
	"encoding/json"
	"time"
)

// The kinds of event of cron jobs.
const (
	CronApplied EventKind = "cron-applied" // its spec was written
	CronRemoved EventKind = "cron-removed" // its spec was deleted; so are its runs
	CronMissed  EventKind = "cron-missed"  // times passed at which nothing was started
)

// Prefixes of cron jobs. All end in a slash.
const (
	Crons      = "/crons/"      // NS/NAME     application                           Cron
	CronStates = "/cronstates/" // NS/NAME     leader                                CronState
	Triggers   = "/triggers/"   // NS/NAME/ID  application, once; deleted by leader  Trigger
)

// Cron is a cron job's spec as the application wrote it.
type Cron struct {
	// Spec is the JSON of an orchestrate.CronJob with its defaults filled in.
	Spec json.RawMessage `json:"spec"`
	// Since is from when on its schedule counts: not before its first Apply, nor
	// a change of the schedule, nor the end of a suspension.
	Since time.Time `json:"since"`
	// Created tells it from one of the same name that was removed before.
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	Actor   string    `json:"actor,omitempty"`

	// Digests are what images meant when the cron job was applied, by reference.
	Digests map[string]string `json:"digests,omitempty"`
}

// CronState is how far the leader has brought a cron job. It is written in the
// commit that makes or deletes the runs it tells of.
type CronState struct {
	Created time.Time `json:"created"` // the cron's that this is about
	// Decided is the last time of the schedule of which it is certain what
	// became, a run or none.
	Decided time.Time `json:"decided,omitzero"`
	// Last is the time of the last run that the schedule made, LastRun its name.
	Last    time.Time `json:"last,omitzero"`
	LastRun string    `json:"lastRun,omitempty"`
	Active  []string  `json:"active,omitempty"` // names of runs that go on, the oldest first
	Missed  int64     `json:"missed,omitempty"`
	// Ended is the run that ended last, and Outcome how.
	Ended   string    `json:"ended,omitempty"`
	Outcome RunState  `json:"outcome,omitempty"`
	EndedAt time.Time `json:"endedAt,omitzero"`
	// Problem says why nothing can be started by the schedule.
	Problem string `json:"problem,omitempty"`
}

// Trigger asks for one run of a cron job.
type Trigger struct {
	At    time.Time `json:"at"`
	Actor string    `json:"actor,omitempty"`
}

// CronRun says of a Job that it is a run of a cron job. The leader writes and
// deletes the job's record then, and nobody else changes it.
type CronRun struct {
	Name    string    `json:"name"`    // of the cron job, of the same namespace
	Created time.Time `json:"created"` // its
	At      time.Time `json:"at"`      // the time of the schedule, or of the trigger
	Trigger string    `json:"trigger,omitempty"`
}
