package orchestrate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// CronJob is a schedule that makes a [Job] at each of its times: its runs. A run
// is a job of its own, named after the cron job with the seconds since 1970 of its
// time, such as backup-1774828800; [Fleet.WaitJob], [Fleet.Logs] and the like take
// that name.
//
// Each time of the schedule is run at most once, whichever control plane leads.
// What could not be started at its time, because nobody led or because of
// Concurrency, is started as soon as it can be until its StartDeadline, but only
// the newest such time: those before are missed, and counted.
//
// As with a [Job], the zero value of a field is its default, and Apply refuses
// what breaks a rule with a [*ValidationError]. It takes a fleet that reads
// schedules, see [WithSchedules]; package local opens one. An Apply changes the
// runs that come, and none that there are. A change of the Schedule or TimeZone
// begins it anew from that moment. What images mean is settled by the Apply, or by
// each run, as their policy says; see [WithResolver]. [Fleet.Remove] removes its runs too.
type CronJob struct {
	// Namespace and Labels are as in [Service]. Name is at most
	// [MaxCronName] characters long.
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`

	// Schedule is a cron expression, such as "30 3 * * mon-fri" or "@hourly", as
	// the fleet's parser reads it; for package cron see
	// [github.com/orchestrate-go/orchestrate/cron.Parse], which also says what
	// becomes of times that do not exist or come twice when clocks change.
	Schedule string `json:"schedule"`
	// TimeZone is the IANA name of the zone in which Schedule is meant, such as
	// "Europe/Berlin"; "UTC" when empty.
	TimeZone string `json:"timeZone,omitempty"`
	// Concurrency says what a time does that comes while a run goes on;
	// [AllowConcurrent] when empty.
	Concurrency Concurrency `json:"concurrency,omitempty"`
	// StartDeadline is how late a run may be started, at least 1 s; without a
	// limit when 0.
	StartDeadline time.Duration `json:"startDeadline,omitempty"`
	// Suspend lets times pass without a run; they do not count as missed. Runs
	// that there are go on, and [Fleet.Trigger] makes others.
	Suspend bool `json:"suspend,omitempty"`
	// KeepCompleted and KeepFailed are how many runs are kept that ended so, the
	// newest; 3 and 1 when 0, none when [None], at most [MaxKeepRuns].
	KeepCompleted int `json:"keepCompleted,omitempty"`
	KeepFailed    int `json:"keepFailed,omitempty"`

	// Job is what each run is. Its Namespace, Name and Suspend are left away.
	Job Job `json:"job"`
}

// Concurrency is what a [CronJob] does at a time while a run of it goes on.
type Concurrency string

// The policies. A run goes on until its job has ended; tasks of it may then still
// be stopping.
const (
	AllowConcurrent   Concurrency = "allow"   // runs go on beside each other
	ForbidConcurrent  Concurrency = "forbid"  // it waits until none goes on
	ReplaceConcurrent Concurrency = "replace" // those that go on are removed: their tasks are told to stop as the new one begins
)

// The bounds and defaults of a [CronJob].
const (
	MaxCronName          = 52 // what the name of a run leaves of a DNS label
	MaxKeepRuns          = 1000
	DefaultKeepCompleted = 3
	DefaultKeepFailed    = 1
)

// WithDefaults returns a copy of c with the default of every unset field filled
// in, as [Service.WithDefaults] does.
func (c CronJob) WithDefaults() CronJob {
	c = clone(reflect.ValueOf(c)).Interface().(CronJob)
	setDefault(&c.Namespace, DefaultNamespace)
	setDefault(&c.TimeZone, "UTC")
	setDefault(&c.Concurrency, AllowConcurrent)
	setDefault(&c.KeepCompleted, DefaultKeepCompleted)
	setDefault(&c.KeepFailed, DefaultKeepFailed)
	namespace := c.Job.Namespace
	c.Job = c.Job.WithDefaults()
	c.Job.Namespace = namespace
	return c
}

// Validate checks c as Apply does, with its defaults filled in and but for the
// expression of the Schedule, which takes a fleet to read. It returns nil or a
// [*ValidationError] that names every mistake.
func (c CronJob) Validate() error {
	if problems := c.problems(); len(problems) > 0 {
		return &ValidationError{Object: c.object(), Problems: problems}
	}
	return nil
}

func (c CronJob) object() string {
	if c.Name == "" {
		return "cron job without a name"
	}
	return "cron job " + show(cmp.Or(c.Namespace, "default")+"/"+c.Name)
}

func (c CronJob) problems() []Problem {
	job := c.Job // Enough is judged as it was given
	c = c.WithDefaults()
	var k checks
	k.text(reflect.ValueOf(c))
	k.label("namespace", c.Namespace, 63)
	k.label("name", c.Name, MaxCronName)
	k.labels("labels", c.Labels, false)
	if c.Schedule == "" {
		k.add("schedule", nil, "is missing; give a cron expression such as \"30 3 * * *\"")
	}
	if _, err := zoneOf(c.TimeZone); err != nil {
		k.add("timeZone", c.TimeZone, "%v", err)
	}
	if all := []Concurrency{AllowConcurrent, ForbidConcurrent, ReplaceConcurrent}; !slices.Contains(all, c.Concurrency) {
		k.add("concurrency", c.Concurrency, "is not a policy; use one of %s", list(all))
	}
	if c.StartDeadline != 0 {
		k.duration("startDeadline", c.StartDeadline, time.Second)
	}
	if c.KeepCompleted != None {
		k.within("keepCompleted", c.KeepCompleted, 1, MaxKeepRuns)
	}
	if c.KeepFailed != None {
		k.within("keepFailed", c.KeepFailed, 1, MaxKeepRuns)
	}
	for path, value := range map[string]string{"job.namespace": c.Job.Namespace, "job.name": c.Job.Name} {
		if value != "" {
			k.add(path, value, "is that of the cron job, or made of it; leave it away")
		}
	}
	if c.Job.Suspend {
		k.add("job.suspend", nil, "would have runs never begin; suspend the cron job")
	}
	job.Namespace, job.Name = DefaultNamespace, "run-0000000000"
	if isLabel(c.Namespace, 63) {
		job.Namespace = c.Namespace
	}
	for _, p := range job.problems() {
		path := "job"
		if p.Path != "" {
			path += "." + p.Path
		}
		if !slices.ContainsFunc(k.problems, func(q Problem) bool { return q.Path == path }) {
			p.Path = path
			k.problems = append(k.problems, p)
		}
	}
	if data, err := json.Marshal(c); err == nil && len(data) > MaxSpecBytes {
		k.add("", nil, "is %d bytes as JSON; at most %d, so put large content into an image or a volume", len(data), MaxSpecBytes)
	}
	return k.sorted(reflect.ValueOf(c))
}

// zoneOf is time.LoadLocation without the machine's own zone, which is another
// on each control plane.
func zoneOf(name string) (*time.Location, error) {
	if name == "Local" {
		return nil, fmt.Errorf("is another zone on each machine; name one, such as \"Europe/Berlin\"")
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("is not a time zone that is known here (%v); use an IANA name such as \"Europe/Berlin\"", err)
	}
	return zone, nil
}

// DecodeCronJob reads a CronJob from JSON as [DecodeService] reads a Service:
// strictly, with its defaults filled in, and with every mistake in a
// [*ValidationError].
func DecodeCronJob(data []byte) (CronJob, error) {
	var c CronJob
	problems := decode(data, reflect.ValueOf(&c).Elem())
	problems = judged(problems, c.problems)
	c = c.WithDefaults()
	if len(problems) > 0 {
		k := checks{problems: problems}
		return CronJob{}, &ValidationError{Object: c.object(), Problems: k.sorted(reflect.ValueOf(c))}
	}
	return c, nil
}
